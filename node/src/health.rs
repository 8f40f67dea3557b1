//! Whether the agent lives and is ready, with the reason of each check; answered over HTTP (`/livez`, `/readyz`, and
//! Felix' `/liveness`, `/readiness`) and over the admin socket (`brindle-node probe`).
//!
//! Live: the threads that do the work answer. Ready: the datastore was read, routes and policy are in the kernel, and
//! BGP was tried with every peer. A peer that is away makes this node unready only for the first [`GRACE`], so that a
//! rolling update waits for the sessions to come back; after that its absence is its own affair (calico-node's
//! readiness in contrast wants one session, whoever is to blame). A node the speaker cannot speak for is never ready.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use brindle_admin::http::{self, Answer};
use brindle_bgpd::peers::Problem;
use brindle_config_core::{
    Key, Kind,
    status::{
        BgpStatus, PeerStatus,
        health::{Check, Health, Probe},
    },
};
use brindle_felix::{FelixInput, Report, policy::PolicyReport};
use tokio::{net::TcpListener, sync::oneshot, time::timeout};

use crate::{drain::Drain, waiting::Wait};

/// How long a part may take to answer before it counts as stuck.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long sessions are waited for after the start.
pub(crate) const GRACE: Duration = Duration::from_secs(30);

/// What the speaker cannot do as configured.
pub(crate) type BgpProblems = tokio::sync::watch::Receiver<Option<Vec<Problem>>>;

/// Whom to ask.
#[derive(Clone)]
pub(crate) struct Sources {
    pub(crate) felix: brindle_felix::Handle,
    pub(crate) policy: brindle_felix::policy::PolicyHandle,
    pub(crate) bgp: Option<brindle_bgpd::Handle>,
    pub(crate) bgp_problems: Option<BgpProblems>,
    /// This node's name.
    pub(crate) node: String,
    pub(crate) drain: Arc<Drain>,
    pub(crate) started: std::time::Instant,
    /// The agent waits for its datastore.
    pub(crate) waits: Option<Arc<Wait>>,
}

impl Sources {
    /// Asks everybody, at most [`PATIENCE`] each.
    pub(crate) async fn health(&self) -> Health {
        let (tx, rx) = oneshot::channel();
        let ask = async {
            self.felix.send(FelixInput::Ask(tx)).await.then_some(())?;
            rx.await.ok()
        };
        let felix = async { timeout(PATIENCE, ask).await.ok().flatten() };
        let bgp = async {
            match &self.bgp {
                Some(handle) => Some(timeout(PATIENCE, handle.status()).await.ok().and_then(Result::ok)),
                None => None,
            }
        };
        let (felix, bgp) = tokio::join!(felix, bgp);
        let own = self.own_problem();
        let bgp = Speaker { status: bgp, own, drain: self.drain.state() };
        let waits = self.waits.as_ref().map(|w| w.text());
        judge(felix.as_ref(), &self.policy.report(), bgp, waits, self.started.elapsed())
    }

    /// What keeps the speaker from speaking for this node. Problems with others are not this node's.
    fn own_problem(&self) -> Option<String> {
        let all = self.bgp_problems.as_ref()?.borrow();
        let own = Key::new(Kind::Node, None, &self.node);
        let said: Vec<String> =
            all.iter().flatten().filter(|p| p.about == own).map(ToString::to_string).collect();
        (!said.is_empty()).then(|| said.join("; "))
    }
}

/// What is known of the speaker.
struct Speaker {
    /// None if there is no speaker, `Some(None)` if it did not answer.
    status: Option<Option<BgpStatus>>,
    /// What is wrong with the configuration of its own node.
    own: Option<String>,
    /// Why there is no speaker any more.
    drain: Option<&'static str>,
}

