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

/// What this machine's devices have. Blocking.
pub(crate) trait Devices: Send + Sync + 'static {
    /// Those of the addresses that a device has.
    fn having(&self, addresses: &[Ipv4Addr]) -> Result<Vec<Ipv4Addr>>;
    /// Takes an address off the tunnel device. Felix does so only for another one: the kernel's device cannot be
    /// removed, and outlives the last pool with all it has.
    fn take_off(&self, address: Ipv4Addr) -> Result<()>;
}

/// Those of this network namespace.
pub(crate) struct Local;

impl Devices for Local {
    fn having(&self, addresses: &[Ipv4Addr]) -> Result<Vec<Ipv4Addr>> {
        let all = Rtnl::open()?.addrs(None)?;
        let has = |ip: &&Ipv4Addr| all.iter().any(|a| a.net.addr() == IpAddr::V4(**ip));
        Ok(addresses.iter().filter(has).copied().collect())
    }

    fn take_off(&self, address: Ipv4Addr) -> Result<()> {
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

/// What there is, read before anything is decided.
struct Found {
    view: View,
    /// What the Node says.
    current: Option<Ipv4Addr>,
    labels: BTreeMap<String, String>,
    /// What this node holds of the pools.
    held: Vec<IpAddr>,
}

/// What the address should be.
#[derive(Default)]
struct Choice {
    address: Option<Ipv4Addr>,
    complaint: Option<String>,
    /// When another one may be had.
    again: Option<Duration>,
}

impl Choice {
    fn of(address: Option<Ipv4Addr>, complaint: Option<String>) -> Self {
        Self { address, complaint, again: None }
    }
}

const KIND: TunnelKind = TunnelKind::Ipip;

struct Keeper<D> {
    store: Arc<dyn Store>,
    node: String,
    v4: bool,
    devices: Arc<D>,
    /// What was last complained of; said once.
    told: Option<String>,
    /// How long the devices are given next time.
    patience: Duration,
    history: Option<Arc<History>>,
}

impl<D: Devices> Keeper<D> {
    fn new(store: Arc<dyn Store>, node: String, v4: bool, devices: D) -> Self {
        let devices = Arc::new(devices);
        Self { store, node, v4, devices, told: None, patience: DEVICE, history: None }
    }

    /// Looks at what is, and takes the next step towards what should be. May be stopped anywhere: the next one begins with
    /// what is there then.
    async fn step(&mut self) -> Result<Done> {
        let mut allocator = BlockAllocator::new(self.store.clone(), &self.node, Arc::new(Jitter));
        // It is followed: when the Node is made again, it says nothing of an address.
        let Some(found) = self.look(&allocator).await? else { return Ok(Done { said: None, again: None }) };
        let wished = if self.v4 {
            wish(KIND, &self.node, &found.view, &found.held, found.current.map(IpAddr::V4))
        } else {
            TunnelWish::Nothing
        };
        let nothing = wished == TunnelWish::Nothing;
        let choice = self.choose(wished, &found, &mut allocator).await?;
        self.complain(choice.complaint);
        let address = choice.address;
        let leaving: Vec<Ipv4Addr> =
            found.held.iter().filter_map(|ip| v4(*ip)).filter(|ip| Some(*ip) != address).collect();
        let again = if found.current != address {
            let cause = if nothing { "no IPIP pool is left" } else { "an IPIP pool gives it to this node" };
            self.publish(found.current, address, cause).await?;
            // Felix must hear of it before the devices are asked.
            self.patience = DEVICE;
            if leaving.is_empty() && !nothing { choice.again } else { Some(DEVICE) }
        } else if self.on_devices(&leaving, address.is_none()).await? {
            let pause = self.patience;
            self.patience = (pause * 2).min(DEVICE_MOST);
            Some(choice.again.unwrap_or(pause).min(pause))
        } else {
            self.patience = DEVICE;
            self.give_back(&mut allocator, &found.view, leaving, nothing).await?;
            choice.again
        };
        Ok(Done { said: Some((address, found.labels)), again })
    }

    /// `None`: there is no Node.
    async fn look(&self, allocator: &BlockAllocator) -> Result<Option<Found>> {
        let view = View::load(&*self.store, &self.node).await?;
        let (current, labels) = match self.store.get_as::<NodeSpec>(None, &self.node).await {
            Ok(found) => {
                let bgp = found.resource.spec.bgp.unwrap_or_default();
                (bgp.ipv4_ipip_tunnel_addr, found.resource.metadata.labels)
            }
            Err(StoreError::NotFound(_)) => return Ok(None),
            Err(e) => return Err(e.into()),
        };
        let held = allocator.tunnel_addresses(KIND).await?;
        Ok(Some(Found { view, current, labels, held }))
    }

    /// What becomes of a wish; an address is taken from the pools if it is for one.
    async fn choose(
        &self,
        wished: TunnelWish,
        found: &Found,
        allocator: &mut BlockAllocator,
    ) -> Result<Choice> {
        let (pools, instead) = match wished {
            TunnelWish::Nothing => return Ok(Choice::default()),
            TunnelWish::Keep(ip) => return Ok(Choice::of(v4(ip), None)),
            TunnelWish::Hold(ip, why) => {
                return Ok(Choice::of(v4(ip), Some(format!("{ip} stays in use: {why}"))));
            }
            TunnelWish::Lack(why) => {
                return Ok(Choice::of(found.current, Some(format!("there is none: {why}"))));
            }
            TunnelWish::Take { pools, instead } => (pools, instead),
        };
        match allocator.take_tunnel_address(KIND, &pools, &found.view, now()).await {
            Ok(ip) => {
                self.note(Event::Given, &[ip], KIND);
                Ok(Choice::of(v4(ip), None))
            }
            Err(IpamError::Refused(why)) => {
                let (address, complaint) = match instead {
                    Some(ip) => (v4(ip), format!("{ip} stays in use, no other is to be had: {why}")),
                    None => (found.current, format!("there is none to be had: {why}")),
                };
                Ok(Choice { again: Some(REFUSED), ..Choice::of(address, Some(complaint)) })
            }
            Err(e) => Err(e.into()),
        }
    }

    /// The Node names the address from now on.
    async fn publish(&self, old: Option<Ipv4Addr>, new: Option<Ipv4Addr>, cause: &str) -> Result<()> {
        identity::update(&*self.store, &self.node, |n| {
            n.bgp.get_or_insert_default().ipv4_ipip_tunnel_addr = new;
        })
        .await?;
        tracing::info!(?old, ?new, cause, "tunnel address");
        Ok(())
    }

    /// Whether a device has one of these addresses; with `off` they are taken off it then.
    async fn on_devices(&self, leaving: &[Ipv4Addr], off: bool) -> Result<bool> {
        let (devices, leaving) = (Arc::clone(&self.devices), leaving.to_vec());
        let ask = move || {
            let having = devices.having(&leaving)?;
            if off {
                having.iter().try_for_each(|ip| devices.take_off(*ip))?;
            }
            Ok::<_, anyhow::Error>(having)
        };
        let having = tokio::task::spawn_blocking(ask).await??;
        if !having.is_empty() {
            tracing::debug!(addresses = ?having, "old tunnel addresses are still on a device");
        }
        Ok(!having.is_empty())
    }

    /// No device has these any more. `all`: the node holds no address from now on.
    async fn give_back(
        &self,
        allocator: &mut BlockAllocator,
        view: &View,
        leaving: Vec<Ipv4Addr>,
        all: bool,
    ) -> Result<()> {
        let freed = if all {
            allocator.release_tunnel_handle(KIND, view, now()).await?
        } else if leaving.is_empty() {
            Vec::new()
        } else {
            let leaving: Vec<IpAddr> = leaving.into_iter().map(IpAddr::V4).collect();
            allocator.release_tunnel_addresses(KIND, &leaving, view, now()).await?
        };
        if !freed.is_empty() {
            self.note(Event::Returned, &freed, KIND);
            tracing::info!(addresses = ?freed, cause = "no device has them any more", "tunnel addresses given back");
        }
        Ok(())
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
    use std::sync::Mutex;

    use brindle_config_core::{
        ObjectMeta, Resource,
        pool::{AllowedUse, EncapMode, IpPoolSpec},
        store::Expect,
    };

    use super::*;

    /// Devices that do what felix would when told to.
    #[derive(Default)]
    struct Told {
        has: Mutex<Vec<Ipv4Addr>>,
    }

    impl Told {
        fn set(&self, has: &[Ipv4Addr]) {
            *self.has.lock().unwrap() = has.to_vec();
        }
    }

    impl Devices for Told {
        fn having(&self, addresses: &[Ipv4Addr]) -> Result<Vec<Ipv4Addr>> {
            let has = self.has.lock().unwrap();
            Ok(addresses.iter().filter(|ip| has.contains(ip)).copied().collect())
        }

        fn take_off(&self, address: Ipv4Addr) -> Result<()> {
            self.has.lock().unwrap().retain(|ip| *ip != address);
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
        keeper.devices.set(&[first]);

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
        keeper.devices.set(&[second]);
        assert_eq!(keeper.step().await.unwrap().again, None);
        assert_eq!(held(&store).await, [IpAddr::V4(second)]);

        // The node leaves the zone; the first pool serves tunnels again.
        put_pool(&store, "one", "10.1.0.0/24", |_| {}).await;
        label(&store, "b").await;
        keeper.step().await.unwrap();
        let third = within(named(&store).await, "10.1.0.");
        keeper.devices.set(&[third]);
        keeper.step().await.unwrap();
        assert_eq!(held(&store).await, [IpAddr::V4(third)]);

        // No IPIP any more: off the Node, off the device, and then it is free.
        put_pool(&store, "one", "10.1.0.0/24", |p| p.ipip_mode = EncapMode::Never).await;
        put_pool(&store, "two", "10.2.0.0/24", |p| p.ipip_mode = EncapMode::Never).await;
        assert_eq!(keeper.step().await.unwrap().again, Some(DEVICE));
        assert_eq!((named(&store).await, held(&store).await), (None, vec![third.into()]));
        assert!(
            keeper.step().await.unwrap().again.is_some() && keeper.devices.has.lock().unwrap().is_empty()
        );
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
