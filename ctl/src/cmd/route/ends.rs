//! From what was typed to an address and the node it is on.

use std::{collections::BTreeSet, net::IpAddr};

use anyhow::{Result, bail};
use brindle_config_core::{
    node::NodeSpec,
    status::NodeAt,
    store::{Store, StoreExt as _},
    suggest::closest,
    workload::WorkloadEndpointSpec,
};
use serde::Serialize;

/// A pod, a node, or something outside.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct End {
    /// `pod NAMESPACE/NAME`, `node NAME`, or `outside`.
    pub(super) name: String,
    pub(super) addresses: Vec<IpAddr>,
    /// The node it is, or is on.
    pub(super) node: Option<String>,
    /// A pod's device on its node.
    pub(super) device: Option<String>,
}

/// A pod as far as it matters here.
#[derive(Clone, Debug)]
pub(super) struct Pod {
    pub(super) namespace: String,
    pub(super) name: String,
    pub(super) node: String,
    pub(super) device: String,
    pub(super) addresses: Vec<IpAddr>,
}

/// What names can mean.
#[derive(Debug, Default)]
pub(super) struct Names {
    pub(super) nodes: Vec<NodeAt>,
    pub(super) pods: Vec<Pod>,
}

impl Names {
    /// Out of the datastore.
    pub(super) async fn read(store: &dyn Store, known: Vec<NodeAt>) -> Result<Self> {
        let (endpoints, _) = store.list_as::<WorkloadEndpointSpec>().await?;
        let pods = endpoints
            .into_iter()
            .map(|w| {
                let (meta, spec) = (w.resource.metadata, w.resource.spec);
                Pod {
                    namespace: meta.namespace.unwrap_or_default(),
                    name: if spec.pod.is_empty() { meta.name } else { spec.pod },
                    node: spec.node,
                    device: spec.interface_name,
                    addresses: spec.ip_networks.iter().map(ipnet::IpNet::addr).collect(),
                }
            })
            .collect();
        let (stored, _) = store.list_as::<NodeSpec>().await?;
        let mut nodes: Vec<NodeAt> = stored.iter().map(|n| NodeAt::of(&n.resource)).collect();
        // A node that has announced nothing yet may be known otherwise.
        let more: Vec<_> = known.into_iter().filter(|k| !nodes.iter().any(|n| n.name == k.name)).collect();
        nodes.extend(more);
        Ok(Self { nodes, pods })
    }

    /// The node with this address.
    pub(super) fn node_at(&self, address: IpAddr) -> Option<&str> {
        self.nodes.iter().find(|n| n.addresses.iter().any(|a| a.addr() == address)).map(|n| n.name.as_str())
    }

    /// What was meant.
    pub(super) fn resolve(&self, text: &str) -> Result<End> {
        if let Ok(address) = text.parse::<IpAddr>() {
            return Ok(self.by_address(address));
        }
        let (namespace, name) = match text.split_once('/') {
            Some((namespace, name)) => (Some(namespace), name),
            None => (None, text),
        };
        let fits = |p: &&Pod| p.name == name && namespace.is_none_or(|n| n == p.namespace);
        let pods: Vec<&Pod> = self.pods.iter().filter(fits).collect();
        let node = self.nodes.iter().find(|n| namespace.is_none() && n.name == name);
        match (pods.as_slice(), node) {
            ([pod], None) => pod_end(pod),
            ([], Some(node)) => node_end(node),
            ([], None) => {
                let pods = self.pods.iter().map(|p| format!("{}/{}", p.namespace, p.name));
                let short = self.pods.iter().map(|p| p.name.clone());
                let all: BTreeSet<String> =
                    pods.chain(short).chain(self.nodes.iter().map(|n| n.name.clone())).collect();
                let meant = closest(text, all.iter().map(String::as_str));
                let hint = match meant {
                    Some(meant) => format!("; did you mean {meant}?"),
                    None => "; `brindlectl get weps -A` and `brindlectl get nodes` list them".to_owned(),
                };
                bail!("there is no pod and no node {text:?}{hint}")
            }
            (many, node) => {
                let mut all: Vec<String> =
                    many.iter().map(|p| format!("{}/{}", p.namespace, p.name)).collect();
                all.extend(node.map(|n| {
                    format!(
                        "node {} ({})",
                        n.name,
                        n.addresses.first().map_or_else(String::new, |a| a.addr().to_string())
                    )
                }));
                bail!("{text:?} may be {}; write NAMESPACE/NAME or the address", all.join(" or "))
            }
        }
    }

