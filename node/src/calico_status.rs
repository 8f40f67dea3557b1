//! CalicoNodeStatus: what somebody asks of this node is written into the status of the resource that asks, once or every
//! so many seconds. What is written is made by pure functions from what the speaker and felix report.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use brindle_config::sync;
use brindle_config_core::{
    Key, Kind,
    node_status::{
        AGENT, AgentState, BGP, BgpState, CalicoNodeStatusSpec, CalicoNodeStatusStatus, DaemonState,
        LearnedFrom, PeerState, ROUTES, RouteState, RoutesState,
    },
    status::{
        BgpStatus, EncapPath, PeerStatus,
        bgp::{BgpPath, BgpRequest, RouteTable},
    },
    store::{Expect, Store, StoreError, StoreExt as _, SyncEvent, decode},
    time::Now,
    workload::WorkloadEndpointSpec,
};
use ipnet::IpNet;
use tokio::time::{Instant as Moment, sleep_until};

use crate::cni_server::now;

/// Something asked for more often is written this often.
const SHORTEST: Duration = Duration::from_secs(1);
/// What could not be written is tried again after this.
const AGAIN: Duration = Duration::from_secs(10);
/// More routes of one family than this are left out: a resource has a size.
const MOST_ROUTES: usize = 2_500;

/// Whom to ask.
#[derive(Clone)]
pub(crate) struct Sources {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) node: String,
    pub(crate) felix: brindle_felix::Handle,
    pub(crate) bgp: Option<brindle_bgpd::Handle>,
    pub(crate) started: Instant,
    /// Changes whenever the speaker has taken another configuration.
    pub(crate) configured: Option<tokio::sync::watch::Receiver<Option<Vec<brindle_bgpd::peers::Problem>>>>,
}

/// One resource that asks this node.
struct Asked {
    spec: CalicoNodeStatusSpec,
    /// `None`: answered for good.
    due: Option<Moment>,
}

