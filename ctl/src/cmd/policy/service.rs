//! Addresses of services: whoever traces a packet to one means a pod behind it, for the node replaces such an address
//! before policy looks at it.

use std::net::IpAddr;

use brindle_config_core::{Kind, service::SERVICE_NAME_LABEL, store::Entry};
use brindle_felix_core::policy::active::Protocol;
use serde_json::Value;

/// What an address of a service stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Behind {
    /// `NAMESPACE/NAME`.
    pub(super) service: String,
    /// `ADDRESS:PORT` of what is ready behind it, as `policy trace` takes it; sorted.
    pub(super) ends: Vec<String>,
}

fn list<'a>(value: &'a Value, at: &str) -> impl Iterator<Item = &'a Value> {
    value.pointer(at).and_then(Value::as_array).into_iter().flatten()
}

/// Its cluster, external and load balancer addresses.
fn has(service: &Entry, address: IpAddr) -> bool {
    let v = &*service.value;
    let texts = v.pointer("/spec/clusterIP").into_iter();
    let texts = texts.chain(list(v, "/spec/clusterIPs")).chain(list(v, "/spec/externalIPs"));
    let texts = texts.chain(list(v, "/status/loadBalancer/ingress").filter_map(|i| i.get("ip")));
    texts.filter_map(Value::as_str).any(|t| t.parse() == Ok(address))
}

fn protocol(port: &Value) -> &str {
    port.get("protocol").and_then(Value::as_str).filter(|p| !p.is_empty()).unwrap_or("TCP")
}

fn name(port: &Value) -> &str {
    port.get("name").and_then(Value::as_str).unwrap_or_default()
}

/// The service that has an address, and what is behind this port of it.
pub(super) fn behind(entries: &[Entry], address: IpAddr, wanted: Protocol, port: u16) -> Option<Behind> {
    let service = entries.iter().find(|e| e.key.kind == Kind::Service && has(e, address))?;
    let wanted = wanted.to_string();
    let served = list(&service.value, "/spec/ports").find(|p| {
        p.get("port").and_then(Value::as_u64) == Some(port.into())
            && protocol(p).eq_ignore_ascii_case(&wanted)
    });
    let slices = entries.iter().filter(|e| {
        let label = |n: &str| e.value.get("metadata")?.get("labels")?.get(n)?.as_str();
        e.key.kind == Kind::EndpointSlice
            && e.key.namespace == service.key.namespace
            && label(SERVICE_NAME_LABEL) == Some(&service.key.name)
    });
    let mut ends = Vec::new();
    for slice in slices {
        let fields = &*slice.value;
        let own = list(fields, "/ports").find(|p| {
            served.is_some_and(|s| name(p) == name(s) && protocol(p).eq_ignore_ascii_case(protocol(s)))
        });
        let Some(port) = own.and_then(|p| p.get("port")).and_then(Value::as_u64) else { continue };
        for end in list(fields, "/endpoints") {
            if end.pointer("/conditions/ready") == Some(&Value::Bool(false)) {
                continue;
            }
            for a in list(end, "/addresses").filter_map(|a| a.as_str()?.parse::<IpAddr>().ok()) {
                // The node chooses among those of the address's family.
                if a.is_ipv4() != address.is_ipv4() {
                    continue;
                }
                ends.push(match a {
                    IpAddr::V4(a) => format!("{a}:{port}"),
                    IpAddr::V6(a) => format!("[{a}]:{port}"),
                });
            }
        }
    }
    ends.sort();
    ends.dedup();
    Some(Behind { service: format!("{}/{}", service.key.namespace, service.key.name), ends })
}
