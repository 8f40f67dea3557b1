//! The speaker: all peers and the RIB behind one `handle`. The driver owns sockets and the clock.
//!
//! ```text
//! socket -> reader (frames) -> Input::Message -> Speaker -> Output::{Send, Dial, Close, Fib, ..} -> driver
//! ```
//! The driver's loop is: wait for input | `deadline()` | room in an output queue; call `handle`, `on_time` or
//! `next_update`; drain `Output`s in order.

mod config;
mod defect;
mod dynamic;
mod io;
mod look;
mod neighbor;
mod options;
mod restart;
mod session;
mod status;

#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    net::{IpAddr, SocketAddr},
};

use bytes::BytesMut;

#[cfg(debug_assertions)]
pub use self::defect::Fault;
pub(crate) use self::io::TagNumbers;
pub use self::{
    defect::Work,
    io::*,
    options::*,
    status::{PeerStatus, SessionStatus},
};
use self::{neighbor::Neighbor, restart::Sync};
use crate::{
    fsm::{
        Action, Actions, Cease, ConnIds, Endpoints, Env, Identity, Jitter, PeerInput, Side, StateKind, Stop,
    },
    rib::Rib,
    time::Mono,
    wire::Message,
};

/// A BGP speaker.
#[derive(Debug)]
pub struct Speaker {
    cfg: SpeakerConfig,
    rib: Rib,
    peers: BTreeMap<PeerId, Neighbor>,
    by_address: BTreeMap<IpAddr, Vec<PeerId>>,
    conns: BTreeMap<ConnId, PeerId>,
    /// The next deadline of each peer that has one.
    timers: BTreeSet<(Mono, PeerId)>,
    ids: ConnIds,
    next_peer: u32,
    jitter: Jitter,
    actions: Actions,
    sync: Sync,
    stopped: bool,
    /// RFC 8326.
    draining: bool,
    /// Identifiers of dynamic neighbors that are gone.
    free: Vec<PeerId>,
    /// For whoever catches a panic.
    work: Work,
    /// The input is about one neighbor.
    for_one: bool,
    #[cfg(debug_assertions)]
    fault: Option<Fault>,
}

impl Speaker {
    /// A speaker without peers.
    pub fn new(cfg: SpeakerConfig) -> Self {
        Self {
            rib: Rib::new(cfg.clone()),
            peers: BTreeMap::new(),
            by_address: BTreeMap::new(),
            conns: BTreeMap::new(),
            timers: BTreeSet::new(),
            ids: ConnIds::default(),
            next_peer: 0,
            jitter: Jitter::new(cfg.seed),
            actions: Actions::new(),
            sync: Sync::default(),
            stopped: false,
            draining: false,
            free: Vec::new(),
            work: Work::Nobody,
            for_one: false,
            #[cfg(debug_assertions)]
            fault: None,
            cfg,
        }
    }

    /// Whether [`Output::Fib`] is wanted from now on; at first it is. A reflector that programs no routes need not find out
    /// where packets would go.
    pub const fn tell_forwarding(&mut self, wanted: bool) {
        self.rib.tell_forwarding(wanted);
    }

    /// One input.
    pub fn handle(&mut self, now: Mono, input: Input, out: &mut VecDeque<Output>) {
        self.work = Work::Nobody;
        self.for_one = input.is_for_one();
        match input {
            Input::SetPeers(peers) => self.set_peers(now, peers, out),
            Input::SetLocalRoutes(routes) => {
                self.sync.routes_known();
                self.rib.set_local(routes);
            }
            Input::Connected { conn, local, remote } => {
                let ends = Endpoints { local, remote, initiator: Side::Us };
                if !self.pass(now, conn, PeerInput::Connected(conn, ends), out) {
                    // Given up while it was under way.
                    out.push_back(Output::Close { conn });
                }
            }
            Input::Accepted { conn, local, remote, interface } => {
                self.accept(now, conn, (local, remote), interface.as_deref(), out);
            }
            Input::Disconnected { conn, reason } => {
                self.pass(now, conn, PeerInput::Lost(conn, reason), out);
                self.conns.remove(&conn);
            }
            Input::Message { conn, message } => {
                self.pass(now, conn, PeerInput::Message(conn, message), out);
            }
            Input::BadMessage { conn, notification, what } => {
                self.pass(now, conn, PeerInput::Bad(conn, notification, what), out);
            }
            Input::SendStalled { conn } => {
                self.pass(now, conn, PeerInput::SendStalled(conn), out);
            }
            Input::Heard { conn } => {
                self.pass(now, conn, PeerInput::Heard(conn), out);
            }
            Input::NextHop { address, cost } => {
                self.rib.set_next_hop(address, cost);
                self.sync.touch();
            }
            Input::SetDevices(devices) => {
                self.rib.set_devices(devices);
                self.sync.touch();
            }
            Input::Clear { peer, how } => self.clear(now, peer, how, out),
            Input::Reset { peer, text } => {
                self.reset(now, peer, Stop::with_text(Cease::AdministrativeReset, &text), out);
            }
            Input::SetDynamic(list) => self.set_dynamic(now, list, out),
            Input::SetMultipath(bounds) => {
                self.cfg.multipath = bounds;
                self.rib.set_multipath(bounds);
            }
            Input::SetRouting(routing) => self.set_routing(routing),
            Input::Defect { remote, interface, what, seconds } => {
                self.put_aside(now, (remote, interface.as_deref()), what, seconds, out);
            }
            Input::Drain => self.drain(),
            Input::Shutdown => {
                self.stopped = true;
                let all: Vec<PeerId> = self.peers.keys().copied().collect();
                for peer in all {
                    let stop = Stop::with_text(Cease::AdministrativeShutdown, &self.farewell(peer));
                    self.drive(now, peer, PeerInput::Stop(stop), out);
                }
            }
        }
        self.flush(now, out);
        self.work = Work::Nobody;
    }

