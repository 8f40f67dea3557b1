//! What a resource alone cannot tell: conflicts with others in the datastore and in the same input.

use std::collections::BTreeMap;

use anyhow::{Result, bail};
use brindle_config_core::{
    AnyResource, Key, Kind,
    convert::built_in_tier,
    policy::{DEFAULT_TIER, PolicySpec},
    policy_names,
    store::{Entry, Store},
    validate::{self, Invalid},
};
use serde_json::Value;

use crate::out;

/// Everything that new resources are held against.
#[derive(Debug, Default)]
pub(crate) struct Others {
    all: BTreeMap<Key, AnyResource>,
}

/// Kinds whose resources may contradict each other.
const CHECKED: [Kind; 4] = [Kind::IpPool, Kind::IpamBlock, Kind::Node, Kind::Tier];

/// Kinds that only the agents write.
const INTERNAL: [Kind; 3] = [Kind::IpamBlock, Kind::IpamHandle, Kind::BlockAffinity];

/// Refuses what would break the agents' own bookkeeping.
pub(crate) fn writable(key: &Key) -> Result<()> {
    if INTERNAL.contains(&key.kind) {
        bail!("{key} is kept by the agents and not written by hand; see `brindlectl ipam --help`");
    }
    Ok(())
}

/// Refuses to delete tiers that others need: those every cluster has, and those with policies that stay.
pub(crate) async fn tiers_to_go(store: &dyn Store, keys: &[Key]) -> Result<()> {
    let tiers: Vec<&Key> = keys.iter().filter(|k| k.kind == Kind::Tier).collect();
    if tiers.is_empty() {
        return Ok(());
    }
    if let Some(built_in) = tiers.iter().find(|k| built_in_tier(&k.name).is_some()) {
        bail!("Cannot delete {} tier: every cluster has it, and policies count on it", built_in.name);
    }
    let policies = store.list(&policy_names::KINDS).await?.entries;
    for tier in tiers {
        let inside = policies.iter().filter(|p| tier_of(p) == tier.name && !keys.contains(&p.key));
        let inside: Vec<String> = inside.map(|p| p.key.to_string()).collect();
        if let Some(first) = inside.first() {
            let more = match inside.len() - 1 {
                0 => String::new(),
                n => format!(" and {n} more"),
            };
            bail!(
                "Cannot delete a non-empty tier: {tier} has {first}{more}; delete or move what is in it first"
            );
        }
    }
    Ok(())
}

/// The tier of a stored policy.
pub(super) fn tier_of(policy: &Entry) -> &str {
    let tier = policy.value.pointer("/spec/tier").and_then(Value::as_str);
    tier.filter(|t| !t.is_empty()).unwrap_or(DEFAULT_TIER)
}

/// What a policy says, if it is one with a tier.
pub(super) fn policy_of(resource: &AnyResource) -> Option<&PolicySpec> {
    match resource {
        AnyResource::GlobalNetworkPolicy(p) => Some(&p.spec.0),
        AnyResource::NetworkPolicy(p) => Some(&p.spec.0),
        AnyResource::StagedGlobalNetworkPolicy(p) => Some(&p.spec.0),
        AnyResource::StagedNetworkPolicy(p) => Some(&p.spec.0),
        _ => None,
    }
}

impl Others {
    /// Reads what is in the store, and says what of it cannot be read: nothing can be held against that.
    pub(crate) async fn read(store: &dyn Store) -> Result<Self> {
        let mut all = BTreeMap::new();
        for e in store.list(&CHECKED).await?.entries {
            match AnyResource::from_value(e.key.kind, &e.value) {
                Ok(resource) => drop(all.insert(e.key, resource)),
                Err(why) => out::remark(format_args!(
                    "warning: {} in the datastore cannot be read, so that nothing is held against it: {why}",
                    e.key
                )),
            }
        }
        Ok(Self { all })
    }

    /// Whether resources of this kind are held against each other.
    pub(crate) fn holds(kind: Kind) -> bool {
        CHECKED.contains(&kind)
    }

    /// Takes a resource as the store will have it.
    pub(crate) fn admit(&mut self, resource: &AnyResource) {
        if Self::holds(resource.kind()) {
            self.all.insert(resource.key(), resource.clone());
        }
    }

    /// Checks a resource against the others and against what it was.
    pub(crate) fn check(&self, new: &AnyResource, old: Option<&Entry>) -> Result<(), Invalid> {
        if let Some(policy) = policy_of(new) {
            let tier = policy.tier();
            let there =
                built_in_tier(tier).is_some() || self.all.contains_key(&Key::new(Kind::Tier, None, tier));
            // One that lost its tier may still be changed.
            return match there || old.is_some_and(|old| tier_of(old) == tier) {
                true => Ok(()),
                false => Err(validate::policy::no_tier(tier)),
            };
        }
        match new {
            AnyResource::IpPool(new) => {
                let old = self.all.get(&new.key());
                if let Some(AnyResource::IpPool(old)) = old {
                    validate::pool::update(&old.spec, &new.spec)?;
                }
                let pools = self.all.values().filter_map(|r| match r {
                    AnyResource::IpPool(p) => Some((p.metadata.name.as_str(), &p.spec)),
                    _ => None,
                });
                let blocks = self.all.values().filter_map(|r| match r {
                    AnyResource::IpamBlock(b) => Some(&b.spec.cidr),
                    _ => None,
                });
                validate::pool::against(&new.metadata.name, &new.spec, pools, blocks)
            }
            AnyResource::Node(new) => {
                let nodes = self.all.values().filter_map(|r| match r {
                    AnyResource::Node(n) => Some((n.metadata.name.as_str(), &n.spec)),
                    _ => None,
                });
                validate::node::conflicts(nodes, &new.metadata.name, &new.spec)
            }
            _ => Ok(()),
        }
    }
}
