//! Addresses of attachments: asked of the allocator, which one call at a time uses.

use std::{collections::BTreeMap, net::IpAddr};

use brindle_cni::{error::code, fail, proto::Attachment};
use brindle_config_core::{Key, Kind, pool::AllowedUse, store::StoreError};
use brindle_ipam::{
    Allocator, AssignRequest, BlockAllocator, IpamError, Owner, Release, View, Wanted, leak::FOREIGN,
};
use ipnet::IpNet;
use serde_json::Value;

use super::{attached::Kept, history::Event, now, refused::Refused, service::Service};

/// Attribute of an address: network, container and interface where the handle does not tell them.
const ATTACHMENT: &str = "cni.brindle.dev/attachment";

/// What a plugin wishes for.
#[derive(Clone, Debug, Default)]
pub(super) struct Wish {
    pub(super) pools4: Vec<String>,
    pub(super) pools6: Vec<String>,
    pub(super) num4: u8,
    pub(super) num6: u8,
    /// These very addresses.
    pub(super) ips: Vec<IpAddr>,
    /// The pools are the pod's own wish, which comes before that of its namespace.
    pub(super) pools_of_pod: bool,
    /// For another plugin's interface.
    pub(super) foreign: bool,
}

impl Wish {
    /// Whether this address is one of those wished for: by itself, or by its family and its pool.
    fn is_for(&self, ip: IpAddr, view: &View) -> bool {
        if !self.ips.is_empty() {
            return self.ips.contains(&ip);
        }
        let (wanted, pools) =
            if ip.is_ipv6() { (self.num6, &self.pools6) } else { (self.num4, &self.pools4) };
        let pool = || view.pools.iter().find(|p| p.spec.cidr.contains(&ip));
        wanted > 0
            && (pools.is_empty() || pool().is_some_and(|p| pools.iter().any(|named| p.is_named(named))))
    }

    /// What is left to wish for beside these addresses; `None`: nothing.
    fn without(&self, have: &[IpAddr]) -> Option<Self> {
        let mut left = self.clone();
        left.ips.retain(|ip| !have.contains(ip));
        if !self.ips.is_empty() {
            return (!left.ips.is_empty()).then_some(left);
        }
        let of =
            |v6: bool| u8::try_from(have.iter().filter(|ip| ip.is_ipv6() == v6).count()).unwrap_or(u8::MAX);
        left.num4 = self.num4.saturating_sub(of(false));
        left.num6 = self.num6.saturating_sub(of(true));
        (left.num4 > 0 || left.num6 > 0).then_some(left)
    }
}

/// IPv4 first.
fn in_order(mut ips: Vec<IpAddr>) -> Vec<IpNet> {
    ips.sort_by_key(IpAddr::is_ipv6);
    ips.into_iter().map(IpNet::from).collect()
}

/// What an attachment has now.
#[derive(Clone, Debug)]
pub(super) struct Given {
    pub(super) addresses: Vec<IpNet>,
    /// It had them before.
    pub(super) again: bool,
    /// The dataplane was told of them before they were recorded.
    pub(super) announced: bool,
}

impl Service {
    /// The attachment's addresses: those it has, else new ones. With `announce` the dataplane is told of new ones that can
    /// be foreseen, so that policy is written while they are recorded; taken back if it comes otherwise.
    pub(super) async fn assign(&self, a: &Attachment, wish: Wish, announce: bool) -> Result<Given, Refused> {
        let mut foreseen = Vec::new();
        let given = self.assign_foreseen(a, wish, announce.then_some(&mut foreseen)).await;
        let kept = given.as_ref().is_ok_and(|g| g.addresses == foreseen && !g.again);
        if !kept && !foreseen.is_empty() {
            self.withdraw(a).await;
        }
        given.map(|given| Given { announced: kept, ..given })
    }

