//! The WorkloadEndpoint of an attachment: written when its device is there, removed with it, checked. Names, labels and
//! profiles are Calico's.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::{Mutex, MutexGuard, PoisonError, atomic::Ordering},
    time::Duration,
};

use brindle_cni::{
    error::code,
    fail,
    proto::{Attachment, HostDevice},
};
use brindle_config_core::{
    Key, Kind, ObjectMeta, Resource, convert,
    store::{Entry, Expect, Revision, StoreError, StoreExt, Stored, decode},
    workload::{WorkloadEndpointSpec, endpoint_name},
};
use brindle_ipam::Pause;
use ipnet::IpNet;

use super::{Jitter, address::Given, dataplane::Expected, device, refused::Refused, service::Service};

/// How long ADD waits for the endpoint to be in the kernel: the first writing of all policy may be under way, which takes
/// ten seconds on a slow machine. Less than the plugin waits for an answer.
pub(super) const READY: Duration = Duration::from_secs(30);
/// How long CHECK waits: it should have been there long ago.
const READY_CHECK: Duration = Duration::from_secs(1);
/// How long CHECK waits for the kernel's rules to be read.
const VERIFY: Duration = Duration::from_secs(20);
/// Attempts against other writers of an endpoint.
const ATTEMPTS: u32 = 20;
/// Annotations: the network of the attachment, and `device:inode` of its namespace.
pub(super) const NETWORK: &str = "cni.brindle.dev/network";
const NETNS: &str = "cni.brindle.dev/netns";
const CONTAINER: &str = "cni.projectcalico.org/containerID";
/// Number of the host device: its name alone would also be that of the pod's next sandbox.
const DEVICE: &str = "cni.brindle.dev/device";

/// The uid by which kubelet knows a pod of a file (Kubernetes' own annotation).
const STATIC_UID: &str = "kubernetes.io/config.hash";

pub(super) type Endpoint = Stored<WorkloadEndpointSpec>;

/// What a CHECK is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Checked {
    Addresses,
    /// Its addresses are recorded elsewhere.
    Endpoint,
    Both,
}

/// What the dataplane was told of an endpoint that is not in the store yet.
pub(super) struct Told {
    container: String,
    identity: Identity,
}

/// Labels and profiles: what policy goes by.
type Identity = (BTreeMap<String, String>, Vec<String>);

fn identity(endpoint: &Resource<WorkloadEndpointSpec>) -> Identity {
    (endpoint.metadata.labels.clone(), endpoint.spec.profiles.clone())
}

pub(super) type Announced = Mutex<BTreeMap<Key, Told>>;

/// Poisoned only if inserting a key panicked, which leaves the map usable.
fn lock(announced: &Announced) -> MutexGuard<'_, BTreeMap<Key, Told>> {
    announced.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What a plugin made.
pub(super) struct Made {
    pub(super) device: String,
    pub(super) mac: String,
    pub(super) addresses: Vec<IpNet>,
    /// What the pod's annotation asks for beside them.
    pub(super) floating: Vec<IpAddr>,
}

/// The host device that an endpoint was recorded with.
pub(super) fn host_device(endpoint: &Resource<WorkloadEndpointSpec>) -> Option<HostDevice> {
    let index = endpoint.metadata.annotations.get(DEVICE)?.parse().ok()?;
    Some(HostDevice { index, name: endpoint.spec.interface_name.clone() })
}

/// The attachment lives, in another namespace.
pub(super) fn elsewhere(a: &Attachment) -> Refused {
    Refused::new(
        code::ATTACHED,
        format!("container {} has {} already, in another network namespace", a.container_id, a.ifname),
        "DEL it before it is added again",
    )
}

impl Service {
    pub(super) fn endpoint_key(&self, a: &Attachment) -> Key {
        let name = endpoint_name(&self.node, a.orchestrator(), a.workload(), &a.ifname);
        Key::new(Kind::WorkloadEndpoint, Some(a.namespace()), &name)
    }

    pub(super) async fn endpoint(&self, key: &Key) -> Result<Option<Endpoint>, Refused> {
        match self.store.get_as::<WorkloadEndpointSpec>(Some(&key.namespace), &key.name).await {
            Ok(stored) => Ok(Some(stored)),
            Err(StoreError::NotFound(_)) => Ok(None),
            Err(e) => Err(e.into()),
        }
    }

