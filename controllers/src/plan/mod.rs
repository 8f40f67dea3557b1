//! What is to be done, and why: pure. One module for each controller; [`Planner`] adds the memory they share, which is
//! since when something has looked wrong. Whatever takes something away waits for a grace period first, and the thing
//! must have looked the same for all of it: a record that was written meanwhile is another case.

mod affinities;
mod balancers;
mod handles;
mod hosts;
mod nodes;
mod policies;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::IpAddr,
    time::Duration,
};

use brindle_config_core::{
    Key, Resource, controllers::AutoHostEndpointSpec, names::old_policy_names, policy::HostEndpointSpec,
    store::Revision, time::Now,
};
use brindle_ipam::{
    Release,
    leak::{Collector, Leak},
};
use clap::ValueEnum;
use serde_json::Value;

use crate::facts::Facts;

/// One thing that is looked after.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Controller {
    /// Addresses nobody uses.
    Ipam,
    /// What nodes that are gone left.
    Node,
    /// Claims on blocks that stopped halfway.
    Affinity,
    /// Records of handles that hold nothing.
    Handle,
    /// Addresses of LoadBalancer services.
    LoadBalancer,
    /// Policies under the names of Calico before 3.32; once no such Calico runs any more.
    PolicyNames,
    /// Host endpoints that follow from nodes, where KubeControllersConfiguration asks for them.
    HostEndpoint,
}

impl Controller {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::Ipam,
        Self::Node,
        Self::Affinity,
        Self::Handle,
        Self::LoadBalancer,
        Self::PolicyNames,
        Self::HostEndpoint,
    ];

    /// Those that run unless something else is said.
    pub const DEFAULT: [Self; 6] =
        [Self::Ipam, Self::Node, Self::Affinity, Self::Handle, Self::LoadBalancer, Self::HostEndpoint];

    /// What Calico has in one, its node controller.
    pub const OF_NODES: [Self; 5] =
        [Self::Ipam, Self::Node, Self::Affinity, Self::Handle, Self::HostEndpoint];

    /// As it is typed and counted.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ipam => "ipam",
            Self::Node => "node",
            Self::Affinity => "affinity",
            Self::Handle => "handle",
            Self::LoadBalancer => "load-balancer",
            Self::PolicyNames => "policy-names",
            Self::HostEndpoint => "host-endpoint",
        }
    }
}

/// Which LoadBalancer services get addresses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum AssignIps {
    /// Those without a class, and those with one of ours.
    #[default]
    All,
    /// Of these, those that ask for a pool or an address by annotation.
    Requested,
}

/// How long things must look wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Graces {
    pub leak: Duration,
    pub node: Duration,
    pub repair: Duration,
}

/// An address asked for, or one from somewhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// This very one.
    Address(IpAddr),
    /// One of this family from these pools (names or CIDRs); none named: from any.
    Any { v6: bool, pools: Vec<String> },
}

/// One thing to do. Each is guarded where it is carried out: it does nothing if the world has changed.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Release what a handle holds.
    Collect(Leak),
    /// Delete the configuration of a node that is gone.
    DropConfiguration { key: Key, revision: Revision },
    /// Delete the resource of a node that Kubernetes has no more.
    DropNode { key: Key, revision: Revision },
    /// Delete an endpoint of a node that is gone.
    DropEndpoint { key: Key, revision: Revision, node: String },
    /// Give up the blocks of a node that is gone.
    GiveUp { node: String },
    /// Bring the claims of an owner of blocks to an end state.
    Repair { owner: String },
    /// Delete the record of a handle that holds nothing.
    DropHandle { handle: String },
    /// Take addresses from a service that holds them, with the handle and sequence number they were seen under.
    Unbind { service: Key, releases: Vec<Release> },
    /// Take everything a handle of a service holds.
    UnbindAll { service: Key, handle: String },
    /// Give a service an address.
    Bind { service: Key, handle: String, wanted: Wanted },
    /// Write the addresses of a service into its status.
    Status { service: Key, revision: Revision, ingress: Vec<Value> },
    /// Store a policy under its new name, and delete the old one.
    Rename { from: Key, to: Key, revision: Revision },
    /// Delete a policy that is there under its new name as well.
    DropCopy { key: Key, revision: Revision },
    /// Store the host endpoint of a node; `None`: it must not be there yet.
    PutHostEndpoint { key: Key, revision: Option<Revision>, resource: Resource<HostEndpointSpec> },
    /// Delete the host endpoint of a node.
    DropHostEndpoint { key: Key, revision: Revision },
}

