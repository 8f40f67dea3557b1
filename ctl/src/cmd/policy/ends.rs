//! The two ends of a traced packet: what was typed → a pod, a host endpoint or a mere address.

use std::net::IpAddr;

use anyhow::{Context as _, Result, bail};
use brindle_config_core::{Kind, store::Entry};
use brindle_felix_core::policy::active::EndpointId;
use ipnet::IpNet;
use serde_json::Value;

use super::way::Nodes;

/// One end.
#[derive(Clone, Debug)]
pub(super) struct End {
    /// As it is shown: `shop/db`, `HostEndpoint node-1-eth0`, `192.0.2.1`.
    pub(super) name: String,
    /// `None` for an address that no endpoint has.
    pub(super) endpoint: Option<EndpointId>,
    /// Of the node itself, by an interface nobody named.
    pub(super) host: bool,
    /// A host endpoint that was found by its address.
    pub(super) by_address: bool,
    pub(super) node: Option<String>,
    /// All it has, or the one that was typed.
    pub(super) addresses: Vec<IpAddr>,
}

/// Cuts the port off.
pub(super) fn with_port(typed: &str) -> Result<(&str, Option<u16>)> {
    if typed.parse::<IpAddr>().is_ok() {
        return Ok((typed, None));
    }
    let port = |p: &str| p.parse::<u16>().ok().with_context(|| format!("port {p:?}: expected 0 to 65535"));
    if let Some(rest) = typed.strip_prefix('[') {
        let (address, tail) = rest.split_once(']').with_context(|| format!("{typed:?}: the ] is missing"))?;
        return match tail.strip_prefix(':') {
            Some(p) => Ok((address, Some(port(p)?))),
            None if tail.is_empty() => Ok((address, None)),
            None => bail!("{typed:?}: expected :PORT behind the ]"),
        };
    }
    match typed.rsplit_once(':') {
        Some((what, p)) => Ok((what, Some(port(p)?))),
        None => Ok((typed, None)),
    }
}

fn text<'a>(e: &'a Entry, at: &str) -> &'a str {
    e.value.pointer(at).and_then(Value::as_str).unwrap_or_default()
}

fn addresses(e: &Entry) -> Vec<IpAddr> {
    let field = if e.key.kind == Kind::HostEndpoint { "/spec/expectedIPs" } else { "/spec/ipNetworks" };
    let list = e.value.pointer(field).and_then(Value::as_array).into_iter().flatten();
    let parse = |t: &str| t.parse::<IpAddr>().ok().or_else(|| t.parse::<IpNet>().ok().map(|n| n.addr()));
    list.filter_map(Value::as_str).filter_map(parse).collect()
}

fn of(e: &Entry) -> End {
    let (name, id) = match e.key.kind {
        Kind::HostEndpoint => {
            (format!("HostEndpoint {}", e.key.name), EndpointId::Host { name: e.key.name.clone() })
        }
        _ => {
            let pod = text(e, "/spec/pod");
            let shown = if pod.is_empty() { &e.key.name } else { pod };
            let id = EndpointId::Workload { namespace: e.key.namespace.clone(), name: e.key.name.clone() };
            (format!("{}/{shown}", e.key.namespace), id)
        }
    };
    End {
        name,
        endpoint: Some(id),
        host: false,
        by_address: false,
        node: Some(text(e, "/spec/node").to_owned()),
        addresses: addresses(e),
    }
}

/// Finds what was typed.
pub(super) fn find(entries: &[Entry], nodes: &Nodes, typed: &str) -> Result<End> {
    let ends =
        || entries.iter().filter(|e| matches!(e.key.kind, Kind::WorkloadEndpoint | Kind::HostEndpoint));
    if let Ok(address) = typed.parse::<IpAddr>() {
        // A host endpoint that names its interface goes before one that is known by its addresses alone.
        let all = ends().filter(|e| addresses(e).contains(&address));
        let unnamed =
            |e: &&Entry| e.key.kind == Kind::HostEndpoint && text(e, "/spec/interfaceName").is_empty();
        let known = all.min_by_key(|e| (unnamed(e), e.key.clone())).map(of);
        let outside = || {
            let node = nodes.at(address).map(str::to_owned);
            End {
                name: typed.to_owned(),
                endpoint: None,
                host: node.is_some(),
                by_address: false,
                node,
                addresses: Vec::new(),
            }
        };
        let mut end = known.unwrap_or_else(outside);
        end.addresses = vec![address];
        end.by_address = matches!(end.endpoint, Some(EndpointId::Host { .. }));
        return Ok(end);
    }
    let Some((namespace, pod)) = typed.split_once('/') else {
        let hep = ends().find(|e| e.key.kind == Kind::HostEndpoint && e.key.name == typed);
        // As `route` has it: a pod's name alone, where only one has it.
        let called: Vec<&Entry> = ends()
            .filter(|e| e.key.kind == Kind::WorkloadEndpoint && text(e, "/spec/pod") == typed)
            .collect();
        let pod = match (hep, called.as_slice()) {
            (None, [only]) => Some(*only),
            (None, [_, _, ..]) => {
                let names: Vec<String> =
                    called.iter().map(|e| format!("{}/{typed}", e.key.namespace)).collect();
                bail!("{typed:?} may be {}; write one of these", names.join(" or "))
            }
            _ => None,
        };
        return hep.or(pod).map(of).with_context(|| {
            let names = ends().filter(|e| e.key.kind == Kind::HostEndpoint).map(|e| e.key.name.as_str());
            match brindle_config_core::suggest::closest(typed, names) {
                Some(meant) => format!("there is no HostEndpoint {typed:?}; did you mean {meant}?"),
                None => {
                    format!(
                        "there is no HostEndpoint {typed:?}; name a pod as NAMESPACE/POD, or give an address"
                    )
                }
            }
        });
    };
    let pods = || ends().filter(|e| e.key.kind == Kind::WorkloadEndpoint && e.key.namespace == namespace);
    let found = pods().find(|e| text(e, "/spec/pod") == pod || e.key.name == pod);
    found.map(of).with_context(|| {
        let names: Vec<&str> = pods().map(|e| text(e, "/spec/pod")).filter(|p| !p.is_empty()).collect();
        match brindle_config_core::suggest::closest(pod, names.iter().copied()) {
            Some(meant) => format!("there is no pod {typed:?}; did you mean {namespace}/{meant}?"),
            None if names.is_empty() => format!("namespace {namespace:?} has no pod with an endpoint"),
            None => format!("there is no pod {typed:?}; see `brindlectl get wep -n {namespace}`"),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_stand_behind_names_and_addresses() {
        let cut = |t: &'static str| with_port(t).expect(t);
        assert_eq!(cut("shop/db:5432"), ("shop/db", Some(5432)));
        assert_eq!(cut("shop/db"), ("shop/db", None));
        assert_eq!(cut("192.0.2.1:443"), ("192.0.2.1", Some(443)));
        assert_eq!(cut("2001:db8::1"), ("2001:db8::1", None));
        assert_eq!(cut("[2001:db8::1]:80"), ("2001:db8::1", Some(80)));
        for bad in ["shop/db:70000", "shop/db:http", "[2001:db8::1", "[::1]80"] {
            assert!(with_port(bad).is_err(), "{bad}");
        }
    }
}
