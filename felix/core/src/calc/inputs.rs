//! One resource of the store → what the graph keeps of it. A function of that resource alone.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use brindle_config_core::{
    AnyResource, Key, Kind, ObjectMeta, Resource,
    convert::{self, ClusterKind, Converted},
    felix::FelixConfigurationSpec,
    kube::{ClusterPolicySpec, EndpointSlice},
    meta::Extra,
    policy::{HostEndpointSpec, PolicySpec, ProfileSpec},
    validate,
    validate::policy as read,
    workload,
    workload_view::WorkloadView,
};
use ipnet::IpNet;
use serde_json::{Value, json};

use super::{
    compile::{self, Compiled, Sets},
    labels::{LabelList, Labels, Words},
};
use crate::policy::active::{
    EndpointId, Failsafe, IpSetMember, PolicyId, PolicyKind, PolicySettings, Protocol, Rule, TierAction,
    ToHostAction,
};

/// A profile as it applies.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Profile {
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) inbound: Vec<Rule>,
    pub(crate) outbound: Vec<Rule>,
    pub(crate) sets: Sets,
}

/// What endpoints and network sets are to selectors.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Labelled {
    pub(crate) labels: Labels,
    pub(crate) parents: Arc<[String]>,
    pub(crate) nets: Vec<IpNet>,
    pub(crate) ports: Vec<(String, Protocol, u16)>,
}

/// An endpoint with what its own node needs to know.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Endpoint {
    pub(crate) id: EndpointId,
    pub(crate) node: Arc<str>,
    /// Host endpoints: a name, `*`, or empty for one that is found by its addresses.
    pub(crate) interface: String,
    pub(crate) mac: Option<String>,
    /// What it asks for; whether it gets it is a matter of the settings.
    pub(crate) allowed_sources: Vec<IpNet>,
    /// Why it cannot be taken as written: everything is denied.
    pub(crate) broken: Option<String>,
    pub(crate) labelled: Labelled,
}

/// What is kept of a resource.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Input {
    Tier(Option<f64>, TierAction),
    Policy(Arc<Compiled>),
    /// Named differently from its resource when it stands for a namespace or an account.
    Profile(String, Arc<Profile>),
    Endpoint(Arc<Endpoint>),
    Set(Arc<Labelled>),
    /// Backends of a service (namespace, name), with ports and without.
    Slice((String, String), Vec<IpSetMember>, Vec<IpSetMember>),
    /// Of one FelixConfiguration; [`settings`] makes sense of them.
    Settings(Box<FelixConfigurationSpec>),
    /// Nothing that bears on policy, or nothing that can be made sense of.
    Nothing,
}

/// What selectors are tried on, shared with the resource it came from.
#[derive(Clone)]
pub(crate) enum Item {
    Endpoint(Arc<Endpoint>),
    Set(Arc<Labelled>),
}

impl std::ops::Deref for Item {
    type Target = Labelled;

    fn deref(&self) -> &Labelled {
        match self {
            Self::Endpoint(e) => &e.labelled,
            Self::Set(s) => s,
        }
    }
}

impl Input {
    /// Makes it small: words that others have too are shared, and of an endpoint that belongs to another node than `mine`
    /// is kept what selectors ask for.
    pub(crate) fn compact(&mut self, words: &mut Words, mine: Option<&str>) {
        let labelled = match self {
            Self::Endpoint(e) => {
                let Some(e) = Arc::get_mut(e) else { return };
                words.share(&mut e.node);
                if mine.is_some_and(|mine| *e.node != *mine) {
                    (e.interface, e.mac, e.allowed_sources) = (String::new(), None, Vec::new());
                    e.broken = None;
                }
                &mut e.labelled
            }
            Self::Set(s) => {
                let Some(s) = Arc::get_mut(s) else { return };
                s
            }
            _ => return,
        };
        labelled.nets.shrink_to_fit();
        if let Some(labels) = Arc::get_mut(&mut labelled.labels) {
            labels.share(words);
        }
    }

    pub(crate) fn item(&self) -> Option<Item> {
        match self {
            Self::Endpoint(e) => Some(Item::Endpoint(Arc::clone(e))),
            Self::Set(s) => Some(Item::Set(Arc::clone(s))),
            _ => None,
        }
    }
}