    async fn assign_foreseen(
        &self,
        a: &Attachment,
        wish: Wish,
        foreseen: Option<&mut Vec<IpNet>>,
    ) -> Result<Given, Refused> {
        if let Some(twice) =
            wish.ips.iter().enumerate().find_map(|(n, ip)| wish.ips[..n].contains(ip).then_some(ip))
        {
            return Err(Refused::new(
                code::CONFIG,
                format!("{twice} is asked for twice"),
                "name each address once in runtimeConfig.ips or the annotation ipAddrs",
            ));
        }
        let namespace = async {
            match &a.pod {
                Some(pod) => self.namespace(&pod.namespace).await.map(Some),
                None => Ok(None),
            }
        };
        // What does not depend on each other is asked for at once.
        let (have, namespace, view) =
            tokio::join!(self.addresses(a), namespace, View::load(&*self.store, &self.node));
        let mut have = have?;
        if wish.without(&have).is_none() {
            let again = !have.is_empty();
            return Ok(Given { addresses: in_order(have), again, announced: false });
        }
        let (namespace, view) = (namespace?, view?);
        let mut wish = wish;
        if let Some(namespace) = namespace.as_ref().filter(|_| !wish.pools_of_pod) {
            namespace.pools(&mut wish)?;
        }
        let labels = namespace.map(|n| n.labels);
        let mut allocator = self.allocator.lock().await;
        // What an agent was killed over may be half of it: the rest is given now.
        let again = !have.is_empty();
        if let Some(kept) = self.hand_on(&mut allocator, a, &wish, &view).await? {
            have = kept.iter().map(IpNet::addr).collect();
        } else if again {
            have = self.addresses(a).await?;
        }
        let Some(missing) = wish.without(&have) else {
            return Ok(Given { addresses: in_order(have), again, announced: false });
        };
        if let Some(foreseen) = foreseen.filter(|_| !again) {
            *foreseen = self.foresee(&allocator, a, &missing, labels.as_ref(), &view);
            if !foreseen.is_empty() {
                self.announce(a, a.host_ifname(&self.pod_prefix()), foreseen.clone()).await;
            }
        }
        let mut ips = Vec::new();
        match self.allocate(&mut allocator, a, missing, labels, &view, &mut ips).await {
            Ok(()) => {
                self.wrote();
                self.history.note(Event::Given, &ips, &a.handle(), &whose(a), &self.node);
                tracing::info!(container = %a.container_id, workload = a.workload(), addresses = ?ips, "addresses given");
                // As they were asked for, unless some come from before.
                let all_new = have.is_empty();
                have.extend(ips);
                let addresses =
                    if all_new { have.into_iter().map(IpNet::from).collect() } else { in_order(have) };
                Ok(Given { addresses, again, announced: false })
            }
            Err(refused) => {
                // One family may have been given before the other was refused.
                // What there was before stays: the pod may be running on it.
                let back = if again {
                    let given =
                        ips.iter().map(|ip| Release { ip: *ip, handle: Some(a.handle()), sequence: None });
                    allocator.release_ips(&given.collect::<Vec<_>>(), &view, now()).await.map(drop)
                } else {
                    allocator.release_handle(&a.handle(), &view, now()).await.map(drop)
                };
                if let Err(e) = back {
                    tracing::warn!(handle = %a.handle(), "addresses of a refused request are not back yet: {e}");
                    drop(allocator);
                    if !again {
                        self.note_release(a).await;
                    }
                }
                Err(refused)
            }
        }
    }

    /// The addresses of the pod's former sandbox, which went without a DEL (a reboot): the pod keeps them.
    async fn hand_on(
        &self,
        allocator: &mut BlockAllocator,
        a: &Attachment,
        wish: &Wish,
        view: &View,
    ) -> Result<Option<Vec<IpNet>>, Refused> {
        let has = |k: &Kept, ip: &IpAddr| k.addresses.iter().any(|n| n.addr() == *ip);
        let fits = |k: &Kept| !k.given && wish.ips.iter().all(|ip| has(k, ip));
        let Some(former) = self.attached.of_pod(a).filter(|k| !wish.foreign && fits(k)) else {
            return Ok(None);
        };
        if self.may_live(a).await {
            return Ok(None);
        }
        let now = now();
        let owner = Owner { handle: a.handle(), attributes: self.attributes(a, &now.attribute(), false) };
        // What a pod wishes for no more goes as the former sandbox's.
        let kept: Vec<IpNet> =
            former.addresses.iter().filter(|n| wish.is_for(n.addr(), view)).copied().collect();
        if kept.is_empty() {
            return Ok(None);
        }
        let ips: Vec<IpAddr> = kept.iter().map(IpNet::addr).collect();
        for ip in &ips {
            match allocator.keep(*ip, &former.handle, &owner, view, now).await {
                Ok(()) => {}
                Err(IpamError::Store(e)) => return Err(e.into()),
                // Not his any more: new ones, and whatever was handed on already goes back with the handle.
                Err(e) => {
                    tracing::info!(workload = a.workload(), cause = %e, "does not keep its addresses");
                    allocator.release_handle(&a.handle(), view, now).await?;
                    return Ok(None);
                }
            }
        }
        self.history.note(Event::Kept, &ips, &a.handle(), &whose(a), &self.node);
        self.attached.forget(&former.attachment).await;
        tracing::info!(container = %a.container_id, workload = a.workload(), addresses = ?ips,
            cause = "its former sandbox is gone", "addresses kept");
        Ok(Some(kept))
    }