/// What the answers mean. `felix`: none if it did not answer; `waits`: why the start is not over.
fn judge(
    felix: Option<&Report>,
    policy: &PolicyReport,
    speaker: Speaker,
    waits: Option<String>,
    uptime: Duration,
) -> Health {
    let Speaker { status: bgp, own, drain } = speaker;
    let check = |name: &str, vital, verdict: Result<String, String>| {
        let ok = verdict.is_ok();
        Check { name: name.into(), ok, vital, reason: verdict.unwrap_or_else(|e| e) }
    };
    let stuck = |what: &str| format!("{what} has not answered for {} s", PATIENCE.as_secs());
    let mut checks = Vec::new();
    checks.push(check(
        "felix",
        true,
        felix.map(|_| "answers".into()).ok_or_else(|| stuck("the route manager")),
    ));
    let speaker = match (drain, &bgp) {
        (Some(why), _) => Ok(why.to_owned()),
        (None, Some(None)) => Err(stuck("the speaker")),
        (None, Some(Some(_))) => Ok("answers".into()),
        (None, None) if waits.is_some() => Ok("starts when the datastore answers".into()),
        (None, None) => Ok("not asked for (--networking none)".into()),
    };
    checks.push(check("bgpd", true, speaker));
    if let Some(why) = waits {
        // The checks that follow would only say what comes of it.
        checks.push(check("datastore", false, Err(why)));
        return Health { checks };
    }
    if let Some(report) = felix {
        let read = report.pod_mtu != 0;
        let store = if read { Ok("read".into()) } else { Err("has not been read yet".into()) };
        checks.push(check("datastore", false, store));
        let routes = if !report.problems.is_empty() {
            Err(report.problems.join("; "))
        } else if report.routes.failed.is_empty() {
            Ok(format!("{} in the kernel", report.routes.desired))
        } else {
            Err(format!("refused by the kernel: {}", report.routes.failed.join("; ")))
        };
        checks.push(check("routes", false, routes));
    }
    let policy = if !policy.problems.is_empty() {
        Err(policy.problems.join("; "))
    } else if policy.in_sync {
        Ok("in force".into())
    } else {
        Err("has not been written yet".into())
    };
    checks.push(check("policy", false, policy));
    let sessions = match (drain, own, bgp) {
        (Some(why), ..) => Err(why.to_owned()),
        (None, Some(problem), _) => Err(problem),
        (None, None, Some(Some(status))) => sessions(&status.peers, uptime),
        (None, None, Some(None)) => Err("unknown: the speaker does not answer".into()),
        (None, None, None) => Ok("not asked for".into()),
    };
    checks.push(check("bgp", false, sessions));
    Health { checks }
}

/// What keeps the node from being ready, as far as a status with these reasons does not show it: routes that are refused
/// have their own place there, and what is missing before the datastore was read follows from that.
pub(crate) fn untold(health: &Health, reasons: &[String]) -> Vec<String> {
    let shown = |c: &&Check| {
        c.ok || matches!(&*c.name, "datastore" | "routes") || reasons.iter().any(|r| c.reason.contains(r))
    };
    let left = health.checks.iter().filter(|c| !shown(c));
    left.map(|c| format!("{}: {}", c.name, c.reason)).collect()
}

fn sessions(peers: &[PeerStatus], uptime: Duration) -> Result<String, String> {
    if peers.is_empty() {
        return Ok("no peers".into());
    }
    let down: Vec<&PeerStatus> = peers.iter().filter(|p| p.state != "Established").collect();
    let mut said = format!("{} of {} sessions established", peers.len() - down.len(), peers.len());
    if down.is_empty() {
        return Ok(said);
    }
    // A long list helps nobody.
    let named: Vec<String> = down.iter().take(5).map(|p| format!("{} {}", p.name, p.state)).collect();
    let more = down.len().saturating_sub(named.len());
    said += &format!("; not: {}", named.join(", "));
    if more > 0 {
        said += &format!(" and {more} more");
    }
    if uptime < GRACE {
        return Err(format!("{said}; waiting until {} s after the start", GRACE.as_secs()));
    }
    if down.iter().any(|p| p.state == "Idle" && p.last_error.is_none()) {
        return Err(format!("{said}; not all were tried yet"));
    }
    Ok(said)
}

/// Listens for probes.
pub(crate) async fn listen(address: SocketAddr) -> anyhow::Result<TcpListener> {
    let other = |e: std::io::Error| anyhow::anyhow!("{e} (does calico-node run on this node?)");
    http::listen("--health", address).await.map_err(other)
}

/// Serves until dropped.
pub(crate) async fn serve(listener: TcpListener, sources: Sources) {
    let answer = move |path: String| {
        let sources = sources.clone();
        async move {
            let probe = probe(&path)?;
            let health = sources.health().await;
            Some(Answer::text(health.ok(probe), health.text(probe)))
        }
    };
    http::serve(listener, "/livez and /readyz", answer).await;
}

