//! The address of this node's tunnel device, kept in step with the pools and with the node's labels: taken from a pool
//! with IPIP that gives this node such addresses, published on the Node resource (again, when that has lost it), given
//! back when the last pool with IPIP goes. One that its pool no longer gives is replaced in an order in which no pod can
//! be given an address the device still has: a new one is taken, the Node names it, felix puts it on the device in the
//! place of the old one, and when no device has the old one any more it is given back. Which address it should be is
//! decided in `brindle_ipam::tunnel`.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
    time::Duration,
};

use anyhow::Result;
use brindle_config_core::{
    Key, Kind,
    node::NodeSpec,
    store::{Store, StoreError, StoreExt, SyncEvent, decode},
};
use brindle_ipam::{BlockAllocator, IpamError, TunnelKind, TunnelWish, View, tunnel::wish};
use brindle_kernel::netlink::Rtnl;
use tokio::time::Instant;

use crate::{
    cni_server::{Event, History, Jitter, now},
    identity,
};

/// After an error.
const RETRY: Duration = Duration::from_secs(5);
/// While the pools have no other address to give; a change of the pools is heard at once.
const REFUSED: Duration = Duration::from_secs(60);
/// While a device still has an old address: the first pause, and the longest.
const DEVICE: Duration = Duration::from_millis(250);
const DEVICE_MOST: Duration = Duration::from_secs(30);
/// The devices felix makes.
const TUNNELS: [&str; 2] = ["tunl0", "brtun0"];

/// What the own Node says that matters here: the address, and the labels pools select by. `None`: there is no Node.
type Said = Option<(Option<Ipv4Addr>, BTreeMap<String, String>)>;

/// What this machine's devices have.
pub(crate) trait Devices: Send {
    /// Those of the addresses that a device has.
    fn having(&mut self, addresses: &[Ipv4Addr]) -> Result<Vec<Ipv4Addr>>;
    /// Takes an address off the tunnel device. Felix does so only for another one: the kernel's device cannot be
    /// removed, and outlives the last pool with all it has.
    fn take_off(&mut self, address: Ipv4Addr) -> Result<()>;
}

/// Those of this network namespace.
pub(crate) struct Local;

impl Devices for Local {
    fn having(&mut self, addresses: &[Ipv4Addr]) -> Result<Vec<Ipv4Addr>> {
        let all = Rtnl::open()?.addrs(None)?;
        let has = |ip: &&Ipv4Addr| all.iter().any(|a| a.net.addr() == IpAddr::V4(**ip));
        Ok(addresses.iter().filter(has).copied().collect())
    }

    fn take_off(&mut self, address: Ipv4Addr) -> Result<()> {
        let mut k = Rtnl::open()?;
        let tunnels = k.links()?.into_iter().filter(|l| TUNNELS.contains(&l.name.as_str()));
        for link in tunnels.map(|l| l.index).collect::<Vec<_>>() {
            for a in k.addrs(Some(link))?.into_iter().filter(|a| a.net.addr() == IpAddr::V4(address)) {
                match k.del_addr(link, a.net) {
                    Err(e) if !e.is_not_found() => return Err(e.into()),
                    Ok(()) | Err(_) => {}
                }
            }
        }
        Ok(())
    }
}