    /// Refuses an attachment that lives already, in another namespace. Its record alone does not count: after a reboot
    /// the same container may come back before anybody deleted it. Refuses one of a pod that went, where another of its name
    /// is attached: it would take that pod's device. Says whether there is a record.
    pub(super) async fn not_elsewhere(&self, a: &Attachment) -> Result<bool, Refused> {
        let Some(there) = self.endpoint(&self.endpoint_key(a)).await? else { return Ok(false) };
        let netns = there.resource.metadata.annotations.get(NETNS).filter(|n| !n.is_empty());
        let same_container = there.resource.spec.container_id == a.container_id;
        if same_container
            && !a.netns_id.is_empty()
            && netns.is_some_and(|n| *n != a.netns_id)
            && device::exists(there.resource.spec.interface_name.clone()).await
        {
            return Err(elsewhere(a));
        }
        if !same_container {
            self.of_this_pod(a, &there)?;
        }
        Ok(true)
    }

    /// Kubernetes says which pod of a name there is: its endpoint has the Pod's uid. In other datastores it has one of its
    /// own, and the latest sandbox counts.
    fn of_this_pod(&self, a: &Attachment, there: &Endpoint) -> Result<(), Refused> {
        let meta = &there.resource.metadata;
        let uid = meta.annotations.get(STATIC_UID).or(meta.uid.as_ref()).filter(|_| self.endpoints_are_pods);
        match (uid, &a.pod) {
            (Some(uid), Some(pod)) if !pod.uid.is_empty() && pod.uid != *uid => Err(Refused::new(
                code::CONTAINER,
                format!(
                    "container {} is of a former pod {}/{}: its uid is {}, the pod there is now has {uid}",
                    a.container_id, pod.namespace, pod.name, pod.uid
                ),
                "nothing needs doing: kubelet ends this sandbox",
            )),
            _ => Ok(()),
        }
    }

    /// Refuses addresses that another IPAM plugin, or a pod's annotation, gives and that an endpoint of this node has: both
    /// would be cut off.
    pub(super) async fn nobody_elses(&self, a: &Attachment, given: &[IpNet]) -> Result<(), Refused> {
        let own = self.endpoint_key(a);
        for other in self.own_endpoints().await? {
            let spec = &other.resource.spec;
            let of_it = spec.container_id == a.container_id && spec.endpoint == a.ifname;
            if spec.node != self.node || of_it || other.resource.key() == own {
                continue;
            }
            if let Some(taken) =
                given.iter().find(|n| spec.ip_networks.iter().any(|there| there.addr() == n.addr()))
            {
                return Err(Refused::new(
                    code::DUPLICATE_ADDRESS,
                    format!("{} is the address of {}", taken.addr(), other.resource.key()),
                    "give each pod its own: correct the IPAM configuration or the annotation ipAddrsNoIpam",
                ));
            }
        }
        Ok(())
    }

    /// Keeps addresses for this ADD; refuses those another ADD under way is to have.
    pub(super) fn reserve(&self, a: &Attachment, addresses: &[IpNet], foreign: bool) -> Result<(), Refused> {
        self.claims.reserve(a, addresses, foreign).map_err(|(ip, container)| {
            Refused::new(
                code::DUPLICATE_ADDRESS,
                format!("{ip} is being given to container {container} at this moment"),
                "give each pod its own: correct the IPAM configuration or the annotation ipAddrsNoIpam",
            )
        })
    }

    /// Keeps addresses of the pools for this ADD, and gives those back that another IPAM plugin has given to a pod of this node,
    /// or is about to: both would be cut off. Only memory is asked unless it says so.
    pub(super) async fn not_foreign(&self, a: &Attachment, given: &Given) -> Result<(), Refused> {
        let refused = async {
            self.reserve(a, &given.addresses, false)?;
            for net in &given.addresses {
                let Some(other) = self.attached.foreign_holder(net.addr(), a) else { continue };
                let there = self.endpoint(&self.endpoint_key(&other)).await?;
                if there.is_some_and(|e| e.resource.spec.ip_networks.iter().any(|n| n.addr() == net.addr())) {
                    return Err(Refused::new(
                        code::DUPLICATE_ADDRESS,
                        format!(
                            "{} is of a pool and was given to this pod, but another IPAM plugin has given it to container {}",
                            net.addr(),
                            other.container_id
                        ),
                        "take the other plugin's range out of the pool, or disable the pool; it is tried with another address",
                    ));
                }
            }
            Ok(())
        };
        let done = refused.await;
        if done.is_err() && !given.again {
            self.give_back(a, given).await;
        }
        done
    }