    /// Everything that is due.
    pub fn on_time(&mut self, now: Mono, out: &mut VecDeque<Output>) {
        self.work = Work::Nobody;
        // Each timer stands for itself: those that were not come to are still in the index.
        self.for_one = true;
        while let Some((at, id)) = self.timers.first().copied()
            && at <= now
        {
            self.timers.pop_first();
            let Some(peer) = self.peers.get_mut(&id) else { continue };
            peer.armed = None;
            let old = peer.fsm.state();
            let me = identity(&self.cfg, &self.sync);
            let mut env = Env { now, me, ids: &mut self.ids };
            self.work = Work::Machine(id);
            peer.fsm.on_time(&mut env, &mut self.actions);
            self.work = Work::Tables(id);
            self.stale_time(now, id, out);
            self.refresh_time(now, id, out);
            self.start_time(now, id, out);
            self.after(now, id, old, out);
        }
        self.flush(now, out);
        self.work = Work::Nobody;
    }

    /// When `on_time` must be called next.
    pub fn deadline(&self) -> Option<Mono> {
        let timer = self.timers.first().map(|(at, _)| *at);
        timer.into_iter().chain(self.sync.deadline().filter(|_| !self.stopped)).min()
    }

    /// Appends UPDATEs for a connection to `buf`: about `limit` octets, at least one message if any waits. True:
    /// something was appended, ask again when it is written. False: nothing waits and nothing was appended;
    /// [`Output::Pending`] will say when that changes.
    pub fn next_update(&mut self, conn: ConnId, limit: usize, buf: &mut BytesMut) -> bool {
        let Some(peer) = self.conns.get(&conn).and_then(|id| self.peers.get(id)) else { return false };
        let id = peer.id;
        match &peer.up {
            Some(up) if up.conn == conn => {
                self.work = Work::Tables(id);
                let more = self.rib.pull(id, limit, buf);
                self.work = Work::Nobody;
                more
            }
            Some(_) | None => false,
        }
    }

    /// Gives an input to the peer that owns a connection; false if nobody does.
    fn pass(&mut self, now: Mono, conn: ConnId, input: PeerInput, out: &mut VecDeque<Output>) -> bool {
        match self.conns.get(&conn) {
            Some(id) => self.drive(now, *id, input, out),
            None => false,
        }
    }

    /// Gives an input to a peer and does what follows.
    fn drive(&mut self, now: Mono, id: PeerId, input: PeerInput, out: &mut VecDeque<Output>) -> bool {
        #[cfg(debug_assertions)]
        if let PeerInput::Message(_, Message::Update(update)) = &input {
            self.work = Work::Machine(id);
            self.strike(false, update);
        }
        let Some(peer) = self.peers.get_mut(&id) else { return false };
        let old = peer.fsm.state();
        let me = identity(&self.cfg, &self.sync);
        let mut env = Env { now, me, ids: &mut self.ids };
        self.work = Work::Machine(id);
        let known = peer.fsm.handle(&mut env, input, &mut self.actions);
        self.work = Work::Tables(id);
        self.after(now, id, old, out);
        known
    }

