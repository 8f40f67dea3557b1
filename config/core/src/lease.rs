//! Lease (`coordination.k8s.io/v1`) and who holds it: one of several processes acts, the others wait. The record is
//! Kubernetes' own, and so are the rules (client-go's leader election), so that `kubectl get leases` shows the holder.
//!
//! Clocks of two machines are never compared. A candidate takes a lease over when *it* has seen the same record for the
//! whole duration; the holder stops acting [`Timing::renew_within`] after it *began* its last successful renewal. As
//! that is shorter than the duration, the holder has stopped before anybody can have taken over, however slow the
//! store, a network or a process was, as long as clocks run at the same speed within the margin between the two.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::{
    key::Kind,
    meta::{Extra, Spec},
    store::{Expect, Revision},
    time::Now,
};

/// Lease.spec.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct LeaseSpec {
    /// Empty or absent: nobody.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub holder_identity: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lease_duration_seconds: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub acquire_time: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub renew_time: Option<String>,
    /// How often the holder changed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lease_transitions: Option<u32>,
    #[serde(flatten)]
    pub extra: Extra,
}

impl Spec for LeaseSpec {
    const KIND: Kind = Kind::Lease;
    // Kubernetes' own fields are none of ours.
    fn extras(&self) -> Vec<(String, &Extra)> {
        Vec::new()
    }
}

impl LeaseSpec {
    /// Who holds it.
    pub fn holder(&self) -> Option<&str> {
        self.holder_identity.as_deref().filter(|h| !h.is_empty())
    }
}

/// How long is how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// A record unchanged for this long is no longer anybody's. Whole seconds, for that is what the record has.
    pub duration: Duration,
    /// The holder acts no longer than this after it began its last renewal; less than `duration`.
    pub renew_within: Duration,
    /// Between two attempts.
    pub retry: Duration,
}

impl Default for Timing {
    /// Those of client-go.
    fn default() -> Self {
        let s = Duration::from_secs;
        Self { duration: s(15), renew_within: s(10), retry: s(2) }
    }
}

/// What to do with the record that was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Write this, if the record still is what was read.
    Write(LeaseSpec, Expect),
    /// It is another's.
    Wait,
}

/// One candidate. `now` is any clock that only goes forward, the same in all calls.
#[derive(Clone, Debug)]
pub struct Elector {
    identity: String,
    timing: Timing,
    /// The record as last seen, and since when it has been the same.
    seen: Option<(Revision, Duration)>,
    /// Until when this candidate may act.
    until: Option<Duration>,
}

impl Elector {
    /// A candidate that knows nothing yet. `identity` must be its own among all candidates.
    pub fn new(identity: impl Into<String>, timing: Timing) -> Self {
        Self { identity: identity.into(), timing, seen: None, until: None }
    }

    /// Whether this candidate may act now.
    pub fn holds(&self, now: Duration) -> bool {
        self.until.is_some_and(|t| now < t)
    }

    /// Until when it may act, as far as known.
    pub const fn until(&self) -> Option<Duration> {
        self.until
    }

    /// Decides about the record as just read (`None`: there is none). `wall` only goes into the record, for people.
    pub fn step(&mut self, now: Duration, wall: Now, record: Option<(&LeaseSpec, Revision)>) -> Step {
        let Some((spec, revision)) = record else {
            self.seen = None;
            return Step::Write(self.record(None, wall), Expect::Absent);
        };
        let since = match self.seen {
            Some((seen, since)) if seen == revision => since,
            _ => now,
        };
        self.seen = Some((revision, since));
        let mine = spec.holder() == Some(self.identity.as_str());
        let lasts =
            spec.lease_duration_seconds.map_or(self.timing.duration, |s| Duration::from_secs(s.into()));
        let free = spec.holder().is_none() || now.saturating_sub(since) >= lasts;
        if mine || free {
            Step::Write(self.record(Some(spec), wall), Expect::Revision(revision))
        } else {
            self.until = None;
            Step::Wait
        }
    }

    /// The write of a [`Step`] happened; it was begun at `began`.
    pub fn written(&mut self, began: Duration) {
        self.until = Some(began.saturating_add(self.timing.renew_within));
    }

    /// Somebody else wrote first: the next reading will tell.
    pub const fn lost(&mut self) {
        self.until = None;
    }

    /// The record that gives the lease back.
    pub fn resignation(&mut self, spec: &LeaseSpec) -> Option<LeaseSpec> {
        self.until = None;
        (spec.holder() == Some(self.identity.as_str())).then(|| LeaseSpec {
            holder_identity: Some(String::new()),
            lease_duration_seconds: Some(1),
            ..spec.clone()
        })
    }