/// Runs as long as the agent. `v4`: whether this node has an IPv4 address; an IPv6-only node has no end of a tunnel.
pub(crate) async fn keep(store: Arc<dyn Store>, node: String, v4: bool, history: Arc<History>) {
    let mut events = brindle_config::sync::follow(store.clone(), vec![Kind::IpPool, Kind::Node]);
    let key = Key::new(Kind::Node, None, &node);
    let mut keeper = Keeper::new(store, node, v4, Local);
    keeper.history = Some(history);
    let mut in_sync = false;
    let (mut said, mut left) = (None, None);
    let mut again: Option<Instant> = None;
    loop {
        let due = tokio::select! {
            batch = events.recv() => {
                let Some(batch) = batch else { return };
                let first = batch.iter().any(|e| matches!(e, SyncEvent::InSync));
                in_sync |= first;
                note(&mut said, &batch, &key);
                // Nodes change all the time; this one counts when it says something else than what was left.
                in_sync && (first || batch.iter().any(of_pool) || said != left)
            }
            () = until(again) => true,
        };
        if !due {
            continue;
        }
        let pause = match keeper.step().await {
            Ok(done) => {
                left = done.said;
                done.again
            }
            Err(e) => {
                tracing::warn!("tunnel address: {e:#}; trying again");
                Some(RETRY)
            }
        };
        again = pause.map(|pause| Instant::now() + pause);
    }
}

async fn until(when: Option<Instant>) {
    match when {
        Some(when) => tokio::time::sleep_until(when).await,
        None => std::future::pending().await,
    }
}

const fn of_pool(event: &SyncEvent) -> bool {
    match event {
        SyncEvent::Upsert(entry) => matches!(entry.key.kind, Kind::IpPool),
        SyncEvent::Delete(key) => matches!(key.kind, Kind::IpPool),
        SyncEvent::InSync => false,
    }
}

/// Takes what a batch says of the own Node.
fn note(said: &mut Said, batch: &[SyncEvent], key: &Key) {
    for event in batch {
        match event {
            SyncEvent::Upsert(entry) if entry.key == *key => {
                // One that does not decode is the speaker's to complain of.
                if let Ok(found) = decode::<NodeSpec>(entry) {
                    let address = found.resource.spec.bgp.and_then(|b| b.ipv4_ipip_tunnel_addr);
                    *said = Some((address, found.resource.metadata.labels));
                }
            }
            SyncEvent::Delete(gone) if gone == key => *said = None,
            _ => {}
        }
    }
}

/// What one step leaves.
#[derive(Debug, PartialEq)]
struct Done {
    /// What the Node says afterwards.
    said: Said,
    /// When to look again though nothing is heard.
    again: Option<Duration>,
}

struct Keeper<D> {
    store: Arc<dyn Store>,
    node: String,
    v4: bool,
    devices: D,
    /// What was last complained of; said once.
    told: Option<String>,
    /// How long the devices are given next time.
    patience: Duration,
    history: Option<Arc<History>>,
}

impl<D: Devices> Keeper<D> {
    fn new(store: Arc<dyn Store>, node: String, v4: bool, devices: D) -> Self {
        Self { store, node, v4, devices, told: None, patience: DEVICE, history: None }
    }

