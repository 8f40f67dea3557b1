//! The datastores behind [`brindle_config_core::store::Store`], the stream that follows them, and YAML.
//!
//! Everything that knows SQLite, inotify or YAML is here and nowhere else. What the resources mean is in
//! `brindle-config-core`; what to do with them is up to the callers. `docs/design/datastore.md` has the contract.

use std::{path::Path, sync::Arc};

use brindle_config_core::store::{Store, StoreError};

#[cfg(all(feature = "etcd", feature = "kubernetes"))]
pub mod apiconfig;
#[cfg(any(test, feature = "contract"))]
pub mod contract;
#[cfg(feature = "etcd")]
pub mod etcd;
mod hidden;
mod jitter;
#[cfg(feature = "kubernetes")]
pub mod kubernetes;
pub mod lease;
pub mod memory;
pub mod sqlite;
pub mod sync;
#[cfg(test)]
mod testing;

pub mod yaml;

#[cfg(feature = "kubernetes")]
pub use self::kubernetes::KubeStore;
pub use memory::MemoryStore;
pub use sqlite::SqliteStore;

/// Where a fresh installation keeps its resources.
pub const DEFAULT_URL: &str = "sqlite:/var/lib/brindle/brindle.db";

/// A variable of Calico's tools, which all may also be written with `CALICO_` before them; empty is unset.
pub fn calico_variable(name: &str) -> Option<String> {
    let given = |name: &str| std::env::var(name).ok().filter(|v| !v.is_empty());
    given(&format!("CALICO_{name}")).or_else(|| given(name))
}

/// Opens the datastore named by `url`: `sqlite:PATH` (created if missing, the folder must exist), `etcd:ENDPOINTS`
/// (see [`etcd::EtcdSettings::parse`]), `kubernetes:` (see [`kubernetes::KubeSettings::parse`]) or `memory:`. Servers are
/// connected to with the first call. Blocks for some milliseconds; not to be called from inside a busy async task.
pub fn open(url: &str) -> Result<Arc<dyn Store>, StoreError> {
    open_with(url, SqliteStore::open)
}

/// The same for whoever has no business in an empty datastore: a file must be there, a mistyped path makes none.
pub fn open_existing(url: &str) -> Result<Arc<dyn Store>, StoreError> {
    open_with(url, SqliteStore::open_existing)
}

fn open_with(
    url: &str,
    sqlite: fn(&Path) -> Result<SqliteStore, StoreError>,
) -> Result<Arc<dyn Store>, StoreError> {
    match url.split_once(':') {
        Some(("sqlite", path)) if !path.is_empty() => Ok(Arc::new(sqlite(Path::new(path))?)),
        #[cfg(feature = "etcd")]
        Some(("etcd", rest)) => {
            let settings = etcd::EtcdSettings::parse(rest, calico_variable)?;
            Ok(Arc::new(etcd::EtcdStore::new(settings)))
        }
        #[cfg(feature = "kubernetes")]
        Some(("kubernetes", rest)) => {
            Ok(Arc::new(kubernetes::KubeStore::new(kubernetes::KubeSettings::parse(rest)?)))
        }
        Some(("memory", "")) => Ok(Arc::new(MemoryStore::new())),
        _ => Err(StoreError::Broken(format!(
            "datastore {url:?}: expected sqlite:PATH (for example {DEFAULT_URL}), etcd:http://HOST:2379, kubernetes: or \
             memory:"
        ))),
    }
}

/// The API server of a cluster (`kubernetes:`, `kubernetes:KUBECONFIG`) beside the datastore, for what Kubernetes itself has: it
/// need not have Calico's definitions.
#[cfg(feature = "kubernetes")]
pub fn open_cluster(url: &str) -> Result<Arc<dyn Store>, StoreError> {
    match url.split_once(':') {
        Some(("kubernetes", rest)) => {
            Ok(Arc::new(kubernetes::KubeStore::core(kubernetes::KubeSettings::parse(rest)?)))
        }
        _ => Err(StoreError::Broken(format!("{url:?}: expected kubernetes: or kubernetes:KUBECONFIG"))),
    }
}

/// `url` as it may be shown: without what it says of files with keys and of users.
pub fn shown_url(url: &str) -> String {
    let place = url.split_once('?').map_or(url, |(place, _)| place);
    match (place.contains('@'), place.split_once(':')) {
        (true, Some((scheme, _))) => format!("{scheme}:"),
        _ => place.to_owned(),
    }
}

/// Whether [`open`] knows what to do with `url`; nothing is opened. `memory:` is refused: what one process remembers is
/// no datastore of an agent.
pub fn check_url(url: &str) -> Result<(), StoreError> {
    match url.split_once(':') {
        Some(("sqlite", path)) if !path.is_empty() => Ok(()),
        #[cfg(feature = "etcd")]
        Some(("etcd", rest)) => etcd::EtcdSettings::parse(rest, calico_variable).map(drop),
        #[cfg(feature = "kubernetes")]
        Some(("kubernetes", rest)) => kubernetes::KubeSettings::parse(rest).map(drop),
        _ => Err(StoreError::Broken(format!(
            "datastore {url:?}: expected sqlite:PATH (for example {DEFAULT_URL}), etcd:http://HOST:2379 or kubernetes:"
        ))),
    }
}