/// What is kept of an endpoint of another node than `mine`, the same as [`read`] and [`Input::compact`] make of it. There
/// are tens of thousands: nothing is copied that is not kept. `None`: it is none, or something is wrong with it.
pub(crate) fn far(key: &Key, value: &Value, mine: &str, words: &mut Words) -> Option<Input> {
    let node = value.get("spec")?.get("node")?.as_str()?;
    if key.kind != Kind::WorkloadEndpoint || node == mine {
        return None;
    }
    let WorkloadView { metadata, spec, .. } = WorkloadView::of(value)?;
    let mut labels = metadata.labels;
    labels.retain(|name, _| !convert::is_inherited(name));
    labels.insert(convert::LABEL_NAMESPACE, &key.namespace);
    labels.entry(convert::LABEL_ORCHESTRATOR).or_insert(spec.orchestrator);
    let mut parents: Vec<String> = spec.profiles.iter().map(|p| (*p).to_owned()).collect();
    let account = spec.service_account_name;
    if let Some(profile) = account_profile(key, account) {
        labels.insert(convert::LABEL_SERVICE_ACCOUNT, account);
        if !parents.contains(&profile) {
            parents.push(profile);
        }
    }
    let mut nets = spec.ip_networks;
    nets.shrink_to_fit();
    Some(Input::Endpoint(Arc::new(Endpoint {
        id: EndpointId::Workload { namespace: key.namespace.clone(), name: key.name.clone() },
        node: words.of(node),
        interface: String::new(),
        mac: None,
        allowed_sources: Vec::new(),
        broken: None,
        labelled: Labelled {
            labels: Arc::new(LabelList::of(labels, words)),
            parents: parents.into(),
            nets,
            ports: ports(spec.ports.iter().map(|p| (p.name, p.protocol, p.port))),
        },
    })))
}

/// The profile of a workload's service account, unless it has none or one whose name is no label.
fn account_profile(key: &Key, account: &str) -> Option<String> {
    let named = !account.is_empty() && account.len() < 63;
    named.then(|| convert::service_account_profile_name(&key.namespace, account))
}

/// Reads a resource; the problems are one line each.
pub(crate) fn read(key: &Key, value: &Value) -> (Input, Vec<String>) {
    let resource = match AnyResource::from_value(key.kind, value) {
        Ok(r) => r,
        Err(e) => {
            let mut problems = vec![e];
            let input = from_broken(key, value, &mut problems);
            return (input, problems);
        }
    };
    let errors = validate::resource(&resource).err().map(|e| e.0).unwrap_or_default();
    let mut problems: Vec<String> = errors.iter().map(ToString::to_string).collect();
    // A named port that no rule can ask for is left out; nothing else of the host endpoint depends on it.
    let port = |field: &str| key.kind == Kind::HostEndpoint && field.starts_with("spec.ports[");
    let bad = errors.iter().any(|e| !port(&e.field));
    let input = of(key, value, resource, bad, &mut problems);
    (input, problems)
}

fn policy_kind(kind: Kind) -> Option<PolicyKind> {
    Some(match kind {
        Kind::GlobalNetworkPolicy => PolicyKind::GlobalNetworkPolicy,
        Kind::NetworkPolicy => PolicyKind::NetworkPolicy,
        Kind::KubernetesNetworkPolicy => PolicyKind::KubernetesNetworkPolicy,
        Kind::ClusterNetworkPolicy => PolicyKind::KubernetesClusterNetworkPolicy,
        Kind::AdminNetworkPolicy => PolicyKind::AdminNetworkPolicy,
        Kind::BaselineAdminNetworkPolicy => PolicyKind::BaselineAdminNetworkPolicy,
        Kind::StagedGlobalNetworkPolicy => PolicyKind::StagedGlobalNetworkPolicy,
        Kind::StagedNetworkPolicy => PolicyKind::StagedNetworkPolicy,
        Kind::StagedKubernetesNetworkPolicy => PolicyKind::StagedKubernetesNetworkPolicy,
        _ => return None,
    })
}

fn id(key: &Key, kind: PolicyKind, tier: &str) -> PolicyId {
    PolicyId { tier: tier.to_owned(), kind, namespace: key.namespace.clone(), name: key.name.clone() }
}

fn closed(key: &Key, spec: &PolicySpec, problems: &mut Vec<String>) -> Input {
    let Some(kind) = policy_kind(key.kind) else { return Input::Nothing };
    match compile::closed(id(key, kind, spec.tier()), spec) {
        Some(policy) => {
            let what = if kind.is_staged() { "once enforced it would deny" } else { "denies" };
            problems.push(format!("{what} everything to those it selects ({})", policy.selector));
            Input::Policy(Arc::new(policy))
        }
        None => {
            problems.push("not enforced: whom it selects cannot be told".into());
            Input::Nothing
        }
    }
}