    /// Looks at what is, and takes the next step towards what should be. May be stopped anywhere: the next one begins with
    /// what is there then.
    async fn step(&mut self) -> Result<Done> {
        const KIND: TunnelKind = TunnelKind::Ipip;
        let view = View::load(&*self.store, &self.node).await?;
        let (current, labels) = match self.store.get_as::<NodeSpec>(None, &self.node).await {
            Ok(found) => {
                let bgp = found.resource.spec.bgp.unwrap_or_default();
                (bgp.ipv4_ipip_tunnel_addr, found.resource.metadata.labels)
            }
            // It is followed: when it is made again, it says nothing of an address.
            Err(StoreError::NotFound(_)) => return Ok(Done { said: None, again: None }),
            Err(e) => return Err(e.into()),
        };
        let mut allocator = BlockAllocator::new(self.store.clone(), &self.node, Arc::new(Jitter));
        let held = allocator.tunnel_addresses(KIND).await?;
        let wished = if self.v4 {
            wish(KIND, &self.node, &view, &held, current.map(IpAddr::V4))
        } else {
            TunnelWish::Nothing
        };
        let nothing = wished == TunnelWish::Nothing;
        let mut again = None;
        let (address, complaint) = match wished {
            TunnelWish::Nothing => (None, None),
            TunnelWish::Keep(ip) => (v4(ip), None),
            TunnelWish::Hold(ip, why) => (v4(ip), Some(format!("{ip} stays in use: {why}"))),
            TunnelWish::Lack(why) => (current, Some(format!("there is none: {why}"))),
            TunnelWish::Take { pools, instead } => {
                match allocator.take_tunnel_address(KIND, &pools, &view, now()).await {
                    Ok(ip) => {
                        self.note(Event::Given, &[ip], KIND);
                        (v4(ip), None)
                    }
                    Err(IpamError::Refused(why)) => {
                        again = Some(REFUSED);
                        match instead {
                            Some(ip) => {
                                (v4(ip), Some(format!("{ip} stays in use, no other is to be had: {why}")))
                            }
                            None => (current, Some(format!("there is none to be had: {why}"))),
                        }
                    }
                    Err(e) => return Err(e.into()),
                }
            }
        };
        self.complain(complaint);
        let said = Some((address, labels));
        let leaving: Vec<Ipv4Addr> =
            held.iter().filter_map(|ip| v4(*ip)).filter(|ip| Some(*ip) != address).collect();
        if current != address {
            identity::update(&*self.store, &self.node, |n| {
                n.bgp.get_or_insert_default().ipv4_ipip_tunnel_addr = address;
            })
            .await?;
            let cause = if nothing { "no IPIP pool is left" } else { "an IPIP pool gives it to this node" };
            tracing::info!(old = ?current, new = ?address, cause, "tunnel address");
            // Felix must hear of it before the devices are asked.
            self.patience = DEVICE;
            again = if leaving.is_empty() && !nothing { again } else { Some(DEVICE) };
            return Ok(Done { said, again });
        }
        let on_device = self.devices.having(&leaving)?;
        if !on_device.is_empty() {
            if address.is_none() {
                on_device.iter().try_for_each(|ip| self.devices.take_off(*ip))?;
            }
            tracing::debug!(addresses = ?on_device, "old tunnel addresses are still on a device");
            let pause = self.patience;
            self.patience = (pause * 2).min(DEVICE_MOST);
            return Ok(Done { said, again: Some(again.unwrap_or(pause).min(pause)) });
        }
        self.patience = DEVICE;
        let freed = if nothing {
            allocator.release_tunnel_handle(KIND, &view, now()).await?
        } else if leaving.is_empty() {
            Vec::new()
        } else {
            let leaving: Vec<IpAddr> = leaving.into_iter().map(IpAddr::V4).collect();
            allocator.release_tunnel_addresses(KIND, &leaving, &view, now()).await?
        };
        if !freed.is_empty() {
            self.note(Event::Returned, &freed, KIND);
            tracing::info!(addresses = ?freed, cause = "no device has them any more", "tunnel addresses given back");
        }
        Ok(Done { said, again })
    }

    fn note(&self, event: Event, ips: &[IpAddr], kind: TunnelKind) {
        if let Some(history) = &self.history {
            history.note(
                event,
                ips,
                &kind.handle(&self.node),
                &format!("tunnel of node {}", self.node),
                &self.node,
            );
        }
    }

    fn complain(&mut self, complaint: Option<String>) {
        if let Some(text) = complaint.as_ref().filter(|c| self.told.as_ref() != Some(c)) {
            tracing::warn!("tunnel address: {text}");
        }
        self.told = complaint;
    }
}

