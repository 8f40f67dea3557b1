//! What the first agent of a cluster makes: default pools, and on Kubernetes ClusterInformation and the built-in tiers,
//! as calico-node does. Only what is not there is made; whoever loses the race finds it made.

use anyhow::{Context, Result};
use brindle_config_core::{
    AnyResource, ObjectMeta, Resource, Spec,
    felix::ClusterInformationSpec,
    meta::Extra,
    policy::TierSpec,
    pool::{EncapMode, IpPoolSpec},
    store::{Expect, Store, StoreError, StoreExt},
    validate::{self, Invalid},
};
use ipnet::IpNet;
use serde_json::{Value, json};

use crate::cluster::{Cluster, PoolWish};

/// Calico's first choice; the others, in order, are 172.16.0.0/16 to 172.31.0.0/16.
const FIRST_CHOICE: &str = "192.168.0.0/16";

/// Makes what is lacking. `nodes`: this node's addresses, which no unasked-for pool may cover.
pub(crate) async fn ensure(
    store: &dyn Store,
    cluster: &Cluster,
    on_kubernetes: bool,
    nodes: &[IpNet],
) -> Result<()> {
    pools(store, &cluster.pools, nodes).await?;
    if on_kubernetes {
        information(store, &cluster.cluster_type).await?;
        for (name, order, action) in
            [("kube-admin", 1000.0, "Pass"), ("default", 1_000_000.0, "Deny"), ("kube-baseline", 1e7, "Pass")]
        {
            make::<TierSpec>(store, name, json!({"order": order, "defaultAction": action})).await?;
        }
    }
    Ok(())
}

async fn pools(store: &dyn Store, wishes: &[PoolWish], nodes: &[IpNet]) -> Result<()> {
    if wishes.is_empty() {
        return Ok(());
    }
    let (there, _) = store.list_as::<IpPoolSpec>().await.context("cannot list the IP pools")?;
    for wish in wishes {
        let cidr = match wish.cidr {
            Some(cidr) => cidr,
            None => free(nodes)?,
        };
        let v6 = cidr.addr().is_ipv6();
        if there.iter().any(|p| p.resource.spec.cidr.addr().is_ipv6() == v6) {
            continue;
        }
        let name = if v6 { "default-ipv6-ippool" } else { "default-ipv4-ippool" };
        if make::<IpPoolSpec>(store, name, pool(wish, cidr)).await? {
            tracing::info!(pool = name, %cidr, ipip = ?wish.ipip, cause = "there was none", "IP pool made");
        }
    }
    Ok(())
}

/// What is wrong with the pool that would be made.
pub(crate) fn check(wish: &PoolWish, cidr: IpNet) -> Result<(), String> {
    let spec = serde_json::from_value(pool(wish, cidr)).map_err(|e| e.to_string())?;
    let pool = AnyResource::IpPool(Resource::new(ObjectMeta::named("default-ippool"), spec));
    let joined = |e: Invalid| e.0.into_iter().map(|e| e.reason).collect::<Vec<_>>().join("; ");
    validate::resource(&pool).map_err(joined)
}

fn pool(wish: &PoolWish, cidr: IpNet) -> Value {
    let mode = match wish.ipip {
        EncapMode::Never => "Never",
        EncapMode::Always => "Always",
        EncapMode::CrossSubnet => "CrossSubnet",
    };
    json!({
        "cidr": cidr,
        "ipipMode": mode,
        "vxlanMode": "Never",
        "blockSize": wish.block_size,
        "nodeSelector": wish.node_selector,
        "natOutgoing": wish.nat_outgoing,
        "disableBGPExport": wish.disable_bgp_export,
        "allowedUses": ["Workload", "Tunnel"],
    })
}

/// The first of Calico's default pools that no address of this node is inside of.
fn free(nodes: &[IpNet]) -> Result<IpNet> {
    let more = (16..=31).map(|n| format!("172.{n}.0.0/16"));
    let all = std::iter::once(FIRST_CHOICE.to_owned()).chain(more).filter_map(|t| t.parse::<IpNet>().ok());
    let overlaps = |pool: &IpNet| nodes.iter().any(|n| pool.contains(&n.addr()) || n.contains(&pool.addr()));
    all.into_iter().find(|pool| !overlaps(pool)).context(
        "every default IPv4 pool overlaps this node's own network; give one with --ipv4pool-cidr (CALICO_IPV4POOL_CIDR)",
    )
}

/// ClusterInformation `default`: made with an identity, later agents only add words to its type.
async fn information(store: &dyn Store, words: &[String]) -> Result<()> {
    const NAME: &str = "default";
    let mut guid = String::new();
    for byte in random()? {
        guid += &format!("{byte:02x}");
    }
    let spec = json!({"clusterGUID": guid, "clusterType": words.join(","), "datastoreReady": true});
    if make::<ClusterInformationSpec>(store, NAME, spec).await? {
        tracing::info!(guid, cause = "there was none", "ClusterInformation made");
        return Ok(());
    }
    for _ in 0..10 {
        let mut found = store.get_as::<ClusterInformationSpec>(None, NAME).await?;
        let type_ = with_words(&found.resource.spec.cluster_type, words);
        if type_ == found.resource.spec.cluster_type {
            return Ok(());
        }
        found.resource.spec.cluster_type = type_;
        match store.put_as(&found.resource, Expect::Revision(found.revision)).await {
            Ok(_) => return Ok(()),
            Err(StoreError::Conflict(_)) => {}
            Err(e) => return Err(e).context("cannot write ClusterInformation(default)"),
        }
    }
    // Somebody else writes it all the time; the words are information only.
    tracing::warn!(
        "ClusterInformation(default) is being changed by somebody else all the time; left as it is"
    );
    Ok(())
}

