//! Which pools may serve a request: what the caller asked for, node and namespace selectors, allowed uses. Decided
//! from a [`View`] of the configuration; every pool left out leaves its reason.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use brindle_config_core::{
    Key, Kind,
    ipam::IpamConfigSpec,
    node::NodeSpec,
    pool::{AllowedUse, AssignmentMode, IpPoolSpec, IpReservationSpec},
    selector::Selector,
    store::{Store, StoreError, StoreExt as _, decode},
};
use ipnet::IpNet;

use crate::{
    error::IpamError,
    net::{self, BlockWalk, Reservations},
    refusal::{Reason, Refusal},
};

/// Address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Family {
    V4,
    V6,
}

impl Family {
    /// Of a network.
    pub const fn of(net: &IpNet) -> Self {
        match net {
            IpNet::V4(_) => Self::V4,
            IpNet::V6(_) => Self::V6,
        }
    }
}

/// A pool as configured.
#[derive(Clone, Debug, PartialEq)]
pub struct Pool {
    pub name: String,
    pub terminating: bool,
    pub spec: IpPoolSpec,
}

impl Pool {
    /// Whether the request means this pool: by CIDR or by name.
    pub fn is_named(&self, wanted: &str) -> bool {
        self.name == wanted || wanted.parse::<IpNet>().is_ok_and(|n| n.trunc() == self.spec.cidr.trunc())
    }

    /// Whether the pool's prefix can be cut into its blocks.
    pub(crate) fn divisible(&self) -> bool {
        let size = self.spec.block_size();
        let (min, max) = match self.spec.cidr {
            IpNet::V4(_) => (20, 32),
            IpNet::V6(_) => (116, 128),
        };
        (min..=max).contains(&size) && self.spec.cidr.prefix_len() <= size
    }
}

/// The configuration one request is decided from.
#[derive(Clone, Debug, Default)]
pub struct View {
    pub config: IpamConfigSpec,
    pub pools: Vec<Pool>,
    pub reservations: Reservations,
    /// Labels of the node whose selectors are asked.
    pub node_labels: BTreeMap<String, String>,
    /// What could not be read; it takes no part.
    pub unreadable: Vec<String>,
}

impl View {
    /// What [`Self::load`] reads beside the node.
    pub const KINDS: [Kind; 3] = [Kind::IpPool, Kind::IpReservation, Kind::IpamConfiguration];

    /// Reads configuration, pools, reservations and the node's labels: from what the agent follows where it follows them,
    /// otherwise one listing and one get. Without a name no node is meant: pools are looked at, not chosen.
    pub async fn load(store: &dyn Store, node: &str) -> Result<Self, IpamError> {
        let entries = store.followed_or_listed(&Self::KINDS).await?;
        let mut view = Self::default();
        let mut reserved = Vec::new();
        for entry in &entries {
            let read = match entry.key.kind {
                Kind::IpPool => decode::<IpPoolSpec>(entry).map(|p| {
                    let meta = p.resource.metadata;
                    view.pools.push(Pool {
                        terminating: meta.extra.contains_key("deletionTimestamp"),
                        name: meta.name,
                        spec: p.resource.spec,
                    });
                }),
                Kind::IpReservation => decode::<IpReservationSpec>(entry).map(|r| {
                    reserved.extend(r.resource.spec.reserved_cidrs);
                }),
                Kind::IpamConfiguration if entry.key.name == "default" => {
                    decode::<IpamConfigSpec>(entry).map(|c| view.config = c.resource.spec)
                }
                _ => Ok(()),
            };
            match (entry.key.kind, read) {
                (_, Ok(())) => {}
                // Without a pool there is one choice less. Without a reservation or the strictness of the
                // configuration an address could be given that must not be.
                (Kind::IpPool, Err(e)) => view.unreadable.push(e.to_string()),
                (_, Err(e)) => return Err(e.into()),
            }
        }
        view.reservations = Reservations::new(reserved);
        if node.is_empty() {
            return Ok(view);
        }
        match store.get(&Key::new(Kind::Node, None, node)).await {
            Ok(entry) => view.node_labels = decode::<NodeSpec>(&entry)?.resource.metadata.labels,
            Err(StoreError::NotFound(_)) => {}
            Err(e) => return Err(e.into()),
        }
        Ok(view)
    }

