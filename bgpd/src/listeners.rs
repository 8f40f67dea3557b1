//! The set of listening sockets: what is wanted, what could be had, and the keys of peers with TCP-MD5.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use brindle_kernel::tcp;
use ipnet::IpNet;
use tokio::{sync::mpsc, time::Instant};
use tracing::{info, warn};

use crate::{
    conn::{Listener, Report},
    handle::ListenError,
    keys::{self, Keys, Wanted},
};

/// How often an address that could not be had is tried again.
const RETRY: Duration = Duration::from_secs(5);

/// Listening sockets by the address that was asked for.
#[derive(Debug)]
pub(crate) struct Listeners {
    open: BTreeMap<SocketAddr, Open>,
    failed: BTreeMap<SocketAddr, String>,
    retry_at: Option<Instant>,
    wanted: Wanted,
    inbox: mpsc::Sender<Report>,
}

#[derive(Debug)]
struct Open {
    listener: Listener,
    /// Those the kernel has taken.
    keys: Keys,
}

impl Listeners {
    pub(crate) fn new(inbox: mpsc::Sender<Report>) -> Self {
        Self {
            open: BTreeMap::new(),
            failed: BTreeMap::new(),
            retry_at: None,
            wanted: Wanted::default(),
            inbox,
        }
    }

    /// Opens what is missing, closes what is not wanted any more, and names what could not be had.
    pub(crate) fn apply(&mut self, wanted: &[SocketAddr]) -> Vec<ListenError> {
        self.open.retain(|address, _| {
            let keep = wanted.contains(address);
            if !keep {
                info!(%address, "no longer listening");
            }
            keep
        });
        self.failed.clear();
        for address in wanted {
            self.open_one(*address);
        }
        self.retry_at = (!self.failed.is_empty()).then(|| Instant::now() + RETRY);
        self.errors()
    }

    /// When [`Listeners::retry`] has something to do.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.retry_at
    }

    /// Tries again what failed.
    pub(crate) fn retry(&mut self) {
        for address in std::mem::take(&mut self.failed).into_keys() {
            self.open_one(address);
        }
        self.retry_at = (!self.failed.is_empty()).then(|| Instant::now() + RETRY);
    }

    fn open_one(&mut self, address: SocketAddr) {
        if self.open.contains_key(&address) {
            return;
        }
        match Listener::open(address, self.inbox.clone()) {
            Ok(listener) => {
                info!(address = %listener.local_addr().unwrap_or(address), "listening for BGP");
                let mut open = Open { listener, keys: Keys::new() };
                open.set_keys(&self.wanted.of_socket(address.ip()));
                self.open.insert(address, open);
            }
            // "Everywhere" does not include a family this machine has not.
            Err(e) if tcp::is_family_missing(&e) && address.ip().is_unspecified() => {}
            Err(e) => {
                self.failed.insert(address, e.to_string());
            }
        }
    }

    /// The keys of peers and of ranges; those no longer named are removed.
    pub(crate) fn set_keys(&mut self, wanted: Wanted) {
        if self.wanted == wanted {
            return;
        }
        self.wanted = wanted;
        for (address, open) in &mut self.open {
            open.set_keys(&self.wanted.of_socket(address.ip()));
        }
    }

    /// The key that somebody must have had who came from there to the socket that was asked for as `via`.
    pub(crate) fn key(&self, via: SocketAddr, remote: IpAddr) -> Option<&str> {
        keys::of(&self.open.get(&via)?.keys, remote).map(|k| k.password.as_str())
    }

    pub(crate) fn errors(&self) -> Vec<ListenError> {
        let failed = self.failed.iter();
        failed.map(|(address, why)| ListenError { address: *address, why: why.clone() }).collect()
    }

    /// For status: the addresses, and those that could not be had.
    pub(crate) fn describe(&self) -> String {
        let open = self.open.values().filter_map(|o| o.listener.local_addr().ok()).map(|a| a.to_string());
        let failed = self.errors().into_iter().map(|e| format!("{} (failed: {})", e.address, e.why));
        open.chain(failed).collect::<Vec<_>>().join(", ")
    }
}

impl Open {
    /// Tells the kernel what is another than before. What it does not take is not there: who needs that key is refused
    /// when it comes ([`Listeners::key`]).
    fn set_keys(&mut self, wanted: &Keys) {
        let gone: Vec<IpNet> = self.keys.keys().filter(|r| !wanted.contains_key(*r)).copied().collect();
        for range in gone {
            self.set(range, None);
            self.keys.remove(&range);
        }
        for (range, key) in wanted {
            if self.keys.get(range) == Some(key) {
                continue;
            }
            let same = self.keys.get(range).is_some_and(|k| k.password == key.password);
            if same || self.set(*range, Some(&key.password)) {
                self.keys.insert(*range, key.clone());
            } else {
                self.keys.remove(range);
            }
        }
    }

    fn set(&self, range: IpNet, password: Option<&str>) -> bool {
        let single = range.prefix_len() == range.max_prefix_len();
        let done = if single {
            self.listener.set_password(range.addr(), password)
        } else {
            self.listener.set_range_password(range, password)
        };
        if let Err(e) = &done {
            warn!(peer = %range, error = %e, "cannot set the TCP-MD5 key; connections from there will not come up");
        }
        done.is_ok()
    }
}
