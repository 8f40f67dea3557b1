//! deploy/monitoring: alerts and dashboard ask only for metrics that exist. docs/metrics.md is the list; a test beside
//! the code holds it against the code.

use std::collections::BTreeSet;

use crate::support::{documents, read};

/// The names a text uses.
fn names(text: &str) -> BTreeSet<String> {
    let word = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    text.split(|c| !word(c)).filter(|w| w.starts_with("brindle_")).map(str::to_owned).collect()
}

#[test]
fn alerts_and_dashboard_ask_for_metrics_that_exist() {
    let listed: BTreeSet<String> = read("docs/metrics.md")
        .lines()
        .filter_map(|l| l.strip_prefix("| `")?.split('`').next())
        .map(str::to_owned)
        .collect();
    assert!(listed.len() > 10, "{listed:?}");
    for file in ["deploy/monitoring/alerts.yaml", "deploy/monitoring/dashboard.json"] {
        let used = names(&read(file));
        let lacking: Vec<_> = used.difference(&listed).collect();
        assert!(lacking.is_empty(), "{file} asks for {lacking:?}, which docs/metrics.md does not list");
        assert!(used.len() > 5, "{file}: {used:?}");
    }
}

#[test]
fn every_alert_says_what_it_means() {
    let file = "deploy/monitoring/alerts.yaml";
    let [rules] = documents(file, &read(file)).try_into().expect("one document");
    let mut seen = BTreeSet::new();
    for rule in rules["groups"].as_array().into_iter().flatten().flat_map(|g| g["rules"].as_array()).flatten()
    {
        let name = rule["alert"].as_str().expect("alert");
        assert!(seen.insert(name.to_owned()), "{name} is there twice");
        for field in ["summary", "description"] {
            assert!(rule["annotations"][field].as_str().is_some_and(|t| t.len() > 20), "{name}: {field}");
        }
        let severity = rule["labels"]["severity"].as_str();
        assert!(matches!(severity, Some("info" | "warning" | "critical")), "{name}: {severity:?}");
        assert_eq!(names(rule["expr"].as_str().expect("expr")).len(), 1, "{name}");
    }
    assert!(seen.len() >= 6, "{seen:?}");
}

#[test]
fn the_dashboard_is_one() {
    let dashboard: serde_json::Value =
        serde_json::from_str(&read("deploy/monitoring/dashboard.json")).expect("JSON");
    let panels = dashboard["panels"].as_array().expect("panels");
    let ids: BTreeSet<_> = panels.iter().map(|p| p["id"].as_u64().expect("id")).collect();
    assert_eq!(ids.len(), panels.len());
    assert!(panels.iter().all(|p| p["targets"].as_array().is_some_and(|t| !t.is_empty())));
}