    /// What [`Self::allocate`] will give, as far as the node's own blocks tell.
    fn foresee(
        &self,
        allocator: &BlockAllocator,
        a: &Attachment,
        wish: &Wish,
        namespace_labels: Option<&BTreeMap<String, String>>,
        view: &View,
    ) -> Vec<IpNet> {
        if !wish.ips.is_empty() {
            return Vec::new();
        }
        let request = AssignRequest {
            owner: Owner { handle: a.handle(), attributes: BTreeMap::new() },
            v4: Wanted { count: wish.num4.into(), pools: wish.pools4.clone() },
            v6: Wanted { count: wish.num6.into(), pools: wish.pools6.clone() },
            intended_use: AllowedUse::Workload,
            namespace_labels: namespace_labels.cloned(),
            max_blocks: 0,
        };
        allocator.foresee(&request, view, now()).into_iter().map(IpNet::from).collect()
    }

    async fn allocate(
        &self,
        allocator: &mut BlockAllocator,
        a: &Attachment,
        wish: Wish,
        namespace_labels: Option<BTreeMap<String, String>>,
        view: &View,
        given: &mut Vec<IpAddr>,
    ) -> Result<(), Refused> {
        let now = now();
        let owner =
            Owner { handle: a.handle(), attributes: self.attributes(a, &now.attribute(), wish.foreign) };
        if !wish.ips.is_empty() {
            for ip in wish.ips {
                given.push(allocator.assign_ip(ip, &owner, AllowedUse::Workload, view, now).await?.ip);
            }
            return Ok(());
        }
        let v4 = Wanted { count: wish.num4.into(), pools: wish.pools4 };
        let v6 = Wanted { count: wish.num6.into(), pools: wish.pools6 };
        for (v4, v6) in [(v4, Wanted::default()), (Wanted::default(), v6)] {
            if v4.count + v6.count == 0 {
                continue;
            }
            if !given.is_empty() {
                fail::point("agent.add.half");
            }
            let request = AssignRequest {
                owner: owner.clone(),
                v4,
                v6,
                intended_use: AllowedUse::Workload,
                namespace_labels: namespace_labels.clone(),
                max_blocks: 0,
            };
            let assignment = allocator.assign(&request, view, now).await?;
            given.extend(assignment.addresses.iter().map(|a| a.ip));
            if let Some(why) = assignment.refusal() {
                return Err(Refused::new(
                    if why.exhausted() { code::POOL_EXHAUSTED } else { code::CONFIG },
                    format!("no address for {}: {why}", a.workload()),
                    if why.resting() {
                        "nothing needs doing: it is tried again; or add an IPPool that serves this node"
                    } else if why.reserved() {
                        "take addresses out of the IPReservation, add an IPPool that serves this node, or free addresses"
                    } else {
                        "add an IPPool that serves this node, or free addresses"
                    },
                ));
            }
        }
        Ok(())
    }

    pub(super) fn attributes(
        &self,
        a: &Attachment,
        timestamp: &str,
        foreign: bool,
    ) -> BTreeMap<String, String> {
        let mut attributes = BTreeMap::from([
            ("node".to_owned(), self.node.clone()),
            ("timestamp".to_owned(), timestamp.to_owned()),
        ]);
        if foreign {
            attributes.insert(FOREIGN.into(), "true".into());
        }
        if a.former_handle().is_some() {
            // The handle has digests of it.
            let whole = format!("{}/{}/{}", a.network, a.container_id, a.ifname);
            attributes.insert(ATTACHMENT.into(), whole);
        }
        if let Some(pod) = &a.pod {
            attributes.insert("namespace".into(), pod.namespace.clone());
            attributes.insert("pod".into(), pod.name.clone());
        }
        attributes
    }

    /// The addresses the attachment has, by the records.
    pub(super) async fn addresses(&self, a: &Attachment) -> Result<Vec<IpAddr>, Refused> {
        let mut all = self.reader.by_handle(&a.handle()).await?;
        if let Some(former) = a.former_handle() {
            all.extend(self.held_for(a, &former).await?);
        }
        Ok(all)
    }

    /// What a handle holds that may be this attachment's or another's: nothing, unless all that is recorded speaks for it.
    async fn held_for(&self, a: &Attachment, handle: &str) -> Result<Vec<IpAddr>, Refused> {
        let held = self.reader.held_by(handle).await?;
        if held.is_empty() || self.attached.owners(handle).iter().any(|o| !o.is_same(a)) {
            return Ok(Vec::new());
        }
        // A DEL need not name the pod.
        let remembered = self.attached.of(a).and_then(|k| k.attachment.pod);
        let pod = a.pod.clone().or(remembered).map(|p| (p.namespace, p.name));
        let own = held.iter().all(|h| {
            let text = |key: &str| h.attributes.get(key).cloned();
            text("node").as_ref() == Some(&self.node) && text("namespace").zip(text("pod")) == pod
        });
        Ok(if own { held.into_iter().map(|h| h.ip).collect() } else { Vec::new() })
    }