/// What has not even the right types still says whom it is about, perhaps: a policy whom it selects, a host endpoint for
/// which interface it stands.
fn from_broken(key: &Key, value: &Value, problems: &mut Vec<String>) -> Input {
    if key.kind == Kind::HostEndpoint {
        let text = |at: &str| value.pointer(at).and_then(Value::as_str).unwrap_or_default().to_owned();
        let ips = value.pointer("/spec/expectedIPs").and_then(Value::as_array).into_iter().flatten();
        let spec = HostEndpointSpec {
            node: text("/spec/node"),
            interface_name: text("/spec/interfaceName"),
            expected_ips: ips.filter_map(Value::as_str).map(str::to_owned).collect(),
            ..HostEndpointSpec::default()
        };
        return host_endpoint(key, BTreeMap::new(), spec, true, problems);
    }
    if key.kind == Kind::FelixConfiguration {
        // One field of a wrong type says nothing about the others.
        let Some(Value::Object(spec)) = value.get("spec") else { return Input::Nothing };
        let known = spec.iter().filter(|(name, _)| FelixConfigurationSpec::SETTINGS.contains(&name.as_str()));
        let extra = known.map(|(name, value)| (name.clone(), value.clone())).collect();
        let read = FelixConfigurationSpec { extra, ..Default::default() };
        let resource =
            AnyResource::FelixConfiguration(Resource::new(ObjectMeta::named(&key.name), read.clone()));
        if let Err(e) = validate::resource(&resource) {
            problems.extend(
                e.0.iter().map(ToString::to_string).filter(|e| !problems.contains(e)).collect::<Vec<_>>(),
            );
        }
        problems.push("its other fields about policy hold".into());
        settings(&read, problems);
        return Input::Settings(Box::new(read));
    }
    if policy_kind(key.kind).is_none() {
        return Input::Nothing;
    }
    let Some(spec) = value.get("spec").and_then(Value::as_object) else { return Input::Nothing };
    if let Some(input) = cluster_closed(key, value, problems) {
        return input;
    }
    let kept = ["tier", "selector", "namespaceSelector", "serviceAccountSelector"];
    let text = |name: &str| spec.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
    if kept.iter().any(|name| spec.get(*name).is_some_and(|v| !v.is_string() && !v.is_null())) {
        return Input::Nothing;
    }
    let kubernetes = !matches!(
        key.kind,
        Kind::GlobalNetworkPolicy
            | Kind::NetworkPolicy
            | Kind::StagedGlobalNetworkPolicy
            | Kind::StagedNetworkPolicy
    );
    let spec = PolicySpec {
        tier: if kubernetes { String::new() } else { text("tier") },
        order: spec.get("order").and_then(Value::as_f64),
        // A Kubernetes policy that cannot be read is about its whole namespace.
        selector: if kubernetes { "!".into() } else { text("selector") },
        namespace_selector: text("namespaceSelector"),
        service_account_selector: text("serviceAccountSelector"),
        types: vec!["Ingress".into(), "Egress".into()],
        ..PolicySpec::default()
    };
    closed(key, &spec, problems)
}

/// A cluster-wide policy of Kubernetes of which nothing but the subject has to make sense: it closes those, in the
/// directions it speaks of.
fn cluster_closed(key: &Key, value: &Value, problems: &mut Vec<String>) -> Option<Input> {
    let kind = match key.kind {
        Kind::ClusterNetworkPolicy => ClusterKind::Cluster,
        Kind::AdminNetworkPolicy => ClusterKind::Admin,
        Kind::BaselineAdminNetworkPolicy => ClusterKind::Baseline,
        _ => return None,
    };
    let spec = value.get("spec")?;
    let subject = serde_json::from_value(spec.get("subject")?.clone()).ok()?;
    let tier = spec.get("tier").and_then(Value::as_str).filter(|t| matches!(*t, "Admin" | "Baseline"));
    // What cannot be told goes before others.
    let priority =
        spec.get("priority").and_then(Value::as_i64).filter(|n| (0..=1000).contains(n)).unwrap_or(0);
    let whom = ClusterPolicySpec {
        tier: Some(tier.unwrap_or("Admin").to_owned()),
        priority: Some(priority),
        subject,
        ..ClusterPolicySpec::default()
    };
    let mut policy = convert::cluster_policy(kind, &whom).ok()?.spec;
    let speaks = |name: &str| {
        !matches!(spec.get(name), None | Some(Value::Null)) && spec.get(name) != Some(&json!([]))
    };
    for (name, direction) in [("ingress", "Ingress"), ("egress", "Egress")] {
        policy.types.extend(speaks(name).then(|| direction.to_owned()));
    }
    Some(closed(key, &policy, problems))
}

