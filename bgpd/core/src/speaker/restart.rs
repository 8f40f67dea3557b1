//! Graceful restart (RFC 4724, 8538, 9494), both sides.
//!
//! Helper: a session lost by its transport, or (N bit on both sides) by a NOTIFICATION that is no Hard Reset, leaves its
//! routes in place as stale until the neighbor is back and has sent End-of-RIB, or its restart time is over. After that
//! they may be kept on as the last resort, marked LLGR_STALE, for the long-lived stale time of their family.
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
        // Nobody can tell who will come back from a range: all get the time of those that are listed and not up yet.
        if self.cfg.restarting && !self.cfg.dynamic.is_empty() && now < settle {
            (selectable, complete) = (false, false);
        }
        // Routes whose next hops somebody is looking for are as good as not here yet.
        complete &= !self.rib.waits_for_devices();
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
        let restart = up.session.restart.filter(|_| (down.transport_lost || down.soft) && !self.stopped);
        PerFamily::from_fn(|f| {
            restart.is_some_and(|r| (r.time > 0 && r.preserved[f].is_some()) || long_time(up, f).is_some())
        })
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
        let Some(r) = up.session.restart.filter(|_| kept > 0) else {
            peer.long_until = PerFamily::default();
            return;
        };
        let options = &peer.fsm.config().session;
        let seconds = r.time.min(options.restart_limit);
        // The times of a second loss before End-of-RIB go on from the first one (RFC 9494 section 4.3).
        peer.long_lived = PerFamily::from_fn(|f| long_time(up, f).map(|t| t.min(options.long_lived)));
        peer.stale_until = Some(now.plus_ms(u64::from(seconds) * 1_000));
        say(out, peer, format!("routes kept for {seconds} s while it restarts"), kept);
        if seconds == 0 {
            self.stale_time(now, id, out);
        }
    }

    /// The neighbor is back: what it has not preserved goes at once.
    pub(super) fn resume(&mut self, now: Mono, id: PeerId, out: &mut VecDeque<Output>) {
        let Some(peer) = self.peers.get_mut(&id) else { return };
        if !peer.keeps() {
            return;
        }
        let Some(up) = &peer.up else { return };
        let mut left = 0;
        for family in Family::ALL {
            let restarted = up.session.restart.is_some_and(|r| r.preserved[family] == Some(true));
            let long = up.session.long_lived[family].is_some_and(|l| l.preserved);
            let preserved = if peer.long_until[family].is_some() { long } else { restarted || long };
            if preserved && up.session.families[family] {
                left += self.rib.counts(id, family).stale;
                continue;
            }
            peer.long_until[family] = None;
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
        let wait = u64::from(peer.fsm.config().session.stale_time) * 1_000;
        peer.stale_until = (left > 0).then(|| now.plus_ms(wait));
    }

    /// The neighbor has sent all it has: what it did not repeat is gone.
    pub(super) fn end_of_rib(&mut self, id: PeerId, family: Family, out: &mut VecDeque<Output>) {
        self.sync.touch();
        let Some(peer) = self.peers.get_mut(&id) else { return };
        if !peer.keeps() {
            return;
        }
        peer.long_until[family] = None;
        let gone = self.rib.drop_stale(id, family);
        say(out, peer, "restart complete; routes that did not come back dropped".into(), gone);
        if Family::ALL.into_iter().all(|f| self.rib.counts(id, f).stale == 0) {
            peer.kept_nothing();
        }
    }

    /// The time for stale routes may be over.
    pub(super) fn stale_time(&mut self, now: Mono, id: PeerId, out: &mut VecDeque<Output>) {
        let Some(peer) = self.peers.get_mut(&id) else { return };
        if peer.stale_until.is_some_and(|at| at <= now) {
            peer.stale_until = None;
            let (mut gone, mut kept) = (0, None);
            for family in Family::ALL {
                // A neighbor that is back and does not send End-of-RIB has had its time.
                let long = peer.long_lived[family].filter(|_| peer.up.is_none());
                match long {
                    Some(seconds) if self.rib.counts(id, family).stale > 0 => {
                        let until = now.plus_ms(u64::from(seconds) * 1_000);
                        let until = *peer.long_until[family].get_or_insert(until);
                        let left = self.rib.long_lived(id, family);
                        if left == 0 {
                            peer.long_until[family] = None;
                        }
                        let (n, _) = kept.unwrap_or((0, seconds));
                        kept =
                            Some((n + left, u32::try_from(until.since_ms(now) / 1_000).unwrap_or(seconds)));
                    }
                    Some(_) | None => {
                        peer.long_until[family] = None;
                        gone += self.rib.drop_stale(id, family);
                    }
                }
            }
            if let Some((left, seconds)) = kept {
                say(
                    out,
                    peer,
                    format!("restart time over; routes kept as long-lived stale for {seconds} s"),
                    left,
                );
            }
            if gone > 0 || kept.is_none() {
                say(out, peer, "restart time over; routes dropped".into(), gone);
            }
        }
        for family in Family::ALL {
            if peer.long_until[family].is_some_and(|at| at <= now) {
                peer.long_until[family] = None;
                let gone = self.rib.drop_stale(id, family);
                say(out, peer, "long-lived stale time over; routes dropped".into(), gone);
            }
        }
    }
}

/// Seconds for which a family may be kept as long-lived stale; `None`: not at all.
fn long_time(up: &Up, family: Family) -> Option<u32> {
    up.session.long_lived[family].map(|l| l.time).filter(|t| *t > 0)
}

fn say(out: &mut VecDeque<Output>, peer: &super::neighbor::Neighbor, what: String, routes: usize) {
    let name = peer.fsm.config().name.clone();
    out.push_back(Output::Event(Event::Restart { peer: peer.id, name, what, routes }));
}