    /// Pools that may serve, in order of preference. Pools asked for by name win over every selector.
    pub fn choose(
        &self,
        node: &str,
        family: Family,
        requested: &[String],
        wanted: AllowedUse,
        namespace_labels: Option<&BTreeMap<String, String>>,
    ) -> Result<Vec<&Pool>, Refusal> {
        let mut refusal = Refusal::default();
        let candidates = if requested.is_empty() {
            self.selected(node, family, namespace_labels, &mut refusal)
        } else {
            self.requested(family, requested, &mut refusal)?
        };
        let mut chosen = Vec::new();
        for pool in candidates {
            if !pool.spec.allows(wanted) {
                refusal.push(Reason::UseNotAllowed { pool: pool.name.clone(), wanted });
            } else if !pool.divisible() {
                let block_size = pool.spec.block_size();
                refusal.push(Reason::BadBlockSize { pool: pool.name.clone(), block_size });
            } else {
                chosen.push(pool);
            }
        }
        if chosen.is_empty() {
            for text in &self.unreadable {
                refusal.push(Reason::Unreadable(text.clone()));
            }
            if refusal.reasons.is_empty() {
                refusal.push(Reason::NoPools(Some(family).filter(|_| !self.pools.is_empty())));
            }
            return Err(refusal);
        }
        Ok(chosen)
    }

    /// Networks of the pools that could serve some pod of the node; its namespace may leave fewer.
    pub fn serving(&self, node: &str, family: Family, requested: &[String]) -> Result<Vec<IpNet>, Refusal> {
        let mut any = self.clone();
        any.pools.iter_mut().for_each(|p| p.spec.namespace_selector.clear());
        let pools = any.choose(node, family, requested, AllowedUse::Workload, None)?;
        Ok(pools.iter().map(|p| p.spec.cidr).collect())
    }

    /// The families, IPv4 and IPv6, that every pod of the node may ask for: whoever asks for one that no pool has for its
    /// namespace is given nothing. So only pools that select every namespace count. Without any, it is what pods of the
    /// selected namespaces can have: both where the same namespaces have both, else IPv4.
    pub fn families(&self, node: &str) -> (bool, bool) {
        let (v4, v6) = (self.namespaces(node, Family::V4), self.namespaces(node, Family::V6));
        let every = |selectors: &BTreeSet<&str>| selectors.contains("") || selectors.contains("all()");
        match (every(&v4), every(&v6)) {
            (false, false) => (!v4.is_empty(), !v6.is_empty() && (v4.is_empty() || v4 == v6)),
            both => both,
        }
    }

    /// Selectors of the pools that could serve some pod of the node.
    fn namespaces(&self, node: &str, family: Family) -> BTreeSet<&str> {
        let serving = self.serving(node, family, &[]).unwrap_or_default();
        let pools = self.pools.iter().filter(|p| serving.contains(&p.spec.cidr));
        pools.map(|p| p.spec.namespace_selector.trim()).collect()
    }

    fn requested(
        &self,
        family: Family,
        requested: &[String],
        refusal: &mut Refusal,
    ) -> Result<Vec<&Pool>, Refusal> {
        let mut found: Vec<&Pool> = Vec::new();
        for wanted in requested {
            let named = self.pools.iter().find(|p| Family::of(&p.spec.cidr) == family && p.is_named(wanted));
            match named {
                None => refusal.push(Reason::NoSuchPool(wanted.clone())),
                Some(p) if p.spec.disabled => refusal.push(Reason::PoolDisabled(wanted.clone())),
                Some(p) if p.terminating => refusal.push(Reason::PoolTerminating(wanted.clone())),
                Some(p) if found.iter().any(|f| f.name == p.name) => {}
                Some(p) => found.push(p),
            }
        }
        // One wrong name fails the request: silently serving from the others would hide the mistake.
        if refusal.reasons.is_empty() { Ok(found) } else { Err(refusal.clone()) }
    }

    fn selected(
        &self,
        node: &str,
        family: Family,
        namespace_labels: Option<&BTreeMap<String, String>>,
        refusal: &mut Refusal,
    ) -> Vec<&Pool> {
        let mut found = Vec::new();
        for pool in self.pools.iter().filter(|p| Family::of(&p.spec.cidr) == family) {
            let name = || pool.name.clone();
            let reason = if pool.spec.disabled {
                Some(Reason::PoolDisabled(name()))
            } else if pool.terminating {
                Some(Reason::PoolTerminating(name()))
            } else if pool.spec.assignment_mode == AssignmentMode::Manual {
                Some(Reason::ManualPool(name()))
            } else {
                self.selector_reason(pool, node, namespace_labels)
            };
            match reason {
                None => found.push(pool),
                Some(reason) => refusal.push(reason),
            }
        }
        found
    }

