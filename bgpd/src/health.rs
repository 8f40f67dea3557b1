//! Whether a speaker alone lives and is ready: `brindle-bgpd probe`, and `Health` over the admin socket.
//!
//! Live: the speaker answers. Ready: it listens, has what its peers have, and the sessions it had to wait for are up. A rolling
//! update of reflectors goes on to the next one only then. A configured peer that is away counts for the first [`GRACE`] only;
//! clients of a range are not known before they come, so it is waited until they have come to rest, or nobody has come for so
//! long. A speaker that had clients and has lost all of them is not ready, whenever that is.

use std::time::Duration;

use brindle_config_core::status::health::{Check, Health};
use tokio::time::timeout;

use crate::handle::{Handle, Seen};

/// How long the speaker may take to answer before it counts as stuck.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long configured peers are waited for after the start.
const GRACE: Duration = Duration::from_secs(30);
/// The same of clients nobody has configured. They dial again every 5 s, some after a pause that has grown.
const CLIENTS: Duration = Duration::from_secs(60);
/// Without a new session for so long, they have come to rest.
const REST: Duration = Duration::from_secs(10);

/// What is looked at.
#[derive(Clone, Debug, Default)]
struct Facts {
    /// There is somebody to speak for.
    identity: bool,
    listening: Vec<String>,
    /// The peers' routes are complete.
    converged: bool,
    established: usize,
    /// Those that are configured and not up.
    away: Vec<String>,
    configured: usize,
    /// There are ranges whose members are not known beforehand.
    ranges: bool,
    /// Sessions that came up since the start.
    arrivals: u64,
    /// Since the last one.
    rest: Option<Duration>,
}

impl Facts {
    fn of(s: &Seen<'_>) -> Self {
        let mut facts = Self {
            identity: s.speaker.is_some(),
            listening: s.listeners.errors().iter().map(|e| format!("{}: {}", e.address, e.why)).collect(),
            arrivals: s.arrivals,
            ..Self::default()
        };
        let Some(speaker) = s.speaker else { return facts };
        facts.converged = speaker.converged();
        facts.ranges = !speaker.config().dynamic.is_empty();
        for p in speaker.peers() {
            let up = p.state == brindle_bgpd_core::fsm::StateKind::Established;
            let guest = p.kind == brindle_bgpd_core::speaker::DYNAMIC;
            facts.configured += usize::from(!guest);
            if up {
                facts.established += 1;
                let since = Duration::from_millis(s.now.since_ms(p.since));
                facts.rest = Some(facts.rest.map_or(since, |r| r.min(since)));
            } else if !guest && speaker.peer_config(p.id).is_some_and(|c| c.session.shutdown.is_none()) {
                facts.away.push(format!("{} {}", p.name, p.state));
            }
        }
        facts
    }
}

/// Asks the speaker.
pub(crate) async fn health(handle: &Handle, uptime: Duration) -> Health {
    let facts = timeout(PATIENCE, handle.look(Facts::of)).await.ok().and_then(Result::ok);
    judge(facts.as_ref(), uptime)
}

/// What the answer means; none if there was none.
fn judge(facts: Option<&Facts>, uptime: Duration) -> Health {
    let check = |name: &str, vital, verdict: Result<String, String>| {
        let ok = verdict.is_ok();
        Check { name: name.into(), ok, vital, reason: verdict.unwrap_or_else(|e| e) }
    };
    let Some(f) = facts else {
        let stuck = Err(format!("the speaker has not answered for {} s", PATIENCE.as_secs()));
        return Health { checks: vec![check("bgpd", true, stuck)] };
    };
    let identity = if f.identity { Ok("answers".into()) } else { Err("has nobody to speak for yet".into()) };
    let listening = if f.listening.is_empty() { Ok("open".into()) } else { Err(f.listening.join("; ")) };
    let routes = if f.converged {
        Ok("complete".into())
    } else {
        Err("those of the peers are not complete yet".into())
    };
    Health {
        checks: vec![
            check("bgpd", true, Ok("answers".into())),
            check("identity", false, identity),
            check("sockets", false, listening),
            check("routes", false, routes),
            check("sessions", false, sessions(f, uptime)),
        ],
    }
}

fn sessions(f: &Facts, uptime: Duration) -> Result<String, String> {
    let mut said = format!("{} established", f.established);
    if !f.away.is_empty() {
        // A long list helps nobody.
        let named = f.away.iter().take(5).cloned().collect::<Vec<_>>().join(", ");
        said += &format!("; not: {named}");
        if f.away.len() > 5 {
            said += &format!(" and {} more", f.away.len() - 5);
        }
        if uptime < GRACE {
            return Err(format!("{said}; waiting until {} s after the start", GRACE.as_secs()));
        }
    }
    let nobody = f.established == 0 && (f.ranges || f.configured > 0);
    if nobody && f.arrivals > 0 {
        return Err(format!("{said}; all that there were have ended"));
    }
    if f.ranges && uptime < CLIENTS {
        let waiting = format!("waiting until {} s after the start", CLIENTS.as_secs());
        match f.rest {
            None if f.configured == 0 => return Err(format!("{said}; no client has come yet; {waiting}")),
            Some(rest) if rest < REST => {
                return Err(format!("{said}, the last one {} s ago; {waiting}", rest.as_secs()));
            }
            Some(_) | None => {}
        }
    }
    Ok(said)
}

#[cfg(test)]
mod tests {
    use brindle_config_core::status::health::Probe;

    use super::*;

    fn facts() -> Facts {
        Facts { identity: true, converged: true, ranges: true, ..Facts::default() }
    }

    fn at(f: &Facts, seconds: u64) -> (bool, String) {
        let health = judge(Some(f), Duration::from_secs(seconds));
        assert!(health.ok(Probe::Live));
        (health.ok(Probe::Ready), health.text(Probe::Ready))
    }

    #[test]
    fn a_reflector_is_ready_when_its_clients_have_come_to_rest() {
        let rest =
            |n, s| Facts { established: n, arrivals: 9, rest: Some(Duration::from_secs(s)), ..facts() };
        for (f, uptime, ready) in [
            (facts(), 20, false),
            (facts(), 61, true),
            (rest(9, 1), 20, false),
            (rest(9, 10), 20, true),
            // Somebody comes later: that is no reason to be taken out.
            (rest(9, 1), 61, true),
            // All were here and are gone.
            (Facts { arrivals: 9, ..facts() }, 20, false),
            (Facts { arrivals: 9, ..facts() }, 6_000, false),
            (Facts { converged: false, ..rest(9, 10) }, 61, false),
            (Facts { listening: vec!["0.0.0.0:1790: in use".into()], ..rest(9, 10) }, 61, false),
        ] {
            let (ok, text) = at(&f, uptime);
            assert_eq!(ok, ready, "{uptime} s: {f:?}\n{text}");
        }
    }

    #[test]
    fn a_configured_peer_that_is_away_counts_at_the_start_only() {
        let f = Facts {
            ranges: false,
            configured: 2,
            established: 1,
            arrivals: 1,
            rest: Some(Duration::from_secs(1)),
            away: vec!["tor Active".into()],
            ..facts()
        };
        let (ok, text) = at(&f, 10);
        assert!(!ok && text.contains("tor Active; waiting until 30 s"), "{text}");
        assert!(at(&f, 31).0);
        let none = Facts { configured: 0, ranges: false, ..facts() };
        assert!(at(&none, 1).0, "who has no peers waits for none");
    }

    #[test]
    fn a_speaker_that_does_not_answer_is_not_live() {
        assert!(!judge(None, Duration::ZERO).ok(Probe::Live));
    }
}
