//! Addresses of LoadBalancer services, by the rules of Calico's kube-controllers:
//!
//! | asked for | given |
//! |---|---|
//! | annotation `projectcalico.org/loadBalancerIPs` (JSON list, at most one of each family), else spec.loadBalancerIP | these |
//! | annotations `projectcalico.org/ipv4pools`, `ipv6pools` (JSON lists of names or CIDRs) | one of each family of the service, from these pools |
//! | nothing | one of each family, from any pool with allowedUses LoadBalancer and assignmentMode Automatic |
//!
//! What a service holds beyond that is released; what it holds is written into its status. A service that is gone, or no
//! more ours (another type, a class of somebody else's), gives everything back. Without any pool for load balancers
//! nothing is given and no status is touched: then the services are somebody else's.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use brindle_config_core::{
    Key, Kind, Resource,
    names::{handle_name, load_balancer_handle},
    service::{ServiceSpec, ServiceStatus},
    store::{Entry, decode},
};
use brindle_ipam::Release;
use ipnet::IpNet;
use serde_json::{Value, json};

use super::{Action, AssignIps, Plan, Wanted};
use crate::facts::Facts;

const POOLS4: &str = "projectcalico.org/ipv4pools";
const POOLS6: &str = "projectcalico.org/ipv6pools";
const ADDRESSES: &str = "projectcalico.org/loadBalancerIPs";

/// Whether a class means us: Calico's, or one under our own name.
fn is_our_class(class: &str) -> bool {
    class == "calico"
        || ["brindle.io/", "brindle.dev/", "projectcalico.org/"].iter().any(|p| class.starts_with(p))
}

/// What a service asks for.
#[derive(Debug, Default)]
struct Request {
    addresses: Vec<IpAddr>,
    pools4: Vec<String>,
    pools6: Vec<String>,
}

impl Request {
    fn of(service: &Resource<ServiceSpec>) -> Result<Self, String> {
        let list = |name: &str| -> Result<Vec<String>, String> {
            let Some(text) = service.metadata.annotations.get(name).filter(|t| !t.is_empty()) else {
                return Ok(Vec::new());
            };
            serde_json::from_str(text).map_err(|_| {
                format!("annotation {name}: expected a JSON list such as [\"a\"], found {text:?}")
            })
        };
        let mut wanted = list(ADDRESSES)?;
        if wanted.is_empty() && !service.spec.load_balancer_ip.is_empty() {
            wanted.push(service.spec.load_balancer_ip.clone());
        }
        let mut addresses: Vec<IpAddr> = Vec::new();
        for text in wanted {
            let ip: IpAddr = text.parse().map_err(|_| format!("{text:?} asked for is no IP address"))?;
            if addresses.iter().any(|a| a.is_ipv4() == ip.is_ipv4()) {
                return Err("asks for two addresses of one family; at most one of each is given".into());
            }
            addresses.push(ip);
        }
        Ok(Self { addresses, pools4: list(POOLS4)?, pools6: list(POOLS6)? })
    }

    fn names_something(annotations: &BTreeMap<String, String>) -> bool {
        [POOLS4, POOLS6, ADDRESSES].iter().any(|a| annotations.get(*a).is_some_and(|t| !t.is_empty()))
    }
}

/// Whether addresses of this service are our business.
fn is_ours(service: &Resource<ServiceSpec>, assign: AssignIps) -> bool {
    service.spec.service_type == "LoadBalancer"
        && service.spec.load_balancer_class.as_deref().is_none_or(is_our_class)
        && (assign == AssignIps::All || Request::names_something(&service.metadata.annotations))
}

/// Families a service wants an address of, the preferred one first.
fn families(spec: &ServiceSpec) -> Vec<bool> {
    let named: Vec<bool> = spec.ip_families.iter().map(|f| f == "IPv6").collect();
    let all = match (named.is_empty(), spec.cluster_addresses()) {
        (false, _) => named,
        (true, ips) if !ips.is_empty() => ips.iter().map(IpAddr::is_ipv6).collect(),
        (true, _) => vec![false],
    };
    let dual = matches!(spec.ip_family_policy.as_deref(), Some("PreferDualStack" | "RequireDualStack"));
    // Without a policy the list decides: nobody lists two families and wants one.
    let most = if dual || spec.ip_family_policy.is_none() { 2 } else { 1 };
    let mut kept = Vec::new();
    for family in all {
        if !kept.contains(&family) && kept.len() < most {
            kept.push(family);
        }
    }
    kept
}

