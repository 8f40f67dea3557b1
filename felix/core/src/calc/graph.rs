//! The graph itself: state, what a change of a resource touches, and the flush.

use std::{
    cmp::Ordering,
    collections::{BTreeMap, BTreeSet, HashMap, hash_map},
    hash::{Hash, Hasher},
    sync::Arc,
};

use brindle_config_core::{Key, Kind, convert, felix::FelixConfigurationSpec, meta::Extra, store::SyncEvent};
use ipnet::IpNet;
use serde_json::Value;

use super::{
    compile::{SetDef, Sets},
    inputs::{self, Endpoint, Input, Item, Labelled, Profile},
    ip_sets::Members,
    labels::{Change, LabelIndex, LabelList, Words},
};
use crate::policy::active::{
    Action, ActivePolicy, ActiveProfile, EndpointId, EndpointPolicy, IpSet, IpSetDelta, IpSetId, IpSetMember,
    PolicyDelta, PolicyId, PolicySettings, Rule, TierAction, Why,
};

/// The kinds the graph follows.
pub const KINDS: [Kind; 19] = [
    Kind::FelixConfiguration,
    Kind::WorkloadEndpoint,
    Kind::Tier,
    Kind::GlobalNetworkPolicy,
    Kind::NetworkPolicy,
    Kind::StagedGlobalNetworkPolicy,
    Kind::StagedNetworkPolicy,
    Kind::StagedKubernetesNetworkPolicy,
    Kind::NetworkSet,
    Kind::GlobalNetworkSet,
    Kind::HostEndpoint,
    Kind::Profile,
    Kind::KubernetesNetworkPolicy,
    Kind::ClusterNetworkPolicy,
    Kind::AdminNetworkPolicy,
    Kind::BaselineAdminNetworkPolicy,
    Kind::Namespace,
    Kind::ServiceAccount,
    Kind::EndpointSlice,
];

/// Which endpoints are resolved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Those of one node.
    Node(String),
    /// All: for questions about the whole cluster.
    All,
}

/// How much was done; for benchmarks and metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Work {
    /// Selectors tried on items.
    pub evaluations: u64,
    /// IP sets in use.
    pub sets: usize,
    /// Local endpoints.
    pub endpoints: usize,
}

#[derive(Debug)]
struct Set {
    def: SetDef,
    refs: usize,
    sent: bool,
    members: Members,
}

/// Backends of a service with their ports, and without.
type Backends = (Vec<IpSetMember>, Vec<IpSetMember>);

/// The key of a resource, kept once however many tables name it.
pub(crate) type Name = Arc<Key>;

/// A [`Name`] that is compared by where it is: every key is kept once, the indexes hold tens of thousands, and their order
/// means nothing.
#[derive(Clone, Debug)]
pub(crate) struct Place(pub(crate) Name);

