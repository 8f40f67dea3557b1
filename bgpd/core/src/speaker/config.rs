//! The desired set of peers against the present one: what is new starts, what is gone stops, what has changed is
//! changed, and nobody else notices.

use std::{
    collections::{BTreeMap, VecDeque},
    net::IpAddr,
    sync::Arc,
};

use super::{Event, Input, Output, PeerConfig, PeerId, Speaker, neighbor::Neighbor};
use crate::{
    fsm::{Cease, PeerInput, StateKind, Stop},
    time::Mono,
};

/// What identifies a peer across configurations: address, port, and the device where the address is one on every link.
type Key = (IpAddr, u16, Option<String>);

fn key(cfg: &PeerConfig) -> Key {
    (cfg.address.to_canonical(), cfg.port, cfg.scope().map(str::to_owned))
}

/// Whether a session can go on under the new settings.
fn compatible(old: &PeerConfig, new: &PeerConfig, established: bool) -> bool {
    let mut old = old.clone();
    old.name.clone_from(&new.name);
    old.kind.clone_from(&new.kind);
    old.export.clone_from(&new.export);
    old.import.clone_from(&new.import);
    old.reflector_client = new.reflector_client;
    old.next_hop = new.next_hop;
    old.max_prefixes = new.max_prefixes;
    old.attributes = new.attributes;
    // Agreed on is whether there are identifiers, not how many.
    if old.add_path.send.is_some() && new.add_path.send.is_some() {
        old.add_path.send = new.add_path.send;
    }
    // What is not said in an OPEN and is no option of the socket.
    old.session.prefixes = new.session.prefixes;
    old.session.restart_limit = new.session.restart_limit;
    old.session.stale_time = new.session.stale_time;
    old.session.send_hold = new.session.send_hold;
    old.session.farewell.clone_from(&new.session.farewell);
    if established {
        // They matter when the next connection is made.
        old.passive = new.passive;
        old.connect_retry = new.connect_retry;
        old.session.delay_open = new.session.delay_open;
    }
    old == *new
}

/// Why settings cannot be used.
fn fault(cfg: &PeerConfig) -> Option<&'static str> {
    if cfg.asn == 0 {
        Some("AS 0 is reserved (RFC 7607)")
    } else if cfg.address.is_unspecified() || cfg.address.is_multicast() {
        Some("the address is no unicast address")
    } else if cfg.is_link_local() && cfg.session.interface.is_none() {
        Some("a link-local address needs an interface")
    } else {
        template_fault(cfg)
    }
}

impl PeerConfig {
    /// Whether every link may have its address.
    fn is_link_local(&self) -> bool {
        matches!(self.address, IpAddr::V6(a) if a.is_unicast_link_local())
    }

    /// The device without which the address means nothing.
    pub(super) fn scope(&self) -> Option<&str> {
        self.session.interface.as_deref().filter(|_| self.is_link_local())
    }
}

/// Why settings without an address cannot be used. AS 0 stands for any.
pub(super) fn template_fault(cfg: &PeerConfig) -> Option<&'static str> {
    if cfg.local_asn == Some(0) {
        Some("AS 0 is reserved (RFC 7607)")
    } else if cfg.families.is_empty() {
        Some("no address family")
    } else if matches!(cfg.hold_time, 1 | 2) {
        Some("a hold time of 1 or 2 seconds is not allowed (RFC 4271); use 0 or at least 3")
    } else {
        None
    }
}

impl Speaker {
    /// Makes the peers what `list` says ([`Input::SetPeers`]).
    pub(super) fn set_peers(&mut self, now: Mono, list: Vec<PeerConfig>, out: &mut VecDeque<Output>) {
        let mut wanted: BTreeMap<Key, PeerConfig> = BTreeMap::new();
        let mut order = Vec::with_capacity(list.len());
        for mut cfg in list {
            cfg.address = cfg.address.to_canonical();
            let name = cfg.name.clone();
            let what = match fault(&cfg) {
                Some(what) => Some(format!("neighbor {}: {what}", cfg.address)),
                None => {
                    let k = key(&cfg);
                    order.push(k.clone());
                    let other = wanted.insert(k.clone(), cfg);
                    other.map(|o| {
                        format!("{} is configured twice (as {} before): the last one counts", k.0, o.name)
                    })
                }
            };
            if let Some(what) = what {
                out.push_back(Output::Event(Event::Config { name, what }));
            }
        }
        let present: Vec<(PeerId, Key, bool)> =
            self.peers.values().map(|p| (p.id, key(p.fsm.config()), p.dynamic)).collect();
        for (id, k, dynamic) in present {
            if dynamic {
                // Whoever is listed now is no longer a guest.
                if wanted.keys().any(|w| w.0 == k.0) {
                    self.remove(now, id, out);
                }
                continue;
            }
            match wanted.remove(&k) {
                Some(cfg) => self.change(now, id, cfg, out),
                None => self.remove(now, id, out),
            }
        }
        for k in order {
            if let Some(cfg) = wanted.remove(&k) {
                self.add(now, cfg, out);
            }
        }
        self.sync.peers_known();
    }

    fn add(&mut self, now: Mono, cfg: PeerConfig, out: &mut VecDeque<Output>) {
        let down = cfg.session.shutdown.is_some();
        let id = self.insert(now, cfg);
        if down {
            self.drive(now, id, PeerInput::Stop(Cease::AdministrativeShutdown.into()), out);
        } else if !self.stopped {
            self.drive(now, id, PeerInput::Start, out);
        }
    }