/// Answers as long as the agent runs.
pub(crate) async fn keep(mut sources: Sources) {
    let mut events = sync::follow(Arc::clone(&sources.store), [Kind::CalicoNodeStatus]);
    let mut asked: BTreeMap<String, Asked> = BTreeMap::new();
    let mut configured = now();
    loop {
        let next = asked.values().filter_map(|a| a.due).min();
        let wait = async {
            match next {
                Some(due) => sleep_until(due).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            batch = events.recv() => {
                let Some(batch) = batch else { return };
                batch.into_iter().for_each(|event| note(&mut asked, event, &sources.node));
            }
            () = reconfigured(&mut sources.configured) => configured = now(),
            () = wait => {
                let late: Vec<String> = asked
                    .iter()
                    .filter(|(_, a)| a.due.is_some_and(|d| d <= Moment::now()))
                    .map(|(name, _)| name.clone())
                    .collect();
                for name in late {
                    let Some(a) = asked.get_mut(&name) else { continue };
                    let every = Duration::from_secs(u64::from(a.spec.update_period_seconds.unwrap_or(0)));
                    a.due = match answer(&sources, &name, &a.spec, configured).await {
                        Ok(()) if every.is_zero() => None,
                        Ok(()) => Some(Moment::now() + every.max(SHORTEST)),
                        Err(error) => {
                            tracing::warn!(%error, "cannot write the status of CalicoNodeStatus({name}); trying again");
                            Some(Moment::now() + every.max(AGAIN))
                        }
                    };
                }
            }
        }
    }
}

/// Completes when the speaker was configured anew.
async fn reconfigured(
    watch: &mut Option<tokio::sync::watch::Receiver<Option<Vec<brindle_bgpd::peers::Problem>>>>,
) {
    let changed = match watch {
        Some(w) => w.changed().await.is_ok(),
        None => false,
    };
    if !changed {
        // There is no speaker any more.
        std::future::pending::<()>().await;
    }
}

/// Takes a change of what is asked. A status that was written is none.
fn note(asked: &mut BTreeMap<String, Asked>, event: SyncEvent, node: &str) {
    let entry = match event {
        SyncEvent::Upsert(e) => e,
        SyncEvent::Delete(key) => return drop(asked.remove(&key.name)),
        SyncEvent::InSync => return,
    };
    let name = entry.key.name.clone();
    let spec = decode::<CalicoNodeStatusSpec>(&entry).map(|found| found.resource.spec);
    match spec {
        Ok(spec) if spec.node == node => {
            if asked.get(&name).is_none_or(|a| a.spec != spec) {
                asked.insert(name, Asked { spec, due: Some(Moment::now()) });
            }
        }
        Ok(_) => drop(asked.remove(&name)),
        Err(error) => {
            tracing::debug!(%error, "not answered");
            asked.remove(&name);
        }
    }
}

/// Writes one status.
async fn answer(
    sources: &Sources,
    name: &str,
    spec: &CalicoNodeStatusSpec,
    configured: Now,
) -> Result<(), StoreError> {
    let status = gather(sources, spec, configured).await;
    let key = Key::new(Kind::CalicoNodeStatus, None, name);
    let found = match sources.store.get(&key).await {
        Ok(found) => found,
        Err(StoreError::NotFound(_)) => return Ok(()),
        Err(e) => return Err(e),
    };
    let mut value = (*found.value).clone();
    if let Some(all) = value.as_object_mut() {
        let status = serde_json::to_value(status).expect("a status has string keys and no floats");
        all.insert("status".into(), status);
    }
    match sources.store.put(&key, value, Expect::Revision(found.revision)).await {
        Ok(_) | Err(StoreError::NotFound(_)) => Ok(()),
        Err(e) => Err(e),
    }
}

async fn gather(sources: &Sources, spec: &CalicoNodeStatusSpec, configured: Now) -> CalicoNodeStatusStatus {
    let wants = |class: &str| spec.classes.iter().any(|c| c == class);
    let at = now();
    let mut status = CalicoNodeStatusStatus { last_updated: Some(at.rfc3339()), ..Default::default() };
    let speaker = match &sources.bgp {
        Some(bgp) => bgp.status().await.ok(),
        None => None,
    };
    if wants(AGENT) {
        let booted = before(at, sources.started.elapsed());
        status.agent = Some(agent(speaker.as_ref(), booted, configured.max(booted)));
    }
    if wants(BGP) {
        status.bgp = Some(sessions(speaker.as_ref().map_or(&[], |s| &s.peers), at));
    }
    if wants(ROUTES) {
        let paths = match &sources.bgp {
            Some(bgp) => paths(bgp).await,
            None => Vec::new(),
        };
        let report = sources.felix.report();
        let pods = pods(sources).await;
        let peers = speaker.as_ref().map_or(&[][..], |s| &s.peers);
        let known = Known { peers, devices: &report.devices, ways: &report.encap.paths };
        status.routes = Some(routes(&paths, &pods, &known));
    }
    status
}

fn before(at: Now, by: Duration) -> Now {
    Now(at.0.saturating_sub(u64::try_from(by.as_nanos()).unwrap_or(u64::MAX)))
}

/// `2026-11-26 07:59:06`.
fn written(at: Now) -> String {
    at.rfc3339().replace('T', " ").trim_end_matches('Z').to_owned()
}

fn agent(speaker: Option<&BgpStatus>, booted: Now, configured: Now) -> AgentState {
    let daemon = match speaker {
        None => DaemonState { state: "NotReady".into(), ..DaemonState::default() },
        Some(s) => DaemonState {
            // Without an identity it speaks to nobody.
            state: if s.asn == 0 { "NotReady" } else { "Ready" }.into(),
            version: format!("brindle {}", env!("CARGO_PKG_VERSION")),
            router_id: s.router_id.clone(),
            last_boot_time: written(booted),
            last_reconfiguration_time: written(configured),
        },
    };
    // One speaker for both families.
    AgentState { bird_v4: daemon.clone(), bird_v6: daemon }
}

/// The type of a session in Calico's words; none for those with pods, which Calico leaves out as well.
fn peer_type(kind: &str) -> Option<&'static str> {
    match kind {
        "mesh" => Some("NodeMesh"),
        "node" => Some("NodePeer"),
        "workload" => None,
        _ => Some("GlobalPeer"),
    }
}

fn sessions(peers: &[PeerStatus], at: Now) -> BgpState {
    let mut state = BgpState::default();
    for p in peers {
        let Some(kind) = peer_type(&p.kind) else { continue };
        let (up, down, list) = if p.address.is_ipv4() {
            (&mut state.established_v4, &mut state.not_established_v4, &mut state.peers_v4)
        } else {
            (&mut state.established_v6, &mut state.not_established_v6, &mut state.peers_v6)
        };
        *(if p.state == "Established" { up } else { down }) += 1;
        list.push(PeerState {
            peer_ip: p.address.to_string(),
            kind: kind.into(),
            state: p.state.clone(),
            since: written(before(at, Duration::from_millis(p.since_ms))),
        });
    }
    state
}

/// What helps to name where a route comes from and goes to.
struct Known<'a> {
    peers: &'a [PeerStatus],
    devices: &'a BTreeMap<IpAddr, String>,
    ways: &'a [EncapPath],
}

