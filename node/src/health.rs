//! Whether the agent lives and is ready, with the reason of each check; answered over HTTP (`/livez`, `/readyz`, and
//! Felix' `/liveness`, `/readiness`) and over the admin socket (`brindle-node probe`).
//!
//! Live: the threads that do the work answer. Ready: the datastore was read, routes and policy are in the kernel, and
//! BGP was tried with every peer. A peer that is away makes this node unready only for the first [`GRACE`], so that a
//! rolling update waits for the sessions to come back; after that its absence is its own affair (calico-node's
//! readiness in contrast wants one session, whoever is to blame).

use std::{net::SocketAddr, sync::Arc, time::Duration};

use anyhow::Context;
use brindle_config_core::status::{
    BgpStatus, PeerStatus,
    health::{Check, Health, Probe},
};
use brindle_felix::{FelixInput, Report, policy::PolicyReport};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::{Semaphore, oneshot},
    time::{sleep, timeout},
};

use crate::drain::Drain;

/// How long a part may take to answer before it counts as stuck.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long sessions are waited for after the start.
pub(crate) const GRACE: Duration = Duration::from_secs(30);
/// Clients served at the same time.
const MAX_CLIENTS: usize = 16;
/// Longest request head, octets.
const MAX_HEAD: usize = 8 << 10;

/// Whom to ask.
#[derive(Clone)]
pub(crate) struct Sources {
    pub(crate) felix: brindle_felix::Handle,
    pub(crate) policy: brindle_felix::policy::PolicyHandle,
    pub(crate) bgp: Option<brindle_bgpd::Handle>,
    pub(crate) drain: Arc<Drain>,
    pub(crate) started: std::time::Instant,
}

impl Sources {
    /// Asks everybody, at most [`PATIENCE`] each.
    pub(crate) async fn health(&self) -> Health {
        let (tx, rx) = oneshot::channel();
        let ask = async {
            self.felix.send(FelixInput::Ask(tx)).await.then_some(())?;
            rx.await.ok()
        };
        let felix = async { timeout(PATIENCE, ask).await.ok().flatten() };
        let bgp = async {
            match &self.bgp {
                Some(handle) => Some(timeout(PATIENCE, handle.status()).await.ok().and_then(Result::ok)),
                None => None,
            }
        };
        let (felix, bgp) = tokio::join!(felix, bgp);
        judge(felix.as_ref(), &self.policy.report(), bgp, self.drain.state(), self.started.elapsed())
    }
}

/// What the answers mean. `felix`: none if it did not answer; `bgp`: none if there is no speaker, `Some(None)` if it
/// did not answer; `drain`: why there is no speaker any more.
fn judge(
    felix: Option<&Report>,
    policy: &PolicyReport,
    bgp: Option<Option<BgpStatus>>,
    drain: Option<&'static str>,
    uptime: Duration,
) -> Health {
    let check = |name: &str, vital, verdict: Result<String, String>| {
        let ok = verdict.is_ok();
        Check { name: name.into(), ok, vital, reason: verdict.unwrap_or_else(|e| e) }
    };
    let stuck = |what: &str| format!("{what} has not answered for {} s", PATIENCE.as_secs());
    let mut checks = Vec::new();
    checks.push(check(
        "felix",
        true,
        felix.map(|_| "answers".into()).ok_or_else(|| stuck("the route manager")),
    ));
    let speaker = match (drain, &bgp) {
        (Some(why), _) => Ok(why.to_owned()),
        (None, Some(None)) => Err(stuck("the speaker")),
        (None, Some(Some(_))) => Ok("answers".into()),
        (None, None) => Ok("not asked for (--networking none)".into()),
    };
    checks.push(check("bgpd", true, speaker));
    if let Some(report) = felix {
        let read = report.pod_mtu != 0;
        let store = if read { Ok("read".into()) } else { Err("has not been read yet".into()) };
        checks.push(check("datastore", false, store));
        let routes = if !report.problems.is_empty() {
            Err(report.problems.join("; "))
        } else if report.routes.failed.is_empty() {
            Ok(format!("{} in the kernel", report.routes.desired))
        } else {
            Err(format!("refused by the kernel: {}", report.routes.failed.join("; ")))
        };
        checks.push(check("routes", false, routes));
    }
    let policy = if !policy.problems.is_empty() {
        Err(policy.problems.join("; "))
    } else if policy.in_sync {
        Ok("in force".into())
    } else {
        Err("has not been written yet".into())
    };
    checks.push(check("policy", false, policy));
    let sessions = match (drain, bgp) {
        (Some(why), _) => Err(why.to_owned()),
        (None, Some(Some(status))) => sessions(&status.peers, uptime),
        (None, Some(None)) => Err("unknown: the speaker does not answer".into()),
        (None, None) => Ok("not asked for".into()),
    };
    checks.push(check("bgp", false, sessions));
    Health { checks }
}

