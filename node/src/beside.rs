//! Beside a Calico. Two agents on one node undo each other's rules and routes, so ours waits at its start until the other one
//! has gone: it lives, is not ready, says why, and writes nothing, neither to the kernel nor to the datastore. A process
//! that ended instead would be started ever more rarely by kubelet, and calico-node takes some seconds to go. One that
//! comes later is named, and the node is not ready with it.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use brindle_config_core::status::{
    AdminRequest,
    bgp::End,
    health::{Check, Health},
};
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::{admin, calico, health, local_socket, settings::Settings};

/// Pause between two looks.
const PAUSE: Duration = Duration::from_secs(1);
/// How often it must not have been there: its programs do not end, nor are they started again, at the same moment.
const LOOKS: u32 = 3;
/// Pause between two looks of an agent that has started.
const LATER: Duration = Duration::from_secs(10);
/// The next step.
const WAY_OUT: &str =
    "keep calico-node off this node (docs/from-calico.md); this agent starts by itself once it has gone";
/// What comes of a Calico beside an agent that runs, and the next step.
const TOO: &str = "both write its rules and routes, and undo each other's; keep calico-node off this node, or take the \
                   agent away (docs/from-calico.md)";

/// What is waited for.
struct Wait {
    since: Instant,
    sign: Mutex<String>,
}

impl Wait {
    fn sign(&self) -> String {
        self.sign.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn text(&self) -> String {
        let for_ = self.since.elapsed().as_secs();
        format!("waiting for {for_} s for Calico to leave this node ({}); {WAY_OUT}", self.sign())
    }

    fn health(&self) -> Health {
        let check = |name: &str, ok, vital, reason: String| Check { name: name.into(), ok, vital, reason };
        Health {
            checks: vec![
                check("agent", true, true, "answers".into()),
                check("calico", false, false, self.text()),
            ],
        }
    }

    fn answer(&self, request: &AdminRequest) -> Value {
        let refusal = || format!("the agent has not started yet; {}", self.text());
        match request {
            AdminRequest::Health => serde_json::to_value(self.health()).unwrap_or(Value::Null),
            AdminRequest::Bgp(_) => json!(End::Error(refusal())),
            _ => json!({"error": refusal()}),
        }
    }
}

/// Returns once no Calico runs on this node.
pub(crate) async fn until_alone(settings: &Settings) -> anyhow::Result<()> {
    let Some(sign) = look().await? else { return Ok(()) };
    let wait = Arc::new(Wait { since: Instant::now(), sign: Mutex::new(String::new()) });
    let listener = local_socket::bind(&settings.admin_socket)?;
    let asked = Arc::clone(&wait);
    let answers: admin::Answer = Arc::new(move |request| {
        let wait = Arc::clone(&asked);
        Box::pin(async move { wait.answer(&request) })
    });
    let admin = tokio::spawn(admin::serve(listener, answers, None));
    // Felix answers at the same port: whoever asks there hears it, and not us, until it has gone.
    let mut probes = None;
    let mut absent = 0;
    let mut found = Some(sign);
    while absent < LOOKS {
        match found {
            Some(sign) => {
                absent = 0;
                if wait.sign() != sign {
                    tracing::warn!(cause = %sign, "a Calico runs on this node, so the agent waits and touches nothing: {WAY_OUT}");
                    *wait.sign.lock().unwrap_or_else(PoisonError::into_inner) = sign;
                }
            }
            None => absent += 1,
        }
        if let Some(address) = settings.cluster.health.filter(|_| probes.is_none())
            && let Ok(listener) = health::listen(address).await
        {
            let wait = Arc::clone(&wait);
            probes = Some(tokio::spawn(health::serve(listener, move || {
                let wait = Arc::clone(&wait);
                async move { wait.health() }
            })));
        }
        tokio::time::sleep(PAUSE).await;
        found = look().await?;
    }
    for server in probes.into_iter().chain([admin]) {
        server.abort();
        // Cancelled: its socket is free now.
        drop(server.await);
    }
    tracing::info!(
        old = "waiting",
        new = "starting",
        cause = "no Calico runs on this node any more",
        "agent"
    );
    Ok(())
}

/// What shows a Calico that came later.
pub(crate) type Intruder = watch::Receiver<Option<String>>;

/// Looks as long as somebody wants to know.
pub(crate) fn watch() -> Intruder {
    let (found, intruder) = watch::channel(None);
    tokio::spawn(async move {
        while !found.is_closed() {
            tokio::time::sleep(LATER).await;
            let Ok(now) = look().await else { return };
            found.send_if_modified(|old| {
                let news = *old != now;
                match &now {
                    Some(sign) if news => {
                        tracing::warn!(cause = %sign, "a Calico runs on this node too: {TOO}");
                    }
                    None if news => tracing::info!("no Calico runs on this node any more"),
                    Some(_) | None => {}
                }
                *old = now;
                news
            });
        }
    });
    intruder
}

/// The check that fails with it.
pub(crate) fn check(intruder: &Intruder) -> Option<Check> {
    let sign = intruder.borrow().clone()?;
    let reason = format!("a Calico runs on this node too ({sign}): {TOO}");
    Some(Check { name: "calico".into(), ok: false, vital: false, reason })
}

/// It asks a port and reads all processes.
async fn look() -> anyhow::Result<Option<String>> {
    Ok(tokio::task::spawn_blocking(calico::running).await?)
}

#[cfg(test)]
mod tests {
    use brindle_config_core::status::health::Probe;

    use super::*;

    #[test]
    fn whoever_asks_hears_of_calico_and_of_the_way_out() {
        let wait = Wait { since: Instant::now(), sign: Mutex::new("its BIRD listens on x".into()) };
        let health = wait.health();
        assert!(health.ok(Probe::Live) && !health.ok(Probe::Ready));
        let text = health.text(Probe::Ready);
        assert!(
            text.contains(
                "[-] calico: waiting for 0 s for Calico to leave this node (its BIRD listens on x)"
            ),
            "{text}"
        );
        let said = wait.answer(&AdminRequest::Status)["error"].as_str().unwrap_or_default().to_owned();
        assert!(
            said.contains("has not started yet") && said.contains("keep calico-node off this node"),
            "{said}"
        );
    }

    #[test]
    fn one_that_comes_later_is_a_check_that_fails() {
        let (found, intruder) = watch::channel(None);
        assert_eq!(check(&intruder), None);
        found.send_replace(Some("its BIRD listens on x".into()));
        let told = check(&intruder).expect("it is named");
        assert!(
            !told.ok && !told.vital && told.reason.contains("(its BIRD listens on x): both write"),
            "{told:?}"
        );
    }
}
