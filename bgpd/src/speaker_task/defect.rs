//! A panic of the speaker is the end of one session, not of the daemon.
//!
//! The neighbor that was being served is put aside (`Input::Defect`), each time for longer. If only its state machine was
//! at work, the others notice nothing. If the tables were, nobody can say what is in them: the speaker is thrown away, its
//! connections end without a NOTIFICATION, and a new one begins as after a graceful restart, so that the neighbors keep our
//! routes, and the kernel theirs, until everything is there again. Where there is nobody to blame, or a second panic while
//! the first is dealt with, the daemon ends as it always did, and its supervisor starts it again.

use std::{
    any::Any,
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    time::Duration,
};

use brindle_bgpd_core::speaker::{ConnId, Input, PeerId, Speaker, Work};
use tokio::time::Instant;
use tracing::{error, warn};

use super::SpeakerTask;

/// How long a neighbor is put aside the first time, seconds; each time twice as long.
const FIRST: u32 = 60;
const LONGEST: u32 = 960;
/// After so long without a defect it is the first time again.
const FORGIVEN: Duration = Duration::from_secs(3_600);

/// What a panic leaves.
pub(super) type Panic = Box<dyn Any + Send>;

/// Who met defects, how often and when last.
#[derive(Default)]
pub(super) struct Defects {
    met: HashMap<IpAddr, (u32, Instant)>,
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
}

/// Runs what must not take the daemon with it. What `work` leaves halfway is the caller's to throw away.
pub(super) fn guarded<T>(work: impl FnOnce() -> T) -> Result<T, Panic> {
    catch_unwind(AssertUnwindSafe(work))
}

/// The words of a panic.
fn words(panic: &Panic) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("without a word")
}

impl SpeakerTask {
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
            error!(what = words(&panic), "a defect of the speaker that no session is to blame for; it ends");
            resume_unwind(panic);
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
    fn the_words_of_a_panic_are_kept() {
        let hook = std::panic::take_hook();
        std::panic::set_hook(Box::new(|_| {}));
        let one = guarded(|| panic!("plain")).unwrap_err();
        let two = guarded(|| panic!("with {}", 2)).unwrap_err();
        let three = guarded(|| std::panic::panic_any(3)).unwrap_err();
        std::panic::set_hook(hook);
        assert_eq!([&one, &two, &three].map(words), ["plain", "with 2", "without a word"]);
    }
}
