//! Which addresses nobody uses any more. An address counts as live while one of three witnesses knows it: the store (an
//! endpoint has it), the runtime (its container is still attached), the kernel (a route leads to it). A witness that
//! cannot be heard speaks for every address. What no witness knows for a grace period is a leak; a handle is collected
//! whole or not at all. Memory and time are the caller's: [`Collector`] decides, whoever has a store releases, with the
//! handle and sequence number of the decision as guards.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use crate::{
    block::{Allocation, Release},
    time::Now,
    usage::{Blocks, allocated_to},
};

/// Attribute of an address given to another plugin's interface. No endpoint and no route of ours ever knows it, so that
/// only the runtime can speak for it, and a runtime that keeps no memory of its attachments is silent about the living. Who
/// hears no runtime goes by its pod and its node: both must be gone.
pub const FOREIGN: &str = "cni.brindle.dev/foreign-interface";

const GONE: &str = "its node is gone";

/// What the witnesses say. `None`: could not be heard.
#[derive(Clone, Debug, Default)]
pub struct Evidence {
    /// The node that judges; it hears only its own runtime and kernel.
    pub node: String,
    /// Instead: somebody judges for the whole cluster, who hears no runtime and no kernel. The store's word alone
    /// counts then, as it does for Calico's controller: an address is a leak when no endpoint has it and the pod it was
    /// recorded for is known.
    pub cluster: bool,
    /// Nodes of the cluster.
    pub nodes: Option<BTreeSet<String>>,
    /// Addresses of endpoints, with the handles of their containers.
    pub endpoints: Option<BTreeMap<IpAddr, BTreeSet<String>>>,
    /// Pods that have an endpoint: node, namespace and name. Their other interfaces have none.
    pub pods: BTreeSet<(String, String, String)>,
    /// Handles of attachments the runtime of this node knows.
    pub attachments: Option<BTreeSet<String>>,
    /// Addresses the kernel of this node has a pod's route to.
    pub kernel: Option<BTreeSet<IpAddr>>,
}

/// Why an allocation is left alone, or not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// No pod's: tunnel devices of living nodes, load balancers, addresses kept by hand.
    NotJudged(&'static str),
    /// A witness knows it.
    Live(&'static str),
    /// A witness could not be heard.
    Unknown(&'static str),
    /// Nobody knows it.
    Leaked(&'static str),
}

/// A handle to collect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leak {
    pub handle: String,
    pub node: String,
    /// `namespace/pod` where recorded.
    pub allocated_to: String,
    pub why: &'static str,
    /// Since when no witness knew it.
    pub since: Now,
    pub releases: Vec<Release>,
    /// Another handle holds one of these addresses in an overlapping block: release by handle, for the address alone
    /// does not say which record is meant.
    pub twice: bool,
}

/// Outcome of one look.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Findings {
    /// Leaks whose grace period is over.
    pub leaks: Vec<Leak>,
    /// Leaks that must wait, the same shape.
    pub waiting: Vec<Leak>,
    /// Handles left alone because a witness could not be heard, with which.
    pub unknown: BTreeMap<String, &'static str>,
}

/// Remembers since when a handle has had no witness.
#[derive(Clone, Debug, Default)]
pub struct Collector {
    since: BTreeMap<String, Suspect>,
    /// Handles of other plugins' interfaces the runtime was seen to know: it is proof when it knows one no longer.
    attached: BTreeSet<String>,
}

#[derive(Clone, Debug)]
struct Suspect {
    since: Now,
    /// The allocations meant: a handle that was given something new is another case.
    held: BTreeSet<(IpAddr, u64)>,
}

impl Collector {
    /// For a second look at once: without the memory of since when.
    #[must_use]
    pub fn again(&self) -> Self {
        Self { since: BTreeMap::new(), attached: self.attached.clone() }
    }

    /// Looks at all allocations. `grace` in seconds.
    pub fn look(&mut self, blocks: &Blocks, evidence: &Evidence, grace: u64, now: Now) -> Findings {
        let mut owners: BTreeMap<IpAddr, BTreeSet<&str>> = BTreeMap::new();
        let mut handles: BTreeMap<&str, Vec<Allocation<'_>>> = BTreeMap::new();
        for (_, a) in blocks.allocations().filter(|(_, a)| !a.cooling()) {
            let Some(handle) = a.attribute.handle_id.as_deref().map(crate::names::sanitized) else {
                continue;
            };
            owners.entry(a.ip).or_default().insert(handle);
            handles.entry(handle).or_default().push(a);
        }
        self.attached.retain(|h| handles.contains_key(h.as_str()));
        let foreign = |held: &[Allocation<'_>]| held.iter().any(is_foreign);
        for (handle, _) in handles.iter().filter(|(_, held)| foreign(held)) {
            if evidence.attachments.as_ref().is_some_and(|all| all.contains(*handle)) {
                self.attached.insert((*handle).to_owned());
            }
        }
        let mut found = Findings::default();
        let mut suspects = BTreeMap::new();
        for (handle, held) in &handles {
            let was_attached = self.attached.contains(*handle);
            let why = match judge_handle(handle, held, &owners, evidence, was_attached) {
                Verdict::Leaked(why) => why,
                Verdict::Unknown(witness) => {
                    found.unknown.insert((*handle).to_owned(), witness);
                    continue;
                }
                Verdict::Live(_) | Verdict::NotJudged(_) => continue,
            };
            let meant: BTreeSet<(IpAddr, u64)> = held.iter().map(|a| (a.ip, a.sequence)).collect();
            let since = self.since.get(*handle).filter(|s| s.held == meant).map_or(now, |s| s.since);
            suspects.insert((*handle).to_owned(), Suspect { since, held: meant });
            let leak = Leak {
                handle: (*handle).to_owned(),
                node: held.iter().find_map(node_of).unwrap_or_default().to_owned(),
                allocated_to: held.first().map(allocated_to).unwrap_or_default(),
                why,
                since,
                releases: held
                    .iter()
                    .map(|a| Release {
                        ip: a.ip,
                        handle: Some((*handle).to_owned()),
                        sequence: Some(a.sequence),
                    })
                    .collect(),
                twice: held.iter().any(|a| owners.get(&a.ip).is_some_and(|o| o.len() > 1)),
            };
            let patience = if why == GONE { patience(evidence) } else { 0 };
            let wait = grace.saturating_mul(patience.saturating_add(1));
            let list = if now.secs_since(since) >= wait { &mut found.leaks } else { &mut found.waiting };
            list.push(leak);
        }
        self.since = suspects;
        found
    }
}

fn node_of<'a>(a: &Allocation<'a>) -> Option<&'a str> {
    a.attribute.secondary.get("node").map(String::as_str)
}

