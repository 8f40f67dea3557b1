//! Whether this process is well: what `/livez` and `/readyz` say. It is live while whoever leads comes round in the time
//! that takes: a renewed lease says nothing of that, it has a task of its own. It is ready once it has read the datastore,
//! leading or standing by.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use brindle_admin::http::{self, Answer};
use brindle_config_core::status::health::{Check, Health, Probe};
use tokio::net::TcpListener;

/// How much longer than two of its periods a leader may take for a round. One call of the datastore may take a minute and
/// a plan needs a few; each thing that is done counts as a sign of life.
const PATIENCE: Duration = Duration::from_secs(5 * 60);

/// The signs of life. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Pulse(Arc<Mutex<Signs>>);

#[derive(Debug, Default)]
struct Signs {
    /// While this process leads: when it last came round, and how long the next round may take.
    round: Option<(Instant, Duration)>,
    /// The datastore has been read.
    read: bool,
}

impl Pulse {
    fn signs(&self) -> MutexGuard<'_, Signs> {
        // Signs are whole after each statement.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The leader comes round, or does something; it looks at everything once in a period.
    pub fn beat(&self, period: Duration) {
        self.signs().round = Some((Instant::now(), period * 2 + PATIENCE));
    }

    /// This process does not lead any more.
    pub fn rest(&self) {
        self.signs().round = None;
    }

    /// The datastore has answered.
    pub fn read(&self) {
        self.signs().read = true;
    }

    /// As of now.
    fn health(&self, now: Instant) -> Health {
        let signs = self.signs();
        let check = |name: &str, vital, verdict: Result<String, String>| {
            let ok = verdict.is_ok();
            Check { name: name.into(), ok, vital, reason: verdict.unwrap_or_else(|e| e) }
        };
        let round = match signs.round {
            None => Ok("stands by".to_owned()),
            Some((last, limit)) => {
                let ago = now.saturating_duration_since(last);
                if ago <= limit {
                    Ok("leads".to_owned())
                } else {
                    Err(format!("leads, and has not come round for {} s", ago.as_secs()))
                }
            }
        };
        let read = if signs.read { Ok("read".to_owned()) } else { Err("has not been read yet".to_owned()) };
        Health { checks: vec![check("controllers", true, round), check("datastore", false, read)] }
    }

    /// The answer of a path; none for one that is no probe's.
    pub fn answer(&self, path: &str) -> Option<Answer> {
        let probe = match path {
            "/livez" | "/liveness" => Probe::Live,
            "/readyz" | "/readiness" => Probe::Ready,
            _ => return None,
        };
        let health = self.health(Instant::now());
        Some(Answer::text(health.ok(probe), health.text(probe)))
    }
}

/// Listens for probes. A host without IPv6 has only the IPv4 addresses that `[::]` stands for.
pub(crate) async fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    match http::listen("--health", address).await {
        Err(_) if address.is_ipv6() && address.ip().is_unspecified() => {
            let v4 = SocketAddr::from((Ipv4Addr::UNSPECIFIED, address.port()));
            http::listen("--health", v4).await
        }
        bound => bound,
    }
}

/// Answers probes until dropped.
pub(crate) async fn serve(listener: TcpListener, pulse: Pulse) {
    let answer = move |path: String| {
        let answer = pulse.answer(&path);
        async move { answer }
    };
    http::serve(listener, "/livez and /readyz", answer).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_leader_that_does_not_come_round_is_not_live() {
        let pulse = Pulse::default();
        let now = Instant::now();
        assert!(pulse.health(now).ok(Probe::Live), "whoever stands by is as well as whoever leads");
        pulse.beat(Duration::from_secs(60));
        assert!(pulse.health(now + Duration::from_secs(400)).ok(Probe::Live));
        let late = pulse.health(now + Duration::from_secs(500));
        assert!(late.text(Probe::Live).starts_with("[-] controllers: leads, and has not come round for"));
        pulse.rest();
        assert!(pulse.health(now + Duration::from_secs(500)).ok(Probe::Live));
    }

    #[test]
    fn it_is_ready_once_the_datastore_was_read() {
        let pulse = Pulse::default();
        let health = pulse.health(Instant::now());
        assert_eq!(
            health.text(Probe::Ready),
            "[+] controllers: stands by\n[-] datastore: has not been read yet\nnot ready\n"
        );
        pulse.read();
        assert!(pulse.health(Instant::now()).ok(Probe::Ready));
        assert!(pulse.answer("/readiness").is_some() && pulse.answer("/metrics").is_none());
    }
}