const TUNNEL: &str = "tunl0";
const NONE: &str = "N/A";

fn routes(paths: &[BgpPath], pods: &[(IpNet, String)], known: &Known<'_>) -> RoutesState {
    let peers: BTreeMap<&str, &PeerStatus> = known.peers.iter().map(|p| (p.name.as_str(), p)).collect();
    let mut state = RoutesState::default();
    let mut add = |net: &IpNet, route: RouteState| {
        let list = if net.addr().is_ipv4() { &mut state.routes_v4 } else { &mut state.routes_v6 };
        if list.len() < MOST_ROUTES {
            list.push(route);
        }
    };
    for p in paths {
        let peer = p.peer.as_deref().and_then(|name| peers.get(name));
        let tunnelled = || {
            let way = known.ways.iter().find(|w| w.destination == p.prefix);
            way.is_some_and(|w| w.mode == "ipip")
        };
        let interface = match (p.next_hop, &p.peer) {
            (_, None) => "blackhole".to_owned(),
            (Some(_), _) if tunnelled() => TUNNEL.to_owned(),
            (Some(hop), _) => known.devices.get(&hop).cloned().unwrap_or_default(),
            (None, _) => String::new(),
        };
        let learned_from = match (&p.peer, peer) {
            (None, _) => LearnedFrom { source_type: "Static".into(), ..LearnedFrom::default() },
            (Some(_), peer) => LearnedFrom {
                source_type: if peer.is_some_and(|p| p.kind == "mesh") { "NodeMesh" } else { "BGPPeer" }
                    .into(),
                peer_ip: peer.map(|p| p.address.to_string()).unwrap_or_default(),
            },
        };
        let gateway = p.peer.as_ref().and(p.next_hop).map_or_else(|| NONE.to_owned(), |h| h.to_string());
        let kind = if p.best || p.multipath { "FIB" } else { "RIB" };
        add(
            &p.prefix,
            RouteState {
                kind: kind.into(),
                destination: p.prefix.to_string(),
                gateway,
                interface,
                learned_from,
            },
        );
    }
    for (net, interface) in pods {
        add(
            net,
            RouteState {
                kind: "FIB".into(),
                destination: net.to_string(),
                gateway: NONE.into(),
                interface: interface.clone(),
                learned_from: LearnedFrom { source_type: "Kernel".into(), ..LearnedFrom::default() },
            },
        );
    }
    for list in [&mut state.routes_v4, &mut state.routes_v6] {
        if list.len() >= MOST_ROUTES {
            tracing::debug!(
                most = MOST_ROUTES,
                "a status holds no more routes; brindlectl bgp rib shows all"
            );
        }
    }
    state
}

/// Pods of this node whose routes are in the kernel, by address.
async fn pods(sources: &Sources) -> Vec<(IpNet, String)> {
    let own = sources.store.for_node(&sources.node);
    let store = own.as_deref().unwrap_or(&*sources.store);
    let ready = sources.felix.report().ready;
    let Ok(all) = store.followed_or_listed(&[Kind::WorkloadEndpoint]).await else { return Vec::new() };
    let mut found = Vec::new();
    for entry in all.iter().filter(|e| ready.contains(&e.key)) {
        let Ok(endpoint) = decode::<WorkloadEndpointSpec>(entry) else { continue };
        let spec = endpoint.resource.spec;
        found.extend(spec.ip_networks.into_iter().map(|net| (net, spec.interface_name.clone())));
    }
    found.sort();
    found
}

/// Every path of the speaker.
async fn paths(bgp: &brindle_bgpd::Handle) -> Vec<BgpPath> {
    let request = BgpRequest::Routes { table: RouteTable::Rib, peer: None, prefix: None };
    let mut lines = Vec::new();
    if brindle_bgpd::ask::answer(bgp, request, &mut lines, std::future::pending()).await.is_err() {
        return Vec::new();
    }
    lines.split(|b| *b == b'\n').filter_map(|l| serde_json::from_slice(l).ok()).collect()
}

#[cfg(test)]
mod tests {
    use brindle_config_core::store::{Entry, Revision};
    use serde_json::{Value, json};

    use super::*;

    fn peer(name: &str, address: &str, kind: &str, state: &str) -> PeerStatus {
        PeerStatus {
            address: address.parse().unwrap(),
            name: name.into(),
            kind: kind.into(),
            asn: 64512,
            state: state.into(),
            since_ms: 60_000,
            received: 0,
            advertised: 0,
            last_error: None,
        }
    }

