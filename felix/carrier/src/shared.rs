//! What the threads of the carrier share: the configuration in force, replaced as a whole and read
//! without a lock as long as it stays, and the counters.

use std::io;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use brindle_felix_core::ipip::table::{Table, TableError};
use brindle_kernel::files;
use tracing::warn;

use crate::control::{Config, Configured, InboundStats, OutboundStats, Stats};

/// A configuration, checked and compiled.
#[derive(Debug)]
pub(crate) struct Snapshot {
    pub(crate) config: Config,
    pub(crate) table: Table,
}

/// Shared by all threads for the life of the process.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) local: Ipv4Addr,
    pub(crate) outbound: OutboundCounters,
    pub(crate) inbound: InboundCounters,
    /// Where the configuration is left for the next carrier.
    left: Option<PathBuf>,
    /// 0 as long as there is no configuration.
    generation: AtomicUsize,
    current: Mutex<Option<Arc<Snapshot>>>,
    configured: Condvar,
}

impl Shared {
    pub(crate) fn new(local: Ipv4Addr, left: Option<PathBuf>) -> Shared {
        Shared {
            local,
            outbound: OutboundCounters::default(),
            inbound: InboundCounters::default(),
            left,
            generation: AtomicUsize::new(0),
            current: Mutex::new(None),
            configured: Condvar::new(),
        }
    }

    /// Puts a configuration in force; refuses it whole when anything in it is wrong.
    pub(crate) fn set_config(&self, mut config: Config) -> Result<Configured, TableError> {
        config.routes.sort_unstable();
        config.routes.dedup();
        config.sources.sort_unstable();
        config.sources.dedup();
        let table = Table::new(
            self.local,
            config.routes.iter().map(|r| (r.dst, r.via.as_slice())),
            config.sources.iter().copied(),
        )?;
        let (routes, sources) = (table.routes(), table.sources());
        let mut current = self.lock();
        let changed = current.as_ref().is_none_or(|s| s.config != config);
        if changed {
            if let Some(Err(e)) = self.left.as_ref().map(|path| leave(path, &config)) {
                // It carries all the same; only a death without an agent would be felt.
                warn!(error = %e, "the configuration cannot be left for a next carrier");
            }
            *current = Some(Arc::new(Snapshot { config, table }));
            self.generation.fetch_add(1, Ordering::Release);
            self.configured.notify_all();
        }
        Ok(Configured { changed, routes, sources })
    }

    /// Puts in force what the carrier before left.
    pub(crate) fn resume(&self) -> io::Result<Configured> {
        let path = self.left.as_ref().ok_or(io::ErrorKind::NotFound)?;
        let config = serde_json::from_slice(&std::fs::read(path)?)?;
        self.set_config(config).map_err(io::Error::other)
    }

    pub(crate) fn is_configured(&self) -> bool {
        self.generation.load(Relaxed) > 0
    }

    pub(crate) fn stats(&self) -> Stats {
        Stats { outbound: self.outbound.read(), inbound: self.inbound.read() }
    }

    fn lock(&self) -> MutexGuard<'_, Option<Arc<Snapshot>>> {
        // Nothing panics while holding it, and a half-made change cannot be seen.
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Writes the file as a whole or not at all.
fn leave(path: &Path, config: &Config) -> io::Result<()> {
    files::replace(path, &serde_json::to_vec(config)?, 0o600, false)
}

/// One thread's view of the configuration.
#[derive(Debug)]
pub(crate) struct View {
    generation: usize,
    snapshot: Arc<Snapshot>,
}

impl View {
    /// Waits for the first configuration: before it, packets wait in the queues of the device and
    /// the socket, where they are lost last.
    pub(crate) fn wait(shared: &Shared) -> View {
        let mut current = shared.lock();
        loop {
            if let Some(snapshot) = current.as_ref() {
                let snapshot = Arc::clone(snapshot);
                return View { generation: shared.generation.load(Ordering::Acquire), snapshot };
            }
            current = shared.configured.wait(current).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Takes over a newer configuration; says whether there was one. Costs one load when not.
    pub(crate) fn refresh(&mut self, shared: &Shared) -> bool {
        let generation = shared.generation.load(Ordering::Acquire);
        if generation == self.generation {
            return false;
        }
        if let Some(snapshot) = shared.lock().as_ref() {
            self.snapshot = Arc::clone(snapshot);
        }
        self.generation = generation;
        true
    }

    pub(crate) fn table(&self) -> &Table {
        &self.snapshot.table
    }

    pub(crate) fn mtu(&self) -> u16 {
        self.snapshot.config.mtu
    }
}

/// A counter with one writer: a plain load and store, no locked instruction.
#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn add(&self, n: usize) {
        let n = u64::try_from(n).unwrap_or(u64::MAX);
        self.0.store(self.0.load(Relaxed).wrapping_add(n), Relaxed);
    }

    pub(crate) fn one(&self) {
        self.add(1);
    }

    fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// Counters and their reading: the fields are those of the struct on the wire.
macro_rules! counters {
    ($(#[$doc:meta])* $name:ident, $wire:ident: $($field:ident)*; $($extra:ident: $kind:ty => $read:expr)?) => {
        $(#[$doc])*
        #[derive(Debug, Default)]
        pub(crate) struct $name {
            $(pub(crate) $field: Counter,)*
            $(pub(crate) $extra: $kind,)?
        }

        impl $name {
            fn read(&self) -> $wire {
                $wire { $($field: self.$field.get(),)* $($extra: $read(&self.$extra),)? }
            }
        }
    };
}

counters! {
    /// Written by the outbound thread only. Meaning: [`OutboundStats`].
    OutboundCounters, OutboundStats:
    packets bytes frames dropped_not_ipv4 dropped_no_route dropped_loop dropped_too_big
    dropped_malformed dropped_unsent fragmented icmp_sent icmp_suppressed path_mtu_changes
    ignored_errors;
}

counters! {
    /// Written by the inbound thread only. Meaning: [`InboundStats`].
    InboundCounters, InboundStats:
    packets bytes frames dropped_unknown_source dropped_outer_malformed dropped_inner_malformed
    dropped_ecn dropped_superframe dropped_device ignored_errors;
    last_unknown_source: AtomicU32 => |a: &AtomicU32| match a.load(Relaxed) {
        0 => None,
        bits => Some(Ipv4Addr::from_bits(bits)),
    }
}
