//! Whether a speaker lives and is ready, alone (`brindle-bgpd probe`, `status`) or in a node, whose readiness has more to it
//! but asks [`Word::sessions`] about BGP.
//!
//! Live: the speaker answers. Ready: it listens, has what its peers have, and the sessions it had to wait for are up. A rolling
//! update of reflectors goes on to the next one only then. A configured peer that is away counts for the first [`GRACE`], and
//! until it was tried; after that its absence is its own affair (calico-node's readiness in contrast wants one session, whoever
//! is to blame). Clients of a range are not known before they come, so it is waited until they have come to rest, or nobody has
//! come for so long. A speaker that had clients and has lost all of them is not ready, whenever that is.

use std::time::Duration;

use brindle_bgpd_core::{
    fsm::StateKind,
    speaker::{DYNAMIC, PeerConfig},
};
use brindle_config_core::status::health::{Check, Health};
use tokio::time::timeout;

use crate::{
    fault,
    handle::{Handle, ListenError, Seen, Unanswered},
};

/// How long the speaker may take to answer before it counts as stuck.
pub const PATIENCE: Duration = Duration::from_secs(5);
/// How long configured peers are waited for after the start.
pub const GRACE: Duration = Duration::from_secs(30);
/// The same of clients nobody has configured. They dial again every 5 s, some after a pause that has grown.
const CLIENTS: Duration = Duration::from_secs(60);
/// Without a new session for so long, they have come to rest.
const REST: Duration = Duration::from_secs(10);

/// What is looked at.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// There is somebody to speak for.
    pub identity: bool,
    /// What could not be listened on, and why.
    pub listening: Vec<ListenError>,
    /// The peers' routes are complete.
    pub converged: bool,
    pub established: usize,
    /// Those that are configured and not up: name and state.
    pub away: Vec<String>,
    /// Not all of these were tried yet.
    pub untried: bool,
    pub configured: usize,
    /// There are ranges whose members are not known beforehand.
    pub ranges: bool,
    /// Others depend on this speaker: members of ranges, or clients of a reflector.
    pub serves: bool,
    /// Those of `established` that depend on this speaker.
    pub clients: usize,
    /// Sessions of such clients that came up since the start.
    pub client_arrivals: u64,
    /// Since the last one.
    pub rest: Option<Duration>,
}

/// What the speaker says.
#[derive(Clone, Debug)]
pub enum Word {
    Facts(Box<Facts>),
    /// It lives, and has no answer to this.
    Defect,
    /// Nothing for [`PATIENCE`], or it is gone.
    None,
}

/// Asks the speaker.
pub async fn ask(handle: &Handle) -> Word {
    match timeout(PATIENCE, handle.look(Facts::of)).await {
        Ok(Ok(facts)) => Word::Facts(Box::new(facts)),
        Ok(Err(Unanswered::Defect)) => Word::Defect,
        Ok(Err(Unanswered::Gone)) | Err(_) => Word::None,
    }
}

/// Whether a peer depends on this speaker; another reflector does not.
pub(crate) fn is_client(peer: &PeerConfig) -> bool {
    peer.kind == DYNAMIC || peer.reflector_client
}

impl Facts {
    fn of(s: &Seen<'_>) -> Self {
        fault::point("bgp.health");
        let mut facts = Self {
            identity: s.speaker.is_some(),
            listening: s.listeners.errors(),
            client_arrivals: s.client_arrivals,
            ..Self::default()
        };
        let Some(speaker) = s.speaker else { return facts };
        facts.converged = speaker.converged();
        facts.ranges = !speaker.config().dynamic.is_empty();
        facts.serves = facts.ranges;
        for p in speaker.peers() {
            let up = p.state == StateKind::Established;
            let guest = p.kind == DYNAMIC;
            let client = speaker.peer_config(p.id).is_some_and(is_client);
            facts.configured += usize::from(!guest);
            facts.serves |= client;
            if up {
                facts.established += 1;
                facts.clients += usize::from(client);
                let since = Duration::from_millis(s.now.since_ms(p.since));
                facts.rest = Some(facts.rest.map_or(since, |r| r.min(since)));
            } else if !guest && speaker.peer_config(p.id).is_some_and(|c| c.session.shutdown.is_none()) {
                let tried = p.state != StateKind::Idle || p.last_error.is_some();
                facts.untried |= !tried;
                facts.away.push(format!("{} {}", p.name, p.state));
            }
        }
        facts
    }
}

/// Of a speaker alone.
pub(crate) async fn health(handle: &Handle, uptime: Duration) -> Health {
    judge(&ask(handle).await, uptime)
}

/// What the answer means.
fn judge(word: &Word, uptime: Duration) -> Health {
    let check = |name: &str, vital, verdict: Result<String, String>| {
        let ok = verdict.is_ok();
        Check { name: name.into(), ok, vital, reason: verdict.unwrap_or_else(|e| e) }
    };
    let f = match word {
        Word::Facts(f) => f,
        Word::Defect => {
            let lives = Ok("lives".into());
            let checks = vec![check("bgpd", true, lives), check("sessions", false, word.sessions(uptime))];
            return Health { checks };
        }
        Word::None => {
            let stuck = Err(format!("the speaker has not answered for {} s", PATIENCE.as_secs()));
            return Health { checks: vec![check("bgpd", true, stuck)] };
        }
    };
    let identity = if f.identity { Ok("answers".into()) } else { Err("has nobody to speak for yet".into()) };
    let routes = if f.converged {
        Ok("complete".into())
    } else {
        Err("those of the peers are not complete yet".into())
    };
    Health {
        checks: vec![
            check("bgpd", true, Ok("answers".into())),
            check("identity", false, identity),
            check("sockets", false, f.sockets()),
            check("routes", false, routes),
            check("sessions", false, word.sessions(uptime)),
        ],
    }
}