fn converted(
    key: &Key,
    value: &Value,
    result: Result<Converted, (String, String)>,
    problems: &mut Vec<String>,
) -> Input {
    let Some(kind) = policy_kind(key.kind) else { return Input::Nothing };
    let Ok(done) = result else {
        if let Some(input) = cluster_closed(key, value, problems) {
            return input;
        }
        let spec = PolicySpec { selector: "!".into(), ..PolicySpec::default() };
        return closed(key, &spec, problems);
    };
    if done.broken {
        return closed(key, &done.spec, problems);
    }
    let from = (done.ingress_from.as_slice(), done.egress_from.as_slice());
    match compile::policy(id(key, kind, done.spec.tier()), &done.spec, Some(from)) {
        Ok(policy) => Input::Policy(Arc::new(policy)),
        Err((field, reason)) => {
            problems.push(format!("{field}: {reason}"));
            closed(key, &done.spec, problems)
        }
    }
}

fn calico(key: &Key, spec: &PolicySpec, bad: bool, problems: &mut Vec<String>) -> Input {
    let Some(kind) = policy_kind(key.kind) else { return Input::Nothing };
    if bad {
        return closed(key, spec, problems);
    }
    match compile::policy(id(key, kind, spec.tier()), spec, None) {
        Ok(policy) => Input::Policy(Arc::new(policy)),
        Err((field, reason)) => {
            problems.push(format!("{field}: {reason}"));
            closed(key, spec, problems)
        }
    }
}

