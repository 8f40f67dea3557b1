//! Prometheus metrics of the agent: those of its speaker, if it has one, and what else an operator asks a node: datastore,
//! policy, endpoints, CNI. Answered from the start on, also while the datastore is waited for. docs/metrics.md describes
//! every name; a test compares.

use std::{
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};

use brindle_admin::{
    http::{self, Answer},
    metrics::{Metric, Text, process},
};
use brindle_config_core::{
    Key, Kind,
    store::{Store, StoreError},
};
use brindle_felix::{Report, policy::PolicyReport};
use tokio::{net::TcpListener, sync::Mutex, time::timeout};

use crate::{
    cni_server::{self, Calls},
    waiting::Dataplanes,
};

/// In the order of the text.
const METRICS: [Metric; 9] = [
    ("brindle_datastore_connected", "gauge", "1 if the datastore answered when it was asked last."),
    ("brindle_policy_in_sync", "gauge", "1 if policy is in the kernel as it is in the datastore."),
    ("brindle_policy_writes_total", "counter", "Writes of rules and sets to the kernel."),
    ("brindle_policy_write_failures_total", "counter", "Writes and readings that failed."),
    ("brindle_endpoints", "gauge", "Endpoints of this node, by whether their routes are in the kernel."),
    ("brindle_routes", "gauge", "Routes of this node, by whether the kernel has or refused them."),
    ("brindle_ipam_blocks", "gauge", "Address blocks of this node."),
    ("brindle_cni_calls_total", "counter", "Calls of the CNI plugins, by command and result."),
    ("brindle_node_info", "gauge", "1, with node and version as labels."),
];

/// How long an answer of the datastore counts: scrapes of many servers ask it once.
const FRESH: Duration = Duration::from_secs(15);
/// How long the datastore may take.
const PATIENCE: Duration = Duration::from_secs(3);

/// Whom to ask; parts come as they start.
pub(crate) struct Sources {
    store: Arc<dyn Store>,
    node: String,
    parts: OnceLock<Parts>,
    bgp: OnceLock<brindle_bgpd::Handle>,
    /// When the datastore was asked, and whether it answered.
    asked: Mutex<Option<(Instant, bool)>>,
}

struct Parts {
    felix: brindle_felix::Handle,
    policy: brindle_felix::policy::PolicyHandle,
    calls: Arc<Calls>,
}

impl Sources {
    pub(crate) fn new(store: &Arc<dyn Store>, node: &str) -> Arc<Self> {
        Arc::new(Self {
            store: Arc::clone(store),
            node: node.to_owned(),
            parts: OnceLock::new(),
            bgp: OnceLock::new(),
            asked: Mutex::default(),
        })
    }

    /// These have started.
    pub(crate) fn parts(&self, dataplanes: &Dataplanes, cni: &cni_server::Server) {
        let Dataplanes { policy, felix } = dataplanes;
        self.parts.get_or_init(|| Parts { felix: felix.clone(), policy: policy.clone(), calls: cni.calls() });
    }

    /// The speaker has started.
    pub(crate) fn bgp(&self, bgp: &brindle_bgpd::Handle) {
        self.bgp.get_or_init(|| bgp.clone());
    }

    async fn connected(&self) -> bool {
        let mut asked = self.asked.lock().await;
        if let Some((_, answered)) = asked.filter(|(when, _)| when.elapsed() < FRESH) {
            return answered;
        }
        let key = Key::new(Kind::Node, None, &self.node);
        let answer = timeout(PATIENCE, self.store.get(&key)).await;
        let answered =
            matches!(answer, Ok(Ok(_) | Err(StoreError::NotFound(_) | StoreError::Invalid { .. })));
        *asked = Some((Instant::now(), answered));
        answered
    }

    async fn text(&self) -> String {
        let speaker = match self.bgp.get() {
            Some(bgp) => brindle_bgpd::metrics::text(bgp).await.ok(),
            None => None,
        };
        let connected = self.connected().await;
        let agent = match self.parts.get() {
            Some(p) => render(&self.node, connected, &p.felix.report(), &p.policy.report(), &p.calls),
            None => {
                render(&self.node, connected, &Report::default(), &PolicyReport::default(), &Calls::default())
            }
        };
        // A drained node has no speaker any more.
        speaker.unwrap_or_else(process) + &agent
    }
}

fn render(node: &str, connected: bool, felix: &Report, policy: &PolicyReport, calls: &Calls) -> String {
    let mut t = Text::new(&METRICS);
    t.one("brindle_datastore_connected", u8::from(connected));
    t.one("brindle_policy_in_sync", u8::from(policy.in_sync && policy.problems.is_empty()));
    let c = &policy.counters;
    t.one("brindle_policy_writes_total", c.table_writes + c.set_writes + c.nft_writes);
    t.one("brindle_policy_write_failures_total", c.errors);
    t.metric("brindle_endpoints");
    t.value(&[("state", "ready")], felix.ready.len());
    t.value(&[("state", "waiting")], felix.waiting.len());
    t.metric("brindle_routes");
    t.value(&[("state", "desired")], felix.routes.desired);
    t.value(&[("state", "refused")], felix.routes.failed.len());
    t.one("brindle_ipam_blocks", felix.own_blocks.len());
    t.metric("brindle_cni_calls_total");
    for (command, result, count) in calls.all() {
        t.value(&[("command", command), ("result", result)], count);
    }
    t.metric("brindle_node_info");
    t.value(&[("node", node), ("version", env!("CARGO_PKG_VERSION"))], 1);
    t.done()
}

/// Serves `GET /metrics` until dropped.
pub(crate) async fn serve(listener: TcpListener, sources: Arc<Sources>) {
    let answer = move |path: String| {
        let sources = Arc::clone(&sources);
        async move {
            (path == "/metrics").then_some(())?;
            Some(Answer::metrics(sources.text().await))
        }
    };
    http::serve(listener, "/metrics", answer).await;
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_documented_metric_exists_and_every_metric_is_documented() {
        let text = render("n1", true, &Report::default(), &PolicyReport::default(), &Calls::default());
        let written: BTreeSet<&str> =
            text.lines().filter(|l| !l.starts_with('#')).filter_map(|l| l.split(['{', ' ']).next()).collect();
        let page = include_str!("../../docs/metrics.md");
        let section = page.split("\n## ").find(|s| s.starts_with("brindle-node")).expect("it has a section");
        let documented: BTreeSet<&str> =
            section.lines().filter_map(|l| l.strip_prefix("| `")?.split('`').next()).collect();
        assert_eq!(written, documented);
    }

    #[test]
    fn policy_that_cannot_be_written_is_not_in_sync() {
        let of = |policy: &PolicyReport| render("n1", false, &Report::default(), policy, &Calls::default());
        let good = PolicyReport { in_sync: true, ..PolicyReport::default() };
        assert!(of(&good).contains("\nbrindle_policy_in_sync 1\n"));
        assert!(of(&PolicyReport::default()).contains("\nbrindle_policy_in_sync 0\n"));
        let bad = PolicyReport { problems: vec!["ipset is not installed".into()], ..good };
        let text = of(&bad);
        assert!(text.contains("\nbrindle_policy_in_sync 0\n"), "{text}");
        assert!(text.contains("\nbrindle_datastore_connected 0\n"), "{text}");
    }
}