    /// Gives all addresses of the attachment back.
    pub(super) async fn release(&self, a: &Attachment) -> Result<(), Refused> {
        let former = match a.former_handle() {
            Some(former) if !self.held_for(a, &former).await?.is_empty() => Some(former),
            _ => None,
        };
        let mut back = self.release_handle(&a.handle(), &whose(a)).await?;
        if let Some(former) = former {
            back += self.release_handle(&former, &whose(a)).await?;
        }
        if back == 0
            && let Some(old) = self.held_as_workload(a).await?
        {
            self.release_handle(&old, &whose(a)).await?;
        }
        Ok(())
    }

    /// The handle an old Calico gave the pod, `<namespace>.<pod>`, if it holds something of it that no endpoint has. Only
    /// asked for where the attachment's own handle held nothing.
    async fn held_as_workload(&self, a: &Attachment) -> Result<Option<String>, Refused> {
        let Some(pod) = a.pod.as_ref().filter(|_| a.ifname == "eth0") else { return Ok(None) };
        let handle = format!("{}.{}", pod.namespace, pod.name);
        let held = self.held_for(a, &handle).await?;
        if held.is_empty() {
            return Ok(None);
        }
        let there = self.endpoint(&self.endpoint_key(a)).await?;
        let in_use =
            there.is_some_and(|e| e.resource.spec.ip_networks.iter().any(|n| held.contains(&n.addr())));
        Ok((!in_use).then_some(handle))
    }

    /// Says how many addresses came back.
    pub(super) async fn release_handle(&self, handle: &str, whose: &str) -> Result<usize, Refused> {
        let view = View::load(&*self.store, &self.node).await?;
        let back = self.allocator.lock().await.release_handle(handle, &view, now()).await?;
        if !back.is_empty() {
            self.history.note(Event::Returned, &back, handle, whose, &self.node);
            tracing::info!(%handle, addresses = ?back, "addresses returned");
        }
        self.attached.forget_handle(handle).await;
        Ok(back.len())
    }
}

/// Whom the addresses are for, as a person would say.
pub(super) fn whose(a: &Attachment) -> String {
    match &a.pod {
        Some(pod) => format!("{}/{}", pod.namespace, pod.name),
        None => a.container_id.clone(),
    }
}

/// What matters of a namespace: one without a record has the labels every namespace has.
struct Namespace {
    name: String,
    labels: BTreeMap<String, String>,
    annotations: BTreeMap<String, String>,
}

impl Namespace {
    /// The pools its annotations name, in place of those of the network configuration.
    fn pools(&self, wish: &mut Wish) -> Result<(), Refused> {
        let read = |key: &str| -> Result<Option<Vec<String>>, Refused> {
            let text =
                self.annotations.get(&format!("cni.projectcalico.org/{key}")).filter(|t| !t.is_empty());
            text.map(|t| serde_json::from_str(t)).transpose().map_err(|e| {
                Refused::new(
                    code::CONFIG,
                    format!(
                        "annotation cni.projectcalico.org/{key} of namespace {}: no JSON list: {e}",
                        self.name
                    ),
                    "write it like [\"10.0.0.0/16\"]",
                )
            })
        };
        if let Some(pools) = read("ipv4pools")? {
            wish.pools4 = pools;
        }
        if let Some(pools) = read("ipv6pools")? {
            wish.pools6 = pools;
        }
        Ok(())
    }
}

impl Service {
    async fn namespace(&self, name: &str) -> Result<Namespace, Refused> {
        let mut out = Namespace {
            name: name.to_owned(),
            labels: ["projectcalico.org/name", "kubernetes.io/metadata.name"]
                .map(|key| (key.to_owned(), name.to_owned()))
                .into(),
            annotations: BTreeMap::new(),
        };
        let entry = match self.store.get(&Key::new(Kind::Namespace, None, name)).await {
            Ok(entry) => entry,
            Err(StoreError::NotFound(_)) => return Ok(out),
            Err(e) => return Err(e.into()),
        };
        let texts = |key: &str| {
            let all = entry.value.pointer(key).and_then(Value::as_object).into_iter().flatten();
            all.filter_map(|(k, v)| Some((k.clone(), v.as_str()?.to_owned()))).collect::<Vec<_>>()
        };
        out.labels.extend(texts("/metadata/labels"));
        out.annotations.extend(texts("/metadata/annotations"));
        Ok(out)
    }
}
