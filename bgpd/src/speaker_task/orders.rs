//! Orders to the speaker task: configuration as a whole or in part, questions, the end.

use std::{collections::BTreeMap, net::IpAddr};

use brindle_admin::defect::{guarded, words};
use brindle_bgpd_core::speaker::{
    Clear, ConnId, DynamicPeers, FibChange, Input, LocalRoute, Multipath, PeerConfig, PeerId, Routing,
    Speaker, SpeakerConfig,
};
use ipnet::IpNet;
use tokio::time::timeout;
use tracing::{debug, error, info, warn};

use super::SpeakerTask;
use crate::{
    conn::LINGER,
    fault,
    handle::{Desired, ListenError, Order, Seen},
    import::{Importer, Imports},
    keys::Wanted,
    view,
};

impl SpeakerTask {
    pub(super) fn order(&mut self, order: Order) {
        match order {
            Order::Apply(desired, answer) => {
                let errors = self.apply(*desired);
                // The asker may have gone; what it wanted is done all the same. So with the other answers.
                let _ = answer.send(errors);
            }
            Order::SetPeers(peers) => self.set_peers(peers),
            Order::SetLocalRoutes(routes) => {
                self.announced = routes;
                self.announce_all();
            }
            Order::NextHops(costs) => self.set_next_hops(costs),
            Order::Devices(devices) => {
                self.devices = Some(devices.clone());
                self.feed(Input::SetDevices(devices));
            }
            Order::Clear(peer, how, answer) => {
                fault::point("bgp.driver");
                let _ = answer.send(self.clear(peer, how));
            }
            Order::Coverage(leaving, answer) => self.look(|seen| {
                let covered = seen.speaker.map(|s| view::coverage(s, &leaving));
                let _ = answer.send(covered.unwrap_or_default());
            }),
            Order::Drain(answer) => {
                self.drain();
                let _ = answer.send(());
            }
            Order::Look(question) => self.look(question),
            Order::Archive(archive) => self.archive = Some(archive),
            Order::Shutdown(_) => {}
        }
    }