impl PartialEq for Place {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for Place {}

impl PartialOrd for Place {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Place {
    fn cmp(&self, other: &Self) -> Ordering {
        Arc::as_ptr(&self.0).cmp(&Arc::as_ptr(&other.0))
    }
}

impl Hash for Place {
    fn hash<H: Hasher>(&self, state: &mut H) {
        Arc::as_ptr(&self.0).hash(state);
    }
}

/// A policy or profile as sent, with the sets it holds.
type Sent<T> = (Arc<T>, Vec<IpSetId>);

/// The graph.
#[derive(Debug)]
pub struct Graph {
    scope: Scope,
    in_sync: bool,
    told_in_sync: bool,
    pub(crate) inputs: HashMap<Name, Input>,
    /// Of these the policies.
    pub(crate) policies: BTreeSet<Name>,
    pub(crate) bad: BTreeMap<Key, Vec<String>>,
    pub(crate) tiers: BTreeMap<String, (Option<f64>, TierAction)>,
    /// Profile → the resources that make it; the first one counts.
    profiles: BTreeMap<String, BTreeSet<Name>>,
    /// Of labels and names of nodes.
    words: Words,
    /// Parents without a resource whose labels the indexes know.
    implied: BTreeSet<String>,
    /// Policies × local endpoints.
    pub(crate) local: LabelIndex<Place, Place>,
    /// Selectors of active rules × all endpoints and network sets.
    selected: LabelIndex<IpSetId, Place>,
    sets: BTreeMap<IpSetId, Set>,
    /// Service → slice → backends with and without ports.
    services: BTreeMap<(String, String), BTreeMap<Name, Backends>>,
    /// Address → workloads that have it.
    pub(crate) owners: BTreeMap<IpNet, Vec<Name>>,
    /// Local workloads by node and device.
    pub(crate) devices: BTreeMap<(Arc<str>, String), BTreeSet<Name>>,
    /// Addresses with more than one of them.
    pub(crate) shared: BTreeSet<IpNet>,
    local_endpoints: BTreeSet<Name>,
    /// Profile → how many local endpoints name it.
    wanted_profiles: BTreeMap<String, usize>,
    /// FelixConfigurations by name, `default` and this node's.
    felix: BTreeMap<String, Extra>,
    pub(crate) settings: PolicySettings,
    dirty_policies: BTreeSet<Name>,
    dirty_profiles: BTreeSet<String>,
    dirty_endpoints: BTreeSet<Name>,
    dirty_sets: BTreeSet<IpSetId>,
    sent_settings: Option<PolicySettings>,
    sent_policies: BTreeMap<Name, Sent<ActivePolicy>>,
    sent_profiles: BTreeMap<String, Sent<ActiveProfile>>,
    sent_endpoints: BTreeMap<Name, Arc<EndpointPolicy>>,
}

impl Graph {
    /// Nothing known yet.
    pub fn new(scope: Scope) -> Self {
        let tiers = convert::BUILT_IN_TIERS.into_iter().map(|(name, order, pass)| {
            (name.to_owned(), (Some(order), if pass { TierAction::Pass } else { TierAction::Deny }))
        });
        Self {
            scope,
            in_sync: false,
            told_in_sync: false,
            inputs: HashMap::new(),
            policies: BTreeSet::new(),
            bad: BTreeMap::new(),
            tiers: tiers.collect(),
            profiles: BTreeMap::new(),
            words: Words::default(),
            implied: BTreeSet::new(),
            local: LabelIndex::default(),
            selected: LabelIndex::default(),
            sets: BTreeMap::new(),
            services: BTreeMap::new(),
            owners: BTreeMap::new(),
            devices: BTreeMap::new(),
            shared: BTreeSet::new(),
            local_endpoints: BTreeSet::new(),
            wanted_profiles: BTreeMap::new(),
            felix: BTreeMap::new(),
            settings: PolicySettings::default(),
            dirty_policies: BTreeSet::new(),
            dirty_profiles: BTreeSet::new(),
            dirty_endpoints: BTreeSet::new(),
            dirty_sets: BTreeSet::new(),
            sent_settings: None,
            sent_policies: BTreeMap::new(),
            sent_profiles: BTreeMap::new(),
            sent_endpoints: BTreeMap::new(),
        }
    }

    /// Takes one event of the store.
    pub fn handle(&mut self, event: &SyncEvent) {
        match event {
            SyncEvent::Upsert(e) => self.put(&e.key, &e.value),
            SyncEvent::Delete(key) => self.delete(key),
            SyncEvent::InSync => self.in_sync = true,
        }
    }

    /// A resource as it is now.
    pub fn put(&mut self, key: &Key, value: &Value) {
        if !KINDS.contains(&key.kind) {
            return;
        }
        let mine = match &self.scope {
            Scope::All => None,
            Scope::Node(node) => Some(node.as_str()),
        };
        let of_another = |mine| key.name != "default" && key.name.strip_prefix("node.") != Some(mine);
        if key.kind == Kind::FelixConfiguration && of_another(mine.unwrap_or_default()) {
            return;
        }
        let far = mine.and_then(|mine| inputs::far(key, value, mine, &mut self.words));
        let (input, problems) = match far {
            Some(input) => (input, Vec::new()),
            None => {
                let (mut input, problems) = inputs::read(key, value);
                input.compact(&mut self.words, mine);
                (input, problems)
            }
        };
        if problems.is_empty() {
            self.bad.remove(key)
        } else {
            self.bad.insert(key.clone(), problems)
        };
        if key.kind == Kind::FelixConfiguration
            && input == Input::Nothing
            && self.felix.contains_key(&key.name)
        {
            // Nothing of it can be read: what was said before holds. Defaults might open the host.
            return;
        }
        self.change(key, Some(input));
    }