fn probe(path: &str) -> Option<Probe> {
    match path {
        "/livez" | "/liveness" => Some(Probe::Live),
        "/readyz" | "/readiness" => Some(Probe::Ready),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(name: &str, state: &str, last_error: Option<&str>) -> PeerStatus {
        PeerStatus {
            address: "192.0.2.1".parse().unwrap(),
            name: name.into(),
            kind: "mesh".into(),
            asn: 64512,
            state: state.into(),
            since_ms: 0,
            received: 0,
            advertised: 0,
            last_error: last_error.map(Into::into),
        }
    }

    fn good() -> (Report, PolicyReport) {
        let report = Report { pod_mtu: 1480, ..Report::default() };
        (report, PolicyReport { in_sync: true, ..PolicyReport::default() })
    }

    fn failing(health: &Health) -> Vec<&str> {
        health.checks.iter().filter(|c| !c.ok).map(|c| c.name.as_str()).collect()
    }

    const LATER: Duration = Duration::from_secs(60);

    fn speaks(status: Option<Option<BgpStatus>>) -> Speaker {
        Speaker { status, own: None, drain: None }
    }

    #[test]
    fn a_node_that_does_everything_is_ready() {
        let (report, policy) = good();
        let health =
            judge(Some(&report), &policy, speaks(Some(Some(BgpStatus::default()))), None, Duration::ZERO);
        assert_eq!(failing(&health), [""; 0]);
        let health = judge(Some(&report), &policy, speaks(None), None, Duration::ZERO);
        assert!(health.ok(Probe::Ready), "{}", health.text(Probe::Ready));
    }

    #[test]
    fn each_part_that_is_not_there_yet_is_named() {
        let (report, policy) = good();
        let health = judge(Some(&Report::default()), &PolicyReport::default(), speaks(None), None, LATER);
        assert_eq!(failing(&health), ["datastore", "policy"]);
        assert!(health.ok(Probe::Live));
        let health = judge(None, &policy, speaks(Some(None)), None, LATER);
        assert_eq!(failing(&health), ["felix", "bgpd", "bgp"]);
        assert!(!health.ok(Probe::Live));
        let broken = Report { problems: vec!["no device eth0".into()], ..report };
        let health = judge(Some(&broken), &policy, speaks(None), None, LATER);
        assert!(health.text(Probe::Ready).contains("[-] routes: no device eth0"));
    }

    #[test]
    fn a_peer_that_is_away_counts_only_at_the_start() {
        let peers = [peer("n2", "Established", None), peer("n3", "Active", Some("refused"))];
        let early = sessions(&peers, Duration::from_secs(3)).unwrap_err();
        assert!(early.contains("1 of 2") && early.contains("n3 Active"), "{early}");
        assert!(sessions(&peers, LATER).unwrap().contains("1 of 2"));
        assert!(sessions(&[peer("n3", "Idle", None)], LATER).unwrap_err().contains("tried"));
        assert!(sessions(&peers[..1], Duration::ZERO).is_ok());
        let many: Vec<_> = (0..9).map(|i| peer(&format!("n{i}"), "Active", Some("x"))).collect();
        assert!(sessions(&many, LATER).unwrap().ends_with("and 4 more"));
    }

    #[test]
    fn a_status_says_what_keeps_the_node_from_being_ready_once() {
        let (report, policy) = good();
        let peers = vec![peer("n3", "Active", Some("refused"))];
        let bgp = || speaks(Some(Some(BgpStatus { peers: peers.clone(), ..BgpStatus::default() })));
        let early = judge(Some(&report), &PolicyReport::default(), bgp(), None, Duration::ZERO);
        let told = untold(&early, &[]);
        assert_eq!(told.len(), 2, "{told:?}");
        assert_eq!(told[0], "policy: has not been written yet");
        assert!(told[1].starts_with("bgp: 0 of 1 sessions established; not: n3 Active; waiting"), "{told:?}");
        assert!(untold(&judge(Some(&report), &policy, bgp(), None, LATER), &[]).is_empty());

        let own = "Node(n1): has no address".to_owned();
        let speaker = Speaker { own: Some(own.clone()), ..bgp() };
        assert!(untold(&judge(Some(&report), &policy, speaker, None, LATER), &[own]).is_empty());
        let nothing = judge(Some(&Report::default()), &policy, speaks(None), None, LATER);
        assert!(!nothing.ok(Probe::Ready) && untold(&nothing, &["starting".into()]).is_empty());
    }

    #[test]
    fn a_drained_node_is_live_and_not_ready() {
        let (report, policy) = good();
        let drained = Speaker { drain: Some("drained"), ..speaks(Some(None)) };
        let health = judge(Some(&report), &policy, drained, None, LATER);
        assert_eq!(failing(&health), ["bgp"]);
        assert!(health.ok(Probe::Live));
    }

    #[test]
    fn a_node_the_speaker_cannot_speak_for_is_live_and_not_ready() {
        let (report, policy) = good();
        let own = Some("Node(n1): has no address".to_owned());
        let speaker = Speaker { own, ..speaks(Some(Some(BgpStatus::default()))) };
        let health = judge(Some(&report), &policy, speaker, None, LATER);
        assert!(health.ok(Probe::Live));
        assert_eq!(failing(&health), ["bgp"]);
        assert!(health.text(Probe::Ready).contains("[-] bgp: Node(n1): has no address"));
    }

    #[test]
    fn a_node_that_waits_for_its_datastore_is_live_and_says_so() {
        let waits = Some("waits".to_owned());
        let health =
            judge(Some(&Report::default()), &PolicyReport::default(), speaks(None), waits.clone(), LATER);
        assert!(health.ok(Probe::Live));
        assert_eq!(failing(&health), ["datastore"]);
        assert!(health.text(Probe::Ready).contains("[-] datastore: waits"));
        let health = judge(None, &PolicyReport::default(), speaks(None), waits, LATER);
        assert!(!health.ok(Probe::Live));
    }

    #[test]
    fn felixs_paths_are_ours() {
        assert_eq!((probe("/liveness"), probe("/readiness")), (Some(Probe::Live), Some(Probe::Ready)));
        assert_eq!(
            (probe("/livez"), probe("/readyz"), probe("/")),
            (Some(Probe::Live), Some(Probe::Ready), None)
        );
    }
}
