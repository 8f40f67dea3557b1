//! Host endpoints that follow from nodes, as Calico's kube-controllers make them: for each node one for all its interfaces,
//! `NODE-auto-hep` with interface `*`, and those its templates describe. They have the node's labels and the label
//! `projectcalico.org/created-by`, by which they are told from those that people wrote, and allow everything unless
//! policy says otherwise. One whose node or template is gone is deleted, and all of them when they are switched off; while
//! nobody has said whether they are wanted, those that are there stay. One that would contest an interface with another
//! (`contest`) is not made, and named.

mod contest;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use brindle_config_core::{
    Key, Kind, ObjectMeta, Resource, Selector,
    controllers::{AutoHostEndpointSpec, HostEndpointTemplate},
    convert::DEFAULT_ALLOW,
    names::auto_host_endpoint_name,
    node::NodeSpec,
    policy::HostEndpointSpec,
    store::{Entry, decode},
};
use ipnet::IpNet;
use regex_lite::Regex;
use serde_json::Value;

use self::contest::{Report, Standing, Wish, settle};
use super::{Action, Controller, Plan, Rules, Suspicions};
use crate::facts::Facts;

const CREATED_BY: &str = "projectcalico.org/created-by";
const US: &str = "calico-kube-controllers";
const EVERY_INTERFACE: &str = "*";

/// A template that can be applied.
struct Usable<'a> {
    of: &'a HostEndpointTemplate,
    selector: Selector,
    cidrs: Vec<IpNet>,
    pattern: Option<Regex>,
}

impl<'a> Usable<'a> {
    fn of(t: &'a HostEndpointTemplate) -> Result<Self, String> {
        let selector = Selector::parse(&t.node_selector).map_err(|e| format!("nodeSelector: {e}"))?;
        let cidr = |c: &String| c.parse::<IpNet>().map_err(|_| format!("interfaceCIDRs: {c:?} is no CIDR"));
        let cidrs = t.interface_cidrs.iter().map(cidr).collect::<Result<_, _>>()?;
        let pattern = Some(&t.interface_pattern).filter(|p| !p.is_empty());
        let pattern = pattern.map(|p| Regex::new(p).map_err(|e| format!("interfacePattern {p:?}: {e}")));
        Ok(Self { of: t, selector, cidrs, pattern: pattern.transpose()? })
    }
}

/// Interfaces with their addresses, as far as the Node tells.
fn interfaces(node: &NodeSpec) -> Vec<(String, Vec<String>)> {
    let list = node.extra.get("interfaces").and_then(Value::as_array);
    let read = |i: &Value| {
        let addresses = i.get("addresses").and_then(Value::as_array).into_iter().flatten();
        let addresses = addresses.filter_map(Value::as_str).map(str::to_owned).collect();
        Some((i.get("name")?.as_str()?.to_owned(), addresses))
    };
    list.into_iter().flatten().filter_map(read).collect()
}

/// Every address of a node, each once: those it peers with, of its tunnels, internal ones, those of its interfaces.
fn addresses(node: &NodeSpec) -> Vec<String> {
    let text = |path: &str| node.extra.get(path).and_then(Value::as_str).map(str::to_owned);
    let wireguard = |field: &str| {
        let found = node.extra.get("wireguard").and_then(|w| w.get(field));
        found.and_then(Value::as_str).map(str::to_owned)
    };
    let tunnel = node.bgp.as_ref().and_then(|b| b.ipv4_ipip_tunnel_addr);
    let mut all: Vec<String> = node.ips().map(|ip| ip.to_string()).collect();
    all.extend(tunnel.map(|ip| ip.to_string()));
    all.extend(node.ipv4_vxlan_tunnel_addr.map(|ip| ip.to_string()));
    all.extend(text("ipv6VXLANTunnelAddr"));
    all.extend(["interfaceIPv4Address", "interfaceIPv6Address"].into_iter().filter_map(wireguard));
    all.extend(node.addresses.iter().filter(|a| a.kind == "InternalIP").map(|a| a.address.clone()));
    all.extend(interfaces(node).into_iter().flat_map(|(_, addresses)| addresses));
    let mut seen = BTreeSet::new();
    all.retain(|a| a.parse::<IpAddr>().is_ok() && seen.insert(a.clone()));
    all
}