    fn record(&self, old: Option<&LeaseSpec>, wall: Now) -> LeaseSpec {
        let time = wall.rfc3339_micro();
        let mine = old.is_some_and(|o| o.holder() == Some(self.identity.as_str()));
        let transitions = old.and_then(|o| o.lease_transitions).unwrap_or(0);
        LeaseSpec {
            holder_identity: Some(self.identity.clone()),
            lease_duration_seconds: Some(u32::try_from(self.timing.duration.as_secs()).unwrap_or(u32::MAX)),
            acquire_time: old.filter(|_| mine).map_or(Some(time.clone()), |o| o.acquire_time.clone()),
            renew_time: Some(time),
            lease_transitions: Some(if mine || old.is_none() {
                transitions
            } else {
                transitions.saturating_add(1)
            }),
            extra: old.map(|o| o.extra.clone()).unwrap_or_default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const S: fn(u64) -> Duration = Duration::from_secs;

    fn write(step: Step) -> (LeaseSpec, Expect) {
        match step {
            Step::Write(spec, expect) => (spec, expect),
            Step::Wait => panic!("it waits"),
        }
    }

    #[test]
    fn a_lease_changes_hands_after_its_duration_and_at_once_when_given_back() {
        let (mut a, mut b) = (Elector::new("a", Timing::default()), Elector::new("b", Timing::default()));
        let (first, expect) = write(a.step(S(0), Now::from_secs(9), None));
        assert_eq!(expect, Expect::Absent);
        assert_eq!(first.renew_time.as_deref(), Some("1970-01-01T00:00:09.000000Z"));
        a.written(S(0));
        assert!(a.holds(S(9)) && !a.holds(S(10)), "it stops by itself");

        let one = Revision(1);
        assert_eq!(b.step(S(100), Now(0), Some((&first, one))), Step::Wait, "seen for the first time");
        assert_eq!(b.step(S(114), Now(0), Some((&first, one))), Step::Wait);
        let (renewed, _) = write(a.step(S(4), Now::from_secs(13), Some((&first, one))));
        assert_eq!((&renewed.acquire_time, renewed.lease_transitions), (&first.acquire_time, Some(0)));
        assert_eq!(
            b.step(S(115), Now(0), Some((&renewed, Revision(2)))),
            Step::Wait,
            "renewed: it begins anew"
        );
        let (taken, expect) = write(b.step(S(130), Now(0), Some((&renewed, Revision(2)))));
        assert_eq!((taken.holder(), taken.lease_transitions), (Some("b"), Some(1)));
        assert_eq!(expect, Expect::Revision(Revision(2)));
        b.written(S(130));
        assert_eq!(a.step(S(5), Now(0), Some((&taken, Revision(3)))), Step::Wait);
        assert!(!a.holds(S(5)), "another has it");

        assert_eq!(a.resignation(&taken), None);
        let free = b.resignation(&taken).expect("it is b's");
        assert!(!b.holds(S(131)));
        assert_eq!(write(a.step(S(6), Now(0), Some((&free, Revision(4))))).0.holder(), Some("a"));
    }

    /// A store and some candidates, each with a clock of its own offset. One step: somebody reads, somebody's write
    /// that is under way arrives, or time passes.
    #[derive(Clone, Debug)]
    enum Op {
        Read(usize),
        Arrive(usize),
        Resign(usize),
        Pass(u64),
    }

    fn ops() -> impl Strategy<Value = Vec<Op>> {
        let one = prop_oneof![
            4 => (0usize..3).prop_map(Op::Read),
            4 => (0usize..3).prop_map(Op::Arrive),
            1 => (0usize..3).prop_map(Op::Resign),
            3 => (0u64..12_000).prop_map(Op::Pass),
        ];
        prop::collection::vec(one, 1..120)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(512))]

        /// However long reads and writes take and in whatever order they arrive, two never act at the same time.
        #[test]
        fn two_never_act_at_once(ops in ops(), offsets in prop::array::uniform3(0u64..1_000_000)) {
            let mut store: Option<(LeaseSpec, Revision)> = None;
            let mut electors: Vec<Elector> =
                ["a", "b", "c"].into_iter().map(|n| Elector::new(n, Timing::default())).collect();
            // A write under way: what, expected, begun when (on the writer's clock), a resignation?
            let mut under_way: [Option<(LeaseSpec, Expect, Duration, bool)>; 3] = [None, None, None];
            let mut time = 0u64;
            let clock = |i: usize, time: u64| Duration::from_millis(time + offsets[i]);
            let mut revision = 0;
            for op in ops {
                match op {
                    Op::Pass(ms) => time += ms,
                    Op::Read(i) => {
                        let now = clock(i, time);
                        let record = store.as_ref().map(|(s, r)| (s, *r));
                        if let Step::Write(spec, expect) = electors[i].step(now, Now(0), record)
                            && under_way[i].is_none()
                        {
                            under_way[i] = Some((spec, expect, now, false));
                        }
                    }
                    Op::Resign(i) => {
                        if let Some((spec, r)) = &store
                            && let Some(free) = electors[i].resignation(spec)
                            && under_way[i].is_none()
                        {
                            under_way[i] = Some((free, Expect::Revision(*r), Duration::ZERO, true));
                        }
                    }
                    Op::Arrive(i) => {
                        let Some((spec, expect, began, resigns)) = under_way[i].take() else { continue };
                        let fits = match (&store, expect) {
                            (None, Expect::Absent) => true,
                            (Some((_, r)), Expect::Revision(e)) => *r == e,
                            _ => false,
                        };
                        if fits {
                            revision += 1;
                            store = Some((spec, Revision(revision)));
                        }
                        match (fits, resigns) {
                            (true, false) => electors[i].written(began),
                            (false, false) => electors[i].lost(),
                            (_, true) => {}
                        }
                    }
                }
                let acting: Vec<usize> = (0..3).filter(|i| electors[*i].holds(clock(*i, time))).collect();
                prop_assert!(acting.len() <= 1, "{acting:?} act at {time}: {store:?}");
            }
        }
    }
}
