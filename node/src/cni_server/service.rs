//! What the calls mean: addresses from the allocator, endpoints as WorkloadEndpoint resources, ready when felix says so.
//!
//! Every call may be repeated: ADD gives the same addresses again, DEL of nothing is done. Calls for one container wait
//! for each other; different containers go side by side.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    path::Path,
    sync::{Arc, Mutex as StdMutex, Weak},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use brindle_cni::{
    error::code,
    journal,
    proto::{Attachment, Call, HostDevice, Reply},
};
use brindle_config_core::{
    Key, Kind, ObjectMeta, Resource,
    felix::ClusterInformationSpec,
    pool::AllowedUse,
    store::{Expect, Store, StoreError, StoreExt, Stored},
    workload::{WorkloadEndpointSpec, endpoint_name},
};
use brindle_ipam::{Allocator, AssignRequest, BlockAllocator, IpamError, Now, Owner, Pause, View, Wanted};
use brindle_kernel::netlink::Rtnl;
use ipnet::IpNet;
use tokio::sync::Mutex;

/// How long ADD waits for the endpoint to be in the kernel.
const READY_TIMEOUT: Duration = Duration::from_secs(10);
/// Attempts against other writers of an endpoint.
const ATTEMPTS: u32 = 20;
/// Prefix of host devices.
const PREFIX: &str = "cali";

/// Waits between attempts of the allocator: a few milliseconds, spread by process and attempt.
pub(crate) struct Jitter;

impl Pause for Jitter {
    fn pause(&self, attempt: u32) -> std::pin::Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        let spread = u64::from(std::process::id().wrapping_mul(2_654_435_761).wrapping_add(attempt) % 7);
        Box::pin(tokio::time::sleep(Duration::from_millis(u64::from(attempt.min(10)) + spread)))
    }
}

/// The wall clock, as the allocator wants it.
pub(crate) fn now() -> Now {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Now(u64::try_from(since.as_nanos()).unwrap_or(u64::MAX))
}

/// A refused call.
struct Refused {
    code: u32,
    msg: String,
    details: String,
}

impl Refused {
    fn new(code: u32, msg: impl ToString, details: &str) -> Self {
        Self { code, msg: msg.to_string(), details: details.to_owned() }
    }
}

impl From<StoreError> for Refused {
    fn from(e: StoreError) -> Self {
        let code = if matches!(e, StoreError::Unavailable(_)) { code::TRY_AGAIN } else { code::FAILED };
        Self::new(code, e, "the agent cannot use its datastore; see its log")
    }
}

impl From<IpamError> for Refused {
    fn from(e: IpamError) -> Self {
        match e {
            IpamError::Store(e) => e.into(),
            IpamError::Refused(_) => Self::new(code::POOL_EXHAUSTED, e, "add an IPPool or free addresses"),
            IpamError::Assigned { .. } => Self::new(
                code::DUPLICATE_ADDRESS,
                e,
                "ask for another address, or delete the pod that has it",
            ),
            IpamError::Stale(_) | IpamError::Contention { .. } => {
                Self::new(code::TRY_AGAIN, e, "other nodes write the same blocks; try again")
            }
            IpamError::Malformed(_) => {
                Self::new(code::FAILED, e, "mend the IPAMBlock, see `brindlectl ipam check`")
            }
        }
    }
}

/// The handler of calls.
pub(crate) struct Service {
    node: String,
    store: Arc<dyn Store>,
    felix: brindle_felix::Handle,
    allocator: Mutex<BlockAllocator>,
    /// One lock per container with calls under way.
    busy: StdMutex<BTreeMap<String, Weak<Mutex<()>>>>,
}

impl Service {
    pub(crate) fn new(node: &str, store: Arc<dyn Store>, felix: brindle_felix::Handle) -> Self {
        let allocator = Mutex::new(BlockAllocator::new(store.clone(), node, Arc::new(Jitter)));
        Self { node: node.to_owned(), store, felix, allocator, busy: StdMutex::new(BTreeMap::new()) }
    }