fn of(key: &Key, value: &Value, resource: AnyResource, bad: bool, problems: &mut Vec<String>) -> Input {
    match resource {
        AnyResource::Tier(r) => {
            if let Some((order, pass)) = convert::built_in_tier(&key.name) {
                if bad {
                    problems.push("its built-in order and default action hold".into());
                }
                return Input::Tier(Some(order), if pass { TierAction::Pass } else { TierAction::Deny });
            }
            let pass = r.spec.default_action.as_deref() == Some("Pass") && !bad;
            Input::Tier(
                r.spec.order.filter(|o| o.is_finite()),
                if pass { TierAction::Pass } else { TierAction::Deny },
            )
        }
        AnyResource::GlobalNetworkPolicy(r) => calico(key, &r.spec.0, bad, problems),
        AnyResource::NetworkPolicy(r) => calico(key, &r.spec.0, bad, problems),
        AnyResource::StagedGlobalNetworkPolicy(r) => calico(key, &r.spec.0, bad, problems),
        AnyResource::StagedNetworkPolicy(r) => calico(key, &r.spec.0, bad, problems),
        // Parts that do not convert are left out or deny; the rest stands.
        AnyResource::KubernetesNetworkPolicy(r) => {
            converted(key, value, convert::kubernetes_policy(&r.spec), problems)
        }
        AnyResource::StagedKubernetesNetworkPolicy(r) => {
            converted(key, value, convert::staged_kubernetes_policy(&r.spec), problems)
        }
        AnyResource::ClusterNetworkPolicy(r) => {
            converted(key, value, convert::cluster_policy(ClusterKind::Cluster, &r.spec.0), problems)
        }
        AnyResource::AdminNetworkPolicy(r) => {
            converted(key, value, convert::cluster_policy(ClusterKind::Admin, &r.spec.0), problems)
        }
        AnyResource::BaselineAdminNetworkPolicy(r) => {
            converted(key, value, convert::cluster_policy(ClusterKind::Baseline, &r.spec.0), problems)
        }
        AnyResource::Profile(r) => profile(&r.metadata.name, &r.spec, bad, problems),
        AnyResource::Namespace(r) => {
            let name = convert::namespace_profile_name(&r.metadata.name);
            profile(&name, &convert::namespace_profile(&r.metadata.name, &r.metadata.labels), false, problems)
        }
        AnyResource::ServiceAccount(r) => {
            let name = convert::service_account_profile_name(&key.namespace, &key.name);
            profile(&name, &convert::service_account_profile(&key.name, &r.metadata.labels), false, problems)
        }
        AnyResource::NetworkSet(mut r) => {
            r.metadata.labels.retain(|name, _| !convert::is_inherited(name));
            r.metadata.labels.insert(convert::LABEL_NAMESPACE.into(), key.namespace.clone());
            let parents = vec![convert::namespace_profile_name(&key.namespace)];
            set(r.metadata.labels, parents, &r.spec.0.nets)
        }
        AnyResource::GlobalNetworkSet(r) => set(r.metadata.labels, Vec::new(), &r.spec.0.nets),
        AnyResource::HostEndpoint(r) => host_endpoint(key, r.metadata.labels, r.spec, bad, problems),
        AnyResource::WorkloadEndpoint(r) => {
            let mut labels = r.metadata.labels;
            labels.retain(|name, _| !convert::is_inherited(name));
            labels.insert(convert::LABEL_NAMESPACE.into(), key.namespace.clone());
            labels.entry(convert::LABEL_ORCHESTRATOR.into()).or_insert_with(|| r.spec.orchestrator.clone());
            let account = &r.spec.service_account_name;
            let mut parents = r.spec.profiles;
            if let Some(profile) = account_profile(key, account) {
                labels.insert(convert::LABEL_SERVICE_ACCOUNT.into(), account.clone());
                if !parents.contains(&profile) {
                    parents.push(profile);
                }
            }
            let allowed = r.metadata.annotations.get(workload::ALLOWED_SOURCES);
            // A device of no rule is denied.
            let broken = (!validate::device_name(&r.spec.interface_name)).then(|| {
                problems.push("drops everything".into());
                "its interfaceName is none".to_owned()
            });
            Input::Endpoint(Arc::new(Endpoint {
                id: EndpointId::Workload { namespace: key.namespace.clone(), name: key.name.clone() },
                node: r.spec.node.into(),
                interface: if broken.is_some() { String::new() } else { r.spec.interface_name },
                mac: Some(r.spec.mac).filter(|m| !m.is_empty()),
                allowed_sources: allowed.map(|a| workload::allowed_sources(a)).unwrap_or_default(),
                broken,
                labelled: Labelled {
                    labels: Arc::new(labels.into()),
                    parents: parents.into(),
                    nets: r.spec.ip_networks,
                    ports: ports(r.spec.ports.iter().map(|p| (&*p.name, &*p.protocol, p.port))),
                },
            }))
        }
        AnyResource::EndpointSlice(r) => slice(key, &r.metadata.labels, &r.extra),
        AnyResource::FelixConfiguration(r) => {
            // For its problems.
            settings(&r.spec, problems);
            Input::Settings(Box::new(r.spec))
        }
        _ => Input::Nothing,
    }
}

/// One that breaks a rule drops everything but for failsafe ports at the interface it stands for, if that can be told.
fn host_endpoint(
    key: &Key,
    labels: BTreeMap<String, String>,
    spec: HostEndpointSpec,
    bad: bool,
    problems: &mut Vec<String>,
) -> Input {
    let addresses = spec.expected_ips.iter().filter_map(|ip| ip.parse::<IpAddr>().ok());
    let nets: Vec<IpNet> = addresses.map(IpNet::from).collect();
    let named = spec.interface_name == "*" || validate::device_name(&spec.interface_name);
    if spec.node.is_empty() || !named && nets.is_empty() {
        problems.push("not enforced: for which interface it stands cannot be told".into());
        return Input::Nothing;
    }
    let broken = bad.then(|| {
        problems.push("drops everything but for failsafe ports".into());
        "the HostEndpoint cannot be taken as it is written".to_owned()
    });
    Input::Endpoint(Arc::new(Endpoint {
        id: EndpointId::Host { name: key.name.clone() },
        node: spec.node.into(),
        interface: if named { spec.interface_name } else { String::new() },
        mac: None,
        allowed_sources: Vec::new(),
        broken,
        labelled: Labelled {
            labels: Arc::new(labels.into()),
            parents: spec.profiles.into(),
            nets,
            ports: ports(spec.ports.iter().map(|p| (&*p.name, &*p.protocol, p.port))),
        },
    }))
}