    /// A neighbor that is not started.
    pub(super) fn insert(&mut self, now: Mono, cfg: PeerConfig) -> PeerId {
        let id = self.free.pop().unwrap_or_else(|| {
            self.next_peer += 1;
            PeerId(self.next_peer - 1)
        });
        self.by_address.entry(cfg.address).or_default().push(id);
        let seed = self.jitter.next();
        self.peers.insert(id, Neighbor::new(id, Arc::new(cfg), seed, now));
        id
    }

    pub(super) fn remove(&mut self, now: Mono, id: PeerId, out: &mut VecDeque<Output>) {
        if let Some(peer) = self.peers.get_mut(&id) {
            peer.pinned = true;
        }
        self.drive(now, id, PeerInput::Stop(Cease::PeerDeconfigured.into()), out);
        let Some(peer) = self.peers.remove(&id) else { return };
        if let Some(at) = peer.armed {
            self.timers.remove(&(at, id));
        }
        if let Some(ids) = self.by_address.get_mut(&peer.fsm.config().address) {
            ids.retain(|i| *i != id);
            if ids.is_empty() {
                self.by_address.remove(&peer.fsm.config().address);
            }
        }
        self.rib.forget(id);
        if peer.dynamic {
            self.free.push(id);
        }
        self.sync.touch();
    }

    pub(super) fn change(&mut self, now: Mono, id: PeerId, cfg: PeerConfig, out: &mut VecDeque<Output>) {
        let Some(peer) = self.peers.get_mut(&id) else { return };
        if **peer.fsm.config() == cfg {
            return;
        }
        let established = peer.fsm.state() == StateKind::Established;
        if !compatible(peer.fsm.config(), &cfg, established) {
            let pinned = std::mem::replace(&mut peer.pinned, true);
            let stop = match &cfg.session.shutdown {
                Some(text) => Stop::with_text(Cease::AdministrativeShutdown, text),
                None => Cease::ConfigurationChange.into(),
            };
            let down = cfg.session.shutdown.is_some();
            self.drive(now, id, PeerInput::Stop(stop), out);
            self.rib.forget(id);
            let seed = self.jitter.next();
            let Some(peer) = self.peers.get_mut(&id) else { return };
            peer.kept_nothing();
            peer.may_start();
            peer.pinned = pinned;
            peer.fsm = crate::fsm::Peer::new(Arc::new(cfg), seed);
            if down {
                self.drive(now, id, PeerInput::Stop(Cease::AdministrativeShutdown.into()), out);
            } else if !self.stopped {
                self.drive(now, id, PeerInput::Start, out);
            }
            return;
        }
        let old = peer.fsm.config();
        // The first import policy opens a session that was closed for want of one (RFC 8212), the last closes it.
        let opens = cfg.attributes.require_policy && old.import.is_empty() != cfg.import.is_empty();
        let again = opens || old.attributes.changes_import(&cfg.attributes);
        let down = cfg.session.shutdown.is_some();
        peer.fsm.set_config(Arc::new(cfg));
        let waits = !peer.fsm.started();
        self.treat_anew(id);
        let conn = self.peers.get(&id).and_then(|p| p.up.as_ref()).map(|up| up.conn);
        if let Some(excess) = conn.and_then(|conn| self.too_many(id, conn, out)) {
            // The new limit is one it is over already.
            self.put_down(now, id, excess, out);
        } else if waits && !down && !self.stopped {
            // It was down for what may have been changed now.
            self.reset(now, id, Cease::ConfigurationChange.into(), out);
        } else if again && !self.ask_again(id, out) {
            self.reset(now, id, Cease::ConfigurationChange.into(), out);
        } else if again && let Some(peer) = self.peers.get_mut(&id).filter(|p| p.up.is_none()) {
            // What is kept while it restarts cannot be asked for again.
            peer.kept_nothing();
            self.rib.forget(id);
        }
    }
}

impl Input {
    /// Whether nobody but one neighbor has to do with it.
    pub(super) const fn is_for_one(&self) -> bool {
        match self {
            Self::Connected { .. }
            | Self::Accepted { .. }
            | Self::Disconnected { .. }
            | Self::Message { .. }
            | Self::BadMessage { .. }
            | Self::SendStalled { .. }
            | Self::Heard { .. }
            | Self::Clear { .. }
            | Self::Reset { .. } => true,
            Self::SetPeers(_)
            | Self::SetLocalRoutes(_)
            | Self::NextHop { .. }
            | Self::SetDevices(_)
            | Self::SetDynamic(_)
            | Self::SetMultipath(_)
            | Self::SetRouting(_)
            | Self::Defect { .. }
            | Self::Drain
            | Self::Shutdown => false,
        }
    }

    /// A short name, for logs and recordings.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::SetPeers(_) => "SetPeers",
            Self::SetLocalRoutes(_) => "SetLocalRoutes",
            Self::Connected { .. } => "Connected",
            Self::Accepted { .. } => "Accepted",
            Self::Disconnected { .. } => "Disconnected",
            Self::Message { .. } => "Message",
            Self::BadMessage { .. } => "BadMessage",
            Self::SendStalled { .. } => "SendStalled",
            Self::Heard { .. } => "Heard",
            Self::NextHop { .. } => "NextHop",
            Self::SetDevices(_) => "SetDevices",
            Self::Clear { .. } => "Clear",
            Self::Reset { .. } => "Reset",
            Self::SetDynamic(_) => "SetDynamic",
            Self::SetMultipath(_) => "SetMultipath",
            Self::SetRouting(_) => "SetRouting",
            Self::Defect { .. } => "Defect",
            Self::Drain => "Drain",
            Self::Shutdown => "Shutdown",
        }
    }
}
