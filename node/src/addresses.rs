//! This node's addresses: gathers what `autodetect` chooses from, publishes the choice on the Node resource, writes it
//! again when the Node has lost it, and looks again from time to time when it was autodetected (Calico
//! `monitor-addresses`).

use std::{
    cmp::Reverse,
    net::{IpAddr, SocketAddr, ToSocketAddrs, UdpSocket},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use brindle_config_core::{
    Key, Kind, Resource,
    node::NodeSpec,
    status::ADMIN_ADDRESS,
    store::{Store, StoreError, StoreExt, SyncEvent, decode},
};
use brindle_kernel::netlink::Rtnl;
use ipnet::IpNet;
use tokio::time::Instant;

use crate::{
    admin_tcp,
    autodetect::{self, Candidate, Choice, Facts, Method},
    identity,
    settings::{OwnAddress, Settings, on_kubernetes},
};

/// Chooses and publishes; the addresses, IPv4 first. `admin`: where the agent answers other machines.
pub(crate) async fn publish(
    store: &dyn Store,
    settings: &Settings,
    admin: Option<SocketAddr>,
) -> Result<Vec<IpNet>> {
    let choices = choose(store, settings, true).await?;
    let addresses: Vec<_> = choices.iter().map(|c| c.address).collect();
    let detected = [settings.address, settings.address6].map(|wish| wish == OwnAddress::Autodetect);
    write(store, settings, &addresses, admin, detected).await?;
    // Said once: an agent that waits for its datastore comes here again and again.
    for choice in &choices {
        tracing::info!(address = %choice.address, cause = %choice.why, "this node's address");
    }
    Ok(addresses)
}

/// As long as the agent runs: what the own Node loses is written again (a kubelet that registers anew makes a bare one),
/// and every `AUTODETECT_POLL_INTERVAL` the address is looked for again. What cannot be found any more stays.
pub(crate) async fn keep(
    store: Arc<dyn Store>,
    settings: Settings,
    mut published: Vec<IpNet>,
    admin: Option<SocketAddr>,
) {
    let auto = [settings.address, settings.address6].contains(&OwnAddress::Autodetect);
    let pause = Some(settings.cluster.poll_interval).filter(|pause| auto && !pause.is_zero());
    let mut events = brindle_config::sync::follow(store.clone(), vec![Kind::Node]);
    let key = Key::new(Kind::Node, None, &settings.node_name);
    let mut look = pause.map(|pause| Instant::now() + pause);
    let mut again = None;
    // As the Node has them.
    let mut stored = published.clone();
    loop {
        let lacks = tokio::select! {
            batch = events.recv() => {
                let Some(batch) = batch else { return };
                match own(&batch, &key) {
                    None => continue,
                    // Nobody but whoever deleted it makes it again, and the speaker says that it is not there.
                    Some(None) => false,
                    Some(Some(node)) => {
                        stored = nets(&node.spec);
                        lacks(&node, &published, &settings, admin)
                    }
                }
            }
            () = until(again) => match store.get_as::<NodeSpec>(None, &key.name).await {
                Ok(found) => lacks(&found.resource, &published, &settings, admin),
                Err(StoreError::NotFound(_)) => false,
                Err(_) => true,
            },
            () = until(look) => {
                look = pause.map(|pause| Instant::now() + pause);
                look_again(&*store, &settings, &stored, &mut published, admin).await;
                continue;
            }
        };
        again = None;
        if !lacks {
            continue;
        }
        match write(&*store, &settings, &published, admin, [false; 2]).await {
            Ok(()) => tracing::info!(
                new = ?published,
                cause = "the Node had lost them, as one that is registered anew has",
                "this node's addresses are written again"
            ),
            Err(e) => {
                tracing::warn!("{e:#}; this node's addresses are not in its Node; trying again");
                again = Some(Instant::now() + RETRY);
            }
        }
    }
}

async fn until(when: Option<Instant>) {
    match when {
        Some(when) => tokio::time::sleep_until(when).await,
        None => std::future::pending().await,
    }
}

/// What a batch says last of this node: nothing, that it is gone, or what it is.
fn own(batch: &[SyncEvent], key: &Key) -> Option<Option<Resource<NodeSpec>>> {
    batch.iter().rev().find_map(|event| match event {
        SyncEvent::Upsert(entry) if entry.key == *key => {
            // One that does not decode is the speaker's to complain of.
            decode(entry).ok().map(|found| Some(found.resource))
        }
        SyncEvent::Delete(gone) if gone == key => Some(None),
        _ => None,
    })
}

/// Whether the stored Node has less than was published. Another address or AS number than ours is somebody's wish.
fn lacks(
    node: &Resource<NodeSpec>,
    published: &[IpNet],
    settings: &Settings,
    admin: Option<SocketAddr>,
) -> bool {
    let spec = &node.spec;
    let lost = |a: &IpNet| spec.ips().all(|ip| ip.is_ipv4() != a.addr().is_ipv4());
    let asn = spec.bgp.as_ref().and_then(|b| b.as_number);
    published.iter().any(lost)
        || settings.as_number.is_some() && asn.is_none()
        || admin.is_some() && !node.metadata.annotations.contains_key(ADMIN_ADDRESS)
}

/// The addresses a Node has, IPv4 first.
fn nets(node: &NodeSpec) -> Vec<IpNet> {
    let Some(bgp) = &node.bgp else { return Vec::new() };
    let v4 = bgp.ipv4_address.map(|a| IpNet::V4(a.0));
    v4.into_iter().chain(bgp.ipv6_address.map(|a| IpNet::V6(a.0))).collect()
}

/// Chooses again, and publishes what is not as it is stored.
async fn look_again(
    store: &dyn Store,
    settings: &Settings,
    stored: &[IpNet],
    published: &mut Vec<IpNet>,
    admin: Option<SocketAddr>,
) {
    let found = match choose(store, settings, false).await {
        Ok(choices) => choices,
        Err(e) => return tracing::warn!("{e:#}; the published address stays"),
    };
    let addresses: Vec<_> = found.iter().map(|c| c.address).collect();
    if addresses == *published && addresses == stored {
        return;
    }
    let why = found.iter().map(|c| c.why.as_str()).collect::<Vec<_>>().join("; ");
    match write(store, settings, &addresses, admin, [false; 2]).await {
        Ok(()) => {
            tracing::info!(old = ?stored, new = ?addresses, cause = %why, "this node's address");
            *published = addresses;
        }
        Err(e) => tracing::warn!("{e:#}; the published address stays"),
    }
}

/// `gives_up`: see [`identity::Own`]; an agent that runs keeps what it was published with.
async fn write(
    store: &dyn Store,
    settings: &Settings,
    addresses: &[IpNet],
    admin: Option<SocketAddr>,
    gives_up: [bool; 2],
) -> Result<()> {
    let admin = admin.map(|a| admin_tcp::published(a, addresses));
    let check = settings.cluster.check_conflicts;
    let beside = !on_kubernetes(&settings.datastore);
    let kubernetes = settings.cluster.k8s_node_ref.as_deref().filter(|_| beside);
    let own = identity::Own { addresses, as_number: settings.as_number, kubernetes, admin, gives_up };
    identity::publish(store, &settings.node_name, own, check).await.map(drop)
}

/// `first`: at the start, what the Node has counts as well.
async fn choose(store: &dyn Store, settings: &Settings, first: bool) -> Result<Vec<Choice>> {
    let methods = [&settings.cluster.method, &settings.cluster.method6];
    let wishes = [settings.address, settings.address6];
    let keeps = |wish: &OwnAddress| *wish == OwnAddress::Stored || first && *wish == OwnAddress::Autodetect;
    let asks = methods.iter().any(|m| matches!(m, Method::KubernetesInternalIp));
    let node = if asks || wishes.iter().any(keeps) {
        own_node(store, &settings.node_name).await?
    } else {
        NodeSpec::default()
    };
    let internal = internal_addresses(&node);
    let stored = nets(&node);
    let mut choices = Vec::new();
    for (wish, method, v6) in [(settings.address, methods[0], false), (settings.address6, methods[1], true)] {
        let stored = stored.iter().find(|a| a.addr().is_ipv6() == v6 && keeps(&wish)).copied();
        let looks = autodetect::looks(wish, v6, stored);
        let reach = match method {
            Method::CanReach(to) if looks => {
                let to = to.clone();
                // A name is asked of a server, which may take its time.
                Some(tokio::task::spawn_blocking(move || source_towards(&to, v6)).await?)
            }
            _ => None,
        };
        let facts = Facts { candidates: candidates()?, internal: internal.clone(), reach, stored };
        choices.extend(autodetect::choose(wish, method, v6, &facts).map_err(anyhow::Error::msg)?);
    }
    if choices.is_empty() {
        let node = &settings.node_name;
        bail!(
            "--ip is none, and Node({node}) has no IPv6 address to keep; give one with --ip6, or --ip6 autodetect"
        );
    }
    Ok(choices)
}

async fn own_node(store: &dyn Store, node: &str) -> Result<NodeSpec> {
    match store.get_as::<NodeSpec>(None, node).await {
        Ok(s) => Ok(s.resource.spec),
        Err(StoreError::NotFound(_)) => Ok(NodeSpec::default()),
        Err(e) => Err(e).with_context(|| format!("cannot read Node({node})")),
    }
}

fn internal_addresses(node: &NodeSpec) -> Vec<IpAddr> {
    let internal = node.addresses.iter().filter(|a| a.kind == "InternalIP");
    internal.filter_map(|a| a.address.split('/').next()?.parse().ok()).collect()
}

fn candidates() -> Result<Vec<Candidate>> {
    let mut k = Rtnl::open()?;
    let links = k.links()?;
    let mut all = k.addrs(None)?;
    all.sort_by_key(|a| Reverse(a.link));
    let named = all.into_iter().filter_map(|a| {
        let link = links.iter().find(|l| l.index == a.link)?;
        Some(Candidate { interface: link.name.clone(), address: a.net })
    });
    Ok(named.collect())
}

/// The address the kernel takes towards a destination: a datagram socket is connected, nothing is sent.
fn source_towards(to: &str, v6: bool) -> Result<IpAddr, String> {
    let with_port = (to, 53).to_socket_addrs().map_err(|e| e.to_string())?;
    let to: SocketAddr = with_port
        .into_iter()
        .find(|a| a.is_ipv6() == v6)
        .ok_or_else(|| format!("it has no {} address", if v6 { "IPv6" } else { "IPv4" }))?;
    let any = if v6 { "[::]:0" } else { "0.0.0.0:0" };
    let socket = UdpSocket::bind(any).map_err(|e| e.to_string())?;
    socket.connect(to).map_err(|e| e.to_string())?;
    let ip = socket.local_addr().map_err(|e| e.to_string())?.ip();
    if ip.is_loopback() || ip.is_unspecified() {
        return Err(format!("the way there is through {ip}"));
    }
    Ok(ip)
}

/// After how long a write that failed is tried again.
const RETRY: Duration = Duration::from_secs(5);
/// How long the default pause between two looks is.
pub(crate) const POLL_INTERVAL: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use brindle_config_core::{ObjectMeta, bgp::AsNumber, node::NodeAddress};

    use super::*;
    use crate::settings::{Cli, Command};

    fn settings(more: &[&str]) -> Settings {
        let named: &[&str] = if more.contains(&"--node-name") { &[] } else { &["--node-name", "n1"] };
        let args = ["brindle-node", "run"].iter().chain(named).chain(more);
        let cli = <Cli as clap::Parser>::try_parse_from(args).unwrap();
        let Command::Run(args) = cli.command else { panic!("run was typed") };
        Settings::from_args(*args).unwrap()
    }

    #[tokio::test]
    async fn a_node_keeps_its_address_and_gets_the_as_number_it_is_told() {
        let store = brindle_config::open("memory:").unwrap();
        let stored = async || store.get_as::<NodeSpec>(None, "n1").await.unwrap().resource.spec.bgp.unwrap();
        let given = settings(&["--ip", "192.0.2.7/24", "--ip6", "fd00::7/64", "--as", "65001"]);
        publish(&*store, &given, None).await.unwrap();
        assert_eq!(stored().await.as_number, Some(AsNumber(65001)));

        let kept = publish(&*store, &settings(&[]), None).await.unwrap();
        assert_eq!(kept, ["192.0.2.7/24", "fd00::7/64"].map(|a| a.parse().unwrap()));
        assert_eq!(stored().await.as_number, Some(AsNumber(65001)), "nothing said: it stays");

        let more = settings(&["--ip6", "none", "--as", "1.10", "--k8s-node-ref", "worker-1"]);
        publish(&*store, &more, None).await.unwrap();
        let node = store.get_as::<NodeSpec>(None, "n1").await.unwrap().resource.spec;
        assert_eq!(node.extra["orchRefs"][0]["nodeName"], "worker-1");
        let bgp = stored().await;
        assert_eq!((bgp.as_number, bgp.ipv6_address), (Some(AsNumber(65546)), None));
        let none = publish(&*store, &settings(&["--ip", "none"]), None).await.unwrap_err();
        assert!(none.to_string().contains("give one with --ip6"), "{none}");
    }

    /// With these Calico's nodes go on encrypting and encapsulating what they send here.
    #[tokio::test]
    async fn what_calico_left_of_its_tunnels_is_taken_from_the_node() {
        let store = brindle_config::open("memory:").unwrap();
        let left = serde_json::json!({"apiVersion": "projectcalico.org/v3", "kind": "Node", "metadata": {"name": "n1"},
            "spec": {"bgp": {"ipv4Address": "192.0.2.7/24", "ipv4IPIPTunnelAddr": "10.0.0.1"}, "interfaces": [],
                "ipv4VXLANTunnelAddr": "10.0.0.2", "vxlanTunnelMACAddr": "66:0a:0b:0c:0d:0e",
                "ipv6VXLANTunnelAddr": "fd00::2", "vxlanTunnelMACAddrV6": "66:0a:0b:0c:0d:0f",
                "wireguard": {"interfaceIPv4Address": "10.0.0.3", "interfaceIPv6Address": "fd00::3"}},
            "status": {"podCIDRs": ["10.1.0.0/24"], "wireguardPublicKey": "k", "wireguardPublicKeyV6": "k6"}});
        let left: Resource<NodeSpec> = serde_json::from_value(left).unwrap();
        store.put_as(&left, brindle_config_core::store::Expect::Absent).await.unwrap();
        publish(&*store, &settings(&[]), None).await.unwrap();
        let node = store.get_as::<NodeSpec>(None, "n1").await.unwrap().resource;
        assert_eq!(node.extra["status"], serde_json::json!({"podCIDRs": ["10.1.0.0/24"]}));
        let mut spec = serde_json::to_value(&node.spec).unwrap();
        spec.as_object_mut().unwrap().remove("addresses");
        let stays = serde_json::json!({"bgp": {"ipv4Address": "192.0.2.7/24", "ipv4IPIPTunnelAddr": "10.0.0.1"},
            "interfaces": []});
        assert_eq!(spec, stays);
    }

    /// Two machines that got each other's address: whoever starts first gives up what it had, so that the other finds it
    /// free, and both start in the end. Who keeps its address is not kept from starting by one who claims it.
    #[tokio::test]
    async fn nodes_whose_addresses_were_swapped_start_again() {
        let store = brindle_config::open("memory:").unwrap();
        let write = async |node: &str, address: &str, gives_up: [bool; 2]| {
            let settings = settings(&["--node-name", node]);
            super::write(&*store, &settings, &[address.parse().unwrap()], None, gives_up).await
        };
        let ips = async |node: &str| {
            let spec = store.get_as::<NodeSpec>(None, node).await.unwrap().resource.spec;
            (spec.ips().map(|ip| ip.to_string()).collect::<Vec<_>>(), spec.addresses.len())
        };
        let auto = [true; 2];
        write("a", "10.0.0.1/24", auto).await.unwrap();
        write("b", "10.0.0.2/24", auto).await.unwrap();

        let e = write("a", "10.0.0.2/24", [false; 2]).await.unwrap_err().to_string();
        assert!(e.contains("conflicting node detected: Node(b)") && e.contains("--ip,"), "{e}");
        assert_eq!(ips("a").await, (vec!["10.0.0.1".to_owned()], 1), "a typed address is somebody's wish");
        write("a", "10.0.0.2/24", auto).await.unwrap_err();
        assert_eq!(ips("a").await, (vec![], 0));
        write("b", "10.0.0.1/24", auto).await.unwrap();
        write("a", "10.0.0.2/24", auto).await.unwrap();

        // One that came by the same address in another way; the incumbent starts again.
        let copy =
            Resource::new(ObjectMeta::named("c"), store.get_as(None, "a").await.unwrap().resource.spec);
        let copy: Resource<NodeSpec> = copy;
        store.put_as(&copy, brindle_config_core::store::Expect::Absent).await.unwrap();
        write("a", "10.0.0.2/24", auto).await.unwrap();
        assert!(write("d", "10.0.0.2/24", auto).await.is_err(), "who comes later does not");
    }

    #[tokio::test]
    async fn the_way_to_a_destination_is_asked_for_whenever_an_address_is_looked_for() {
        let store = brindle_config::open("memory:").unwrap();
        for ip in ["", "autodetect"] {
            let told = settings(&["--ip", ip, "--ip-autodetection-method", "can-reach=127.0.0.1"]);
            let e = publish(&*store, &told, None).await.unwrap_err().to_string();
            assert!(e.contains("127.0.0.1 cannot be reached: the way there is through 127.0.0.1"), "{e}");
        }
    }

    #[test]
    fn only_what_is_missing_is_lacking() {
        let told = settings(&["--as", "65001"]);
        let silent = settings(&[]);
        let lacks = |node: &Resource<NodeSpec>, published: &[IpNet], admin: Option<SocketAddr>| {
            lacks(node, published, &silent, admin)
        };
        let published: Vec<IpNet> = ["10.0.0.5/24", "fd00::5/64"].map(|a| a.parse().unwrap()).into();
        let admin = Some("10.0.0.5:9180".parse().unwrap());
        let mut node = Resource::new(ObjectMeta::named("n1"), NodeSpec::default());
        assert!(lacks(&node, &published[..1], None));
        assert!(!lacks(&node, &[], None));
        let bgp = node.spec.bgp.get_or_insert_default();
        bgp.ipv4_address = Some(NodeAddress("10.0.0.99/24".parse().unwrap()));
        assert!(!lacks(&node, &published[..1], None), "somebody else's word stands");
        assert!(lacks(&node, &published, None), "one family is lost");
        node.spec.bgp.get_or_insert_default().ipv6_address = Some(NodeAddress("fd00::5/64".parse().unwrap()));
        assert!(!lacks(&node, &published, None));
        assert!(lacks(&node, &published, admin));
        node.metadata.annotations.insert(ADMIN_ADDRESS.into(), "10.0.0.5:9180".into());
        assert!(!lacks(&node, &published, admin));
        assert!(super::lacks(&node, &published, &told, admin), "its AS number is lost");
        node.spec.bgp.get_or_insert_default().as_number = Some(AsNumber(65002));
        assert!(!super::lacks(&node, &published, &told, admin));
    }

    #[test]
    fn what_is_only_reached_over_loopback_gives_no_address() {
        assert!(source_towards("127.0.0.1", false).unwrap_err().contains("127.0.0.1"));
        assert!(source_towards("127.0.0.1", true).unwrap_err().contains("IPv6"));
    }
}