fn profile(name: &str, spec: &ProfileSpec, bad: bool, problems: &mut Vec<String>) -> Input {
    let compiled = if bad { Err((String::new(), String::new())) } else { compile::profile(spec) };
    let (inbound, outbound, sets) = compiled.unwrap_or_else(|(field, reason)| {
        if !field.is_empty() {
            problems.push(format!("{field}: {reason}"));
        }
        problems.push("allows nothing to those that have it".into());
        Default::default()
    });
    let labels = spec.labels_to_apply.clone();
    Input::Profile(name.to_owned(), Arc::new(Profile { labels, inbound, outbound, sets }))
}

fn set(labels: BTreeMap<String, String>, parents: Vec<String>, nets: &[String]) -> Input {
    // A net that cannot be read is reported and left out.
    let nets = nets.iter().filter_map(|n| read::net(n).ok()).collect();
    Input::Set(Arc::new(Labelled {
        labels: Arc::new(labels.into()),
        parents: parents.into(),
        nets,
        ports: Vec::new(),
    }))
}

/// Named ports, by name, protocol and number. No set holds others than those of protocols that have ports.
fn ports<'a>(list: impl Iterator<Item = (&'a str, &'a str, u16)>) -> Vec<(String, Protocol, u16)> {
    let known = |protocol: &str| match protocol {
        "" => Some(Protocol::TCP),
        name => Protocol::from_name(name),
    };
    list.filter(|(name, ..)| !name.is_empty())
        .filter_map(|(name, protocol, port)| Some((name.to_owned(), known(protocol)?, port)))
        .filter(|(_, protocol, _)| protocol.has_ports())
        .collect()
}

fn slice(key: &Key, labels: &BTreeMap<String, String>, fields: &Extra) -> Input {
    let Some(service) = labels.get("kubernetes.io/service-name") else { return Input::Nothing };
    let Ok(slice) = EndpointSlice::of(fields) else { return Input::Nothing };
    let addresses = slice.endpoints.iter().flat_map(|e| &e.addresses);
    let addresses = addresses.filter_map(|a| a.parse::<IpAddr>().ok());
    let addresses: Vec<IpAddr> = addresses.filter(|a| !a.is_unspecified()).collect();
    let mut with = Vec::new();
    for p in &slice.ports {
        let protocol = Protocol::from_name(p.protocol.as_deref().unwrap_or("TCP"));
        if let (Some(protocol), Some(port)) = (protocol.filter(|p| p.has_ports()), p.port) {
            with.extend(addresses.iter().map(|a| IpSetMember::IpPort { address: *a, protocol, port }));
        }
    }
    let without = addresses.into_iter().map(|a| IpSetMember::Net(a.into())).collect();
    Input::Slice((key.namespace.clone(), service.clone()), with, without)
}