/// Node, namespace and name of the pod it was given for.
fn pod_of(a: &Allocation<'_>) -> Option<(String, String, String)> {
    let text = |key: &str| a.attribute.secondary.get(key).cloned();
    Some((text("node")?, text("namespace")?, text("pod")?))
}

fn is_foreign(a: &Allocation<'_>) -> bool {
    a.attribute.secondary.contains_key(FOREIGN)
}

/// One witness for one address is enough for the whole handle.
fn judge_handle(
    handle: &str,
    held: &[Allocation<'_>],
    owners: &BTreeMap<IpAddr, BTreeSet<&str>>,
    evidence: &Evidence,
    was_attached: bool,
) -> Verdict {
    let mut leaked = Verdict::NotJudged("it holds nothing");
    for a in held {
        match judge(handle, a, owners, evidence, was_attached) {
            Verdict::Leaked(why) => leaked = Verdict::Leaked(why),
            spared => return spared,
        }
    }
    leaked
}

/// The judgement of one allocation under its handle.
fn judge(
    handle: &str,
    a: &Allocation<'_>,
    owners: &BTreeMap<IpAddr, BTreeSet<&str>>,
    evidence: &Evidence,
    was_attached: bool,
) -> Verdict {
    let Some(node) = node_of(a) else { return Verdict::NotJudged("it belongs to no node") };
    let tunnel = a.attribute.secondary.get("type").is_some_and(|t| t.ends_with("TunnelAddress"));
    let of_pod = a.attribute.secondary.contains_key("pod");
    let Some(nodes) = &evidence.nodes else { return Verdict::Unknown("the list of nodes") };
    let gone = !nodes.contains(node);
    if tunnel {
        return if gone { Verdict::Leaked(GONE) } else { Verdict::NotJudged("a tunnel device's") };
    }
    // `<network>.<container>` is how attachments are named; what is named otherwise was taken by hand.
    if !of_pod && !handle.contains('.') {
        return Verdict::NotJudged("taken by hand");
    }
    let Some(endpoints) = &evidence.endpoints else { return Verdict::Unknown("the endpoints in the store") };
    if let Some(by) = endpoints.get(&a.ip)
        && (by.is_empty() || by.iter().any(|h| h == handle))
    {
        return Verdict::Live("an endpoint has it");
    }
    if evidence.cluster && endpoints.contains_key(&a.ip) {
        // Under another handle; only the node's own runtime could tell whose it really is.
        return Verdict::Live("an endpoint has it");
    }
    if is_foreign(a)
        && pod_of(a).is_some_and(|pod| evidence.pods.contains(&pod))
        && (gone || evidence.cluster)
    {
        return Verdict::Live("its pod lives");
    }
    if gone {
        return Verdict::Leaked(GONE);
    }
    if evidence.cluster {
        // That no endpoint has it says nothing of another plugin's interface.
        return if of_pod && !is_foreign(a) {
            Verdict::Leaked("no endpoint has it")
        } else {
            Verdict::NotJudged("its node knows best")
        };
    }
    if node != evidence.node {
        return Verdict::NotJudged("another node's");
    }
    let Some(attachments) = &evidence.attachments else { return Verdict::Unknown("the container runtime") };
    if attachments.contains(handle) {
        return Verdict::Live("its container is attached");
    }
    if is_foreign(a) {
        return if was_attached {
            Verdict::Leaked("the runtime detached its container")
        } else {
            Verdict::Unknown("another plugin's interface, and the runtime was never seen to know it")
        };
    }
    let Some(kernel) = &evidence.kernel else { return Verdict::Unknown("the kernel") };
    // The kernel knows addresses, not handles: when two records claim one address and the other's container is known,
    // the route is the other's.
    let anothers = owners.get(&a.ip).is_some_and(|all| {
        let known = |h: &str| {
            attachments.contains(h) || endpoints.get(&a.ip).is_some_and(|by| by.iter().any(|e| e == h))
        };
        all.iter().any(|h| *h != handle && known(h))
    });
    if kernel.contains(&a.ip) && !anothers {
        return Verdict::Live("the kernel has a route to it");
    }
    if endpoints.contains_key(&a.ip) && !anothers {
        return Verdict::Live("an endpoint has it");
    }
    Verdict::Leaked("no endpoint, no container and no route know it")
}

/// How many more grace periods an agent leaves what vanished nodes left to those before it by name. Whether these live it
/// cannot tell; the first that does is quicker than the rest, and who comes second finds nothing to release.
fn patience(evidence: &Evidence) -> u64 {
    let nodes = evidence.nodes.iter().flatten();
    let before = nodes.filter(|n| !evidence.cluster && **n < evidence.node).count();
    u64::try_from(before).unwrap_or(u64::MAX)
}