    /// The settings of `default`, and field by field above them those of this node.
    fn effective(&self) -> PolicySettings {
        let own = match &self.scope {
            Scope::All => None,
            Scope::Node(node) => self.felix.get(&format!("node.{node}")),
        };
        let mut extra = self.felix.get("default").cloned().unwrap_or_default();
        extra.extend(own.cloned().unwrap_or_default());
        inputs::settings(&FelixConfigurationSpec { extra, ..Default::default() }, &mut Vec::new())
    }

    /// A resource that is no more.
    pub fn delete(&mut self, key: &Key) {
        self.bad.remove(key);
        self.change(key, None);
    }

    /// The datastore's snapshot is complete.
    pub const fn set_in_sync(&mut self) {
        self.in_sync = true;
    }

    /// How much was done so far.
    pub fn work(&self) -> Work {
        Work {
            evaluations: self.local.evaluations + self.selected.evaluations,
            sets: self.sets.len(),
            endpoints: self.local_endpoints.len(),
        }
    }

    /// Staged policies that select an endpoint, in order: they are not enforced.
    pub fn staged(&self, id: &EndpointId) -> Vec<PolicyId> {
        self.staged_of(&endpoint_key(id))
    }

    /// Where a resource's key is kept. What is dirty may have been deleted and come back since, under another one.
    pub(crate) fn place(&self, key: &Key) -> Option<Place> {
        self.inputs.get_key_value(key).map(|(name, _)| Place(Name::clone(name)))
    }

    pub(crate) fn is_local(&self, key: &Key) -> bool {
        self.local_endpoints.contains(key)
    }

    pub(crate) fn local_keys(&self, kind: Kind) -> impl Iterator<Item = &Name> {
        self.local_endpoints.iter().filter(move |k| k.kind == kind)
    }

    fn change(&mut self, key: &Key, new: Option<Input>) {
        // One search: the map is the largest there is.
        let (key, old) = match &new {
            Some(new) => match self.inputs.entry(Name::new(key.clone())) {
                hash_map::Entry::Occupied(e) if e.get() == new => return,
                hash_map::Entry::Occupied(mut e) => (Name::clone(e.key()), Some(e.insert(new.clone()))),
                hash_map::Entry::Vacant(e) => {
                    let name = Name::clone(e.key());
                    e.insert(new.clone());
                    (name, None)
                }
            },
            None => match self.inputs.remove_entry(key) {
                Some((name, old)) => (name, Some(old)),
                None => return,
            },
        };
        self.sort_out(&key, old.as_ref(), new.as_ref());
    }

    fn sort_out(&mut self, key: &Name, old: Option<&Input>, new: Option<&Input>) {
        let endpoint = |i: Option<&Input>| match i {
            Some(Input::Endpoint(e)) => Some(Arc::clone(e)),
            _ => None,
        };
        match key.kind {
            Kind::Tier => {
                match new {
                    Some(Input::Tier(order, action)) => {
                        self.tiers.insert(key.name.clone(), (*order, *action));
                    }
                    _ => {
                        self.tiers.remove(&key.name);
                        if let Some((order, pass)) = convert::built_in_tier(&key.name) {
                            let action = if pass { TierAction::Pass } else { TierAction::Deny };
                            self.tiers.insert(key.name.clone(), (Some(order), action));
                        }
                    }
                }
                self.dirty_endpoints.extend(self.local_endpoints.iter().cloned());
            }
            Kind::FelixConfiguration => {
                match new {
                    Some(Input::Settings(s)) => self.felix.insert(key.name.clone(), s.extra.clone()),
                    _ => self.felix.remove(&key.name),
                };
                let spoofing = self.settings.source_spoofing;
                self.settings = self.effective();
                if spoofing != self.settings.source_spoofing {
                    self.dirty_endpoints.extend(self.local_endpoints.iter().cloned());
                }
            }
            Kind::Profile | Kind::Namespace | Kind::ServiceAccount => {
                for (input, there) in [(old, false), (new, true)] {
                    let Some(Input::Profile(name, _)) = input else { continue };
                    let sources = self.profiles.entry(name.clone()).or_default();
                    if there {
                        sources.insert(key.clone())
                    } else {
                        sources.remove(key)
                    };
                    if sources.is_empty() {
                        self.profiles.remove(name);
                    }
                    self.profile_changed(name);
                }
            }
            Kind::WorkloadEndpoint | Kind::HostEndpoint | Kind::NetworkSet | Kind::GlobalNetworkSet => {
                self.item_changed(key, old.and_then(Input::item), new.and_then(Input::item));
                if matches!(key.kind, Kind::WorkloadEndpoint | Kind::HostEndpoint) {
                    self.endpoint_changed(key, endpoint(old), endpoint(new));
                }
            }
            Kind::EndpointSlice => self.slice_changed(key, old, new),
            _ => {
                let changes = match new {
                    Some(Input::Policy(p)) => {
                        self.policies.insert(Name::clone(key));
                        let place = Place(Name::clone(key));
                        let changes = self.local.put_selector(&place, p.selector.clone());
                        self.dirty_endpoints.extend(self.local.items(&place).map(|i| Name::clone(&i.0)));
                        changes
                    }
                    _ => {
                        self.policies.remove(key);
                        self.local.remove_selector(&Place(Name::clone(key)))
                    }
                };
                self.dirty_policies.insert(key.clone());
                self.policy_matches(changes);
            }
        }
    }