    /// Carries out the actions of a peer's state machine, reports its state, sets its timer.
    fn after(&mut self, now: Mono, id: PeerId, old: StateKind, out: &mut VecDeque<Output>) {
        let mut too_many = None;
        while let Some((conn, action)) = self.actions.pop_front() {
            match action {
                Action::Dial => {
                    self.conns.insert(conn, id);
                    if let Some(peer) = self.peers.get(&id) {
                        let cfg = peer.fsm.config();
                        out.push_back(Output::Dial {
                            conn,
                            peer: id,
                            to: SocketAddr::new(cfg.address, cfg.port),
                            from: cfg.local_address,
                            ttl: cfg.ttl,
                            password: cfg.password.clone(),
                            interface: cfg.session.interface.clone(),
                            hops: cfg.session.hops,
                        });
                    }
                }
                Action::Close => {
                    self.conns.remove(&conn);
                    out.push_back(Output::Close { conn });
                }
                Action::Send(message) => out.push_back(Output::Send { conn, message }),
                Action::Negotiated(s) => {
                    out.push_back(Output::Negotiated { conn, read: s.read, write: s.write });
                }
                Action::Up(session) => self.up(now, id, conn, session, out),
                Action::Down(down) => self.down(now, id, &down, out),
                Action::Deliver(update) => too_many = self.deliver(id, update, out).or(too_many),
                Action::Refresh(r) => self.refresh(now, id, r, out),
            }
        }
        if let Some(peer) = self.peers.get_mut(&id) {
            peer.report(now, old, out);
            let next = peer.deadline();
            if next != peer.armed {
                if let Some(at) = peer.armed {
                    self.timers.remove(&(at, id));
                }
                peer.armed = next;
                if let Some(at) = next {
                    self.timers.insert((at, id));
                }
            }
        }
        if let Some(excess) = too_many {
            self.put_down(now, id, excess, out);
        }
        self.retire(now, id, out);
    }

    /// Passes on what the RIB has to say.
    fn flush(&mut self, now: Mono, out: &mut VecDeque<Output>) {
        let in_sync = self.check_sync(now);
        out.extend(self.rib.take_ask().map(Output::Locate));
        out.extend(self.rib.take_fib().map(Output::Fib));
        if in_sync {
            out.push_back(Output::FibInSync);
        }
        for id in self.rib.take_ring() {
            if let Some(up) = self.peers.get(&id).and_then(|p| p.up.as_ref()) {
                out.push_back(Output::Pending { conn: up.conn });
            }
        }
    }

    /// Neighbors at an address, if it is one on this device where that matters.
    fn at_address<'a>(
        &'a self,
        remote: IpAddr,
        interface: Option<&str>,
    ) -> impl Iterator<Item = &'a Neighbor> {
        let here = self.by_address.get(&remote.to_canonical()).into_iter().flatten();
        here.filter_map(|id| self.peers.get(id))
            .filter(move |p| p.fsm.config().scope().is_none_or(|device| interface == Some(device)))
    }

    /// Whose connection this is, if somebody at an address connects to one of ours.
    fn expects(&self, local: IpAddr, remote: IpAddr, interface: Option<&str>) -> Option<&Neighbor> {
        let at = local.to_canonical();
        self.at_address(remote, interface)
            .filter(|p| p.fsm.config().local_address.is_none_or(|a| a == at))
            // Of several speakers at one address it is the one that is waited for; the others are connected to.
            .min_by_key(|p| !p.fsm.config().passive)
    }

    /// The settings for a connection that somebody makes to us: those of the neighbor it will be given to, or of the range
    /// its address is in. `None`: it will be refused.
    pub fn settings_for(
        &self,
        local: IpAddr,
        remote: IpAddr,
        interface: Option<&str>,
    ) -> Option<&PeerConfig> {
        match self.expects(local, remote, interface) {
            Some(p) => Some(p.fsm.config()),
            None => self.range_of(local, remote, interface).ok().map(|d| &d.template),
        }
    }

    /// Somebody connected to us.
    fn accept(
        &mut self,
        now: Mono,
        conn: ConnId,
        (local, remote): (SocketAddr, SocketAddr),
        interface: Option<&str>,
        out: &mut VecDeque<Output>,
    ) {
        let known = self.expects(local.ip(), remote.ip(), interface).map(|p| p.id);
        let id = match known {
            _ if self.stopped => Err("shutting down"),
            Some(id) => Ok(id),
            None => self.admit(now, (local.ip(), remote.ip()), interface, out),
        };
        let id = match id {
            Ok(id) => id,
            Err(why) => {
                out.push_back(Output::Event(Event::Refused { remote, why: why.into() }));
                // Strangers are not talked to; who is one of a range may know that it is full or shut down (RFC 4486).
                if !self.stopped && self.range_of(local.ip(), remote.ip(), interface).is_ok() {
                    let message = Message::Notification(Cease::ConnectionRejected.notification());
                    out.push_back(Output::Send { conn, message });
                }
                out.push_back(Output::Close { conn });
                return;
            }
        };
        if let Some(peer) = self.peers.get_mut(&id) {
            peer.pinned = false;
        }
        self.conns.insert(conn, id);
        let ends = Endpoints { local, remote, initiator: Side::Them };
        self.drive(now, id, PeerInput::Accepted(conn, ends), out);
    }
}

/// Who we are at this moment.
const fn identity(cfg: &SpeakerConfig, sync: &Sync) -> Identity {
    Identity {
        asn: cfg.asn,
        router_id: cfg.router_id,
        // Set on any start, as RFC 4724 section 3 has it: it lets a peer that has not noticed the end of the old session
        // take the new one instead, and tells it not to wait for us.
        restarting: !sync.released(),
        preserved: cfg.restarting || sync.done(),
    }
}