impl Action {
    /// Whose it is.
    pub const fn controller(&self) -> Controller {
        match self {
            Self::Collect(_) => Controller::Ipam,
            Self::DropConfiguration { .. }
            | Self::DropNode { .. }
            | Self::DropEndpoint { .. }
            | Self::GiveUp { .. } => Controller::Node,
            Self::Repair { .. } => Controller::Affinity,
            Self::DropHandle { .. } => Controller::Handle,
            Self::Unbind { .. } | Self::UnbindAll { .. } | Self::Bind { .. } | Self::Status { .. } => {
                Controller::LoadBalancer
            }
            Self::Rename { .. } | Self::DropCopy { .. } => Controller::PolicyNames,
            Self::PutHostEndpoint { .. } | Self::DropHostEndpoint { .. } => Controller::HostEndpoint,
        }
    }
}

fn ips(releases: &[Release]) -> String {
    releases.iter().map(|r| r.ip.to_string()).collect::<Vec<_>>().join(" ")
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Collect(leak) => {
                write!(f, "release {} of {} (handle {})", ips(&leak.releases), leak.allocated_to, leak.handle)
            }
            Self::DropConfiguration { key, .. }
            | Self::DropNode { key, .. }
            | Self::DropEndpoint { key, .. } => write!(f, "delete {key}"),
            Self::GiveUp { node } => write!(f, "give up the blocks of node {node}"),
            Self::Repair { owner } => write!(f, "repair the claims of {owner}"),
            Self::DropHandle { handle } => write!(f, "delete the record of handle {handle}"),
            Self::Unbind { service, releases } => write!(f, "release {} of {service}", ips(releases)),
            Self::UnbindAll { service, handle } => {
                write!(f, "release all addresses of {service} (handle {handle})")
            }
            Self::Bind { service, wanted, .. } => match wanted {
                Wanted::Address(ip) => write!(f, "give {ip} to {service}"),
                Wanted::Any { v6, pools } => {
                    let family = if *v6 { "IPv6" } else { "IPv4" };
                    write!(f, "give an {family} address to {service}")?;
                    if pools.is_empty() { Ok(()) } else { write!(f, " from {}", pools.join(" ")) }
                }
            },
            Self::Status { service, ingress, .. } => {
                let all: Vec<&str> = ingress.iter().filter_map(|i| i.get("ip")?.as_str()).collect();
                write!(
                    f,
                    "write the status of {service}: {}",
                    if all.is_empty() { "no address".into() } else { all.join(" ") }
                )
            }
            Self::Rename { from, to, .. } => write!(f, "store {from} as {}", to.name),
            Self::DropCopy { key, .. } | Self::DropHostEndpoint { key, .. } => write!(f, "delete {key}"),
            Self::PutHostEndpoint { key, revision, .. } => {
                write!(f, "{} {key}", if revision.is_some() { "change" } else { "make" })
            }
        }
    }
}

/// Something to do, and its cause.
#[derive(Clone, Debug, PartialEq)]
pub struct Planned {
    pub action: Action,
    pub why: String,
}

/// What to do now, what later, and what cannot be done.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// In the order in which it is to be done.
    pub actions: Vec<Planned>,
    /// What waits for its grace period, by controller: what, and since when.
    pub waiting: Vec<(Controller, String, Now)>,
    /// What somebody has to see to.
    pub problems: Vec<String>,
}

impl Plan {
    fn add(&mut self, action: Action, why: impl Into<String>) {
        self.actions.push(Planned { action, why: why.into() });
    }
}

/// What a planner is to do.
#[derive(Clone, Debug, PartialEq)]
pub struct Rules {
    pub controllers: BTreeSet<Controller>,
    pub graces: Graces,
    pub assign_ips: AssignIps,
    /// Whether endpoints of nodes that are gone may be deleted. Not where they are somebody else's objects: in
    /// Kubernetes they are Pods, which its own collector deletes.
    pub drop_endpoints: bool,
    /// Host endpoints of nodes; `None`: nobody has said, and nothing is done.
    pub host_endpoints: Option<AutoHostEndpointSpec>,
    /// Policies keep their names while ClusterInformation speaks of a Calico that would not find the new ones.
    pub careful_with_names: bool,
}

