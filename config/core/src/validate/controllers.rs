//! KubeControllersConfiguration: the fields this version acts on, and the texts of the others.

use ipnet::IpNet;
use serde_json::Value;

use super::{Errors, names};
use crate::controllers::{
    AutoHostEndpointSpec, DISABLED, ENABLED, HostEndpointTemplate, KubeControllersConfigurationSpec,
};

const SWITCH: [&str; 2] = [ENABLED, DISABLED];
const SEVERITIES: [&str; 7] = ["None", "Debug", "Info", "Warning", "Error", "Fatal", "Panic"];

pub(super) fn check(c: &KubeControllersConfigurationSpec, errors: &mut Errors) {
    one_of("spec.logSeverityScreen", &c.log_severity_screen, &SEVERITIES, errors);
    one_of("spec.healthChecks", &c.health_checks, &SWITCH, errors);
    if let Some(port) = c.prometheus_metrics_port.filter(|p| !(0..=65_535).contains(p)) {
        errors.add("spec.prometheusMetricsPort", port, "expected 0 (no metrics) to 65535");
    }
    kept_duration("spec.etcdV3CompactionPeriod", c.extra.get("etcdV3CompactionPeriod"), errors);
    for name in ["policy", "workloadEndpoint", "serviceAccount", "namespace"] {
        let period = c.controllers.extra.get(name).and_then(|p| p.get("reconcilerPeriod"));
        kept_duration(&format!("spec.controllers.{name}.reconcilerPeriod"), period, errors);
    }
    if let Some(node) = &c.controllers.node {
        let at = "spec.controllers.node";
        errors.duration(&format!("{at}.reconcilerPeriod"), node.reconciler_period.as_ref());
        errors.duration(&format!("{at}.leakGracePeriod"), node.leak_grace_period.as_ref());
        if let Some(labels) = node.extra.get("syncLabels").and_then(Value::as_str) {
            one_of(&format!("{at}.syncLabels"), labels, &SWITCH, errors);
        }
        if let Some(auto) = &node.host_endpoint {
            host_endpoints(&format!("{at}.hostEndpoint"), auto, errors);
        }
    }
    if let Some(balancer) = &c.controllers.load_balancer {
        let known = ["AllServices", "RequestedServicesOnly"];
        one_of("spec.controllers.loadBalancer.assignIPs", &balancer.assign_ips, &known, errors);
    }
    if let Some(migration) = &c.controllers.migration {
        let at = "spec.controllers.migration.policyNameMigrator";
        one_of(at, &migration.policy_name_migrator, &SWITCH, errors);
    }
}

/// Empty stands for the default.
fn one_of(at: &str, text: &str, known: &[&str], errors: &mut Errors) {
    errors.one_of(at, Some(&text.to_owned()).filter(|t| !t.is_empty()), known);
}

/// A duration nobody acts on.
fn kept_duration(at: &str, value: Option<&Value>, errors: &mut Errors) {
    errors.duration(at, value.and_then(Value::as_str).map(str::to_owned).as_ref());
}

fn host_endpoints(at: &str, auto: &AutoHostEndpointSpec, errors: &mut Errors) {
    one_of(&format!("{at}.autoCreate"), &auto.auto_create, &SWITCH, errors);
    one_of(&format!("{at}.createDefaultHostEndpoint"), &auto.create_default_host_endpoint, &SWITCH, errors);
    for (i, t) in auto.templates.iter().enumerate() {
        let at = format!("{at}.templates[{i}]");
        template(&at, t, errors);
        if auto.templates.iter().take(i).any(|other| other.generate_name == t.generate_name) {
            errors.add(&format!("{at}.generateName"), &t.generate_name, "another template has it already");
        }
    }
}

fn template(at: &str, t: &HostEndpointTemplate, errors: &mut Errors) {
    // Between dashes, any part of a name is a name.
    if let Err(reason) = names::subdomain(&t.generate_name) {
        errors.add(&format!("{at}.generateName"), &t.generate_name, reason);
    }
    errors.selector(&format!("{at}.nodeSelector"), &t.node_selector);
    if t.interface_cidrs.is_empty() && t.interface_pattern.is_empty() {
        errors.add(&format!("{at}.interfaceCIDRs"), "", "interfaceCIDRs or interfacePattern is required");
    }
    for (i, cidr) in t.interface_cidrs.iter().enumerate() {
        if cidr.parse::<IpNet>().is_err() {
            errors.add(&format!("{at}.interfaceCIDRs[{i}]"), cidr, "expected a CIDR such as 10.0.0.0/16");
        }
    }
    for (key, value) in &t.labels {
        let at = format!("{at}.labels.{key}");
        if let Err(reason) = names::qualified(key) {
            errors.add(&at, key, reason);
        }
        if let Err(reason) = names::label_value(value) {
            errors.add(&at, value, reason);
        }
    }
    for key in t.annotations.keys() {
        if let Err(reason) = names::qualified(key) {
            errors.add(&format!("{at}.annotations.{key}"), key, reason);
        }
    }
}