    fn peers() -> Vec<PeerStatus> {
        vec![
            peer("b", "192.0.2.2", "mesh", "Established"),
            peer("tor", "192.0.2.254", "global", "Active"),
            peer("own", "192.0.2.253", "node", "Idle"),
            peer("pod", "10.0.0.5", "workload", "Established"),
            peer("b6", "2001:db8::2", "mesh", "OpenSent"),
        ]
    }

    fn path(prefix: &str, peer: Option<&str>, hop: Option<&str>, best: bool) -> BgpPath {
        let mut value = json!({"prefix": prefix, "peer": peer, "nextHop": hop, "best": best, "multipath": false,
            "stale": false, "why": "", "origin": "IGP", "asPath": "", "localPref": null, "med": null,
            "communities": [], "largeCommunities": []});
        value["pathId"] = 0.into();
        serde_json::from_value(value).unwrap()
    }

    fn shown(value: impl serde::Serialize) -> String {
        serde_json::to_string_pretty(&value).unwrap()
    }

    #[test]
    fn the_speaker_stands_for_both_daemons() {
        let s = BgpStatus { asn: 64512, router_id: "192.0.2.1".into(), ..BgpStatus::default() };
        let state = agent(Some(&s), Now::from_secs(1_795_400_607), Now::from_secs(1_795_400_700));
        assert_eq!(state.bird_v4, state.bird_v6);
        insta::assert_snapshot!(shown(&state.bird_v4).replace(env!("CARGO_PKG_VERSION"), "VERSION"));
        assert_eq!(agent(None, Now(0), Now(0)).bird_v4.state, "NotReady");
        assert_eq!(agent(Some(&BgpStatus::default()), Now(0), Now(0)).bird_v4.state, "NotReady");
    }

    #[test]
    fn sessions_are_counted_by_family() {
        insta::assert_snapshot!(shown(sessions(&peers(), Now::from_secs(1_795_400_607))));
    }

    #[test]
    fn routes_have_their_teachers_and_devices() {
        let paths = [
            path("10.0.0.0/26", None, None, true),
            path("10.0.1.0/26", Some("b"), Some("192.0.2.2"), true),
            path("10.0.2.0/26", Some("tor"), Some("192.0.2.254"), true),
            path("10.0.2.0/26", Some("b"), Some("192.0.2.2"), false),
            path("fd00::40/122", Some("b6"), Some("2001:db8::2"), true),
        ];
        let pods = [("10.0.0.5/32".parse().unwrap(), "cali123".to_owned())];
        let devices = ["192.0.2.2", "192.0.2.254", "2001:db8::2"];
        let devices = devices.into_iter().map(|a| (a.parse().unwrap(), "eth0".to_owned())).collect();
        let ways = [EncapPath {
            destination: "10.0.1.0/26".parse().unwrap(),
            via: "192.0.2.2".parse().unwrap(),
            mode: "ipip".into(),
            why: String::new(),
        }];
        let known = Known { peers: &peers(), devices: &devices, ways: &ways };
        insta::assert_snapshot!(shown(routes(&paths, &pods, &known)));
        let many = vec![path("10.0.0.0/26", None, None, true); MOST_ROUTES + 1];
        assert_eq!(routes(&many, &[], &known).routes_v4.len(), MOST_ROUTES);
    }

    fn entry(name: &str, spec: Value, status: Value) -> SyncEvent {
        let value = json!({"apiVersion": "projectcalico.org/v3", "kind": "CalicoNodeStatus",
            "metadata": {"name": name}, "spec": spec, "status": status});
        let key = Key::new(Kind::CalicoNodeStatus, None, name);
        SyncEvent::Upsert(Entry { key, revision: Revision(1), value: Arc::new(value) })
    }

    #[tokio::test]
    async fn only_this_node_answers_and_its_own_answer_is_no_question() {
        let mut asked = BTreeMap::new();
        let spec = json!({"node": "a", "classes": ["BGP"], "updatePeriodSeconds": 10});
        note(&mut asked, entry("mine", spec.clone(), Value::Null), "a");
        note(&mut asked, entry("other", json!({"node": "b"}), Value::Null), "a");
        assert_eq!(asked.keys().collect::<Vec<_>>(), ["mine"]);
        let later = Moment::now() + Duration::from_secs(10);
        asked.get_mut("mine").unwrap().due = Some(later);
        note(&mut asked, entry("mine", spec, json!({"lastUpdated": "x"})), "a");
        assert_eq!(asked["mine"].due, Some(later));
        note(&mut asked, entry("mine", json!({"node": "a", "classes": ["Agent"]}), Value::Null), "a");
        assert!(asked["mine"].due.is_some_and(|d| d < later));
        note(&mut asked, entry("mine", json!({"node": "b"}), Value::Null), "a");
        assert!(asked.is_empty());
    }
}