const fn v4(ip: IpAddr) -> Option<Ipv4Addr> {
    match ip {
        IpAddr::V4(ip) => Some(ip),
        IpAddr::V6(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use brindle_config_core::{
        ObjectMeta, Resource,
        pool::{AllowedUse, EncapMode, IpPoolSpec},
        store::Expect,
    };

    use super::*;

    /// Devices that do what felix would when told to.
    #[derive(Default)]
    struct Told {
        has: Vec<Ipv4Addr>,
    }

    impl Devices for Told {
        fn having(&mut self, addresses: &[Ipv4Addr]) -> Result<Vec<Ipv4Addr>> {
            Ok(addresses.iter().filter(|ip| self.has.contains(ip)).copied().collect())
        }

        fn take_off(&mut self, address: Ipv4Addr) -> Result<()> {
            self.has.retain(|ip| *ip != address);
            Ok(())
        }
    }

    async fn put_pool(store: &Arc<dyn Store>, name: &str, cidr: &str, change: impl FnOnce(&mut IpPoolSpec)) {
        let mut spec = IpPoolSpec { ipip_mode: EncapMode::Always, ..IpPoolSpec::new(cidr.parse().unwrap()) };
        change(&mut spec);
        store.put_as(&Resource::new(ObjectMeta::named(name), spec), Expect::Any).await.unwrap();
    }

    async fn label(store: &Arc<dyn Store>, zone: &str) {
        let mut node = match store.get_as::<NodeSpec>(None, "n1").await {
            Ok(found) => found.resource,
            Err(_) => Resource::new(ObjectMeta::named("n1"), NodeSpec::default()),
        };
        node.metadata.labels.insert("zone".into(), zone.into());
        store.put_as(&node, Expect::Any).await.unwrap();
    }

    async fn named(store: &Arc<dyn Store>) -> Option<Ipv4Addr> {
        let node = store.get_as::<NodeSpec>(None, "n1").await.unwrap().resource;
        node.spec.bgp.and_then(|b| b.ipv4_ipip_tunnel_addr)
    }

    async fn held(store: &Arc<dyn Store>) -> Vec<IpAddr> {
        let allocator = BlockAllocator::new(store.clone(), "n1", Arc::new(Jitter));
        allocator.tunnel_addresses(TunnelKind::Ipip).await.unwrap()
    }

    fn within(ip: Option<Ipv4Addr>, pool: &str) -> Ipv4Addr {
        let ip = ip.expect("there is an address");
        assert!(ip.to_string().starts_with(pool), "{ip} is not in {pool}");
        ip
    }

    #[tokio::test]
    async fn an_old_address_is_given_back_when_no_device_has_it() {
        let store = brindle_config::open("memory:").unwrap();
        label(&store, "a").await;
        put_pool(&store, "one", "10.1.0.0/24", |_| {}).await;
        let mut keeper = Keeper::new(store.clone(), "n1".into(), true, Told::default());
        let dir = std::env::temp_dir().join(format!("bt-{}-tunnel", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        keeper.history = Some(Arc::new(History::new(&dir)));
        assert_eq!(keeper.step().await.unwrap().again, None);
        let first = within(named(&store).await, "10.1.0.");
        keeper.devices.has = vec![first];

        // For pods only, and there is no other: it stays, and stays held.
        put_pool(&store, "one", "10.1.0.0/24", |p| p.allowed_uses = vec![AllowedUse::Workload]).await;
        keeper.step().await.unwrap();
        assert_eq!((named(&store).await, held(&store).await), (Some(first), vec![first.into()]));
        let told = keeper.told.clone().unwrap();
        assert_eq!(told, format!("{first} stays in use: pool one is not for Tunnel addresses"));

        put_pool(&store, "two", "10.2.0.0/24", |p| p.node_selector = "zone == 'a'".into()).await;
        let done = keeper.step().await.unwrap();
        let second = within(named(&store).await, "10.2.0.");
        assert_eq!((done.again, keeper.told.as_ref()), (Some(DEVICE), None));
        keeper.step().await.unwrap();
        assert_eq!(
            held(&store).await,
            [IpAddr::V4(first), second.into()],
            "the device still has the old one"
        );
        keeper.devices.has = vec![second];
        assert_eq!(keeper.step().await.unwrap().again, None);
        assert_eq!(held(&store).await, [IpAddr::V4(second)]);

        // The node leaves the zone; the first pool serves tunnels again.
        put_pool(&store, "one", "10.1.0.0/24", |_| {}).await;
        label(&store, "b").await;
        keeper.step().await.unwrap();
        let third = within(named(&store).await, "10.1.0.");
        keeper.devices.has = vec![third];
        keeper.step().await.unwrap();
        assert_eq!(held(&store).await, [IpAddr::V4(third)]);

        // No IPIP any more: off the Node, off the device, and then it is free.
        put_pool(&store, "one", "10.1.0.0/24", |p| p.ipip_mode = EncapMode::Never).await;
        put_pool(&store, "two", "10.2.0.0/24", |p| p.ipip_mode = EncapMode::Never).await;
        assert_eq!(keeper.step().await.unwrap().again, Some(DEVICE));
        assert_eq!((named(&store).await, held(&store).await), (None, vec![third.into()]));
        assert!(keeper.step().await.unwrap().again.is_some() && keeper.devices.has.is_empty());
        assert_eq!(held(&store).await, [IpAddr::V4(third)], "not in the step that took it off");
        assert_eq!(keeper.step().await.unwrap().again, None);
        assert!(held(&store).await.is_empty());

        let text = std::fs::read_to_string(dir.join("ipam-history.jsonl")).unwrap();
        let lines = text.lines().map(|l| serde_json::from_str::<serde_json::Value>(l).unwrap());
        let of_first: Vec<String> = lines
            .filter(|l| l["ip"] == first.to_string() && l["allocatedTo"] == "tunnel of node n1")
            .map(|l| l["event"].as_str().unwrap().to_owned())
            .collect();
        assert_eq!(of_first[..2], ["given", "returned"]);
        std::fs::remove_dir_all(dir).unwrap();
    }

    #[tokio::test]
    async fn a_full_pool_leaves_the_old_address_in_use() {
        let store = brindle_config::open("memory:").unwrap();
        label(&store, "a").await;
        put_pool(&store, "one", "10.1.0.0/24", |_| {}).await;
        let mut keeper = Keeper::new(store.clone(), "n1".into(), true, Told::default());
        keeper.step().await.unwrap();
        let first = within(named(&store).await, "10.1.0.");
        put_pool(&store, "one", "10.1.0.0/24", |p| p.disabled = true).await;
        put_pool(&store, "two", "10.2.0.0/32", |p| p.block_size_raw = Some(32)).await;
        let mut other = Keeper::new(store.clone(), "n2".into(), true, Told::default());
        store
            .put_as(&Resource::new(ObjectMeta::named("n2"), NodeSpec::default()), Expect::Any)
            .await
            .unwrap();
        other.step().await.unwrap();

        let done = keeper.step().await.unwrap();
        assert_eq!((done.again, named(&store).await), (Some(REFUSED), Some(first)));
        let told = keeper.told.clone().unwrap();
        assert!(
            told.starts_with(&format!("{first} stays in use, no other is to be had: no free block")),
            "{told}"
        );
        assert_eq!(held(&store).await, [IpAddr::V4(first)]);
    }

    #[test]
    fn a_label_is_heard_of() {
        let key = Key::new(Kind::Node, None, "n1");
        let event = |zone: &str| {
            let value = serde_json::json!({"apiVersion": "projectcalico.org/v3", "kind": "Node",
                "metadata": {"name": "n1", "labels": {"zone": zone}}, "spec": {}});
            let revision = brindle_config_core::store::Revision(1);
            SyncEvent::Upsert(brindle_config_core::store::Entry {
                key: key.clone(),
                revision,
                value: Arc::new(value),
            })
        };
        let (mut first, mut second) = (None, None);
        note(&mut first, &[event("a")], &key);
        note(&mut second, &[event("b")], &key);
        assert!(first.is_some() && first != second);
        note(&mut second, &[SyncEvent::Delete(key.clone())], &key);
        assert_eq!(second, None);
    }
}