/// The fields of FelixConfiguration that decide about packets.
pub(crate) fn settings(f: &FelixConfigurationSpec, problems: &mut Vec<String>) -> PolicySettings {
    let mut out = PolicySettings::default();
    match f.setting("defaultEndpointToHostAction") {
        None | Some(Value::Null) => {}
        Some(action) => match action.as_str().map(str::to_ascii_lowercase).as_deref() {
            Some("accept") => out.to_host = ToHostAction::Accept,
            Some("return") => out.to_host = ToHostAction::Return,
            Some("drop") => out.to_host = ToHostAction::Drop,
            _ => {
                // Whoever wrote something else did not ask for an open host.
                out.to_host = ToHostAction::Drop;
                problems.push("spec.defaultEndpointToHostAction: Drop holds until it is mended".into());
            }
        },
    }
    for (field, list) in [
        ("failsafeInboundHostPorts", &mut out.failsafe_inbound),
        ("failsafeOutboundHostPorts", &mut out.failsafe_outbound),
    ] {
        let Some(Value::Array(entries)) = f.setting(field) else { continue };
        list.clear();
        for (i, e) in entries.iter().enumerate() {
            let protocol = e.get("protocol").and_then(Value::as_str).unwrap_or("TCP");
            let port = e.get("port").and_then(Value::as_u64).and_then(|p| u16::try_from(p).ok());
            let net = e.get("net").and_then(Value::as_str);
            let parsed = net.map(read::net).transpose();
            match (Protocol::from_name(protocol), port, parsed) {
                (Some(protocol), Some(port), Ok(net)) => list.push(Failsafe { protocol, port, net }),
                // Named by validation.
                _ => problems.push(format!("spec.{field}[{i}]: left out until it is mended")),
            }
        }
    }
    out.source_spoofing = f.source_spoofing();
    let flag = |name: &str| f.setting(name).and_then(Value::as_bool) == Some(true);
    let port = f.setting("vxlanPort").and_then(Value::as_u64).and_then(|p| u16::try_from(p).ok());
    out.vxlan_port = port.filter(|p| *p > 0).unwrap_or(out.vxlan_port);
    out.allow_vxlan_from_workloads = flag("allowVXLANPacketsFromWorkloads");
    out.allow_ipip_from_workloads = flag("allowIPIPPacketsFromWorkloads");
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each value that may stand somewhere: right, wrong, of another type.
    fn values() -> Vec<Value> {
        let texts =
            ["", "a", "x.y", "-", "A_b", "far", "mine", "calim", "TCP", "ee:ee:ee:ee:ee:ee", "10.0.0.1/32"];
        let long = "l".repeat(70);
        let mut all: Vec<Value> = texts.iter().map(|t| json!(t)).collect();
        all.extend([
            json!(long),
            json!(null),
            json!(5),
            json!(70_000),
            json!(true),
            json!([]),
            json!(["kns.a", "b"]),
            json!(["10.0.0.1/32", "fd00::1/128"]),
            json!(["10.0.0.0/24"]),
            json!({}),
            json!({"app": "web", "projectcalico.org/namespace": "false"}),
            json!({"a b": "c"}),
            json!({"a": 5}),
            json!([{"name": "http", "port": 80}, {"name": "", "port": 81}, {"name": "d", "protocol": "UDP", "port": 53}]),
            json!([{"name": "p", "protocol": "nothing", "port": 1, "hostPort": 2, "more": {}}]),
            json!([{"port": 70_000}]),
            json!([["http", "TCP", 80]]),
            json!(["projectcalico.org/v3"]),
        ]);
        all
    }

    #[test]
    fn an_endpoint_of_another_node_is_read_as_any_other_or_left_to_that() {
        let good = json!({"apiVersion": "projectcalico.org/v3", "kind": "WorkloadEndpoint",
            "metadata": {"name": "pod", "namespace": "a", "labels": {"app": "web", "tier": "x"},
                "annotations": {"cni.projectcalico.org/allowedSourcePrefixes": "[\"10.1.0.0/16\"]"},
                "resourceVersion": "7", "more": {"a": 1}},
            "spec": {"orchestrator": "k8s", "node": "far", "endpoint": "eth0", "interfaceName": "cali1",
                "serviceAccountName": "robot", "profiles": ["kns.a"], "mac": "ee:ee:ee:ee:ee:ee", "more": [1],
                "ipNetworks": ["10.0.0.1/32", "fd00::1/128"], "ports": [{"name": "http", "protocol": "TCP", "port": 80}]}});
        let key = Key::new(Kind::WorkloadEndpoint, Some("a"), "pod");
        let mut words = Words::default();
        let mut fast = 0;
        let mut check = |value: &Value| {
            let (mut want, problems) = read(&key, value);
            want.compact(&mut words, Some("mine"));
            if let Some(got) = far(&key, value, "mine", &mut words) {
                fast += 1;
                assert_eq!((got, Vec::<String>::new()), (want, problems), "{value}");
            } else if let Input::Endpoint(e) = &want {
                // What Go leaves null is rare, and left to the other reader.
                let odd = !problems.is_empty() || value.to_string().contains("null");
                assert!(&*e.node == "mine" || odd, "nothing is wrong with {value}");
            }
        };
        check(&good);
        let sections = ["", "/metadata", "/spec"];
        let more = [
            "hostPort",
            "workload",
            "containerID",
            "pod",
            "ipv4Gateway",
            "ipv6Gateway",
            "uid",
            "creationTimestamp",
        ];
        for section in sections {
            let fields = good.pointer(section).and_then(Value::as_object).expect("an object");
            for field in fields.keys().map(String::as_str).chain(more) {
                let changed = |value: Option<Value>| {
                    let mut all = good.clone();
                    let object = all.pointer_mut(section).and_then(Value::as_object_mut).expect("an object");
                    match value {
                        Some(value) => object.insert(field.to_owned(), value),
                        None => object.remove(field),
                    };
                    all
                };
                check(&changed(None));
                values().into_iter().for_each(|value| check(&changed(Some(value))));
            }
        }
        assert!(fast > 100, "{fast} were read so");
    }
}