fn sessions(peers: &[PeerStatus], uptime: Duration) -> Result<String, String> {
    if peers.is_empty() {
        return Ok("no peers".into());
    }
    let down: Vec<&PeerStatus> = peers.iter().filter(|p| p.state != "Established").collect();
    let mut said = format!("{} of {} sessions established", peers.len() - down.len(), peers.len());
    if down.is_empty() {
        return Ok(said);
    }
    // A long list helps nobody.
    let named: Vec<String> = down.iter().take(5).map(|p| format!("{} {}", p.name, p.state)).collect();
    let more = down.len().saturating_sub(named.len());
    said += &format!("; not: {}", named.join(", "));
    if more > 0 {
        said += &format!(" and {more} more");
    }
    if uptime < GRACE {
        return Err(format!("{said}; waiting until {} s after the start", GRACE.as_secs()));
    }
    if down.iter().any(|p| p.state == "Idle" && p.last_error.is_none()) {
        return Err(format!("{said}; not all were tried yet"));
    }
    Ok(said)
}

/// Listens for probes.
pub(crate) async fn listen(address: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| {
        format!("--health {address}: cannot listen; choose another port (does calico-node run on this node?)")
    })
}

/// Serves until dropped.
pub(crate) async fn serve(listener: TcpListener, sources: Sources) {
    let slots = Arc::new(Semaphore::new(MAX_CLIENTS));
    loop {
        let Ok(slot) = Arc::clone(&slots).acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                let sources = sources.clone();
                tokio::spawn(async move {
                    let _slot = slot;
                    // Whoever is slower than two patiences has gone.
                    let _ = timeout(PATIENCE * 2, client(stream, &sources)).await;
                });
            }
            Err(e) => {
                tracing::warn!("cannot accept on the health port: {e}; trying again");
                sleep(Duration::from_millis(200)).await;
            }
        }
    }
}

async fn client(mut stream: TcpStream, sources: &Sources) -> std::io::Result<()> {
    let mut head = Vec::new();
    while !head.windows(4).any(|w| w == b"\r\n\r\n") && head.len() < MAX_HEAD {
        if stream.read_buf(&mut head).await? == 0 {
            break;
        }
    }
    let (status, body, with_body) = match request(&head) {
        Ok((probe, with_body)) => {
            let health = sources.health().await;
            let status = if health.ok(probe) { "200 OK" } else { "503 Service Unavailable" };
            (status, health.text(probe), with_body)
        }
        Err((status, body)) => (status, body.to_owned(), true),
    };
    let mut reply = format!(
        "HTTP/1.1 {status}\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: {}\r\n\
         Connection: close\r\n\r\n",
        body.len()
    );
    if with_body {
        reply += &body;
    }
    stream.write_all(reply.as_bytes()).await?;
    stream.shutdown().await
}