    fn policy_matches(&mut self, changes: Vec<Change<Place, Place>>) {
        for c in changes {
            self.dirty_policies.insert(c.selector.0);
            self.dirty_endpoints.insert(c.item.0);
        }
    }

    /// The profile of a name; those of namespaces and accounts are there even without a resource.
    fn profile(&self, name: &str) -> Option<Profile> {
        let first = self.profiles.get(name).and_then(BTreeSet::first);
        if let Some(Input::Profile(_, p)) = first.and_then(|k| self.inputs.get(k)) {
            return Some((**p).clone());
        }
        let none = BTreeMap::new();
        let allow = |labels| {
            let rule = || vec![Rule::any(Action::Allow, Why::default())];
            Profile { labels, inbound: rule(), outbound: rule(), sets: Sets::new() }
        };
        if name == convert::DEFAULT_ALLOW {
            return Some(allow(none));
        }
        if let Some(ns) = name.strip_prefix("kns.") {
            return Some(allow(convert::namespace_profile(ns, &none).labels_to_apply));
        }
        let (_, account) = name.strip_prefix("ksa.")?.split_once('.')?;
        let labels = convert::service_account_profile(account, &none).labels_to_apply;
        Some(Profile { labels, ..Profile::default() })
    }

    fn profile_changed(&mut self, name: &str) {
        let labels = Arc::new(LabelList::from(self.profile(name).map(|p| p.labels).unwrap_or_default()));
        self.dirty_profiles.insert(name.to_owned());
        let changes = self.local.put_parent(name, labels.clone());
        self.policy_matches(changes);
        let changes = self.selected.put_parent(name, labels);
        self.members_changed(changes);
    }

    /// Makes sure the indexes know the labels of parents that have no resource.
    fn imply(&mut self, parents: &[String]) {
        for name in parents {
            if self.implied.insert(name.clone()) && !self.profiles.contains_key(name) {
                self.profile_changed(name);
            }
        }
    }

    fn item_changed(&mut self, key: &Name, old: Option<Item>, new: Option<Item>) {
        let place = Place(Name::clone(key));
        let same = matches!((&old, &new), (Some(a), Some(b)) if a.nets == b.nets && a.ports == b.ports);
        if !same && let Some(old) = &old {
            let before: Vec<IpSetId> = self.selected.selectors(&place).cloned().collect();
            before.iter().for_each(|id| self.count(id, old, false));
        }
        let changes = match &new {
            Some(n) => {
                self.imply(&n.parents);
                self.selected.put_item(&place, n.labels.clone(), n.parents.clone())
            }
            None => self.selected.remove_item(&place),
        };
        if same {
            // Matches of the same content: `old` and `new` count alike.
            self.members_changed(changes);
        } else if let Some(new) = &new {
            let after: Vec<IpSetId> = self.selected.selectors(&place).cloned().collect();
            after.iter().for_each(|id| self.count(id, new, true));
        }
    }

