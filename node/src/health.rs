//! Whether the agent lives and is ready, with the reason of each check; answered over HTTP (`/livez`, `/readyz`, and
//! Felix' `/liveness`, `/readiness`) and over the admin socket (`brindle-node probe`).
//!
//! Live: the threads that do the work answer. Ready: the datastore was read, routes and policy are in the kernel, and
//! BGP is as `brindle_bgpd::health` wants it of any speaker. A node the speaker cannot speak for is never ready.

use std::{net::SocketAddr, pin::Pin, sync::Arc, time::Duration};

use brindle_admin::http::{self, Answer};
use brindle_bgpd::{
    health::{PATIENCE, Word},
    peers::Problem,
};
use brindle_config_core::{
    Key, Kind,
    status::health::{Check, Health, Probe},
};
use brindle_felix::{FelixInput, Report, policy::PolicyReport};
use tokio::{net::TcpListener, sync::oneshot, time::timeout};

use crate::{
    beside::{self, Intruder},
    drain::Drain,
    waiting::Wait,
};

/// What the speaker cannot do as configured.
pub(crate) type BgpProblems = tokio::sync::watch::Receiver<Option<Vec<Problem>>>;

/// Whom to ask.
#[derive(Clone)]
pub(crate) struct Sources {
    pub(crate) felix: brindle_felix::Handle,
    pub(crate) policy: brindle_felix::policy::PolicyHandle,
    pub(crate) bgp: Option<brindle_bgpd::Handle>,
    pub(crate) bgp_problems: Option<BgpProblems>,
    /// This node's name.
    pub(crate) node: String,
    pub(crate) drain: Arc<Drain>,
    pub(crate) started: std::time::Instant,
    /// A Calico that came to this node after the start; none: nobody looks yet.
    pub(crate) intruder: Option<Intruder>,
    /// The agent waits for its datastore.
    pub(crate) waits: Option<Arc<Wait>>,
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
                Some(handle) => Some(brindle_bgpd::health::ask(handle).await),
                None => None,
            }
        };
        let (felix, bgp) = tokio::join!(felix, bgp);
        let own = self.own_problem();
        let bgp = Speaker { word: bgp, own, drain: self.drain.state() };
        let waits = self.waits.as_ref().map(|w| w.text());
        let mut health = judge(felix.as_ref(), &self.policy.report(), bgp, waits, self.started.elapsed());
        health.checks.extend(self.intruder.as_ref().and_then(beside::check));
        health
    }

    /// For whoever asks again and again.
    pub(crate) fn asker(self) -> impl Fn() -> Pin<Box<dyn Future<Output = Health> + Send>> + Clone + Send {
        move || {
            let sources = self.clone();
            Box::pin(async move { sources.health().await })
        }
    }

    /// What keeps the speaker from speaking for this node. Problems with others are not this node's.
    fn own_problem(&self) -> Option<String> {
        let all = self.bgp_problems.as_ref()?.borrow();
        let own = Key::new(Kind::Node, None, &self.node);
        let said: Vec<String> =
            all.iter().flatten().filter(|p| p.about == own).map(ToString::to_string).collect();
        (!said.is_empty()).then(|| said.join("; "))
    }
}

/// What is known of the speaker.
struct Speaker {
    /// None if there is no speaker.
    word: Option<Word>,
    /// What is wrong with the configuration of its own node.
    own: Option<String>,
    /// Why there is no speaker any more.
    drain: Option<&'static str>,
}

/// What the answers mean. `felix`: none if it did not answer; `waits`: why the start is not over.
fn judge(
    felix: Option<&Report>,
    policy: &PolicyReport,
    speaker: Speaker,
    waits: Option<String>,
    uptime: Duration,
) -> Health {
    let Speaker { word: bgp, own, drain } = speaker;
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
        (None, Some(Word::None)) => Err(stuck("the speaker")),
        (None, Some(Word::Facts(_))) => Ok("answers".into()),
        (None, Some(Word::Defect)) => Ok("lives".into()),
        (None, None) if waits.is_some() => Ok("starts when the datastore answers".into()),
        (None, None) => Ok("not asked for (--networking none)".into()),
    };
    checks.push(check("bgpd", true, speaker));
    if let Some(why) = waits {
        // The checks that follow would only say what comes of it.
        checks.push(check("datastore", false, Err(why)));
        return Health { checks };
    }
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
    let sessions = match (drain, own, bgp) {
        (Some(why), ..) => Err(why.to_owned()),
        (None, Some(problem), _) => Err(problem),
        // Nothing was told yet, or what was told met a defect.
        (None, None, Some(Word::Facts(f))) if !f.identity => {
            Err("the speaker was not told yet whom to speak for".into())
        }
        // Sessions may be up all the same: those that this node dialled.
        (None, None, Some(Word::Facts(f))) if !f.listening.is_empty() => f.sockets(),
        (None, None, Some(word)) => word.sessions(uptime),
        (None, None, None) => Ok("not asked for".into()),
    };
    checks.push(check("bgp", false, sessions));
    Health { checks }
}

