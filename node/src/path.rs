//! Answers to "where do packets for this address go from here, and why": the kernel, felix and the speaker asked about
//! the same address.

use std::net::IpAddr;

use brindle_bgpd::Handle as Bgp;
use brindle_config_core::{
    status::{
        bgp::{BgpPath, BgpRequest, RouteTable},
        path::PathAnswer,
    },
    store::{Store, StoreExt},
    workload::WorkloadEndpointSpec,
};
use ipnet::IpNet;
use serde_json::{Value, json};

/// One answer, or an object with `error`.
pub(crate) async fn answer(
    node: &str,
    to: IpAddr,
    store: &dyn Store,
    felix: &brindle_felix::Handle,
    bgp: Option<&Bgp>,
) -> Value {
    let Some(intent) = felix.intent(to).await else {
        return json!({"error": "felix does not answer; the agent is busy or ends"});
    };
    let looked = match tokio::task::spawn_blocking(move || brindle_felix::look(to)).await {
        Ok(Ok(looked)) => looked,
        Ok(Err(e)) => return json!({"error": format!("cannot ask the kernel: {e}")}),
        Err(e) => return json!({"error": format!("cannot ask the kernel: {e}")}),
    };
    let report = felix.report();
    let prefix = intent.wanted.as_ref().map(|w| w.dst);
    let answer = PathAnswer {
        node: node.to_owned(),
        here: if looked.local { Some("this node".into()) } else { own(store, node, to).await },
        difference: brindle_felix::compare(&intent, &looked),
        kernel: looked.route,
        wanted: intent.wanted.map(|w| w.to_string()),
        ways: report.encap.paths.into_iter().filter(|p| Some(p.destination) == prefix).collect(),
        paths: match (bgp, prefix) {
            (Some(bgp), Some(prefix)) => paths(bgp, prefix).await,
            _ => Vec::new(),
        },
        tunnel: format!("{} ({})", report.encap.device, report.encap.why),
    };
    serde_json::to_value(answer).unwrap_or_else(|e| json!({"error": e.to_string()}))
}

/// The local endpoint with this address.
async fn own(store: &dyn Store, node: &str, to: IpAddr) -> Option<String> {
    let own = store.for_node(node);
    let (all, _) = own.as_deref().unwrap_or(store).list_as::<WorkloadEndpointSpec>().await.ok()?;
    let found = all.into_iter().find(|w| {
        w.resource.spec.node == node && w.resource.spec.ip_networks.iter().any(|n| n.addr() == to)
    })?;
    let namespace = found.resource.metadata.namespace.unwrap_or_default();
    Some(match found.resource.spec.pod.as_str() {
        "" => format!("endpoint {namespace}/{}", found.resource.metadata.name),
        pod => format!("pod {namespace}/{pod}"),
    })
}

/// The speaker's paths to a prefix, as `brindlectl bgp rib PREFIX` shows them.
async fn paths(bgp: &Bgp, prefix: IpNet) -> Vec<BgpPath> {
    let request = BgpRequest::Routes { table: RouteTable::Rib, peer: None, prefix: Some(prefix) };
    let mut lines = Vec::new();
    if brindle_bgpd::ask::answer(bgp, request, &mut lines, std::future::pending()).await.is_err() {
        return Vec::new();
    }
    lines.split(|b| *b == b'\n').filter_map(|l| serde_json::from_slice(l).ok()).collect()
}