    fn by_address(&self, address: IpAddr) -> End {
        if let Some(pod) = self.pods.iter().find(|p| p.addresses.contains(&address)) {
            return End {
                name: format!("pod {}/{}", pod.namespace, pod.name),
                addresses: vec![address],
                node: Some(pod.node.clone()),
                device: Some(pod.device.clone()),
            };
        }
        match self.node_at(address) {
            Some(node) => End {
                name: format!("node {node}"),
                addresses: vec![address],
                node: Some(node.to_owned()),
                device: None,
            },
            None => End { name: "outside".into(), addresses: vec![address], node: None, device: None },
        }
    }
}

fn pod_end(pod: &Pod) -> Result<End> {
    let name = format!("pod {}/{}", pod.namespace, pod.name);
    if pod.addresses.is_empty() {
        bail!("{name} has no address");
    }
    Ok(End {
        name,
        addresses: pod.addresses.clone(),
        node: Some(pod.node.clone()),
        device: Some(pod.device.clone()),
    })
}

fn node_end(node: &NodeAt) -> Result<End> {
    if node.addresses.is_empty() {
        bail!("node {} has no address; has its agent ever run?", node.name);
    }
    Ok(End {
        name: format!("node {}", node.name),
        addresses: node.addresses.iter().map(ipnet::IpNet::addr).collect(),
        node: Some(node.name.clone()),
        device: None,
    })
}

/// An address of each, of the same family, IPv4 before IPv6.
pub(super) fn same_family(a: &End, b: &End) -> Result<(IpAddr, IpAddr)> {
    for v4 in [true, false] {
        let of = |e: &End| e.addresses.iter().copied().find(|x| x.is_ipv4() == v4);
        if let (Some(a), Some(b)) = (of(a), of(b)) {
            return Ok((a, b));
        }
    }
    bail!("{} and {} have no addresses of the same family", a.name, b.name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names() -> Names {
        let pod = |namespace: &str, name: &str, address: &str| Pod {
            namespace: namespace.into(),
            name: name.into(),
            node: "node1".into(),
            device: "cali1".into(),
            addresses: vec![address.parse().unwrap()],
        };
        let node = |name: &str, address: &str| NodeAt {
            name: name.into(),
            addresses: vec![address.parse().unwrap()],
            ..NodeAt::default()
        };
        Names {
            nodes: vec![node("node1", "10.77.1.1/24"), node("both", "10.77.1.2/24")],
            pods: vec![
                pod("shop", "web", "10.1.0.1"),
                pod("shop", "db", "10.1.0.2"),
                pod("test", "db", "10.1.0.3"),
                pod("test", "both", "fd00::4"),
            ],
        }
    }

    #[test]
    fn names_mean_one_thing_or_are_refused() {
        let n = names();
        let name = |text: &str| n.resolve(text).map(|e| e.name);
        assert_eq!(name("web").unwrap(), "pod shop/web");
        assert_eq!(name("test/db").unwrap(), "pod test/db");
        assert_eq!(name("10.1.0.2").unwrap(), "pod shop/db");
        assert_eq!(name("10.77.1.1").unwrap(), "node node1");
        assert_eq!(name("node1").unwrap(), "node node1");
        assert_eq!(name("192.0.2.1").unwrap(), "outside");
        let error = |text: &str| name(text).unwrap_err().to_string();
        assert_eq!(error("shop/wep"), "there is no pod and no node \"shop/wep\"; did you mean shop/web?");
        assert!(error("nothing/like").contains("`brindlectl get weps -A`"), "{}", error("nothing/like"));
        assert!(error("db").contains("shop/db or test/db"), "{}", error("db"));
        assert!(error("both").contains("test/both or node both (10.77.1.2)"), "{}", error("both"));
    }

    #[test]
    fn families_must_meet() {
        let n = names();
        let e = |t: &str| n.resolve(t).unwrap();
        assert!(same_family(&e("web"), &e("node1")).is_ok());
        let six = End {
            name: "pod test/both".into(),
            addresses: vec!["fd00::4".parse().unwrap()],
            node: None,
            device: None,
        };
        assert!(same_family(&e("web"), &six).unwrap_err().to_string().contains("same family"));
    }
}