    /// Whether the pool leaves the node out, by the labels of this view.
    pub(crate) fn node_reason(&self, pool: &Pool, node: &str) -> Option<Reason> {
        match selects(&pool.spec.node_selector, &self.node_labels) {
            Err(error) => Some(Reason::BadSelector { pool: pool.name.clone(), error }),
            Ok(false) => Some(Reason::NodeNotSelected {
                pool: pool.name.clone(),
                selector: pool.spec.node_selector.clone(),
                node: node.to_owned(),
            }),
            Ok(true) => None,
        }
    }

    fn selector_reason(
        &self,
        pool: &Pool,
        node: &str,
        namespace_labels: Option<&BTreeMap<String, String>>,
    ) -> Option<Reason> {
        if let Some(reason) = self.node_reason(pool, node) {
            return Some(reason);
        }
        let bad = |error| Some(Reason::BadSelector { pool: pool.name.clone(), error });
        let selector = &pool.spec.namespace_selector;
        if selector.is_empty() {
            return None;
        }
        let empty = BTreeMap::new();
        match selects(selector, namespace_labels.unwrap_or(&empty)) {
            Err(error) => bad(error),
            Ok(true) => None,
            Ok(false) => {
                Some(Reason::NamespaceNotSelected { pool: pool.name.clone(), selector: selector.clone() })
            }
        }
    }

    /// Whether the pool that holds this block still serves the node; a block outside every pool is served by none.
    pub fn still_selected(&self, block: &IpNet, node: &str) -> bool {
        // The namespace is the request's affair, not the node's.
        self.pool_around(block).is_some_and(|p| self.node_reason(p, node).is_none())
    }

    /// Whether all the network's addresses are reserved, be it by several reservations.
    pub fn wholly_reserved(&self, net: &IpNet) -> bool {
        self.reservations.within(net) >= net::size(net)
    }

    /// Why no block of the pool is to be had.
    pub(crate) fn without_free_block(&self, pool: &Pool) -> Reason {
        let cidr = pool.spec.cidr;
        if self.wholly_reserved(&cidr) {
            return Reason::PoolReserved(pool.name.clone());
        }
        let blocks = BlockWalk::new(cidr, pool.spec.block_size(), 0).total();
        Reason::NoFreeBlock { pool: pool.name.clone(), blocks, reserved: self.reservations.within(&cidr) }
    }

    /// The enabled pools of which an address from `first` to `last` may be given without being asked for.
    pub fn giving_of(&self, first: IpAddr, last: IpAddr) -> impl Iterator<Item = &Pool> {
        self.pools.iter().filter(move |p| {
            let net = p.spec.cidr;
            let family = net.addr().is_ipv4();
            let (from, to) = (first.max(net.network()), last.min(net.broadcast()));
            let one_family = first.is_ipv4() == family && last.is_ipv4() == family;
            !p.spec.disabled && one_family && from <= to && !self.reservations.span(from, to)
        })
    }

    /// The enabled pool that holds the address.
    pub fn pool_of(&self, ip: IpAddr) -> Option<&Pool> {
        self.pools.iter().find(|p| !p.spec.disabled && p.spec.cidr.contains(&ip))
    }

    /// Whether no pool has this block, or one that is being deleted. A pool that does not read could.
    pub(crate) fn without_pool(&self, block: &IpNet) -> bool {
        self.unreadable.is_empty() && self.pool_around(block).is_none_or(|p| p.terminating)
    }

    /// The pool that holds the network, enabled or not.
    pub(crate) fn pool_around(&self, net: &IpNet) -> Option<&Pool> {
        self.pools.iter().find(|p| p.spec.cidr.contains(net))
    }
}

/// Whether the selector matches the labels. The one place where this package evaluates selectors.
fn selects(selector: &str, labels: &BTreeMap<String, String>) -> Result<bool, String> {
    Selector::parse(selector).map(|s| s.matches(labels)).map_err(|e| e.to_string())
}