    /// A question, which only looks: when it meets a defect nothing is left halfway, and whoever asked is told.
    fn look(&mut self, question: impl FnOnce(&Seen<'_>)) {
        let seen = Seen {
            speaker: self.speaker.as_ref(),
            now: self.now(),
            tally: &self.tally,
            listeners: &self.listeners,
            refused: self.refused.total,
            client_arrivals: self.client_arrivals,
            defects: self.defects.total,
            services: &self.services,
            programs: self.fib.is_heard(),
            archive: self.archive.as_ref().map(crate::mrt::Archive::state),
        };
        if let Err(panic) = guarded(|| question(&seen)) {
            self.defects.total += 1;
            error!(
                what = words(&panic),
                "a question to the speaker met a defect and is not answered; please report it"
            );
        }
    }

    fn apply(&mut self, desired: Desired) -> Vec<ListenError> {
        let Adjustable { dynamic, multipath, routing } = self.become_who(desired.speaker);
        self.set_dynamic(dynamic);
        if self.speaker.as_ref().is_some_and(|s| s.config().multipath != multipath) {
            self.feed(Input::SetMultipath(multipath));
        }
        if let Some(old) = self.speaker.as_ref().map(|s| s.config().routing()).filter(|old| *old != routing) {
            info!(?old, new = ?routing, "routes are treated anew; sessions go on");
            self.feed(Input::SetRouting(routing));
            // Own routes get another LOCAL_PREF when they are said again.
            self.routes = None;
        }
        // Routes first: a session that comes up has them to send.
        self.set_imports(desired.imports);
        self.announced = desired.routes;
        self.announce_all();
        self.set_statics(desired.statics);
        self.services = desired.services;
        self.set_peers(desired.peers);
        if self.speaker.is_some() { self.listeners.apply(&desired.listen) } else { self.listeners.apply(&[]) }
    }

    /// Starts another speaker if this is another identity; what is left can be told to the present one.
    fn become_who(&mut self, wanted: Option<SpeakerConfig>) -> Adjustable {
        let (who, rest) = split(wanted);
        if who != self.identity {
            self.restart(who, rest.routing);
        }
        rest
    }

    pub(super) fn set_peers(&mut self, peers: Vec<PeerConfig>) {
        if self.peers.as_ref() == Some(&peers) {
            return;
        }
        self.peers = Some(peers.clone());
        self.feed(Input::SetPeers(peers));
        self.settings_changed();
        self.set_keys();
        if let Some(speaker) = &self.speaker {
            self.trouble.retain(|id, _| speaker.peer_config(*id).is_some());
            self.faults.retain(|id, _| speaker.peer_config(*id).is_some());
            self.warnings.retain(|id, _| speaker.peer_config(*id).is_some());
            self.tally.retain(|id| speaker.peer_config(id).is_some());
        }
    }

    fn set_dynamic(&mut self, dynamic: Vec<DynamicPeers>) {
        if self.speaker.as_ref().is_none_or(|s| s.config().dynamic == dynamic) {
            return;
        }
        self.feed(Input::SetDynamic(dynamic));
        self.settings_changed();
        self.set_keys();
    }

    /// Sockets may listen already: who has connected before is judged by the keys there were.
    fn set_keys(&mut self) {
        let wanted = self.speaker.as_ref().map(|s| {
            let peers = s.peer_ids().filter_map(|id| s.peer_config(id));
            Wanted::new(peers, &s.config().dynamic)
        });
        let waited = self.listeners.set_keys(wanted.unwrap_or_default());
        waited.into_iter().for_each(|report| self.report(report));
    }

    /// We are about to leave (RFC 8326); whoever waits for the peers to react, and then shuts down, is the caller.
    fn drain(&mut self) {
        self.draining = true;
        info!("draining: all routes are advertised again with GRACEFUL_SHUTDOWN");
        self.feed(Input::Drain);
    }

    /// Starts, changes or ends the reading of the kernel's routes.
    fn set_imports(&mut self, imports: Imports) {
        if self.importer.as_ref().map(|i| &i.imports) == Some(&imports) {
            return;
        }
        self.importer = None;
        if imports.rules.is_empty() {
            return;
        }
        match Importer::start(imports) {
            Ok(importer) => self.importer = Some(importer),
            Err(error) => {
                warn!(%error, "routes of the kernel are not announced until the next change of settings")
            }
        }
    }

    /// Tells the speaker its own routes: those of the configuration, and those of the kernel that are not among them.
    pub(super) fn announce_all(&mut self) {
        let mut routes = self.announced.clone();
        if let Some(importer) = &mut self.importer {
            let said: std::collections::HashSet<IpNet> = routes.iter().map(|r| r.prefix).collect();
            routes.extend(importer.routes().into_iter().filter(|r| !said.contains(&r.prefix)));
        }
        self.set_local_routes(routes);
    }

    pub(super) fn set_local_routes(&mut self, routes: Vec<LocalRoute>) {
        if self.routes.as_ref() == Some(&routes) {
            return;
        }
        self.routes = Some(routes.clone());
        self.feed(Input::SetLocalRoutes(routes));
    }

    /// Routes to peers behind a gateway. They come before what is learnt for the same address.
    pub(super) fn set_statics(&mut self, wanted: Vec<(IpAddr, IpAddr)>) {
        let wanted: BTreeMap<IpNet, IpAddr> = wanted.into_iter().map(|(p, g)| (p.into(), g)).collect();
        let old = std::mem::take(&mut self.statics);
        for prefix in old.keys().filter(|p| !wanted.contains_key(p)) {
            let next_hops = self.speaker.as_ref().map(|s| s.next_hops_to(*prefix)).unwrap_or_default();
            self.fib.change(FibChange { prefix: *prefix, next_hops, from: None });
        }
        for (prefix, gateway) in wanted.iter().filter(|(p, g)| old.get(p) != Some(g)) {
            self.fib.change(FibChange {
                prefix: *prefix,
                next_hops: [*gateway].into_iter().collect(),
                from: None,
            });
        }
        self.statics = wanted;
    }

    /// Tells the speaker what differs. Near is what it believes of a next hop it never heard of.
    fn set_next_hops(&mut self, costs: BTreeMap<IpAddr, Option<u32>>) {
        const NEAR: Option<u32> = Some(0);
        let costs: BTreeMap<IpAddr, Option<u32>> = costs
            .into_iter()
            // A peer behind a gateway of its own is reached by that.
            .filter(|(a, c)| *c != NEAR && !self.statics.contains_key(&IpNet::from(*a)))
            .collect();
        let old = std::mem::replace(&mut self.next_hops, costs.clone());
        let near_again = old.keys().filter(|a| !costs.contains_key(*a)).map(|a| (*a, NEAR));
        let changed = costs.iter().filter(|(a, c)| old.get(*a) != Some(*c)).map(|(a, c)| (*a, *c));
        for (address, cost) in near_again.chain(changed).collect::<Vec<_>>() {
            if cost.is_none() != old.get(&address).is_some_and(Option::is_none) {
                let (was, is) =
                    if cost.is_none() { ("reachable", "unreachable") } else { ("unreachable", "reachable") };
                info!(next_hop = %address, old = was, new = is, cause = "the host's routes", "next hop");
            }
            self.feed(Input::NextHop { address, cost });
        }
    }

    fn clear(&mut self, peer: PeerId, how: Clear) -> bool {
        if self.speaker.as_ref().is_none_or(|s| s.peer_config(peer).is_none()) {
            return false;
        }
        self.feed(Input::Clear { peer, how });
        true
    }

    /// Another identity is another speaker: the sessions of the old one end.
    fn restart(&mut self, config: Option<SpeakerConfig>, routing: Routing) {
        let was = self.speaker.is_some();
        if was {
            info!(old = ?self.identity, new = ?config, "the speaker's identity changed; sessions restart");
            self.feed(Input::Shutdown);
            self.settle();
            let links: Vec<ConnId> = self.links.keys().copied().collect();
            links.into_iter().for_each(|conn| self.close(conn));
            self.fib.reset();
        }
        // Nobody until the new one is there: where a defect is met on the way, the next order starts it.
        (self.speaker, self.identity) = (None, None);
        (self.peers, self.routes) = (None, None);
        self.statics.clear();
        self.draining = false;
        if was {
            fault::once("bgp.restart");
        }
        let who = config.clone();
        self.begin(config.map(|mut config| {
            config.set_routing(routing);
            config
        }));
        self.identity = who;
    }

    /// A speaker that knows nothing yet but what holds for any of this host.
    pub(super) fn begin(&mut self, config: Option<SpeakerConfig>) {
        self.trouble.clear();
        self.tally.retain(|_| false);
        self.speaker = config.map(|mut config| {
            config.seed = random();
            config.restarting |= std::mem::take(&mut self.restarting);
            if let Some(recorder) = &mut self.recorder {
                recorder.speaker(&config);
            }
            with_fault(Speaker::new(config))
        });
        // What is known of the host holds for any speaker.
        let costs = std::mem::take(&mut self.next_hops);
        self.set_next_hops(costs);
        if let Some(devices) = self.devices.clone() {
            self.feed(Input::SetDevices(devices));
        }
    }

    pub(super) async fn shutdown(&mut self) {
        info!("BGP shuts down: every session ends with Cease");
        self.listeners.apply(&[]);
        self.feed(Input::Shutdown);
        self.settle();
        let links: Vec<ConnId> = self.links.keys().copied().collect();
        links.into_iter().for_each(|conn| self.close(conn));
        let all = async { while self.tasks.join_next().await.is_some() {} };
        if timeout(LINGER, all).await.is_err() {
            debug!("some peers did not take their NOTIFICATION in time");
        }
    }
}

/// What may change without another identity.
struct Adjustable {
    dynamic: Vec<DynamicPeers>,
    multipath: Multipath,
    routing: Routing,
}

/// Who we are, as far as peers have agreed to it, and the rest.
fn split(speaker: Option<SpeakerConfig>) -> (Option<SpeakerConfig>, Adjustable) {
    const ONE: Multipath = Multipath::up_to(1);
    const NONE: Routing = Routing { cluster_id: None, local_pref: 0, max_paths: 0 };
    let Some(mut speaker) = speaker else {
        return (None, Adjustable { dynamic: Vec::new(), multipath: ONE, routing: NONE });
    };
    let rest = Adjustable {
        dynamic: std::mem::take(&mut speaker.dynamic),
        multipath: std::mem::replace(&mut speaker.multipath, ONE),
        routing: speaker.routing(),
    };
    speaker.set_routing(NONE);
    (Some(speaker), rest)
}

/// `BRINDLE_FAILPOINT=bgp.machine` or `bgp.tables`: who announces 203.0.113.0/24 meets a defect there. Debug builds only.
#[cfg(debug_assertions)]
fn with_fault(mut speaker: Speaker) -> Speaker {
    use brindle_bgpd_core::speaker::Fault;
    let point = std::env::var("BRINDLE_FAILPOINT").unwrap_or_default();
    let place = [("bgp.machine", false), ("bgp.tables", true)].into_iter().find(|(name, _)| *name == point);
    let prefix = ipnet::Ipv4Net::new_assert([203, 0, 113, 0].into(), 24);
    if let Some((_, in_tables)) = place {
        speaker.set_fault(Fault { in_tables, prefix });
    }
    speaker
}

#[cfg(not(debug_assertions))]
const fn with_fault(speaker: Speaker) -> Speaker {
    speaker
}

/// Seed for jitter and hash tables: the standard library's random hash keys, which need no further dependency.
fn random() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(0u8)
}
