//! What a process runs with: its own settings, else KubeControllersConfiguration `default`, else the defaults. Pure. A
//! setting of the process wins, as the environment does in Calico; the log says which ones do, and which fields have no
//! effect here.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{Ipv6Addr, SocketAddr},
    time::Duration,
};

use brindle_config_core::{
    ObjectMeta, Resource,
    controllers::{
        AutoHostEndpointSpec, ControllersSpec, DISABLED, ENABLED, KubeControllersConfigurationSpec,
        KubeControllersConfigurationStatus, LoadBalancerControllerSpec, MigrationControllerSpec,
        NodeControllerSpec,
    },
    duration,
    meta::Extra,
};

use crate::plan::{AssignIps, Controller};

/// The one object that counts.
pub const NAME: &str = "default";

const LEAK: Duration = Duration::from_secs(15 * 60);
const PERIOD: Duration = Duration::from_secs(5 * 60);
const SHORTEST_PERIOD: Duration = Duration::from_secs(1);

/// What the command line or the environment of this process says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Given {
    pub controllers: Option<BTreeSet<Controller>>,
    pub leak: Option<Duration>,
    pub period: Option<Duration>,
    pub assign_ips: Option<AssignIps>,
    pub metrics: Option<SocketAddr>,
    /// A filter, or a level.
    pub log: Option<String>,
    /// All of these as they were given, by the names of their variables.
    pub texts: BTreeMap<String, String>,
}

/// What is run with.
#[derive(Clone, Debug, PartialEq)]
pub struct Running {
    pub controllers: BTreeSet<Controller>,
    pub leak: Duration,
    pub period: Duration,
    pub assign_ips: AssignIps,
    /// `None`: nobody has said, so those that are there stay.
    pub host_endpoints: Option<AutoHostEndpointSpec>,
    /// Whether policies keep their names while an old Calico reads them.
    pub careful_with_names: bool,
    pub metrics: Option<SocketAddr>,
    pub health: bool,
    /// A filter of the log.
    pub log: String,
}

/// A severity as a filter of the log.
fn filter(severity: &str) -> &'static str {
    match severity {
        "None" => "off",
        "Debug" => "debug",
        "Warning" => "warn",
        "Error" | "Fatal" | "Panic" => "error",
        _ => "info",
    }
}

/// The severity of a filter; none for one that is more than a level.
fn severity(filter: &str) -> Option<&'static str> {
    Some(match filter {
        "off" => "None",
        "trace" | "debug" => "Debug",
        "info" => "Info",
        "warn" => "Warning",
        "error" => "Error",
        _ => return None,
    })
}

/// A duration that validation let through.
fn time(text: Option<&String>) -> Option<Duration> {
    text.and_then(|t| duration::parse(t).ok())
}

/// Which controllers a configuration names.
fn named(c: &ControllersSpec) -> BTreeSet<Controller> {
    let mut on = BTreeSet::new();
    if let Some(node) = &c.node {
        on.extend([Controller::Node, Controller::Affinity, Controller::Handle, Controller::HostEndpoint]);
        if time(node.leak_grace_period.as_ref()) != Some(Duration::ZERO) {
            on.insert(Controller::Ipam);
        }
    }
    if c.load_balancer.is_some() {
        on.insert(Controller::LoadBalancer);
    }
    if c.migration.as_ref().is_some_and(|m| m.policy_name_migrator == ENABLED) {
        on.insert(Controller::PolicyNames);
    }
    on
}

