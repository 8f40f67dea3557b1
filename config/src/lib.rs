//! The datastores behind [`brindle_config_core::store::Store`], the stream that follows them, and YAML.
//!
//! Everything that knows SQLite, inotify or YAML is here and nowhere else. What the resources mean is in
//! `brindle-config-core`; what to do with them is up to the callers. `docs/design/datastore.md` has the contract.

use std::{path::Path, sync::Arc};

use brindle_config_core::store::{Store, StoreError};

#[cfg(any(test, feature = "contract"))]
pub mod contract;
mod jitter;
pub mod memory;
pub mod sqlite;
pub mod sync;
#[cfg(test)]
mod testing;

pub mod yaml;

pub use memory::MemoryStore;
pub use sqlite::SqliteStore;

/// Where a fresh installation keeps its resources.
pub const DEFAULT_URL: &str = "sqlite:/var/lib/brindle/brindle.db";

/// Opens the datastore named by `url`: `sqlite:PATH` (created if missing, the folder must exist) or `memory:`.
/// Blocks for some milliseconds; not to be called from inside a busy async task.
pub fn open(url: &str) -> Result<Arc<dyn Store>, StoreError> {
    match url.split_once(':') {
        Some(("sqlite", path)) if !path.is_empty() => Ok(Arc::new(SqliteStore::open(Path::new(path))?)),
        Some(("memory", "")) => Ok(Arc::new(MemoryStore::new())),
        _ => Err(StoreError::Broken(format!(
            "datastore {url:?}: expected sqlite:PATH (for example {DEFAULT_URL}) or memory:"
        ))),
    }
}