    /// Adds or takes what an item contributes to a set.
    fn count(&mut self, id: &IpSetId, item: &Labelled, add: bool) {
        let Some(set) = self.sets.get_mut(id) else { return };
        self.dirty_sets.insert(id.clone());
        let mut one = |m: IpSetMember| if add { set.members.add(m) } else { set.members.remove(m) };
        match &set.def {
            SetDef::Selected(_) => item.nets.iter().for_each(|n| one(IpSetMember::Net(*n))),
            SetDef::NamedPort(_, protocol, name) => {
                let ports =
                    item.ports.iter().filter(|(n, p, _)| n == name && protocol.is_none_or(|want| want == *p));
                for (_, protocol, port) in ports {
                    // ipset takes no unspecified address, and nobody has it.
                    for net in item.nets.iter().filter(|n| !n.addr().is_unspecified()) {
                        one(IpSetMember::IpPort { address: net.addr(), protocol: *protocol, port: *port });
                    }
                }
            }
            SetDef::Service(..) => {}
        }
    }

    fn members_changed(&mut self, changes: Vec<Change<IpSetId, Place>>) {
        for c in changes {
            let Some(item) = self.inputs.get(&c.item.0).and_then(Input::item) else { continue };
            self.count(&c.selector, &item, c.matches);
        }
    }

    fn endpoint_changed(&mut self, key: &Name, old: Option<Arc<Endpoint>>, new: Option<Arc<Endpoint>>) {
        let local = |e: &Arc<Endpoint>| match &self.scope {
            Scope::All => true,
            Scope::Node(node) => **node == *e.node,
        };
        let was = old.as_ref().is_some_and(local);
        let is = new.as_ref().is_some_and(local);
        if key.kind == Kind::WorkloadEndpoint {
            for (e, there) in [(&old, false), (&new, true)] {
                for net in e.iter().flat_map(|e| &e.labelled.nets) {
                    let owners = self.owners.entry(*net).or_insert_with(|| Vec::with_capacity(1));
                    match (owners.binary_search(key), there) {
                        (Err(at), true) => owners.insert(at, key.clone()),
                        (Ok(at), false) => drop(owners.remove(at)),
                        _ => {}
                    }
                    // This one itself is looked at below, if it is local.
                    self.dirty_endpoints.extend(owners.iter().filter(|o| *o != key).cloned());
                    if owners.len() > 1 {
                        self.shared.insert(*net)
                    } else {
                        self.shared.remove(net)
                    };
                    if owners.is_empty() {
                        self.owners.remove(net);
                    }
                }
            }
        }
        self.devices_changed(key, old.as_ref().filter(|_| was), new.as_ref().filter(|_| is));
        if let Some(old) = old.filter(|_| was) {
            for p in &*old.labelled.parents {
                if let Some(n) = self.wanted_profiles.get_mut(p) {
                    *n -= 1;
                    if *n == 0 {
                        self.wanted_profiles.remove(p);
                    }
                }
                self.dirty_profiles.insert(p.clone());
            }
        }
        if let Some(new) = new.filter(|_| is) {
            for p in &*new.labelled.parents {
                *self.wanted_profiles.entry(p.clone()).or_default() += 1;
                self.dirty_profiles.insert(p.clone());
            }
            self.local_endpoints.insert(key.clone());
            let labels = new.labelled.labels.clone();
            let place = Place(Name::clone(key));
            let changes = self.local.put_item(&place, labels, new.labelled.parents.clone());
            self.policy_matches(changes);
        } else if was {
            self.local_endpoints.remove(key);
            let changes = self.local.remove_item(&Place(Name::clone(key)));
            self.policy_matches(changes);
        }
        if was || is {
            self.dirty_endpoints.insert(key.clone());
        }
        if (was || is) && key.kind == Kind::HostEndpoint {
            let hosts: Vec<Name> = self.local_keys(Kind::HostEndpoint).cloned().collect();
            self.dirty_endpoints.extend(hosts);
        }
    }