impl Running {
    /// What follows from both.
    pub fn of(given: &Given, spec: Option<&KubeControllersConfigurationSpec>) -> Self {
        let node = spec.and_then(|s| s.controllers.node.as_ref());
        let leak = node.and_then(|n| time(n.leak_grace_period.as_ref()));
        let mut controllers = given.controllers.clone().unwrap_or_else(|| match spec {
            None => Controller::DEFAULT.into(),
            Some(s) => named(&s.controllers),
        });
        // Zero in the object switches it off; zero given to a process means at once.
        if given.leak.is_none() && leak == Some(Duration::ZERO) {
            controllers.remove(&Controller::Ipam);
        } else if given.leak.is_some() && given.controllers.is_none() && node.is_some() {
            controllers.insert(Controller::Ipam);
        }
        let requested = spec
            .and_then(|s| s.controllers.load_balancer.as_ref())
            .is_some_and(|l| l.assign_ips == "RequestedServicesOnly");
        let port = spec.and_then(|s| s.prometheus_metrics_port).and_then(|p| u16::try_from(p).ok());
        let period = node.and_then(|n| time(n.reconciler_period.as_ref())).filter(|p| !p.is_zero());
        Self {
            leak: given.leak.or(leak.filter(|l| !l.is_zero())).unwrap_or(LEAK),
            period: given.period.or(period).unwrap_or(PERIOD).max(SHORTEST_PERIOD),
            assign_ips: given.assign_ips.unwrap_or(if requested {
                AssignIps::Requested
            } else {
                AssignIps::All
            }),
            host_endpoints: node.and_then(|n| n.host_endpoint.clone()),
            careful_with_names: given.controllers.is_none(),
            metrics: given
                .metrics
                .or(port.filter(|p| *p != 0).map(|p| SocketAddr::from((Ipv6Addr::UNSPECIFIED, p)))),
            health: spec.is_none_or(|s| s.health_checks != DISABLED),
            log: given.log.clone().unwrap_or_else(|| {
                filter(spec.map(|s| s.log_severity_screen.as_str()).unwrap_or_default()).to_owned()
            }),
            controllers,
        }
    }

    /// The same in the words of the object: its `status.runningConfig`.
    pub fn written(&self) -> KubeControllersConfigurationSpec {
        let on = |c: Controller| self.controllers.contains(&c);
        let of_nodes = Controller::OF_NODES.into_iter().any(on);
        let leak = if on(Controller::Ipam) { self.leak } else { Duration::ZERO };
        let node = NodeControllerSpec {
            reconciler_period: Some(duration::text(self.period)),
            leak_grace_period: Some(duration::text(leak)),
            host_endpoint: self.host_endpoints.clone().filter(|_| on(Controller::HostEndpoint)).map(
                |mut auto| {
                    for (field, default) in
                        [(&mut auto.auto_create, DISABLED), (&mut auto.create_default_host_endpoint, ENABLED)]
                    {
                        if field.is_empty() {
                            default.clone_into(field);
                        }
                    }
                    auto
                },
            ),
            ..NodeControllerSpec::default()
        };
        let assign_ips = match self.assign_ips {
            AssignIps::All => "AllServices",
            AssignIps::Requested => "RequestedServicesOnly",
        };
        let switch = |on: bool| if on { ENABLED } else { DISABLED }.to_owned();
        KubeControllersConfigurationSpec {
            log_severity_screen: severity(&self.log).unwrap_or_default().to_owned(),
            health_checks: switch(self.health),
            prometheus_metrics_port: Some(self.metrics.map_or(0, |a| i64::from(a.port()))),
            controllers: ControllersSpec {
                node: of_nodes.then_some(node),
                load_balancer: on(Controller::LoadBalancer).then(|| LoadBalancerControllerSpec {
                    assign_ips: assign_ips.to_owned(),
                    extra: Extra::new(),
                }),
                migration: Some(MigrationControllerSpec {
                    policy_name_migrator: switch(on(Controller::PolicyNames)),
                    extra: Extra::new(),
                }),
                extra: Extra::new(),
            },
            extra: Extra::new(),
        }
    }

    /// The status of the object.
    pub fn status(&self, given: &Given) -> KubeControllersConfigurationStatus {
        KubeControllersConfigurationStatus {
            environment_vars: given.texts.clone(),
            running_config: self.written(),
            problems: Vec::new(),
        }
    }

