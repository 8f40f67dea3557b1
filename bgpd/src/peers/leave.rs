//! From mesh to reflectors without loss: when the mesh is switched off, its sessions stay until what replaces them
//! carries the same routes, then they go. Pure; every event is named.
//!
//! ```text
//!            Unwanted, sessions exist                 Covered for SETTLE, or BOUND passed
//!   Meshed ---------------------------> Leaving ----------------------------------------> Gone
//!     ^  ^--------- Wanted ----------------'                                                |
//!     '------------------------------------ Wanted -----------------------------------------'
//! ```
//! Covered means: every session outside the mesh is established, has sent its End-of-RIB, has been sent everything we
//! have for it, and every prefix learnt over the mesh is also known from outside it. A node's routes come back from a
//! reflector only if the node itself has a session there, so that its loss of our mesh session does not hurt it.

use std::{fmt, time::Duration};

use ipnet::IpNet;

/// How long coverage must last: the other nodes have been told at the same moment as we.
pub const SETTLE: Duration = Duration::from_secs(3);
/// How long coverage is waited for. The operator's word counts in the end.
pub const BOUND: Duration = Duration::from_secs(300);

/// How far what replaces the mesh has come.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Coverage {
    /// Sessions outside the mesh that are not ready, and why: `rr1 (10.0.0.9): Active`.
    pub not_ready: Vec<String>,
    /// Prefixes known only from the mesh: how many, and one of them.
    pub uncovered: usize,
    pub example: Option<IpNet>,
}

impl Coverage {
    /// Whether the mesh can go.
    pub const fn complete(&self) -> bool {
        self.not_ready.is_empty() && self.uncovered == 0
    }
}

impl fmt::Display for Coverage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(first) = self.not_ready.first() {
            write!(f, "{first}")?;
            if self.not_ready.len() > 1 {
                write!(f, " and {} more", self.not_ready.len().saturating_sub(1))?;
            }
            if self.uncovered > 0 {
                f.write_str("; ")?;
            }
        }
        if let (n @ 1.., Some(net)) = (self.uncovered, self.example) {
            write!(f, "{n} prefixes are known from the mesh only, {net} among them")?;
        }
        Ok(())
    }
}

/// Where a node stands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Mesh {
    /// The mesh is wanted (or there never was one to leave).
    #[default]
    Meshed,
    /// It is not wanted, and still there.
    Leaving { since: Duration, covered_since: Option<Duration>, why: String },
    /// It is not wanted and gone.
    Gone,
}

/// What can happen. Times are since any fixed moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The configuration wants a mesh.
    Wanted,
    /// It does not. `present`: mesh sessions are up or were asked for; `replaced`: there are sessions outside the mesh.
    Unwanted { now: Duration, present: bool, replaced: bool },
    /// An answer about coverage.
    Observed { now: Duration, coverage: Coverage },
}

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Mesh sessions are as the configuration says.
    Follow,
    /// They stay although the configuration does not want them.
    Keep,
    /// They go now: covered.
    Drop,
    /// They go now: waited for long enough.
    GiveUp,
}

impl Mesh {
    /// Takes an event; the answer says what to do with the mesh sessions.
    pub fn on(&mut self, event: Event) -> Step {
        let (next, step) = match (std::mem::take(self), event) {
            (_, Event::Wanted) => (Self::Meshed, Step::Follow),
            (Self::Meshed, Event::Unwanted { now, present: true, replaced: true }) => {
                let why = "whether the other sessions carry its routes is being looked at".to_owned();
                (Self::Leaving { since: now, covered_since: None, why }, Step::Keep)
            }
            // Nothing to lose, or nothing that could replace it: the operator's word.
            (Self::Meshed, Event::Unwanted { .. }) => (Self::Gone, Step::Follow),
            (leaving @ Self::Leaving { .. }, Event::Unwanted { present: true, replaced: true, .. }) => {
                (leaving, Step::Keep)
            }
            (Self::Leaving { .. }, Event::Unwanted { .. }) => (Self::Gone, Step::Follow),
            (Self::Gone, Event::Unwanted { .. }) => (Self::Gone, Step::Follow),
            (Self::Leaving { since, covered_since, .. }, Event::Observed { now, coverage }) => {
                let covered_since = coverage.complete().then(|| covered_since.unwrap_or(now));
                if covered_since.is_some_and(|at| now.saturating_sub(at) >= SETTLE) {
                    (Self::Gone, Step::Drop)
                } else if now.saturating_sub(since) >= BOUND {
                    (Self::Gone, Step::GiveUp)
                } else {
                    let why = match covered_since {
                        Some(_) => "the other nodes are given time to get there as well".to_owned(),
                        None => coverage.to_string(),
                    };
                    (Self::Leaving { since, covered_since, why }, Step::Keep)
                }
            }
            // A late answer.
            (settled @ (Self::Meshed | Self::Gone), Event::Observed { .. }) => (settled, Step::Follow),
        };
        *self = next;
        step
    }