    /// Carries out a call.
    pub(crate) async fn call(&self, call: Call) -> Reply {
        let result = match call {
            Call::Ping | Call::Status => {
                Ok(Reply::Pong { node: self.node.clone(), version: env!("CARGO_PKG_VERSION").to_owned() })
            }
            Call::Add { attachment, pools4, pools6, num4, num6, ips }
            | Call::IpamAdd { attachment, pools4, pools6, num4, num6, ips } => {
                let _turn = self.turn(&attachment).await;
                let wish = Wish { pools4, pools6, num4, num6, ips };
                match self.mtu().await {
                    Ok(mtu) => self.assign(&attachment, wish).await.map(|(addresses, again)| Reply::Added {
                        addresses,
                        host_ifname: attachment.host_ifname(PREFIX),
                        mtu,
                        again,
                    }),
                    Err(refused) => Err(refused),
                }
            }
            Call::Register { attachment, host_ifname, mac, addresses } => {
                let _turn = self.turn(&attachment).await;
                self.register(&attachment, host_ifname, mac, addresses).await.map(|()| Reply::Registered)
            }
            Call::Del { attachment, device } => {
                let _turn = self.turn(&attachment).await;
                let done = self.del(&attachment).await.map(|()| Reply::Deleted);
                if let Some(device) = device {
                    remove_later(device);
                }
                done
            }
            Call::Gc { .. } => Err(Refused::new(
                code::TRY_AGAIN,
                "this agent does not collect attachments yet",
                "addresses of vanished containers are returned by DEL",
            )),
            Call::IpamDel { attachment } => {
                let _turn = self.turn(&attachment).await;
                self.release(&attachment).await.map(|()| Reply::Deleted)
            }
            Call::Check { attachment, addresses } => {
                self.check(&attachment, &addresses, true).await.map(|()| Reply::Checked)
            }
            Call::IpamCheck { attachment, addresses } => {
                self.check(&attachment, &addresses, false).await.map(|()| Reply::Checked)
            }
        };
        result.unwrap_or_else(|r| Reply::Error { code: r.code, msg: r.msg, details: r.details })
    }

    /// Carries out DELs taken while no agent was running, and forgets them.
    pub(crate) async fn replay(&self, folder: &Path) {
        let contents = match journal::read(folder) {
            Ok(c) => c,
            Err(e) => {
                tracing::warn!("cannot read the journal {}: {e}", folder.display());
                return;
            }
        };
        for (path, why) in contents.damaged {
            tracing::warn!("{}: {why}; set aside, see `brindlectl ipam check`", path.display());
        }
        for entry in contents.entries {
            let attachment = entry.record.attachment;
            let done = if entry.record.addresses_only {
                self.release(&attachment).await
            } else {
                self.del(&attachment).await
            };
            match done {
                Ok(()) => {
                    tracing::info!(container = %attachment.container_id, "carried out a DEL from the journal");
                    if let Err(e) = std::fs::remove_file(&entry.path) {
                        tracing::warn!("cannot remove {}: {e}", entry.path.display());
                    }
                }
                Err(r) => {
                    tracing::warn!(container = %attachment.container_id, "DEL from the journal: {}", r.msg)
                }
            }
        }
    }

    /// MTU for a new pod. Known once felix has seen pools and devices, which it has not in the agent's first moments.
    async fn mtu(&self) -> Result<u32, Refused> {
        let mut report = self.felix.watch();
        let known = report.wait_for(|r| r.pod_mtu != 0);
        match tokio::time::timeout(READY_TIMEOUT, known).await {
            Ok(Ok(r)) => Ok(r.pod_mtu),
            Ok(Err(_)) | Err(_) => Err(Refused::new(
                code::TRY_AGAIN,
                "the agent is starting and does not know the pods' MTU yet",
                "try again; if it stays so, see the agent's log",
            )),
        }
    }

    /// Waits until no other call works on this container.
    async fn turn(&self, a: &Attachment) -> tokio::sync::OwnedMutexGuard<()> {
        let lock = {
            // Poisoned only if inserting into the map panicked, which leaves the map usable.
            let mut busy = self.busy.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            busy.retain(|_, l| l.strong_count() > 0);
            let slot = busy.entry(a.container_id.clone()).or_default();
            slot.upgrade().unwrap_or_else(|| {
                let lock = Arc::new(Mutex::new(()));
                *slot = Arc::downgrade(&lock);
                lock
            })
        };
        lock.lock_owned().await
    }