    /// What is different from another one, in a line; empty when nothing is.
    pub fn changes(&self, before: &Self) -> String {
        let names = |c: &BTreeSet<Controller>| c.iter().map(|c| c.name()).collect::<Vec<_>>().join(",");
        let hosts = |h: &Option<AutoHostEndpointSpec>| match h {
            Some(h) if h.is_on() => format!("on, {} templates", h.templates.len()),
            Some(_) => "off".to_owned(),
            None => "as they are".to_owned(),
        };
        let port = |m: Option<SocketAddr>| m.map_or_else(|| "none".to_owned(), |a| a.to_string());
        let assign = |a: AssignIps| if a == AssignIps::All { "all" } else { "requested" };
        let rows = [
            ("controllers", names(&before.controllers), names(&self.controllers)),
            ("leak grace", duration::text(before.leak), duration::text(self.leak)),
            ("period", duration::text(before.period), duration::text(self.period)),
            ("assign IPs", assign(before.assign_ips).into(), assign(self.assign_ips).into()),
            ("host endpoints", hosts(&before.host_endpoints), hosts(&self.host_endpoints)),
            ("metrics", port(before.metrics), port(self.metrics)),
            ("probes", before.health.to_string(), self.health.to_string()),
            ("log", before.log.clone(), self.log.clone()),
        ];
        let changed = rows.into_iter().filter(|(_, old, new)| old != new);
        let mut all: Vec<String> = changed.map(|(what, old, new)| format!("{what} {old} -> {new}")).collect();
        if all.is_empty() && self.host_endpoints != before.host_endpoints {
            all.push("templates of host endpoints".to_owned());
        }
        all.join("; ")
    }
}

/// The object a cluster without one gets: what runs anyway, so that it can be patched. Of host endpoints it says nothing:
/// those that are there stay, until somebody says whether they are wanted.
pub fn default_object() -> Resource<KubeControllersConfigurationSpec> {
    let running = Running::of(&Given::default(), None);
    let mut spec = running.written();
    // Only what somebody chose is to stand against later defaults.
    spec.prometheus_metrics_port = None;
    spec.controllers.migration = None;
    Resource::new(ObjectMeta::named(NAME), spec)
}

/// A status without what the model does not know: a server may add its own.
pub fn bare(mut status: KubeControllersConfigurationStatus) -> KubeControllersConfigurationStatus {
    let c = &mut status.running_config;
    c.extra.clear();
    c.controllers.extra.clear();
    if let Some(node) = &mut c.controllers.node {
        node.extra.clear();
        if let Some(auto) = &mut node.host_endpoint {
            auto.extra.clear();
            auto.templates.iter_mut().for_each(|t| t.extra.clear());
        }
    }
    c.controllers.load_balancer.iter_mut().for_each(|l| l.extra.clear());
    c.controllers.migration.iter_mut().for_each(|m| m.extra.clear());
    status
}