    /// Gives back what an ADD that is refused was given.
    pub(super) async fn give_back(&self, a: &Attachment, given: &Given) {
        if given.announced {
            self.withdraw(a).await;
        }
        if let Err(e) = self.release(a).await {
            tracing::warn!(container = %a.container_id, "addresses of a refused request are not back yet: {}", e.msg);
            self.note_release(a).await;
        }
    }

    /// Lets the dataplane begin with the policy of an endpoint while the plugin makes its device.
    pub(super) async fn announce(&self, a: &Attachment, device: String, addresses: Vec<IpNet>) {
        if self.knows_more.load(Ordering::Relaxed) {
            return;
        }
        let key = self.endpoint_key(a);
        let meta = ObjectMeta { namespace: Some(key.namespace.clone()), ..ObjectMeta::named(&key.name) };
        let mut resource = Resource::new(meta, WorkloadEndpointSpec::default());
        self.fill(a, &Made { device, mac: String::new(), addresses, floating: Vec::new() }, &mut resource);
        let Ok(value) = serde_json::to_value(&resource) else { return };
        let entry = Entry { key: key.clone(), revision: Revision(0), value: value.into() };
        let told = Told { container: a.container_id.clone(), identity: identity(&resource) };
        lock(&self.announced).insert(key, told);
        // Without its policy thread the agent ends; Register says so.
        drop(self.dataplane.announce(entry).await);
    }

    /// Takes the container's announcement back: its endpoint is not in the store. Its turn keeps this and what the store
    /// says about it in order.
    pub(super) async fn withdraw(&self, a: &Attachment) {
        let key = self.endpoint_key(a);
        let mine = {
            let mut all = lock(&self.announced);
            let mine = all.get(&key).is_some_and(|t| t.container == a.container_id);
            if mine {
                all.remove(&key);
            }
            mine
        };
        if mine {
            drop(self.dataplane.withdraw(key).await);
        }
    }

    /// Records the endpoint and waits until it is in the kernel.
    pub(super) async fn register(&self, a: &Attachment, made: &Made) -> Result<(), Refused> {
        WorkloadEndpointSpec::nats(&made.addresses, &made.floating).map_err(|ip| {
            Refused::new(
                code::CONFIG,
                format!("the pod has no address of the family of its floating address {ip}"),
                "ask for an address of that family too, or correct the annotation floatingIPs",
            )
        })?;
        let key = self.endpoint_key(a);
        let (unlocked, device) = tokio::join!(self.unlocked(), device::find(made.device.clone()));
        unlocked?;
        self.write_endpoint(a, &key, made, device.map(|d| d.index)).await?;
        // From here on the store speaks for it. What it says may be more than was announced (a pod's labels): policy is
        // told now, so that what is waited for below is the endpoint as stored.
        let told = lock(&self.announced).remove(&key);
        if let Some(told) = told {
            let entry = self.store.get(&key).await?;
            if decode::<WorkloadEndpointSpec>(&entry).is_ok_and(|e| identity(&e.resource) != told.identity) {
                // Then announcing costs a second write of rules and gains nothing.
                self.knows_more.store(true, Ordering::Relaxed);
            }
            drop(self.dataplane.announce(entry).await);
        }
        fail::point("agent.register.written");
        let expected = Expected { key, device: made.device.clone(), addresses: made.addresses.clone() };
        self.dataplane.ready(expected, READY).await.map_err(|e| {
            Refused::new(
                code::TRY_AGAIN,
                e,
                "the agent could not program the pod's routes and policy in time; try again, and see its log",
            )
        })?;
        fail::point("agent.register.ready");
        Ok(())
    }