/// An address a service holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Held {
    ip: IpAddr,
    sequence: u64,
}

fn text<'v>(value: &'v Value, path: &str) -> &'v str {
    value.pointer(path).and_then(Value::as_str).unwrap_or_default()
}

/// The handle of a service, by what can be read of any.
fn handle_of(e: &Entry) -> String {
    load_balancer_handle(&e.key.name, &e.key.namespace, text(&e.value, "/metadata/uid"))
}

/// What handles of services hold: by the handle's name, with the service it was given for.
fn held(facts: &Facts) -> BTreeMap<String, (Key, Vec<Held>)> {
    let mut all: BTreeMap<String, (Key, Vec<Held>)> = BTreeMap::new();
    for (_, a) in facts.blocks.allocations() {
        let attribute = |name: &str| a.attribute.secondary.get(name);
        // Both are written by whoever gives addresses to services, and by nobody else.
        let (Some(handle), Some(service), Some(namespace)) =
            (a.handle(), attribute("service"), attribute("namespace"))
        else {
            continue;
        };
        if !handle.starts_with("lb-") {
            continue;
        }
        let key = Key::new(Kind::Service, Some(namespace), service);
        let (_, list) = all.entry(handle_name(handle)).or_insert_with(|| (key, Vec::new()));
        list.push(Held { ip: a.ip, sequence: a.sequence });
    }
    all
}

fn releases(handle: &str, of: &[Held]) -> Vec<Release> {
    of.iter()
        .map(|h| Release { ip: h.ip, handle: Some(handle.to_owned()), sequence: Some(h.sequence) })
        .collect()
}

pub(super) fn plan(facts: &Facts, assign: AssignIps, plan: &mut Plan) {
    let mut held = held(facts);
    if facts.balancer_pools.is_empty() && held.is_empty() {
        return;
    }
    let mut known: BTreeSet<String> = BTreeSet::new();
    for e in facts.of(Kind::Service) {
        let handle = handle_of(e);
        known.insert(handle_name(&handle));
        let has = held.remove(&handle_name(&handle)).map(|(_, h)| h).unwrap_or_default();
        let service = match decode::<ServiceSpec>(e) {
            Ok(found) => found.resource,
            Err(error) => {
                plan.problems.push(format!("{error}; its addresses stay as they are"));
                continue;
            }
        };
        let done = if is_ours(&service, assign) {
            ours(facts, e, &service, &handle, &has, plan)
        } else {
            no_more_ours(e, &service, &handle, &has, plan)
        };
        if let Err(problem) = done {
            plan.problems.push(format!("{}: {problem}", e.key));
        }
    }
    for (handle, (service, _)) in held {
        debug_assert!(!known.contains(&handle));
        plan.add(Action::UnbindAll { service, handle }, "the service is gone");
    }
}

fn no_more_ours(
    e: &Entry,
    service: &Resource<ServiceSpec>,
    handle: &str,
    has: &[Held],
    plan: &mut Plan,
) -> Result<(), String> {
    if has.is_empty() {
        return Ok(());
    }
    let why = "the service is not ours any more";
    if service.spec.service_type == "LoadBalancer" {
        // What others gave it stays.
        let mut ingress = ingress(service)?;
        let before = ingress.len();
        ingress.retain(|i| !has.iter().any(|h| text(i, "/ip").parse() == Ok(h.ip)));
        if ingress.len() != before {
            plan.add(Action::Status { service: e.key.clone(), revision: e.revision, ingress }, why);
        }
    }
    plan.add(Action::UnbindAll { service: e.key.clone(), handle: handle.to_owned() }, why);
    Ok(())
}