/// The settings of the process that stand against something else in the object, for the log.
pub fn overruled(given: &Given, spec: &KubeControllersConfigurationSpec) -> Vec<String> {
    let with = Running::of(given, Some(spec));
    let alone = Running::of(&Given::default(), Some(spec));
    let node = spec.controllers.node.as_ref();
    let pairs = [
        ("BRINDLE_CONTROLLERS", with.controllers != alone.controllers),
        (
            "BRINDLE_LEAK_GRACE",
            with.leak != alone.leak && node.is_some_and(|n| n.leak_grace_period.is_some()),
        ),
        (
            "BRINDLE_PERIOD",
            with.period != alone.period && node.is_some_and(|n| n.reconciler_period.is_some()),
        ),
        ("BRINDLE_ASSIGN_IPS", with.assign_ips != alone.assign_ips),
        ("BRINDLE_METRICS", with.metrics != alone.metrics && spec.prometheus_metrics_port.is_some()),
        ("BRINDLE_LOG", with.log != alone.log && !spec.log_severity_screen.is_empty()),
    ];
    let won = pairs.into_iter().filter(|(name, differs)| *differs && given.texts.contains_key(*name));
    won.map(|(name, _)| format!("{name}={}", given.texts.get(name).map_or("", String::as_str))).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn spec(value: Value) -> KubeControllersConfigurationSpec {
        serde_json::from_value(value).unwrap()
    }

    fn names(r: &Running) -> String {
        r.controllers.iter().map(|c| c.name()).collect::<Vec<_>>().join(",")
    }

    #[test]
    fn a_controller_runs_where_the_object_names_it() {
        let none = Running::of(&Given::default(), None);
        assert_eq!(names(&none), "ipam,node,affinity,handle,load-balancer,host-endpoint");
        for (controllers, on) in [
            (json!({}), ""),
            (json!({"node": {}}), "ipam,node,affinity,handle,host-endpoint"),
            (json!({"node": {"leakGracePeriod": "0"}}), "node,affinity,handle,host-endpoint"),
            (json!({"loadBalancer": {}}), "load-balancer"),
            (json!({"migration": {"policyNameMigrator": "Enabled"}}), "policy-names"),
            (json!({"migration": {"policyNameMigrator": "Disabled"}, "policy": {}}), ""),
        ] {
            let r = Running::of(&Given::default(), Some(&spec(json!({"controllers": controllers}))));
            assert_eq!(names(&r), on, "{controllers}");
        }
    }

    #[test]
    fn what_the_process_was_told_wins() {
        let of = spec(
            json!({"logSeverityScreen": "Debug", "prometheusMetricsPort": 9094, "healthChecks": "Disabled",
            "controllers": {"node": {"leakGracePeriod": "1m", "reconcilerPeriod": "30s",
                "hostEndpoint": {"autoCreate": "Enabled"}}, "loadBalancer": {"assignIPs": "RequestedServicesOnly"}}}),
        );
        let alone = Running::of(&Given::default(), Some(&of));
        assert_eq!((alone.leak, alone.period), (Duration::from_secs(60), Duration::from_secs(30)));
        assert_eq!(
            (alone.assign_ips, alone.health, alone.log.as_str()),
            (AssignIps::Requested, false, "debug")
        );
        assert_eq!(alone.metrics.map(|m| m.to_string()).as_deref(), Some("[::]:9094"));
        assert!(alone.host_endpoints.as_ref().is_some_and(AutoHostEndpointSpec::makes_default));
        let given = Given {
            controllers: Some([Controller::Node].into()),
            leak: Some(Duration::from_secs(2)),
            log: Some("brindle=trace".into()),
            texts: [
                ("BRINDLE_CONTROLLERS", "node"),
                ("BRINDLE_LEAK_GRACE", "2s"),
                ("BRINDLE_LOG", "brindle=trace"),
            ]
            .map(|(k, v)| (k.to_owned(), v.to_owned()))
            .into(),
            ..Given::default()
        };
        let with = Running::of(&given, Some(&of));
        assert_eq!((names(&with).as_str(), with.leak), ("node", Duration::from_secs(2)));
        assert_eq!(
            overruled(&given, &of),
            ["BRINDLE_CONTROLLERS=node", "BRINDLE_LEAK_GRACE=2s", "BRINDLE_LOG=brindle=trace"]
        );
        insta::assert_snapshot!(with.changes(&alone));
        let status = serde_json::to_string_pretty(&with.status(&given)).unwrap();
        insta::assert_snapshot!(status);
    }

    #[test]
    fn zero_given_to_the_process_means_at_once() {
        let of = spec(json!({"controllers": {"node": {"leakGracePeriod": "0"}}}));
        let given = Given { leak: Some(Duration::ZERO), ..Given::default() };
        let r = Running::of(&given, Some(&of));
        assert!(r.controllers.contains(&Controller::Ipam) && r.leak.is_zero());
    }

    #[test]
    fn the_object_made_for_a_cluster_changes_nothing() {
        let made = default_object();
        assert_eq!(
            Running { careful_with_names: true, ..Running::of(&Given::default(), Some(&made.spec)) },
            Running::of(&Given::default(), None)
        );
        assert_eq!(
            Running::of(&Given::default(), Some(&made.spec)).host_endpoints,
            None,
            "what is there stays"
        );
        brindle_config_core::validate::resource(&made.clone().into()).unwrap();
        insta::assert_snapshot!(serde_json::to_string_pretty(&made).unwrap());
    }

    #[test]
    fn what_a_server_adds_to_the_status_is_no_difference() {
        let status = Running::of(&Given::default(), None).status(&Given::default());
        let mut value = serde_json::to_value(&status).unwrap();
        value["runningConfig"]["debugProfilePort"] = 0.into();
        value["runningConfig"]["controllers"]["node"]["syncLabels"] = "Enabled".into();
        value["runningConfig"]["controllers"]["loadBalancer"]["x"] = 1.into();
        assert_eq!(bare(serde_json::from_value(value).unwrap()), status);
    }
}