    pub(super) async fn write_endpoint(
        &self,
        a: &Attachment,
        key: &Key,
        made: &Made,
        device: Option<u32>,
    ) -> Result<(), Refused> {
        for attempt in 1..=ATTEMPTS {
            let (mut resource, expect) = match self.endpoint(key).await? {
                Some(found) => (found.resource, Expect::Revision(found.revision)),
                None => {
                    let meta =
                        ObjectMeta { namespace: Some(key.namespace.clone()), ..ObjectMeta::named(&key.name) };
                    (Resource::new(meta, WorkloadEndpointSpec::default()), Expect::Absent)
                }
            };
            self.fill(a, made, &mut resource);
            match device {
                Some(index) => resource.metadata.annotations.insert(DEVICE.to_owned(), index.to_string()),
                None => resource.metadata.annotations.remove(DEVICE),
            };
            match self.store.put_as(&resource, expect).await {
                Ok(_) => {
                    self.wrote();
                    return Ok(());
                }
                Err(StoreError::Conflict(_) | StoreError::Exists(_) | StoreError::NotFound(_)) => {
                    Jitter.pause(attempt).await;
                }
                Err(e) => return Err(e.into()),
            }
        }
        Err(Refused::new(
            code::TRY_AGAIN,
            format!("{key} is changed by somebody else all the time"),
            "try again",
        ))
    }

    fn fill(&self, a: &Attachment, made: &Made, resource: &mut Resource<WorkloadEndpointSpec>) {
        let meta = &mut resource.metadata;
        for (key, value) in [
            ("projectcalico.org/namespace", a.namespace()),
            ("projectcalico.org/orchestrator", a.orchestrator()),
        ] {
            meta.labels.insert(key.to_owned(), value.to_owned());
        }
        for (key, value) in [(CONTAINER, &a.container_id), (NETWORK, &a.network), (NETNS, &a.netns_id)] {
            meta.annotations.insert(key.to_owned(), value.to_owned());
        }
        resource.spec = WorkloadEndpointSpec {
            orchestrator: a.orchestrator().into(),
            workload: if a.pod.is_some() { String::new() } else { a.container_id.clone() },
            node: self.node.clone(),
            container_id: a.container_id.clone(),
            pod: a.pod.as_ref().map(|p| p.name.clone()).unwrap_or_default(),
            endpoint: a.ifname.clone(),
            ip_networks: made.addresses.clone(),
            ip_nats: WorkloadEndpointSpec::nats(&made.addresses, &made.floating).unwrap_or_default(),
            // A container that is no pod belongs to no namespace; only policy restricts it.
            profiles: vec![match &a.pod {
                Some(p) => convert::namespace_profile_name(&p.namespace),
                None => convert::DEFAULT_ALLOW.to_owned(),
            }],
            interface_name: made.device.clone(),
            mac: made.mac.clone(),
            extra: std::mem::take(&mut resource.spec.extra),
            ..WorkloadEndpointSpec::default()
        };
    }

    /// Removes the attachment's endpoint; that of the pod's next sandbox stays. Returns its host device, which may
    /// still be there: a process can keep a namespace alive that the runtime has forgotten.
    pub(super) async fn remove_endpoint(&self, a: &Attachment) -> Result<Option<HostDevice>, Refused> {
        let key = match a.pod {
            Some(_) => self.endpoint_key(a),
            // A DEL may come without the arguments that named the pod.
            None => match self.find_endpoint(a).await? {
                Some(key) => key,
                None => {
                    self.withdraw(a).await;
                    return Ok(None);
                }
            },
        };
        for attempt in 1..=ATTEMPTS {
            let Some(stored) = self.endpoint(&key).await? else {
                self.withdraw(a).await;
                return Ok(None);
            };
            let spec = &stored.resource.spec;
            if spec.container_id != a.container_id {
                tracing::debug!(%key, container = %a.container_id, "belongs to a newer sandbox; left alone");
                return Ok(None);
            }
            match self.store.delete(&key, Expect::Revision(stored.revision)).await {
                Ok(_) | Err(StoreError::NotFound(_)) => {
                    return Ok(host_device(&stored.resource));
                }
                Err(StoreError::Conflict(_)) => Jitter.pause(attempt).await,
                Err(e) => return Err(e.into()),
            }
        }
        Err(Refused::new(
            code::TRY_AGAIN,
            format!("{key} is changed by somebody else all the time"),
            "try again",
        ))
    }