impl Facts {
    /// Whether peers can connect.
    ///
    /// # Errors
    /// Why not, in words, and what to do.
    pub fn sockets(&self) -> Result<String, String> {
        let Some(first) = self.listening.first() else { return Ok("open".into()) };
        let all: Vec<String> = self.listening.iter().map(|e| format!("{} ({})", e.address, e.why)).collect();
        let port = first.address.port();
        Err(format!("cannot listen on {}; who has the port: ss -ltnp sport = :{port}", all.join(", ")))
    }
}

impl Word {
    /// Whether the sessions are as they should be.
    ///
    /// # Errors
    /// Why not, in words.
    pub fn sessions(&self, uptime: Duration) -> Result<String, String> {
        match self {
            Self::Facts(facts) => sessions(facts, uptime),
            Self::Defect => Err("unknown: a defect of ours, the log says more".into()),
            Self::None => Err("unknown: the speaker does not answer".into()),
        }
    }
}

fn sessions(f: &Facts, uptime: Duration) -> Result<String, String> {
    let all = f.established + f.away.len();
    if all == 0 && !f.serves {
        return Ok("no peers".into());
    }
    let mut said = format!("{} of {all} sessions established", f.established);
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
        if f.untried {
            return Err(format!("{said}; not all were tried yet"));
        }
    }
    // Sessions with other reflectors are no clients.
    if f.serves && f.clients == 0 && f.client_arrivals > 0 {
        return Err(format!("{said}, none of them with a client; all that there were have ended"));
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
        Facts { identity: true, converged: true, ranges: true, serves: true, ..Facts::default() }
    }

    fn at(f: &Facts, seconds: u64) -> (bool, String) {
        let health = judge(&Word::Facts(Box::new(f.clone())), Duration::from_secs(seconds));
        assert!(health.ok(Probe::Live));
        (health.ok(Probe::Ready), health.text(Probe::Ready))
    }

    #[test]
    fn a_reflector_is_ready_when_its_clients_have_come_to_rest() {
        let rest = |n, s| Facts {
            established: n,
            clients: n,
            client_arrivals: 9,
            rest: Some(Duration::from_secs(s)),
            ..facts()
        };
        let taken = ListenError { address: ([0; 4], 1790).into(), why: "in use".into() };
        for (f, uptime, ready) in [
            (facts(), 20, false),
            (facts(), 61, true),
            (rest(9, 1), 20, false),
            (rest(9, 10), 20, true),
            // Somebody comes later: that is no reason to be taken out.
            (rest(9, 1), 61, true),
            // All were here and are gone.
            (Facts { client_arrivals: 9, ..facts() }, 20, false),
            (Facts { client_arrivals: 9, ..facts() }, 6_000, false),
            // Another reflector is there, the clients are gone; or none has ever come, which is not its fault.
            (Facts { clients: 0, ..rest(1, 99) }, 6_000, false),
            (Facts { clients: 0, client_arrivals: 0, ..rest(1, 99) }, 6_000, true),
            (Facts { converged: false, ..rest(9, 10) }, 61, false),
            (Facts { listening: vec![taken.clone()], ..rest(9, 10) }, 61, false),
        ] {
            let (ok, text) = at(&f, uptime);
            assert_eq!(ok, ready, "{uptime} s: {f:?}\n{text}");
        }
    }

    #[test]
    fn a_configured_peer_that_is_away_counts_at_the_start_only() {
        let f = Facts {
            ranges: false,
            serves: false,
            configured: 2,
            established: 1,
            client_arrivals: 1,
            rest: Some(Duration::from_secs(1)),
            away: vec!["tor Active".into()],
            ..facts()
        };
        let (ok, text) = at(&f, 10);
        assert!(!ok && text.contains("tor Active; waiting until 30 s"), "{text}");
        assert!(at(&f, 31).0);
        let (ok, text) = at(&Facts { untried: true, ..f.clone() }, 31);
        assert!(
            !ok && text.contains("1 of 2 sessions established; not: tor Active; not all were tried"),
            "{text}"
        );
        // All are away: their affair, unless others depend on this one.
        let lost = Facts { established: 0, ..f.clone() };
        assert!(at(&lost, 31).0);
        let (ok, text) = at(&Facts { serves: true, ..lost }, 31);
        assert!(!ok && text.contains("all that there were have ended"), "{text}");
        let many = Facts { away: (0..9).map(|i| format!("n{i} Active")).collect(), ..f };
        assert!(at(&many, 31).1.contains(" and 4 more"));
        let none = Facts { configured: 0, ranges: false, serves: false, ..facts() };
        assert!(at(&none, 1).0, "who has no peers waits for none");
    }

    #[test]
    fn a_speaker_that_does_not_answer_is_not_live() {
        assert!(!judge(&Word::None, Duration::ZERO).ok(Probe::Live));
    }

    #[test]
    fn a_speaker_that_meets_a_defect_over_the_question_lives_and_is_not_ready() {
        let health = judge(&Word::Defect, Duration::from_secs(99));
        assert!(health.ok(Probe::Live) && !health.ok(Probe::Ready));
    }
}
