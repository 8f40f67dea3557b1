//! Policies of the default tier as Calico before 3.32 stores them: `default.NAME`, by whichever of the two names somebody
//! asks. With Kubernetes the datastore itself sees to it; here it is for those that keep names as they are written.

use anyhow::{Context as _, Result};
use brindle_config_core::{
    AnyResource, Key,
    felix::ClusterInformationSpec,
    names,
    policy::DEFAULT_TIER,
    policy_names,
    store::{Entry, Store, StoreError, StoreExt as _},
};

use super::guard;

/// The name it has there, unless it already is one.
fn old(key: &Key) -> Option<Key> {
    let plain = policy_names::KINDS.contains(&key.kind) && !key.name.starts_with(policy_names::PREFIX);
    plain.then(|| Key { name: format!("{}{}", policy_names::PREFIX, key.name), ..key.clone() })
}

/// What is stored of a resource, under the name of today or else the old one; the entry says under which.
pub(super) async fn existing(store: &dyn Store, key: &Key) -> Result<Option<Entry>> {
    match store.get(key).await {
        Ok(e) => return Ok(Some(e)),
        Err(StoreError::NotFound(_)) => {}
        Err(e) => return Err(e).with_context(|| format!("cannot read {key}")),
    }
    let Some(old) = old(key) else { return Ok(None) };
    match store.get(&old).await {
        Ok(e) => Ok((guard::tier_of(&e) == DEFAULT_TIER).then_some(e)),
        Err(StoreError::NotFound(_)) => Ok(None),
        Err(e) => Err(e).with_context(|| format!("cannot read {old}")),
    }
}

/// The key under which a resource is stored; its own if it is not there.
pub(super) async fn stored(store: &dyn Store, key: Key) -> Result<Key> {
    if old(&key).is_none() {
        return Ok(key);
    }
    Ok(existing(store, &key).await?.map_or(key, |found| found.key))
}

/// The same for several.
pub(super) async fn all_stored(store: &dyn Store, keys: Vec<Key>) -> Result<Vec<Key>> {
    let mut found = Vec::with_capacity(keys.len());
    for key in keys {
        found.push(stored(store, key).await?);
    }
    Ok(found)
}

/// The names new policies get.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Names {
    Todays,
    /// An old Calico reads them, and finds them by no other.
    Old,
}

impl Names {
    /// As ClusterInformation says, where it matters.
    pub(super) async fn of(store: &dyn Store) -> Result<Self> {
        if !store.keeps_names_as_written() {
            return Ok(Self::Todays);
        }
        match store.get_as::<ClusterInformationSpec>(None, "default").await {
            Ok(info) if names::old_policy_names(&info.resource.spec.calico_version) => Ok(Self::Old),
            Ok(_) | Err(StoreError::NotFound(_)) => Ok(Self::Todays),
            Err(e) => Err(e).context("cannot read ClusterInformation(default)"),
        }
    }

    /// The key a new resource gets.
    pub(super) fn key(self, new: &AnyResource) -> Key {
        let key = new.key();
        let in_default_tier = guard::policy_of(new).is_some_and(|p| p.tier() == DEFAULT_TIER);
        match (self, old(&key)) {
            (Self::Old, Some(old)) if in_default_tier => old,
            _ => key,
        }
    }
}
