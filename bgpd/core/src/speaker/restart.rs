//! Graceful restart (RFC 4724), both sides.
//!
//! Helper: a session lost by its transport, without a NOTIFICATION, leaves its routes in place as stale until the
//! neighbor is back and has sent End-of-RIB, or its restart time is over.
//!
//! Restarting: selection and advertisement wait until the neighbors have sent their routes, so that forwarding goes on
//! with what the kernel still has. [`Output::FibInSync`] tells when that is no longer needed.

use std::collections::VecDeque;

use super::{Event, Output, PeerId, Speaker, neighbor::Up};
use crate::{
    af::{Family, PerFamily},
    fsm::Down,
    time::Mono,
};

/// Time for a neighbor that is back to send End-of-RIB.
const STALE_MS: u64 = 360_000;
/// Time for the first routes of a neighbor that will not send End-of-RIB.
const QUIET_MS: u64 = 3_000;

/// How far the speaker is on the way to a complete RIB.
#[derive(Debug, Default)]
pub(super) struct Sync {
    peers_known: bool,
    routes_known: bool,
    /// When both were known.
    started: Option<Mono>,
    /// Selection is on (always, unless we restart gracefully).
    released: bool,
    done: bool,
    /// Something has happened that may end the wait.
    touched: bool,
    next: Option<Mono>,
}

/// Whether a neighbor has sent all it has.
enum Progress {
    Complete,
    /// It will be taken as complete then.
    At(Mono),
    /// It waits for us as we wait for it: it restarts, too.
    Mutual,
    Awaited,
    NotUp,
}

impl Sync {
    pub(super) const fn peers_known(&mut self) {
        self.peers_known = true;
        self.touched = true;
    }

    pub(super) const fn routes_known(&mut self) {
        self.routes_known = true;
        self.touched = true;
    }

    pub(super) const fn touch(&mut self) {
        self.touched = true;
    }

    pub(super) const fn released(&self) -> bool {
        self.released
    }

    pub(super) const fn done(&self) -> bool {
        self.done
    }

    pub(super) const fn deadline(&self) -> Option<Mono> {
        if self.done { None } else { self.next }
    }
}

impl Speaker {
    /// Whether the peers' routes are complete, or were waited for long enough.
    pub const fn converged(&self) -> bool {
        self.sync.done()
    }

    /// Ends the wait if it is time; true once: when everything is in.
    pub(super) fn check_sync(&mut self, now: Mono) -> bool {
        // A speaker that has said goodbye knows nothing that would justify a sweep.
        if self.stopped
            || self.sync.done
            || !(self.sync.touched || self.sync.next.is_some_and(|at| at <= now))
        {
            return false;
        }
        self.sync.touched = false;
        if !(self.sync.peers_known && self.sync.routes_known) {
            return false;
        }
        let started = *self.sync.started.get_or_insert(now);
        let settle = started.plus_ms(u64::from(self.cfg.sync_settle) * 1_000);
        let limit = started.plus_ms(u64::from(self.cfg.sync_wait) * 1_000);
        let mut next = if now < settle { settle.min(limit) } else { limit };
        let (mut selectable, mut complete) = (true, true);
        for progress in self.peers.values().map(|p| self.progress(now, p)) {
            match progress {
                Progress::Complete => {}
                Progress::NotUp if now >= settle => {}
                Progress::Mutual => complete = false,
                Progress::At(at) => {
                    next = next.min(at);
                    (selectable, complete) = (false, false);
                }
                Progress::NotUp | Progress::Awaited => (selectable, complete) = (false, false),
            }
        }
        if now >= limit {
            (selectable, complete) = (true, true);
        }
        self.sync.next = Some(next);
        if selectable && !self.sync.released {
            self.sync.released = true;
            self.rib.release();
        }
        if complete {
            self.sync.done = true;
        }
        complete
    }

    fn progress(&self, now: Mono, peer: &super::neighbor::Neighbor) -> Progress {
        let Some(up) = &peer.up else { return Progress::NotUp };
        if Family::ALL.into_iter().all(|f| up.eor[f] || !up.session.families[f]) {
            return Progress::Complete;
        }
        match &up.session.restart {
            Some(r) if r.restarting => Progress::Mutual,
            Some(_) => Progress::Awaited,
            None => {
                let at = up.since.plus_ms(QUIET_MS);
                if now >= at { Progress::Complete } else { Progress::At(at) }
            }
        }
    }

    /// Families whose routes outlive the session.
    pub(super) fn keep(&self, down: &Down, up: &Up) -> PerFamily<bool> {
        let restart = up.session.restart.filter(|r| down.transport_lost && r.time > 0 && !self.stopped);
        PerFamily::from_fn(|f| restart.is_some_and(|r| r.preserved[f].is_some()))
    }

    /// The session is lost; `kept` routes of it are stale now.
    pub(super) fn suspend(
        &mut self,
        now: Mono,
        id: PeerId,
        up: &Up,
        kept: usize,
        out: &mut VecDeque<Output>,
    ) {
        let Some(peer) = self.peers.get_mut(&id) else { return };
        peer.stale_until = None;
        if let (Some(r), true) = (up.session.restart, kept > 0) {
            peer.stale_until = Some(now.plus_ms(u64::from(r.time) * 1_000));
            say(out, peer, format!("routes kept for {} s while it restarts", r.time), kept);
        }
    }

    /// The neighbor is back: what it has not preserved goes at once.
    pub(super) fn resume(&mut self, now: Mono, id: PeerId, out: &mut VecDeque<Output>) {
        let Some(peer) = self.peers.get_mut(&id) else { return };
        if peer.stale_until.is_none() {
            return;
        }
        let Some(up) = &peer.up else { return };
        let mut left = 0;
        for family in Family::ALL {
            let preserved = up.session.restart.is_some_and(|r| r.preserved[family] == Some(true));
            if preserved && up.session.families[family] {
                left += self.rib.counts(id, family).stale;
                continue;
            }
            let gone = self.rib.drop_stale(id, family);
            if gone > 0 {
                say(
                    out,
                    peer,
                    "routes dropped: the neighbor did not preserve its forwarding state".into(),
                    gone,
                );
            }
        }
        peer.stale_until = (left > 0).then(|| now.plus_ms(STALE_MS));
    }

    /// The neighbor has sent all it has: what it did not repeat is gone.
    pub(super) fn end_of_rib(&mut self, id: PeerId, family: Family, out: &mut VecDeque<Output>) {
        self.sync.touch();
        let Some(peer) = self.peers.get_mut(&id) else { return };
        if peer.stale_until.is_none() {
            return;
        }
        let gone = self.rib.drop_stale(id, family);
        say(out, peer, "restart complete; routes that did not come back dropped".into(), gone);
        if Family::ALL.into_iter().all(|f| self.rib.counts(id, f).stale == 0) {
            peer.stale_until = None;
        }
    }

    /// The time for stale routes may be over.
    pub(super) fn stale_time(&mut self, now: Mono, id: PeerId, out: &mut VecDeque<Output>) {
        let Some(peer) = self.peers.get_mut(&id) else { return };
        if peer.stale_until.is_none_or(|at| at > now) {
            return;
        }
        peer.stale_until = None;
        let gone = Family::ALL.into_iter().map(|f| self.rib.drop_stale(id, f)).sum();
        say(out, peer, "restart time over; routes dropped".into(), gone);
    }
}

fn say(out: &mut VecDeque<Output>, peer: &super::neighbor::Neighbor, what: String, routes: usize) {
    let name = peer.fsm.config().name.clone();
    out.push_back(Output::Event(Event::Restart { peer: peer.id, name, what, routes }));
}