    /// An agent of this state folder may have served the node under another name, which the records of the addresses say:
    /// they are not given back while the endpoint of that time speaks for them.
    pub(super) async fn remove_endpoint_of_former_name(
        &self,
        a: &Attachment,
    ) -> Result<Option<HostDevice>, Refused> {
        let held = self.reader.held_by(&a.handle()).await?;
        let nodes: BTreeSet<&String> = held.iter().filter_map(|h| h.attributes.get("node")).collect();
        if nodes.iter().all(|n| **n == self.node) {
            return Ok(None);
        }
        let listing = self.store.list(&[Kind::WorkloadEndpoint]).await?;
        let of_it = |e: &Endpoint| {
            let spec = &e.resource.spec;
            nodes.contains(&spec.node)
                && spec.node != self.node
                && spec.container_id == a.container_id
                && spec.endpoint == a.ifname
        };
        let found = listing.entries.iter().filter_map(|e| decode::<WorkloadEndpointSpec>(e).ok()).find(of_it);
        let Some(found) = found else { return Ok(None) };
        let key = found.resource.key();
        match self.store.delete(&key, Expect::Revision(found.revision)).await {
            Ok(_) | Err(StoreError::NotFound(_)) => {}
            Err(e) => return Err(e.into()),
        }
        tracing::info!(%key, container = %a.container_id, cause = "the node had another name", "endpoint removed");
        Ok(host_device(&found.resource))
    }

    async fn find_endpoint(&self, a: &Attachment) -> Result<Option<Key>, Refused> {
        let own = self.endpoint_key(a);
        if self.endpoint(&own).await?.is_some() {
            return Ok(Some(own));
        }
        let of_it = |e: &Endpoint| {
            let spec = &e.resource.spec;
            spec.node == self.node && spec.container_id == a.container_id && spec.endpoint == a.ifname
        };
        Ok(self.own_endpoints().await?.iter().find(|e| of_it(e)).map(|e| e.resource.key()))
    }

    /// Endpoints of this node at least: of all nodes where the store cannot leave the others out. One that does not decode
    /// is left out: it is no reason to refuse the others.
    pub(super) async fn own_endpoints(&self) -> Result<Vec<Endpoint>, Refused> {
        let own = self.store.for_node(&self.node);
        let store = own.as_deref().unwrap_or(&*self.store);
        let listing = store.list(&[Kind::WorkloadEndpoint]).await?;
        Ok(listing.entries.iter().filter_map(|e| brindle_config_core::store::decode(e).ok()).collect())
    }

    /// Compares the records with what the plugin says it has.
    pub(super) async fn check(
        &self,
        a: &Attachment,
        addresses: &[IpNet],
        what: Checked,
    ) -> Result<(), Refused> {
        let bad = |msg: String| Refused::new(code::FAILED, msg, "delete the pod; it will be made anew");
        let held = if what == Checked::Endpoint { Vec::new() } else { self.addresses(a).await? };
        let recorded = |n: &&IpNet| what == Checked::Endpoint || held.contains(&n.addr());
        if let Some(lost) = addresses.iter().find(|n| !recorded(n)) {
            return Err(bad(format!("{} is not recorded for {}", lost.addr(), a.handle())));
        }
        if what == Checked::Addresses {
            return Ok(());
        }
        let key = self.endpoint_key(a);
        let Some(stored) = self.endpoint(&key).await? else {
            return Err(bad(format!("{key} does not exist")));
        };
        let spec = stored.resource.spec;
        if spec.container_id != a.container_id {
            return Err(bad(format!("{key} belongs to container {}", spec.container_id)));
        }
        if let Some(lost) = addresses.iter().find(|n| !spec.ip_networks.contains(n)) {
            return Err(bad(format!("{key} lacks {lost}")));
        }
        let expected =
            Expected { key: key.clone(), device: spec.interface_name, addresses: addresses.to_vec() };
        self.dataplane.ready(expected, READY_CHECK).await.map_err(|e| bad(format!("host side: {e}")))?;
        // The agent means it to be there; what the kernel says counts.
        let lacking = self.dataplane.verify(key, VERIFY).await.map_err(|e| bad(format!("policy: {e}")))?;
        if lacking.is_empty() {
            return Ok(());
        }
        Err(Refused::new(
            code::FAILED,
            format!("policy in the kernel: {}", lacking.join("; ")),
            "the agent writes it again now; look for who else changes rules and sets named brindle",
        ))
    }
}