/// What is asked, and whether a body is wanted; or the refusal.
fn request(head: &[u8]) -> Result<(Probe, bool), (&'static str, &'static str)> {
    let first = head.split(|b| *b == b'\r').next().unwrap_or_default();
    let words: Vec<&[u8]> = first.split(|b| *b == b' ').collect();
    let (method, path) = match words.as_slice() {
        [method @ (b"GET" | b"HEAD"), path, _] => (*method, *path),
        _ => return Err(("405 Method Not Allowed", "GET /livez or /readyz\n")),
    };
    let path = path.split(|b| *b == b'?').next().unwrap_or_default();
    let probe = match path {
        b"/livez" | b"/liveness" => Probe::Live,
        b"/readyz" | b"/readiness" => Probe::Ready,
        _ => return Err(("404 Not Found", "there are /livez and /readyz\n")),
    };
    Ok((probe, method == b"GET"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(name: &str, state: &str, last_error: Option<&str>) -> PeerStatus {
        PeerStatus {
            address: "192.0.2.1".parse().unwrap(),
            name: name.into(),
            kind: "mesh".into(),
            asn: 64512,
            state: state.into(),
            since_ms: 0,
            received: 0,
            advertised: 0,
            last_error: last_error.map(Into::into),
        }
    }

    fn good() -> (Report, PolicyReport) {
        let report = Report { pod_mtu: 1480, ..Report::default() };
        (report, PolicyReport { in_sync: true, ..PolicyReport::default() })
    }

    fn failing(health: &Health) -> Vec<&str> {
        health.checks.iter().filter(|c| !c.ok).map(|c| c.name.as_str()).collect()
    }

    const LATER: Duration = Duration::from_secs(60);

    #[test]
    fn a_node_that_does_everything_is_ready() {
        let (report, policy) = good();
        let health = judge(Some(&report), &policy, Some(Some(BgpStatus::default())), None, Duration::ZERO);
        assert_eq!(failing(&health), [""; 0]);
        let health = judge(Some(&report), &policy, None, None, Duration::ZERO);
        assert!(health.ok(Probe::Ready), "{}", health.text(Probe::Ready));
    }

    #[test]
    fn each_part_that_is_not_there_yet_is_named() {
        let (report, policy) = good();
        let health = judge(Some(&Report::default()), &PolicyReport::default(), None, None, LATER);
        assert_eq!(failing(&health), ["datastore", "policy"]);
        assert!(health.ok(Probe::Live));
        let health = judge(None, &policy, Some(None), None, LATER);
        assert_eq!(failing(&health), ["felix", "bgpd", "bgp"]);
        assert!(!health.ok(Probe::Live));
        let broken = Report { problems: vec!["no device eth0".into()], ..report };
        let health = judge(Some(&broken), &policy, None, None, LATER);
        assert!(health.text(Probe::Ready).contains("[-] routes: no device eth0"));
    }

    #[test]
    fn a_peer_that_is_away_counts_only_at_the_start() {
        let peers = [peer("n2", "Established", None), peer("n3", "Active", Some("refused"))];
        let early = sessions(&peers, Duration::from_secs(3)).unwrap_err();
        assert!(early.contains("1 of 2") && early.contains("n3 Active"), "{early}");
        assert!(sessions(&peers, LATER).unwrap().contains("1 of 2"));
        assert!(sessions(&[peer("n3", "Idle", None)], LATER).unwrap_err().contains("tried"));
        assert!(sessions(&peers[..1], Duration::ZERO).is_ok());
        let many: Vec<_> = (0..9).map(|i| peer(&format!("n{i}"), "Active", Some("x"))).collect();
        assert!(sessions(&many, LATER).unwrap().ends_with("and 4 more"));
    }

    #[test]
    fn a_drained_node_is_live_and_not_ready() {
        let (report, policy) = good();
        let health = judge(Some(&report), &policy, Some(None), Some("drained"), LATER);
        assert_eq!(failing(&health), ["bgp"]);
        assert!(health.ok(Probe::Live));
    }

    #[test]
    fn requests_are_told_apart() {
        assert_eq!(request(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n"), Ok((Probe::Live, true)));
        assert_eq!(request(b"HEAD /readyz?verbose HTTP/1.1\r\n\r\n"), Ok((Probe::Ready, false)));
        assert_eq!(request(b"GET /readiness HTTP/1.0\r\n\r\n"), Ok((Probe::Ready, true)));
        assert_eq!(request(b"GET / HTTP/1.1\r\n\r\n").unwrap_err().0, "404 Not Found");
        assert_eq!(request(b"POST /livez HTTP/1.1\r\n\r\n").unwrap_err().0, "405 Method Not Allowed");
        assert_eq!(request(b"").unwrap_err().0, "405 Method Not Allowed");
    }
}
