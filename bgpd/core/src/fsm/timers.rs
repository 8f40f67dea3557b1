//! Timers of one connection as plain deadlines, and the jitter of RFC 4271 section 10. No clock, no task.

use crate::time::Mono;

/// The timers of a connection (RFC 4271 section 8.2.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Timer {
    /// Time to dial (again).
    ConnectRetry,
    /// The peer has been silent for too long.
    Hold,
    /// Time to send a KEEPALIVE.
    Keepalive,
    /// Back-off after an error is over.
    IdleHold,
    /// The peer has had its time to speak first.
    DelayOpen,
}

impl Timer {
    const ALL: [Self; 5] = [Self::ConnectRetry, Self::Hold, Self::Keepalive, Self::IdleHold, Self::DelayOpen];
}

/// Deadlines by timer; at most one each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TimerTable([Option<Mono>; 5]);

impl TimerTable {
    fn slot(&mut self, timer: Timer) -> &mut Option<Mono> {
        let [retry, hold, keepalive, idle, open] = &mut self.0;
        match timer {
            Timer::ConnectRetry => retry,
            Timer::Hold => hold,
            Timer::Keepalive => keepalive,
            Timer::IdleHold => idle,
            Timer::DelayOpen => open,
        }
    }

    /// Starts or restarts a timer.
    pub fn set(&mut self, timer: Timer, at: Mono) {
        *self.slot(timer) = Some(at);
    }

    /// Stops a timer.
    pub fn stop(&mut self, timer: Timer) {
        *self.slot(timer) = None;
    }

    /// Stops all of them.
    pub fn stop_all(&mut self) {
        *self = Self::default();
    }

    /// When the timer fires, if it runs.
    pub fn get(mut self, timer: Timer) -> Option<Mono> {
        *self.slot(timer)
    }

    /// When the next one fires.
    pub fn deadline(&self) -> Option<Mono> {
        self.0.iter().flatten().copied().min()
    }

    /// Takes the earliest timer that is due.
    pub fn pop_due(&mut self, now: Mono) -> Option<Timer> {
        let (_, timer) = Timer::ALL
            .into_iter()
            .filter_map(|t| self.get(t).map(|at| (at, t)))
            .filter(|(at, _)| *at <= now)
            .min_by_key(|(at, _)| *at)?;
        self.stop(timer);
        Some(timer)
    }
}

/// A small seeded generator (splitmix64): the same seed gives the same run.
#[derive(Clone, Copy, Debug)]
pub struct Jitter(u64);

impl Jitter {
    /// A generator of its own for each seed.
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number.
    pub const fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// Between 75 and 100 per cent of `ms` (RFC 4271 section 10).
    pub const fn of(&mut self, ms: u64) -> u64 {
        let quarter = ms / 4;
        if quarter == 0 {
            return ms;
        }
        ms - self.next() % (quarter + 1)
    }

    /// When a timer of `ms` started at `now` fires: between 75 and 100 per cent of it later, at one of a few moments that
    /// timers of all connections have in common. Many connections then wake the process a few times instead of once each;
    /// each still draws its moment by itself.
    pub const fn together(&mut self, now: Mono, ms: u64) -> Mono {
        // Powers of two, so that the moments of longer timers are also moments of shorter ones.
        let Some(step) = (ms / 16).checked_ilog2() else { return now.plus_ms(self.of(ms)) };
        let step = 1u64 << step;
        let latest = now.plus_ms(ms).0;
        // Rounding down takes less than a step away, which is kept back here.
        let drawn = latest - self.next() % (ms / 4 - step + 2);
        Mono(drawn - drawn % step)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn the_earliest_due_timer_comes_first_and_only_once() {
        let mut t = TimerTable::default();
        t.set(Timer::Hold, Mono(30));
        t.set(Timer::Keepalive, Mono(10));
        assert_eq!(t.deadline(), Some(Mono(10)));
        assert_eq!(t.pop_due(Mono(9)), None);
        assert_eq!(t.pop_due(Mono(40)), Some(Timer::Keepalive));
        assert_eq!(t.pop_due(Mono(40)), Some(Timer::Hold));
        assert_eq!(t.pop_due(Mono(40)), None);
        assert_eq!(t.deadline(), None);
    }

    #[test]
    fn jitter_stays_between_three_quarters_and_the_whole() {
        let mut j = Jitter::new(7);
        let all: Vec<u64> = (0..1000).map(|_| j.of(1000)).collect();
        assert!(all.iter().all(|v| (750..=1000).contains(v)));
        assert!(all.iter().any(|v| *v < 800) && all.iter().any(|v| *v > 950));
        assert_eq!(Jitter::new(1).of(3), 3);
    }

    #[test]
    fn timers_of_many_connections_fire_within_their_jitter_at_few_moments() {
        let mut moments = BTreeMap::new();
        for n in 0..1_000u64 {
            let (start, mut j) = (Mono(5_000 + n % 100), Jitter::new(n));
            *moments.entry(j.together(start, 30_000).0).or_insert(0) += 1;
        }
        assert!(moments.keys().all(|at| (27_500..=35_099).contains(at)));
        // Not all at one: the jitter is there to spread what is sent.
        assert!((6..=9).contains(&moments.len()), "{moments:?}");
        assert!(moments.values().all(|n| *n < 250), "{moments:?}");
        // 60 s: some of the same.
        let longer = Jitter::new(1).together(Mono(3), 60_000).0;
        assert_eq!(longer % moments.keys().map(|at| at & at.wrapping_neg()).min().unwrap(), 0);
    }

    proptest::proptest! {
        #[test]
        fn a_shared_moment_is_between_three_quarters_and_the_whole(seed: u64, now in 0u64..1 << 40, ms in 0u64..1 << 26) {
            let at = Jitter::new(seed).together(Mono(now), ms);
            proptest::prop_assert!((ms - ms / 4..=ms).contains(&(at.0 - now)), "{} {}", at.0 - now, ms);
        }
    }
}