/// The planner: what looked wrong since when.
#[derive(Clone, Debug)]
pub struct Planner {
    rules: Rules,
    collector: Collector,
    since: BTreeMap<(Controller, String), Now>,
}

/// Remembers what looks wrong in this look; what does no more is forgotten after it.
struct Suspicions<'a> {
    old: &'a BTreeMap<(Controller, String), Now>,
    new: BTreeMap<(Controller, String), Now>,
    now: Now,
}

impl Suspicions<'_> {
    /// Whether it has looked wrong for the grace period; otherwise the plan says that it waits.
    fn ripe(&mut self, controller: Controller, what: String, grace: Duration, plan: &mut Plan) -> bool {
        let key = (controller, what);
        let since = self.old.get(&key).copied().unwrap_or(self.now);
        let ripe = self.now.0.saturating_sub(since.0) >= u64::try_from(grace.as_nanos()).unwrap_or(u64::MAX);
        if !ripe {
            plan.waiting.push((controller, key.1.clone(), since));
        }
        self.new.insert(key, since);
        ripe
    }
}

impl Planner {
    /// A planner that remembers nothing yet.
    pub fn new(rules: Rules) -> Self {
        Self { rules, collector: Collector::default(), since: BTreeMap::new() }
    }

    /// Goes on under other rules. What has looked wrong keeps its time; what is no more looked at is forgotten.
    pub fn rule(&mut self, rules: Rules) {
        self.since.retain(|(controller, _), _| rules.controllers.contains(controller));
        if !rules.controllers.contains(&Controller::Ipam) {
            self.collector = Collector::default();
        }
        self.rules = rules;
    }

    /// Looks at the facts. What is in the plan may be done at once.
    pub fn plan(&mut self, facts: &Facts, now: Now) -> Plan {
        let mut plan = Plan::default();
        plan.problems.extend(facts.unreadable.iter().map(|u| format!("{u}; it is left alone")));
        if facts.locked {
            plan.problems
                .push("ClusterInformation(default): datastoreReady is false; nothing is changed".into());
            return plan;
        }
        let rules = self.rules.clone();
        let on = |c: Controller| rules.controllers.contains(&c);
        let old = std::mem::take(&mut self.since);
        let mut suspicions = Suspicions { old: &old, new: BTreeMap::new(), now };
        if on(Controller::PolicyNames) {
            if rules.careful_with_names && old_policy_names(&facts.calico_version) {
                plan.problems.push(format!(
                    "ClusterInformation(default): Calico {} would not find policies under their new names; they keep the old",
                    facts.calico_version
                ));
            } else {
                policies::plan(facts, &mut plan);
            }
        }
        if facts.nodes.is_empty() {
            let judges = [Controller::Ipam, Controller::Node, Controller::Affinity, Controller::HostEndpoint];
            if judges.into_iter().any(on) {
                plan.problems.push("no Node at all: nothing of nodes is judged".into());
            }
        } else {
            if on(Controller::Node) {
                nodes::plan(facts, &rules, &mut suspicions, &mut plan);
            }
            if on(Controller::Ipam) {
                self.leaks(facts, now, &mut plan);
            }
            if on(Controller::Affinity) {
                affinities::plan(facts, &rules.graces, &mut suspicions, &mut plan);
            }
            if on(Controller::HostEndpoint) {
                hosts::plan(facts, &rules, &mut suspicions, &mut plan);
            }
        }
        if on(Controller::Handle) {
            handles::plan(facts, &rules.graces, &mut suspicions, &mut plan);
        }
        if on(Controller::LoadBalancer) {
            balancers::plan(facts, rules.assign_ips, &mut plan);
        }
        self.since = suspicions.new;
        plan.problems.sort();
        plan.problems.dedup();
        plan
    }

    fn leaks(&mut self, facts: &Facts, now: Now, plan: &mut Plan) {
        let grace = self.rules.graces.leak.as_secs();
        let found = self.collector.look(&facts.blocks, &facts.evidence(), grace, now);
        for leak in found.leaks {
            let why = leak.why;
            plan.add(Action::Collect(leak), why);
        }
        plan.waiting.extend(
            found
                .waiting
                .into_iter()
                .map(|l| (Controller::Ipam, format!("handle {}: {}", l.handle, l.why), l.since)),
        );
        if let Some((_, witness)) = found.unknown.first_key_value() {
            plan.problems
                .push(format!("{} handles are not judged: {witness} cannot be read", found.unknown.len()));
        }
    }
}