    async fn unlocked(&self) -> Result<(), Refused> {
        match self.store.get_as::<ClusterInformationSpec>(None, "default").await {
            Ok(c) if c.resource.spec.datastore_ready == Some(false) => Err(Refused::new(
                code::TRY_AGAIN,
                "Calico is currently not ready to process requests",
                "ClusterInformation default has datastoreReady: false, somebody locked the datastore",
            )),
            Ok(_) | Err(StoreError::NotFound(_)) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }

    async fn assign(&self, a: &Attachment, wish: Wish) -> Result<(Vec<IpNet>, bool), Refused> {
        self.unlocked().await?;
        let handle = a.handle();
        let mut allocator = self.allocator.lock().await;
        let have = allocator.by_handle(&handle).await?;
        if !have.is_empty() {
            return Ok((have.into_iter().map(IpNet::from).collect(), true));
        }
        let view = View::load(&*self.store, &self.node).await?;
        let now = now();
        let mut attributes = BTreeMap::from([
            ("node".to_owned(), self.node.clone()),
            ("timestamp".to_owned(), now.attribute()),
        ]);
        if let Some(p) = &a.pod {
            attributes.insert("namespace".into(), p.namespace.clone());
            attributes.insert("pod".into(), p.name.clone());
        }
        let owner = Owner { handle: handle.clone(), attributes };
        let given = if wish.ips.is_empty() {
            let request = AssignRequest {
                owner,
                v4: Wanted { count: wish.num4.into(), pools: wish.pools4 },
                v6: Wanted { count: wish.num6.into(), pools: wish.pools6 },
                intended_use: AllowedUse::Workload,
                namespace_labels: None,
                max_blocks: 0,
            };
            match allocator.assign(&request, &view, now).await {
                Ok(assignment) => match assignment.refusal() {
                    None => Ok(assignment.addresses.into_iter().map(|a| a.ip).collect::<Vec<IpAddr>>()),
                    Some(why) => Err(Refused::new(
                        code::POOL_EXHAUSTED,
                        format!("no address for {}: {why}", a.workload()),
                        "add an IPPool, or free addresses",
                    )),
                },
                Err(e) => Err(e.into()),
            }
        } else {
            let mut all = Vec::new();
            let mut failed = None;
            for ip in wish.ips {
                match allocator.assign_ip(ip, &owner, AllowedUse::Workload, &view, now).await {
                    Ok(a) => all.push(a.ip),
                    Err(e) => {
                        failed = Some(Refused::from(e));
                        break;
                    }
                }
            }
            failed.map_or(Ok(all), Err)
        };
        match given {
            Ok(all) => {
                tracing::info!(container = %a.container_id, workload = a.workload(), addresses = ?all, "addresses given");
                Ok((all.into_iter().map(IpNet::from).collect(), false))
            }
            Err(refused) => {
                // One family may have been given before the other was refused.
                if let Err(e) = allocator.release_handle(&handle, &view, now).await {
                    tracing::warn!(%handle, "addresses of a refused request are not back yet: {e}");
                }
                Err(refused)
            }
        }
    }

    fn endpoint_key(&self, a: &Attachment) -> Key {
        let name = endpoint_name(&self.node, a.orchestrator(), a.workload(), &a.ifname);
        Key::new(Kind::WorkloadEndpoint, Some(a.namespace()), &name)
    }

    async fn register(
        &self,
        a: &Attachment,
        host_ifname: String,
        mac: String,
        addresses: Vec<IpNet>,
    ) -> Result<(), Refused> {
        self.unlocked().await?;
        let key = self.endpoint_key(a);
        let spec = WorkloadEndpointSpec {
            orchestrator: a.orchestrator().into(),
            workload: if a.pod.is_some() { String::new() } else { a.container_id.clone() },
            node: self.node.clone(),
            container_id: a.container_id.clone(),
            pod: a.pod.as_ref().map(|p| p.name.clone()).unwrap_or_default(),
            endpoint: a.ifname.clone(),
            ip_networks: addresses,
            profiles: a.pod.iter().map(|p| format!("kns.{}", p.namespace)).collect(),
            interface_name: host_ifname,
            mac,
            ..WorkloadEndpointSpec::default()
        };
        self.write_endpoint(a, &key, spec).await?;
        self.felix.wait_ready(&key, READY_TIMEOUT).await.map_err(|e| {
            Refused::new(
                code::TRY_AGAIN,
                e,
                "the agent could not program the endpoint; see `brindlectl lab status`",
            )
        })
    }

    async fn write_endpoint(
        &self,
        a: &Attachment,
        key: &Key,
        spec: WorkloadEndpointSpec,
    ) -> Result<(), Refused> {
        for attempt in 0..ATTEMPTS {
            let (mut resource, expect) =
                match self.store.get_as::<WorkloadEndpointSpec>(Some(&key.namespace), &key.name).await {
                    Ok(Stored { revision, resource }) => (resource, Expect::Revision(revision)),
                    Err(StoreError::NotFound(_)) => {
                        let mut meta = ObjectMeta::named(&key.name);
                        meta.namespace = Some(key.namespace.clone());
                        (Resource::new(meta, spec.clone()), Expect::Absent)
                    }
                    Err(e) => return Err(e.into()),
                };
            let labels = &mut resource.metadata.labels;
            labels.insert("projectcalico.org/namespace".into(), a.namespace().into());
            labels.insert("projectcalico.org/orchestrator".into(), a.orchestrator().into());
            resource.spec = spec.clone();
            match self.store.put_as(&resource, expect).await {
                Ok(_) => return Ok(()),
                Err(StoreError::Conflict(_) | StoreError::Exists(_) | StoreError::NotFound(_)) => {
                    Jitter.pause(attempt).await;
                }
                Err(e) => return Err(e.into()),
            }
        }
        Err(Refused::new(
            code::TRY_AGAIN,
            format!("{key} is being changed by somebody else all the time"),
            "try again",
        ))
    }

    async fn del(&self, a: &Attachment) -> Result<(), Refused> {
        let key = self.endpoint_key(a);
        for attempt in 0..ATTEMPTS {
            let stored =
                match self.store.get_as::<WorkloadEndpointSpec>(Some(&key.namespace), &key.name).await {
                    Ok(s) => s,
                    Err(StoreError::NotFound(_)) => break,
                    Err(e) => return Err(e.into()),
                };
            if stored.resource.spec.container_id != a.container_id {
                // The pod's next sandbox is there already; its endpoint is not ours to remove.
                break;
            }
            match self.store.delete(&key, Expect::Revision(stored.revision)).await {
                Ok(_) | Err(StoreError::NotFound(_)) => break,
                Err(StoreError::Conflict(_)) => Jitter.pause(attempt).await,
                Err(e) => return Err(e.into()),
            }
        }
        self.release(a).await
    }

    async fn release(&self, a: &Attachment) -> Result<(), Refused> {
        let mut allocator = self.allocator.lock().await;
        let view = View::load(&*self.store, &self.node).await?;
        let back = allocator.release_handle(&a.handle(), &view, now()).await?;
        if !back.is_empty() {
            tracing::info!(container = %a.container_id, addresses = ?back, "addresses returned");
        }
        Ok(())
    }

    async fn check(&self, a: &Attachment, addresses: &[IpNet], endpoint: bool) -> Result<(), Refused> {
        let bad = |msg: String| Refused::new(code::FAILED, msg, "delete the pod; it will be made anew");
        let held: BTreeSet<IpAddr> =
            self.allocator.lock().await.by_handle(&a.handle()).await?.into_iter().collect();
        for net in addresses {
            if !held.contains(&net.addr()) {
                return Err(bad(format!("{} is not recorded for {}", net.addr(), a.handle())));
            }
        }
        if !endpoint {
            return Ok(());
        }
        let key = self.endpoint_key(a);
        let stored = match self.store.get_as::<WorkloadEndpointSpec>(Some(&key.namespace), &key.name).await {
            Ok(s) => s.resource.spec,
            Err(StoreError::NotFound(_)) => return Err(bad(format!("{key} does not exist"))),
            Err(e) => return Err(e.into()),
        };
        if stored.container_id != a.container_id {
            return Err(bad(format!("{key} belongs to container {}", stored.container_id)));
        }
        let ready = self.felix.wait_ready(&key, Duration::from_secs(2)).await;
        ready.map_err(|e| bad(format!("host side: {e}")))
    }
}

/// Deletes a pod's host device without making anybody wait for the kernel to tear it down.
fn remove_later(device: HostDevice) {
    tokio::task::spawn_blocking(move || {
        let gone = Rtnl::open().and_then(|mut k| match k.link_by_index(device.index)? {
            Some(l) if l.name == device.name => k.del_link(device.index),
            Some(_) | None => Ok(()),
        });
        if let Err(e) = gone
            && !e.is_not_found()
        {
            tracing::warn!(device = %device.name, "{e}");
        }
    });
}

struct Wish {
    pools4: Vec<String>,
    pools6: Vec<String>,
    num4: u8,
    num6: u8,
    ips: Vec<IpAddr>,
}