/// What keeps the node from being ready, as far as a status with these reasons does not show it: routes that are refused
/// have their own place there, and what is missing before the datastore was read follows from that.
pub(crate) fn untold(health: &Health, reasons: &[String]) -> Vec<String> {
    let shown = |c: &&Check| {
        c.ok || matches!(&*c.name, "datastore" | "routes") || reasons.iter().any(|r| c.reason.contains(r))
    };
    let left = health.checks.iter().filter(|c| !shown(c));
    left.map(|c| format!("{}: {}", c.name, c.reason)).collect()
}

/// Listens for probes.
pub(crate) async fn listen(address: SocketAddr) -> anyhow::Result<TcpListener> {
    let other = |e: std::io::Error| anyhow::anyhow!("{e} (does calico-node run on this node?)");
    http::listen("--health", address).await.map_err(other)
}

/// Serves until dropped.
pub(crate) async fn serve<F>(listener: TcpListener, health: impl Fn() -> F + Clone + Send + 'static)
where
    F: Future<Output = Health> + Send + 'static,
{
    let answer = move |path: String| {
        let health = health.clone();
        async move {
            let probe = probe(&path)?;
            let health = health().await;
            Some(Answer::text(health.ok(probe), health.text(probe)))
        }
    };
    http::serve(listener, "/livez and /readyz", answer).await;
}

fn probe(path: &str) -> Option<Probe> {
    match path {
        "/livez" | "/liveness" => Some(Probe::Live),
        "/readyz" | "/readiness" => Some(Probe::Ready),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use brindle_bgpd::health::Facts;

    use super::*;

    fn facts(away: &[&str]) -> Word {
        let away: Vec<String> = away.iter().map(|a| (*a).to_owned()).collect();
        Word::Facts(Box::new(Facts { identity: true, configured: away.len(), away, ..Facts::default() }))
    }

    fn good() -> (Report, PolicyReport) {
        let report = Report { pod_mtu: 1480, ..Report::default() };
        (report, PolicyReport { in_sync: true, ..PolicyReport::default() })
    }

    fn failing(health: &Health) -> Vec<&str> {
        health.checks.iter().filter(|c| !c.ok).map(|c| c.name.as_str()).collect()
    }

    const LATER: Duration = Duration::from_secs(60);

    fn speaks(word: Option<Word>) -> Speaker {
        Speaker { word, own: None, drain: None }
    }

    #[test]
    fn a_node_that_does_everything_is_ready() {
        let (report, policy) = good();
        let health = judge(Some(&report), &policy, speaks(Some(facts(&[]))), None, Duration::ZERO);
        assert_eq!(failing(&health), [""; 0]);
        let health = judge(Some(&report), &policy, speaks(None), None, Duration::ZERO);
        assert!(health.ok(Probe::Ready), "{}", health.text(Probe::Ready));
    }

    #[test]
    fn each_part_that_is_not_there_yet_is_named() {
        let (report, policy) = good();
        let health = judge(Some(&Report::default()), &PolicyReport::default(), speaks(None), None, LATER);
        assert_eq!(failing(&health), ["datastore", "policy"]);
        assert!(health.ok(Probe::Live));
        let health = judge(None, &policy, speaks(Some(Word::None)), None, LATER);
        assert_eq!(failing(&health), ["felix", "bgpd", "bgp"]);
        assert!(!health.ok(Probe::Live));
        let health = judge(Some(&report), &policy, speaks(Some(Word::Defect)), None, LATER);
        assert_eq!(failing(&health), ["bgp"]);
        assert!(health.ok(Probe::Live), "another start would not help");
        let broken = Report { problems: vec!["no device eth0".into()], ..report };
        let health = judge(Some(&broken), &policy, speaks(None), None, LATER);
        assert!(health.text(Probe::Ready).contains("[-] routes: no device eth0"));
    }

    #[test]
    fn a_status_says_what_keeps_the_node_from_being_ready_once() {
        let (report, policy) = good();
        let bgp = || speaks(Some(facts(&["n3 Active"])));
        let early = judge(Some(&report), &PolicyReport::default(), bgp(), None, Duration::ZERO);
        let told = untold(&early, &[]);
        assert_eq!(told.len(), 2, "{told:?}");
        assert_eq!(told[0], "policy: has not been written yet");
        assert!(told[1].starts_with("bgp: 0 of 1 sessions established; not: n3 Active; waiting"), "{told:?}");
        assert!(untold(&judge(Some(&report), &policy, bgp(), None, LATER), &[]).is_empty());

        let own = "Node(n1): has no address".to_owned();
        let speaker = Speaker { own: Some(own.clone()), ..bgp() };
        assert!(untold(&judge(Some(&report), &policy, speaker, None, LATER), &[own]).is_empty());
        let nothing = judge(Some(&Report::default()), &policy, speaks(None), None, LATER);
        assert!(!nothing.ok(Probe::Ready) && untold(&nothing, &["starting".into()]).is_empty());
    }

    #[test]
    fn a_drained_node_is_live_and_not_ready() {
        let (report, policy) = good();
        let drained = Speaker { drain: Some("drained"), ..speaks(Some(Word::None)) };
        let health = judge(Some(&report), &policy, drained, None, LATER);
        assert_eq!(failing(&health), ["bgp"]);
        assert!(health.ok(Probe::Live));
    }

    #[test]
    fn a_node_the_speaker_cannot_speak_for_is_live_and_not_ready() {
        let (report, policy) = good();
        let own = Some("Node(n1): has no address".to_owned());
        let speaker = Speaker { own, ..speaks(Some(facts(&[]))) };
        let health = judge(Some(&report), &policy, speaker, None, LATER);
        assert!(health.ok(Probe::Live));
        assert_eq!(failing(&health), ["bgp"]);
        assert!(health.text(Probe::Ready).contains("[-] bgp: Node(n1): has no address"));
    }

    #[test]
    fn a_node_whose_bgp_port_somebody_else_has_is_live_and_not_ready() {
        let (report, policy) = good();
        let why = "Address already in use (os error 98)".to_owned();
        let taken = brindle_bgpd::ListenError { address: ([0; 4], 179).into(), why };
        let deaf = Facts { identity: true, established: 1, listening: vec![taken], ..Facts::default() };
        let health = judge(Some(&report), &policy, speaks(Some(Word::Facts(Box::new(deaf)))), None, LATER);
        assert!(health.ok(Probe::Live));
        assert_eq!(failing(&health), ["bgp"]);
        let text = health.text(Probe::Ready);
        let wanted = "[-] bgp: cannot listen on 0.0.0.0:179 (Address already in use (os error 98)); who has the port: ss -ltnp \
                      sport = :179";
        assert!(text.contains(wanted), "{text}");
    }

    #[test]
    fn a_node_whose_speaker_was_told_nothing_is_live_and_not_ready() {
        let (report, policy) = good();
        let nobody = || speaks(Some(Word::Facts(Box::default())));
        let health = judge(Some(&report), &policy, nobody(), None, LATER);
        assert!(health.ok(Probe::Live));
        assert_eq!(failing(&health), ["bgp"]);
        assert!(health.text(Probe::Ready).contains("[-] bgp: the speaker was not told yet"));
        // Whoever drained it knows why, and so does whoever waits for the datastore.
        let drained = Speaker { drain: Some("drained"), ..nobody() };
        let text = judge(Some(&report), &policy, drained, None, LATER).text(Probe::Ready);
        assert!(text.contains("[-] bgp: drained"), "{text}");
        let health = judge(Some(&report), &policy, nobody(), Some("waits".into()), LATER);
        assert_eq!(failing(&health), ["datastore"]);
    }

    #[test]
    fn a_node_that_waits_for_its_datastore_is_live_and_says_so() {
        let waits = Some("waits".to_owned());
        let health =
            judge(Some(&Report::default()), &PolicyReport::default(), speaks(None), waits.clone(), LATER);
        assert!(health.ok(Probe::Live));
        assert_eq!(failing(&health), ["datastore"]);
        assert!(health.text(Probe::Ready).contains("[-] datastore: waits"));
        let health = judge(None, &PolicyReport::default(), speaks(None), waits, LATER);
        assert!(!health.ok(Probe::Live));
    }

    #[test]
    fn felixs_paths_are_ours() {
        assert_eq!((probe("/liveness"), probe("/readiness")), (Some(Probe::Live), Some(Probe::Ready)));
        assert_eq!(
            (probe("/livez"), probe("/readyz"), probe("/")),
            (Some(Probe::Live), Some(Probe::Ready), None)
        );
    }
}
