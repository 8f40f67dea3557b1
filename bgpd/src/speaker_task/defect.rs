//! A panic of the speaker is the end of one session, not of the daemon.
//!
//! The neighbor that was being served is put aside (`Input::Defect`), each time for longer. If only its state machine was
//! at work, the others notice nothing. If the tables were, nobody can say what is in them: the speaker is thrown away, its
//! connections end without a NOTIFICATION, and a new one begins as after a graceful restart, so that the neighbors keep our
//! routes, and the kernel theirs, until everything is there again. So it is where nobody is to blame: settings, the driver
//! around the speaker. Where that happens too often, or a second panic comes while the first is dealt with, the daemon ends,
//! and its supervisor starts it again. What only looks, an answer or an archive, costs no more than itself.

use std::{
    collections::{HashMap, VecDeque},
    net::{IpAddr, SocketAddr},
    panic::resume_unwind,
    time::Duration,
};

use brindle_admin::defect::{Panic, guarded, words};
use brindle_bgpd_core::speaker::{ConnId, Input, PeerId, Speaker, Work};
use tokio::time::Instant;
use tracing::{error, warn};

use super::{SpeakerTask, TURN, ready::Ready};

/// How long a neighbor is put aside the first time, seconds; each time twice as long.
const FIRST: u32 = 60;
const LONGEST: u32 = 960;
/// After so long without a defect it is the first time again.
const FORGIVEN: Duration = Duration::from_secs(3_600);

/// So many that nobody is to blame for are outlived in [`FORGIVEN`].
const MOST: usize = 5;

/// Who met defects, how often and when last.
#[derive(Default)]
pub(super) struct Defects {
    met: HashMap<IpAddr, (u32, Instant)>,
    /// When there was nobody to blame.
    blameless: VecDeque<Instant>,
    /// One is being dealt with.
    busy: bool,
    /// Since the start.
    pub(super) total: u64,
}

impl Defects {
    /// Seconds for which a neighbor stays down this time.
    fn penalty(&mut self, address: IpAddr) -> u32 {
        let now = Instant::now();
        self.met.retain(|_, (_, last)| now.duration_since(*last) < FORGIVEN);
        let (times, last) = self.met.entry(address).or_insert((0, now));
        *times = times.saturating_add(1);
        *last = now;
        FIRST.saturating_mul(1 << (*times - 1).min(8)).min(LONGEST)
    }

    /// Whether one more without anybody to blame is outlived.
    fn again(&mut self) -> bool {
        let now = Instant::now();
        self.blameless.retain(|at| now.duration_since(*at) < FORGIVEN);
        self.blameless.push_back(now);
        self.blameless.len() <= MOST
    }
}

impl SpeakerTask {
    /// A turn of the task, which may meet a defect outside of the speaker.
    pub(super) fn turn(&mut self, work: impl FnOnce(&mut Self)) {
        self.turn_ends = Instant::now() + TURN;
        if let Err(panic) = guarded(|| work(self)) {
            self.defects.total += 1;
            self.without_blame(panic);
        }
    }

    /// Nobody knows what is as it should be, so everything begins again.
    fn without_blame(&mut self, panic: Panic) {
        if self.defects.busy || !self.defects.again() {
            error!(what = words(&panic), "a defect that no session is to blame for; the speaker ends");
            resume_unwind(panic);
        }
        self.defects.busy = true;
        error!(
            what = words(&panic),
            "a defect that no session is to blame for; please report it. All sessions start again, gracefully"
        );
        self.tell("defect", String::new(), words(&panic).to_owned());
        self.begin_again();
        self.defects.busy = false;
    }

    /// The speaker panicked.
    pub(super) fn defect(&mut self, panic: Panic) {
        self.defects.total += 1;
        let work = self.speaker.as_ref().map_or(Work::Nobody, Speaker::at_work);
        let known = |id: PeerId| {
            let config = self.speaker.as_ref().and_then(|s| s.peer_config(id))?;
            let remote = SocketAddr::new(config.address, config.port);
            Some((config.name.clone(), remote, config.session.interface.clone()))
        };
        let culprit = match work {
            Work::Nobody => None,
            Work::Machine(id) | Work::Tables(id) => known(id),
        };
        let Some((name, remote, interface)) = culprit.filter(|_| !self.defects.busy) else {
            return self.without_blame(panic);
        };
        self.defects.busy = true;
        let seconds = self.defects.penalty(remote.ip().to_canonical());
        error!(
            peer = %name, what = words(&panic), down_for = seconds,
            "a defect of the speaker, met by this session; please report it (its place is in the lines before; a recording \
             is what helps most)"
        );
        self.tell("defect", name.clone(), words(&panic).to_owned());
        let what = format!("a defect of ours ended it: {}", words(&panic));
        if let Work::Tables(_) = work {
            warn!("the tables may be damaged: all sessions start again, gracefully");
            self.begin_again();
        }
        self.feed(Input::Defect { remote, interface, what, seconds });
        self.defects.busy = false;
    }

    /// Another speaker in the place of this one, which is told all the same.
    fn begin_again(&mut self) {
        self.outputs.clear();
        // Of connections that end here; one that was being taken may be lost.
        self.ready = Ready::default();
        // Not a word: a NOTIFICATION would be the end of our routes at many neighbors.
        let links: Vec<ConnId> = self.links.keys().copied().collect();
        links.into_iter().for_each(|conn| self.close(conn));
        self.fib.reset();
        let Some(config) = self.speaker.take().map(|s| s.config().clone()) else { return };
        let (peers, routes) = (self.peers.take(), self.routes.take());
        let statics = std::mem::take(&mut self.statics);
        self.restarting = true;
        self.begin(Some(config));
        if let Some(routes) = routes {
            self.set_local_routes(routes);
        }
        self.set_statics(statics.into_iter().map(|(net, gateway)| (net.addr(), gateway)).collect());
        if let Some(peers) = peers {
            self.set_peers(peers);
        }
        if self.draining {
            self.feed(Input::Drain);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_meets_defects_again_and_again_stays_away_for_longer() {
        let mut defects = Defects::default();
        let [a, b] = [1, 2].map(|n| IpAddr::from([10, 0, 0, n]));
        let times: Vec<u32> = (0..7).map(|_| defects.penalty(a)).collect();
        assert_eq!(times, [60, 120, 240, 480, 960, 960, 960]);
        assert_eq!(defects.penalty(b), 60, "each for itself");
    }

    #[test]
    fn defects_nobody_is_to_blame_for_are_outlived_a_few_times() {
        let mut defects = Defects::default();
        let outlived = (0..9).filter(|_| defects.again()).count();
        assert_eq!(outlived, MOST);
    }
}