    /// Whoever shares a device with a workload that comes, changes or goes is looked at again.
    fn devices_changed(&mut self, key: &Name, old: Option<&Arc<Endpoint>>, new: Option<&Arc<Endpoint>>) {
        if key.kind != Kind::WorkloadEndpoint {
            return;
        }
        for (e, there) in [(old, false), (new, true)] {
            let Some(e) = e.filter(|e| !e.interface.is_empty()) else { continue };
            let device = (Arc::clone(&e.node), e.interface.clone());
            let users = self.devices.entry(device.clone()).or_default();
            if there {
                users.insert(key.clone());
            } else {
                users.remove(key);
            }
            self.dirty_endpoints.extend(users.iter().filter(|u| *u != key).cloned());
            if users.is_empty() {
                self.devices.remove(&device);
            }
        }
    }

    fn slice_changed(&mut self, key: &Name, old: Option<&Input>, new: Option<&Input>) {
        for (input, add) in [(old, false), (new, true)] {
            let Some(Input::Slice(service, with, without)) = input else { continue };
            let slices = self.services.entry(service.clone()).or_default();
            if add {
                slices.insert(key.clone(), (with.clone(), without.clone()));
            } else {
                slices.remove(key);
            }
            if slices.is_empty() {
                self.services.remove(service);
            }
            for (id, set) in &mut self.sets {
                let SetDef::Service(ns, name, ports) = &set.def else { continue };
                if *ns == service.0 && *name == service.1 {
                    self.dirty_sets.insert(id.clone());
                    for m in if *ports { with } else { without } {
                        if add { set.members.add(*m) } else { set.members.remove(*m) }
                    }
                }
            }
        }
    }

    /// One more user of each set; new ones are filled.
    fn acquire(&mut self, sets: &Sets) {
        for (id, def) in sets {
            if let Some(set) = self.sets.get_mut(id) {
                set.refs += 1;
                continue;
            }
            let mut members = Members::new(def.kind());
            if let SetDef::Service(ns, name, ports) = def {
                let slices = self.services.get(&(ns.clone(), name.clone()));
                for (with, without) in slices.into_iter().flat_map(BTreeMap::values) {
                    (if *ports { with } else { without }).iter().for_each(|m| members.add(*m));
                }
            }
            self.sets.insert(id.clone(), Set { def: def.clone(), refs: 1, sent: false, members });
            self.dirty_sets.insert(id.clone());
            if let SetDef::Selected(s) | SetDef::NamedPort(s, ..) = def {
                let changes = self.selected.put_selector(id, s.clone());
                self.members_changed(changes);
            }
        }
    }

    fn release(&mut self, ids: &[IpSetId]) {
        for id in ids {
            if let Some(set) = self.sets.get_mut(id) {
                set.refs = set.refs.saturating_sub(1);
                self.dirty_sets.insert(id.clone());
            }
        }
    }

    fn active_policy(&self, key: &Key) -> Option<(ActivePolicy, Sets)> {
        let Some(Input::Policy(p)) = self.inputs.get(key) else { return None };
        let active = !p.id.kind.is_staged()
            && (p.always || self.place(key).is_some_and(|place| self.local.matches_any(&place)));
        active.then(|| {
            let (inbound, outbound) = (p.inbound.clone(), p.outbound.clone());
            (ActivePolicy { id: p.id.clone(), inbound, outbound }, p.sets.clone())
        })
    }

    fn active_profile(&self, name: &str) -> Option<(ActiveProfile, Sets)> {
        self.wanted_profiles.get(name)?;
        let Some(p) = self.profile(name) else {
            let why =
                Why { index: 0, annotations: vec![("missing".into(), "the profile does not exist".into())] };
            let deny = || vec![Rule::any(Action::Deny, why.clone())];
            let missing = ActiveProfile { name: name.to_owned(), inbound: deny(), outbound: deny() };
            return Some((missing, Sets::new()));
        };
        Some((ActiveProfile { name: name.to_owned(), inbound: p.inbound, outbound: p.outbound }, p.sets))
    }

