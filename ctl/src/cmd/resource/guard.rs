//! What a resource alone cannot tell: conflicts with others in the datastore and in the same input.

use std::collections::BTreeMap;

use anyhow::{Result, bail};
use brindle_config_core::{
    AnyResource, Key, Kind,
    store::Store,
    validate::{self, Invalid},
};

/// Everything that new resources are held against.
#[derive(Debug, Default)]
pub(crate) struct Others {
    all: BTreeMap<Key, AnyResource>,
}

/// Kinds whose resources may contradict each other.
const CHECKED: [Kind; 3] = [Kind::IpPool, Kind::IpamBlock, Kind::Node];

/// Kinds that only the agents write.
const INTERNAL: [Kind; 3] = [Kind::IpamBlock, Kind::IpamHandle, Kind::BlockAffinity];

/// Refuses what would break the agents' own bookkeeping.
pub(crate) fn writable(key: &Key) -> Result<()> {
    if INTERNAL.contains(&key.kind) {
        bail!("{key} is kept by the agents and not written by hand; see `brindlectl ipam --help`");
    }
    Ok(())
}

impl Others {
    /// Reads what is in the store, and says what of it cannot be read: nothing can be held against that.
    pub(crate) async fn read(store: &dyn Store) -> Result<Self> {
        let mut all = BTreeMap::new();
        for e in store.list(&CHECKED).await?.entries {
            match AnyResource::from_value(e.key.kind, &e.value) {
                Ok(resource) => drop(all.insert(e.key, resource)),
                Err(why) => eprintln!(
                    "warning: {} in the datastore cannot be read, so that nothing is held against it: {why}",
                    e.key
                ),
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
    pub(crate) fn check(&self, new: &AnyResource) -> Result<(), Invalid> {
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
