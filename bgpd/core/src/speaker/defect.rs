//! Defects of our own: whom the speaker was serving when it panicked, and how that neighbor is put aside.
//!
//! The driver catches the panic. What was touched tells what can be trusted: in a neighbor's state machine nothing else was,
//! so that machine is thrown away and all others go on; in the tables everybody's routes were, so the speaker as a whole is
//! thrown away, and a new one begins as after a graceful restart. In both cases [`Input::Defect`](super::Input::Defect)
//! keeps the neighbor away for a while: what it sends would most likely do the same again.

use std::{
    collections::VecDeque,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use super::{ConnId, DynamicPeers, Event, Output, PeerConfig, PeerId, Speaker};
use crate::{
    af::PerFamily,
    fsm::{Cease, Peer, Stop},
    time::Mono,
    wire::Message,
};

/// Who is being served.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Work {
    /// Nobody in particular: settings, own routes, questions.
    #[default]
    Nobody,
    /// The state machine of this neighbor, and nothing else.
    Machine(PeerId),
    /// What all share, for this neighbor.
    Tables(PeerId),
}

/// A defect that tests put in; debug builds only. An UPDATE with this prefix, from anybody, meets it.
#[cfg(debug_assertions)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// In the tables, halfway; otherwise in the state machine.
    pub in_tables: bool,
    pub prefix: ipnet::Ipv4Net,
}

impl Speaker {
    /// Who was being served when [`Speaker::handle`], [`Speaker::on_time`] or [`Speaker::next_update`] did not return.
    pub const fn at_work(&self) -> Work {
        match self.work {
            // What else the input was about is undone.
            Work::Machine(id) if !self.for_one => Work::Tables(id),
            work => work,
        }
    }

    /// Makes the speaker panic where a test wants it to.
    #[cfg(debug_assertions)]
    pub const fn set_fault(&mut self, fault: Fault) {
        self.fault = Some(fault);
    }

    #[cfg(debug_assertions)]
    pub(super) fn strike(&self, in_tables: bool, update: &crate::wire::Update) {
        let Some(fault) = self.fault.filter(|f| f.in_tables == in_tables) else { return };
        let met = update.reach.iter().any(|r| match &r.prefixes {
            crate::wire::Prefixes::V4(list) => list.iter().any(|n| n.prefix == fault.prefix),
            crate::wire::Prefixes::V6(_) => false,
        });
        assert!(!met, "a defect that a test put in");
    }

    /// See [`Input::Defect`](super::Input::Defect).
    pub(super) fn put_aside(
        &mut self,
        now: Mono,
        (remote, interface): (SocketAddr, Option<&str>),
        what: String,
        seconds: u32,
        out: &mut VecDeque<Output>,
    ) {
        // Of a neighbor whose machine did not return.
        self.actions.clear();
        let Some(id) = self.at(remote, interface).or_else(|| self.guest(now, remote.ip())) else { return };
        let conns: Vec<ConnId> = self.conns.iter().filter(|(_, p)| **p == id).map(|(c, _)| *c).collect();
        let text = format!("internal error; back in {seconds} s");
        for conn in conns {
            self.conns.remove(&conn);
            let goodbye = Stop::with_text(Cease::AdministrativeReset, &text).notification();
            out.push_back(Output::Send { conn, message: Message::Notification(goodbye) });
            out.push_back(Output::Close { conn });
        }
        let seed = self.jitter.next();
        let Some(peer) = self.peers.get_mut(&id) else { return };
        let old = peer.fsm.state();
        peer.fsm = Peer::new(Arc::clone(peer.fsm.config()), seed);
        let up = peer.up.take();
        peer.kept_nothing();
        peer.start_at = Some(now.plus_ms(u64::from(seconds) * 1_000));
        peer.last_error = Some(what.clone());
        if up.is_some() {
            peer.ended = Some((now, what.clone()));
        }
        let name = peer.fsm.config().name.clone();
        let what = format!("{what}; the session is down for {seconds} s, the others go on");
        out.push_back(Output::Event(Event::Warning { peer: id, name, what }));
        if let Some(up) = up {
            self.rib.peer_down(&up.rib, PerFamily::default(), PerFamily::default());
        }
        self.rib.forget(id);
        self.sync.touch();
        self.after(now, id, old, out);
    }

    fn at(&self, remote: SocketAddr, interface: Option<&str>) -> Option<PeerId> {
        let here = self.by_address.get(&remote.ip().to_canonical())?;
        let is_it =
            |c: &PeerConfig| c.port == remote.port() && c.scope().is_none_or(|d| interface == Some(d));
        here.iter().copied().find(|id| self.peer_config(*id).is_some_and(is_it))
    }

    /// A neighbor of a range that this speaker has not met yet.
    fn guest(&mut self, now: Mono, address: IpAddr) -> Option<PeerId> {
        let cfg = DynamicPeers::of(&self.cfg.dynamic, address)?.peer(address);
        let id = self.insert(now, cfg);
        self.peers.get_mut(&id)?.dynamic = true;
        Some(id)
    }
}