fn endpoint(
    node: &Resource<NodeSpec>,
    template: Option<&HostEndpointTemplate>,
    interface: &str,
    expected_ips: Vec<String>,
) -> Resource<HostEndpointSpec> {
    let (generated, of_name) = match template {
        Some(t) => (t.generate_name.as_str(), interface),
        None => ("", ""),
    };
    let mut meta = ObjectMeta::named(auto_host_endpoint_name(&node.metadata.name, generated, of_name));
    meta.labels.clone_from(&node.metadata.labels);
    if let Some(t) = template {
        meta.labels.extend(t.labels.clone());
        meta.annotations.clone_from(&t.annotations);
    }
    meta.labels.insert(CREATED_BY.into(), US.into());
    let spec = HostEndpointSpec {
        node: node.metadata.name.clone(),
        interface_name: interface.to_owned(),
        expected_ips,
        profiles: vec![DEFAULT_ALLOW.to_owned()],
        ..HostEndpointSpec::default()
    };
    Resource::new(meta, spec)
}

/// Those that are asked for on a node.
fn wanted<'a>(
    node: &Resource<NodeSpec>,
    auto: &AutoHostEndpointSpec,
    templates: &[Usable<'a>],
) -> Vec<Wish<'a>> {
    let all = addresses(&node.spec);
    let mut wanted = Vec::new();
    let mut ask = |t: Option<&'a HostEndpointTemplate>, interface: &str, addresses| {
        let hep = endpoint(node, t, interface, addresses);
        wanted.push(Wish { hep, template: t.map(|t| t.generate_name.as_str()) });
    };
    if auto.makes_default() {
        ask(None, EVERY_INTERFACE, all.clone());
    }
    for t in templates.iter().filter(|t| t.selector.matches(&node.metadata.labels)) {
        let inside =
            |a: &&String| a.parse::<IpAddr>().is_ok_and(|ip| t.cidrs.iter().any(|c| c.contains(&ip)));
        let chosen: Vec<String> = all.iter().filter(inside).cloned().collect();
        let Some(pattern) = &t.pattern else {
            // Without an interface it is by its addresses that it is one.
            if !chosen.is_empty() {
                ask(Some(t.of), "", chosen);
            }
            continue;
        };
        for (name, its) in interfaces(&node.spec).into_iter().filter(|(name, _)| pattern.is_match(name)) {
            let mut expected = chosen.clone();
            expected.extend(its.into_iter().filter(|a| !chosen.contains(a)));
            ask(Some(t.of), &name, expected);
        }
    }
    wanted
}

/// Whether the one that is there says what is wanted.
fn says(there: &Resource<HostEndpointSpec>, wanted: &Resource<HostEndpointSpec>) -> bool {
    let mut annotations = wanted.metadata.annotations.iter();
    there.spec == wanted.spec
        && there.metadata.labels == wanted.metadata.labels
        && annotations.all(|(k, v)| there.metadata.annotations.get(k) == Some(v))
}

