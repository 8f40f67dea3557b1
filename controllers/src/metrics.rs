//! Prometheus metrics of the controllers, and what their port answers.
//! docs/metrics.md describes every name; a test compares.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use brindle_admin::{
    http::{self, Answer},
    metrics::{Metric, Text},
};
use tokio::net::TcpListener;

use crate::{
    health::Pulse,
    plan::{Controller, Plan},
};

/// In the order of the text.
pub const METRICS: [Metric; 6] = [
    ("brindle_controllers_info", "gauge", "1, with the version as a label."),
    ("brindle_controllers_leader", "gauge", "1 while this process holds the lease."),
    ("brindle_controllers_actions_total", "counter", "Things done, by controller and outcome."),
    ("brindle_controllers_waiting", "gauge", "Things that wait for their grace period, by controller."),
    ("brindle_controllers_problems", "gauge", "Things somebody has to see to."),
    ("brindle_controllers_looks_total", "counter", "Times a plan was made."),
];

#[derive(Debug, Default)]
struct Counts {
    leader: bool,
    actions: BTreeMap<(Controller, &'static str), u64>,
    waiting: BTreeMap<Controller, u64>,
    problems: u64,
    looks: u64,
    /// Whether probes are left without an answer.
    mute: bool,
}

/// What is counted. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Tally(Arc<Mutex<Counts>>);

impl Tally {
    fn counts(&self) -> MutexGuard<'_, Counts> {
        // Counts are whole after each statement.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether this process leads.
    pub fn leads(&self, leader: bool) {
        self.counts().leader = leader;
    }

    /// Whether probes are answered.
    pub fn health(&self, on: bool) {
        self.counts().mute = !on;
    }

    /// A plan was made.
    pub fn planned(&self, plan: &Plan) {
        let mut counts = self.counts();
        counts.looks += 1;
        counts.problems = plan.problems.len() as u64;
        counts.waiting.clear();
        for (controller, ..) in &plan.waiting {
            *counts.waiting.entry(*controller).or_default() += 1;
        }
    }

    /// Something was done, or not: `done`, `outdated`, `failed`.
    pub fn acted(&self, controller: Controller, outcome: &'static str) {
        *self.counts().actions.entry((controller, outcome)).or_default() += 1;
    }

    /// The text of a scrape.
    pub fn text(&self) -> String {
        let counts = self.counts();
        let mut t = Text::new(&METRICS);
        t.metric("brindle_controllers_info");
        t.value(&[("version", env!("CARGO_PKG_VERSION"))], 1);
        t.one("brindle_controllers_leader", u8::from(counts.leader));
        t.metric("brindle_controllers_actions_total");
        for ((controller, outcome), n) in &counts.actions {
            t.value(&[("controller", controller.name()), ("outcome", outcome)], n);
        }
        t.metric("brindle_controllers_waiting");
        for controller in Controller::ALL {
            let n = counts.waiting.get(&controller).copied().unwrap_or_default();
            t.value(&[("controller", controller.name())], n);
        }
        t.one("brindle_controllers_problems", counts.problems);
        t.one("brindle_controllers_looks_total", counts.looks);
        t.done()
    }
}

/// Serves metrics and probes until dropped.
pub async fn serve(listener: TcpListener, tally: Tally, pulse: Pulse) {
    let answer = move |path: String| {
        let answer = match path.as_str() {
            "/metrics" => Some(Answer::metrics(tally.text())),
            _ if tally.counts().mute => None,
            probe => pulse.answer(probe),
        };
        async move { answer }
    };
    http::serve(listener, "/metrics, /livez and /readyz", answer).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_has_every_metric_and_the_page_describes_each() {
        let tally = Tally::default();
        tally.leads(true);
        tally.acted(Controller::Ipam, "done");
        let text = tally.text();
        let page =
            std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/metrics.md")).unwrap();
        for (name, ..) in METRICS {
            assert!(text.lines().any(|l| l.starts_with(name)), "{name}: {text}");
            assert!(page.contains(&format!("`{name}`")), "{name} is not in docs/metrics.md");
        }
        assert!(
            text.contains("brindle_controllers_actions_total{controller=\"ipam\",outcome=\"done\"} 1\n"),
            "{text}"
        );
    }
}