fn with_words(there: &str, words: &[String]) -> String {
    let mut all: Vec<&str> = there.split(',').filter(|w| !w.is_empty()).collect();
    for word in words {
        if !all.contains(&word.as_str()) {
            all.push(word);
        }
    }
    all.join(",")
}

fn random() -> Result<[u8; 16]> {
    use std::io::Read as _;
    let mut bytes = [0; 16];
    let mut source = std::fs::File::open("/dev/urandom").context("/dev/urandom")?;
    source.read_exact(&mut bytes).context("/dev/urandom")?;
    Ok(bytes)
}

/// Makes an object unless it is there; whether it did.
async fn make<S: Spec>(store: &dyn Store, name: &str, spec: Value) -> Result<bool> {
    let what = || format!("{}({name})", S::KIND);
    match store.get_as::<S>(None, name).await {
        Ok(_) => return Ok(false),
        Err(StoreError::NotFound(_)) => {}
        Err(e) => return Err(e).with_context(|| format!("cannot read {}", what())),
    }
    let spec: S = serde_json::from_value(spec).with_context(what)?;
    let mut resource = Resource::new(ObjectMeta::named(name), spec);
    resource.extra = Extra::new();
    match store.put_as(&resource, Expect::Absent).await {
        Ok(_) => Ok(true),
        Err(StoreError::Exists(_)) => Ok(false),
        Err(e) => Err(e).with_context(|| format!("cannot make {}", what())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wish(cidr: Option<&str>) -> PoolWish {
        PoolWish {
            cidr: cidr.map(|c| c.parse().unwrap()),
            ipip: EncapMode::CrossSubnet,
            block_size: 26,
            node_selector: "all()".into(),
            nat_outgoing: true,
            disable_bgp_export: false,
        }
    }

    fn nets(all: &[&str]) -> Vec<IpNet> {
        all.iter().map(|n| n.parse().unwrap()).collect()
    }

    #[test]
    fn an_unasked_for_pool_keeps_off_the_node() {
        assert_eq!(free(&nets(&["10.0.0.5/24"])).unwrap().to_string(), "192.168.0.0/16");
        assert_eq!(free(&nets(&["192.168.1.5/24"])).unwrap().to_string(), "172.16.0.0/16");
        let both = free(&nets(&["192.168.1.5/24", "172.16.3.4/12"]));
        assert!(both.unwrap_err().to_string().contains("CALICO_IPV4POOL_CIDR"));
    }

    #[test]
    fn words_are_added_once_and_none_is_taken_away() {
        let words = ["k8s".to_owned(), "bgp".to_owned()];
        assert_eq!(with_words("kubeadm,k8s", &words), "kubeadm,k8s,bgp");
        assert_eq!(with_words("", &words), "k8s,bgp");
    }

    #[tokio::test]
    async fn the_first_agent_makes_the_pool_and_the_second_leaves_it() {
        let store = brindle_config::open("memory:").unwrap();
        pools(&*store, &[wish(None)], &nets(&["10.0.0.5/24"])).await.unwrap();
        let made = store.get_as::<IpPoolSpec>(None, "default-ipv4-ippool").await.unwrap().resource.spec;
        assert_eq!(made.cidr.to_string(), "192.168.0.0/16");
        assert_eq!((made.ipip_mode, made.nat_outgoing), (EncapMode::CrossSubnet, true));

        pools(&*store, &[wish(Some("10.244.0.0/16"))], &[]).await.unwrap();
        let (all, _) = store.list_as::<IpPoolSpec>().await.unwrap();
        assert_eq!(all.len(), 1, "there was one already");
    }

    #[tokio::test]
    async fn a_cluster_gets_an_identity_and_its_tiers_once() {
        let store = brindle_config::open("memory:").unwrap();
        let words = ["k8s".to_owned(), "bgp".to_owned()];
        information(&*store, &words[..1]).await.unwrap();
        let first = store.get_as::<ClusterInformationSpec>(None, "default").await.unwrap().resource.spec;
        assert_eq!((first.cluster_guid.len(), first.datastore_ready), (32, Some(true)));
        information(&*store, &words).await.unwrap();
        let second = store.get_as::<ClusterInformationSpec>(None, "default").await.unwrap().resource.spec;
        assert_eq!((second.cluster_guid, second.cluster_type.as_str()), (first.cluster_guid, "k8s,bgp"));
        assert!(
            make::<TierSpec>(&*store, "default", json!({"order": 1e6, "defaultAction": "Deny"}))
                .await
                .unwrap()
        );
        assert!(!make::<TierSpec>(&*store, "default", json!({"order": 5})).await.unwrap());
    }
}