/// Those of nodes that are there, by name: what can be read, and what cannot.
type There<'a> = BTreeMap<&'a str, (&'a Entry, Option<Resource<HostEndpointSpec>>)>;

fn is_ours(e: &Entry) -> bool {
    // A `/` in the name of a label is no step of a path.
    let labels = e.value.pointer("/metadata/labels");
    labels.and_then(|l| l.get(CREATED_BY)).is_some_and(|v| v == US)
}

fn drop(e: &Entry, why: &str, plan: &mut Plan) {
    plan.add(Action::DropHostEndpoint { key: e.key.clone(), revision: e.revision }, why);
}

pub(super) fn plan(facts: &Facts, rules: &Rules, suspicions: &mut Suspicions<'_>, plan: &mut Plan) {
    let Some(auto) = &rules.host_endpoints else { return };
    let all = facts.of(Kind::HostEndpoint).map(|e| {
        let read = decode::<HostEndpointSpec>(e).ok().map(|found| found.resource);
        (e.key.name.as_str(), (e, read))
    });
    let there: There<'_> = all.collect();
    let mut by_node: BTreeMap<&str, Vec<Standing<'_>>> = BTreeMap::new();
    for (node, standing) in there.values().filter_map(|(e, _)| Standing::of(e)) {
        by_node.entry(node).or_default().push(standing);
    }
    if !auto.is_on() {
        for (e, _) in there.values().filter(|(e, _)| is_ours(e)) {
            drop(e, "host endpoints of nodes are switched off", plan);
        }
        return;
    }
    let mut whole = true;
    let mut templates = Vec::new();
    for t in &auto.templates {
        match Usable::of(t) {
            Ok(usable) => templates.push(usable),
            Err(error) => {
                whole = false;
                plan.problems.push(format!(
                    "KubeControllersConfiguration(default): template {:?} of host endpoints: {error}; what it made stays",
                    t.generate_name
                ));
            }
        }
    }
    let mut kept: BTreeSet<String> = BTreeSet::new();
    let mut contested = Report::default();
    for e in facts.of(Kind::Node) {
        let node = match decode::<NodeSpec>(e) {
            Ok(found) => found.resource,
            Err(error) => {
                plan.problems.push(format!("{error}; its host endpoints stay as they are"));
                let its = there.values().filter_map(|(_, hep)| hep.as_ref());
                let its = its.filter(|hep| hep.spec.node == e.key.name);
                kept.extend(its.map(|hep| hep.metadata.name.clone()));
                continue;
            }
        };
        let wishes = wanted(&node, auto, &templates);
        let asked: BTreeSet<&str> = wishes.iter().map(|w| w.hep.metadata.name.as_str()).collect();
        // Those of others stay, and ours where the template that asked for them cannot be read.
        let stays =
            |s: &Standing<'_>| !is_ours(s.entry) || !whole && !asked.contains(s.entry.key.name.as_str());
        let its = by_node.remove(e.key.name.as_str()).unwrap_or_default();
        let (standing, ours): (Vec<_>, Vec<_>) = its.into_iter().partition(stays);
        let (made, left) = settle(wishes, &standing);
        for s in ours.iter().filter(|s| !made.iter().any(|w| w.has_name_of(s))) {
            let asked_for = left.iter().find(|l| l.name == s.entry.key.name);
            let why = match asked_for {
                Some(left) => left.why.as_str(),
                None if made.iter().any(|w| w.contests(s)) => "another one is to stand for its interface",
                None => continue,
            };
            drop(s.entry, why, plan);
            kept.insert(s.entry.key.name.clone());
        }
        left.iter().for_each(|l| contested.add(l, &e.key.name));
        for wish in made {
            let name = wish.hep.metadata.name.clone();
            // One that is in the way goes first: with both there, even for a moment, the interface would be closed.
            let waits = !there.contains_key(name.as_str()) && ours.iter().any(|s| wish.contests(s));
            kept.insert(name);
            if !waits {
                compare(wish.hep, &there, plan);
            }
        }
    }
    plan.problems.extend(contested.lines().map(|l| format!("KubeControllersConfiguration(default): {l}")));
    for (name, (e, hep)) in there.iter().filter(|(name, (e, _))| is_ours(e) && !kept.contains(**name)) {
        let node = hep.as_ref().map(|h| h.spec.node.as_str()).unwrap_or_default();
        if facts.nodes.contains(node) {
            if whole {
                drop(e, "no template asks for it any more", plan);
            }
            continue;
        }
        // The Node may only be away for a moment, and with this goes what policy holds against the host.
        let why = format!("node {node} is gone");
        let what = format!("HostEndpoint {name}: {why}");
        if suspicions.ripe(Controller::HostEndpoint, what, rules.graces.node, plan) {
            drop(e, &why, plan);
        }
    }
}

fn compare(wanted: Resource<HostEndpointSpec>, there: &There<'_>, plan: &mut Plan) {
    let key: Key = wanted.key();
    match there.get(key.name.as_str()) {
        None => plan.add(
            Action::PutHostEndpoint { key, revision: None, resource: wanted },
            "host endpoints of nodes are switched on",
        ),
        Some((e, _)) if !is_ours(e) => plan.problems.push(format!(
            "{key} has the name of a node's, but not the label {CREATED_BY}={US}; it is left as it is"
        )),
        Some((_, Some(hep))) if says(hep, &wanted) => {}
        Some((e, hep)) => {
            let mut wanted = wanted;
            if let Some(hep) = hep {
                // What others wrote beside it stays.
                let mut meta = hep.metadata.clone();
                meta.labels = wanted.metadata.labels;
                meta.annotations.extend(wanted.metadata.annotations);
                wanted.metadata = meta;
            }
            plan.add(
                Action::PutHostEndpoint { key, revision: Some(e.revision), resource: wanted },
                "its node or its template says something else",
            );
        }
    }
}

#[cfg(test)]
mod tests;