    /// Why mesh sessions are kept, while they are.
    pub fn reason(&self) -> Option<&str> {
        match self {
            Self::Leaving { why, .. } => Some(why),
            Self::Meshed | Self::Gone => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn s(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    fn off(now: u64, present: bool, replaced: bool) -> Event {
        Event::Unwanted { now: s(now), present, replaced }
    }

    fn seen(now: u64, complete: bool) -> Event {
        let not_ready = if complete { vec![] } else { vec!["rr1 (10.0.0.9): Active".into()] };
        Event::Observed { now: s(now), coverage: Coverage { not_ready, ..Coverage::default() } }
    }

    #[test]
    fn every_event_in_every_state() {
        let leaving = || Mesh::Leaving { since: s(0), covered_since: None, why: String::new() };
        let name = |m: &Mesh| match m {
            Mesh::Meshed => "meshed",
            Mesh::Leaving { .. } => "leaving",
            Mesh::Gone => "gone",
        };
        for (state, event, next, step) in [
            (Mesh::Meshed, Event::Wanted, "meshed", Step::Follow),
            (Mesh::Meshed, off(1, true, true), "leaving", Step::Keep),
            (Mesh::Meshed, off(1, false, true), "gone", Step::Follow),
            (Mesh::Meshed, off(1, true, false), "gone", Step::Follow),
            (Mesh::Meshed, seen(1, true), "meshed", Step::Follow),
            (leaving(), Event::Wanted, "meshed", Step::Follow),
            (leaving(), off(1, true, true), "leaving", Step::Keep),
            (leaving(), off(1, false, true), "gone", Step::Follow),
            (leaving(), off(1, true, false), "gone", Step::Follow),
            (leaving(), seen(1, false), "leaving", Step::Keep),
            (leaving(), seen(1, true), "leaving", Step::Keep),
            (leaving(), seen(300, false), "gone", Step::GiveUp),
            (Mesh::Gone, Event::Wanted, "meshed", Step::Follow),
            (Mesh::Gone, off(1, true, true), "gone", Step::Follow),
            (Mesh::Gone, seen(1, false), "gone", Step::Follow),
        ] {
            let mut mesh = state.clone();
            let got = mesh.on(event.clone());
            assert_eq!((name(&mesh), got), (next, step), "{state:?} {event:?}");
        }
    }

    #[test]
    fn coverage_must_last_and_is_named_while_it_is_missing() {
        let mut mesh = Mesh::default();
        assert_eq!(mesh.on(off(0, true, true)), Step::Keep);
        assert_eq!(mesh.on(seen(1, false)), Step::Keep);
        assert_eq!(mesh.reason(), Some("rr1 (10.0.0.9): Active"));
        assert_eq!(mesh.on(seen(2, true)), Step::Keep);
        assert_eq!(mesh.on(seen(4, false)), Step::Keep, "lost again: from the start");
        assert_eq!(mesh.on(seen(5, true)), Step::Keep);
        assert_eq!(mesh.on(seen(7, true)), Step::Keep);
        assert_eq!(mesh.on(seen(8, true)), Step::Drop);
        assert_eq!(mesh, Mesh::Gone);
        assert_eq!(mesh.reason(), None);
    }

    #[test]
    fn uncovered_prefixes_are_told() {
        let example = Some("10.1.0.0/26".parse().unwrap());
        let c = Coverage { not_ready: vec!["a".into(), "b".into()], uncovered: 2, example };
        assert!(!c.complete());
        assert_eq!(
            c.to_string(),
            "a and 1 more; 2 prefixes are known from the mesh only, 10.1.0.0/26 among them"
        );
    }
}