    /// Everything that changed since the last flush, in the order in which it can be applied. Empty before in-sync.
    pub fn flush(&mut self) -> Vec<PolicyDelta> {
        if !self.in_sync {
            return Vec::new();
        }
        let (mut updates, mut policies_gone, mut profiles_gone) = (Vec::new(), Vec::new(), Vec::new());
        let mut released: Vec<IpSetId> = Vec::new();
        for key in std::mem::take(&mut self.dirty_policies) {
            let wanted = self.active_policy(&key);
            if wanted.as_ref().map(|w| &w.0) == self.sent_policies.get(&key).map(|s| &*s.0) {
                continue;
            }
            if let Some((old, sets)) = self.sent_policies.remove(&key) {
                released.extend(sets);
                if wanted.as_ref().is_none_or(|w| w.0.id != old.id) {
                    policies_gone.push(PolicyDelta::PolicyRemove(old.id.clone()));
                }
            }
            if let Some((policy, sets)) = wanted {
                self.acquire(&sets);
                let policy = Arc::new(policy);
                updates.push(PolicyDelta::Policy(policy.clone()));
                self.sent_policies.insert(key, (policy, sets.into_keys().collect()));
            }
        }
        for name in std::mem::take(&mut self.dirty_profiles) {
            let wanted = self.active_profile(&name);
            if wanted.as_ref().map(|w| &w.0) == self.sent_profiles.get(&name).map(|s| &*s.0) {
                continue;
            }
            if let Some((_, sets)) = self.sent_profiles.remove(&name) {
                released.extend(sets);
                if wanted.is_none() {
                    profiles_gone.push(PolicyDelta::ProfileRemove(name.clone()));
                }
            }
            if let Some((profile, sets)) = wanted {
                self.acquire(&sets);
                let profile = Arc::new(profile);
                updates.push(PolicyDelta::Profile(profile.clone()));
                self.sent_profiles.insert(name, (profile, sets.into_keys().collect()));
            }
        }
        self.release(&released);
        let mut endpoints_gone = Vec::new();
        for key in std::mem::take(&mut self.dirty_endpoints) {
            let wanted = self.resolve(&key);
            if wanted.as_ref() == self.sent_endpoints.get(&key).map(|e| &**e) {
                continue;
            }
            match wanted {
                Some(e) => {
                    let e = Arc::new(e);
                    updates.push(PolicyDelta::Endpoint(e.clone()));
                    self.sent_endpoints.insert(key, e);
                }
                None => {
                    if let Some(old) = self.sent_endpoints.remove(&key) {
                        endpoints_gone.push(PolicyDelta::EndpointRemove(old.id.clone()));
                    }
                }
            }
        }
        let (new, deltas, sets_gone) = self.flush_sets();
        let mut out = Vec::new();
        if self.sent_settings.as_ref() != Some(&self.settings) {
            out.push(PolicyDelta::Settings(self.settings.clone()));
            self.sent_settings = Some(self.settings.clone());
        }
        let parts = [new, deltas, updates, endpoints_gone, profiles_gone, policies_gone, sets_gone];
        out.extend(parts.into_iter().flatten());
        if !self.told_in_sync {
            self.told_in_sync = true;
            out.push(PolicyDelta::InSync);
        }
        out
    }

    /// New sets, changes, removals.
    fn flush_sets(&mut self) -> (Vec<PolicyDelta>, Vec<PolicyDelta>, Vec<PolicyDelta>) {
        let (mut new, mut deltas, mut gone) = (Vec::new(), Vec::new(), Vec::new());
        for id in std::mem::take(&mut self.dirty_sets) {
            let Some(set) = self.sets.get_mut(&id) else { continue };
            if set.refs == 0 {
                if set.sent {
                    gone.push(PolicyDelta::IpSetRemove(id.clone()));
                }
                self.selected.remove_selector(&id);
                self.sets.remove(&id);
                continue;
            }
            let (added, removed) = set.members.flush();
            if !set.sent {
                set.sent = true;
                let members = added.into_iter().collect();
                new.push(PolicyDelta::IpSet(IpSet { id, kind: set.members.kind, members }));
            } else if !added.is_empty() || !removed.is_empty() {
                deltas.push(PolicyDelta::IpSetDelta(IpSetDelta { id, added, removed }));
            }
        }
        (new, deltas, gone)
    }
}

fn endpoint_key(id: &EndpointId) -> Key {
    match id {
        EndpointId::Workload { namespace, name } => Key::new(Kind::WorkloadEndpoint, Some(namespace), name),
        EndpointId::Host { name } => Key::new(Kind::HostEndpoint, None, name),
    }
}