fn ours(
    facts: &Facts,
    e: &Entry,
    service: &Resource<ServiceSpec>,
    handle: &str,
    has: &[Held],
    plan: &mut Plan,
) -> Result<(), String> {
    if facts.balancer_pools.is_empty() && has.is_empty() {
        return Ok(());
    }
    let request = Request::of(service)?;
    let families = families(&service.spec);
    let in_pools = |ip: IpAddr, named: &[String]| {
        named.iter().any(|n| match n.parse::<IpNet>() {
            Ok(net) => net.contains(&ip),
            Err(_) => facts.balancer_pools.iter().any(|p| p.name == *n && p.cidr.contains(&ip)),
        })
    };
    let mut kept: Vec<Held> = Vec::new();
    let mut released: BTreeMap<&'static str, Vec<Held>> = BTreeMap::new();
    let status = ingress(service)?;
    // Of several of one family the one in the status stays.
    let mut order = has.to_vec();
    order.sort_by_key(|h| (!status.iter().any(|i| text(i, "/ip").parse() == Ok(h.ip)), *h));
    for h in order {
        let why = if !request.addresses.is_empty() {
            (!request.addresses.contains(&h.ip)).then_some("the service asks for another address")
        } else if !request.pools4.is_empty() || !request.pools6.is_empty() {
            let ok = in_pools(h.ip, &request.pools4) || in_pools(h.ip, &request.pools6);
            (!ok).then_some("the service asks for other pools")
        } else {
            let manual = facts.balancer_pools.iter().any(|p| p.manual && p.cidr.contains(&h.ip));
            manual.then_some("its pool only serves those that name it")
        };
        let why = why.or_else(|| {
            let explicit = !request.addresses.is_empty();
            let family = families.contains(&h.ip.is_ipv6());
            let second = kept.iter().any(|k| k.ip.is_ipv4() == h.ip.is_ipv4());
            (!explicit && (!family || second)).then_some("the service has one of each of its families")
        });
        match why {
            Some(why) => released.entry(why).or_default().push(h),
            None => kept.push(h),
        }
    }
    for (why, list) in &released {
        plan.add(Action::Unbind { service: e.key.clone(), releases: releases(handle, list) }, *why);
    }
    let bind = |wanted| Action::Bind { service: e.key.clone(), handle: handle.to_owned(), wanted };
    if facts.balancer_pools.is_empty() {
        // What is held stays until the service goes; nothing new can be given.
    } else if !request.addresses.is_empty() {
        for ip in request.addresses.iter().filter(|ip| !kept.iter().any(|k| k.ip == **ip)) {
            plan.add(bind(Wanted::Address(*ip)), "the service asks for it");
        }
    } else {
        for v6 in families.iter().copied().filter(|v6| !kept.iter().any(|k| k.ip.is_ipv6() == *v6)) {
            let pools = if v6 { request.pools6.clone() } else { request.pools4.clone() };
            plan.add(bind(Wanted::Any { v6, pools }), "the service has none");
        }
    }
    let mut ips: Vec<IpAddr> = kept.iter().map(|k| k.ip).collect();
    ips.sort_by_key(|ip| (families.iter().position(|v6| *v6 == ip.is_ipv6()), *ip));
    // Members other than the address (ports, ipMode) stay with their address.
    let entry = |ip: &IpAddr| {
        let old = status.iter().find(|i| text(i, "/ip").parse() == Ok(*ip));
        old.cloned().unwrap_or_else(|| json!({"ip": ip.to_string()}))
    };
    let mut ingress: Vec<Value> = ips.iter().map(entry).collect();
    if ips.is_empty() {
        // What others gave it stays until it has something of ours.
        let of_ours = |i: &&Value| {
            let ip = text(i, "/ip").parse::<IpAddr>();
            ip.is_ok_and(|ip| facts.balancer_pools.iter().any(|p| p.cidr.contains(&ip)))
        };
        ingress = status.iter().filter(|i| !of_ours(i)).cloned().collect();
    }
    let set = |list: &[Value]| list.iter().map(Value::to_string).collect::<BTreeSet<_>>();
    if set(&status) != set(&ingress) {
        plan.add(
            Action::Status { service: e.key.clone(), revision: e.revision, ingress },
            "it says something else than the addresses held",
        );
    }
    Ok(())
}

/// `status.loadBalancer.ingress` as it is.
fn ingress(service: &Resource<ServiceSpec>) -> Result<Vec<Value>, String> {
    ServiceStatus::of(&service.extra)?;
    let status = service.extra.get("status").and_then(|s| s.pointer("/loadBalancer/ingress"));
    Ok(status.and_then(Value::as_array).cloned().unwrap_or_default())
}
