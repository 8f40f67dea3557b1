//! The set of listening sockets: what is wanted, what could be had, and the keys of peers with TCP-MD5.

use std::{
    collections::{BTreeMap, HashMap},
    net::SocketAddr,
    time::Duration,
};

use brindle_kernel::tcp;
use ipnet::IpNet;
use tokio::{sync::mpsc, time::Instant};
use tracing::{info, warn};

use crate::{
    conn::{Listener, Report},
    handle::ListenError,
};

/// How often an address that could not be had is tried again.
const RETRY: Duration = Duration::from_secs(5);

/// Listening sockets by the address that was asked for.
#[derive(Debug)]
pub(crate) struct Listeners {
    open: BTreeMap<SocketAddr, Listener>,
    failed: BTreeMap<SocketAddr, String>,
    retry_at: Option<Instant>,
    passwords: HashMap<IpNet, String>,
    inbox: mpsc::Sender<Report>,
}

impl Listeners {
    pub(crate) fn new(inbox: mpsc::Sender<Report>) -> Self {
        Self {
            open: BTreeMap::new(),
            failed: BTreeMap::new(),
            retry_at: None,
            passwords: HashMap::new(),
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
                for (range, password) in &self.passwords {
                    set_password(&listener, *range, Some(password));
                }
                self.open.insert(address, listener);
            }
            // "Everywhere" does not include a family this machine has not.
            Err(e) if tcp::is_family_missing(&e) && address.ip().is_unspecified() => {}
            Err(e) => {
                self.failed.insert(address, e.to_string());
            }
        }
    }

    /// The keys of peers and of ranges; those no longer named are removed. A peer is the range of its own address.
    pub(crate) fn set_passwords(&mut self, passwords: HashMap<IpNet, String>) {
        for listener in self.open.values() {
            for range in self.passwords.keys().filter(|p| !passwords.contains_key(*p)) {
                set_password(listener, *range, None);
            }
            for (range, password) in passwords.iter().filter(|(p, key)| self.passwords.get(*p) != Some(*key))
            {
                set_password(listener, *range, Some(password));
            }
        }
        self.passwords = passwords;
    }

    pub(crate) fn errors(&self) -> Vec<ListenError> {
        let failed = self.failed.iter();
        failed.map(|(address, why)| ListenError { address: *address, why: why.clone() }).collect()
    }

    /// For status: the addresses, and those that could not be had.
    pub(crate) fn describe(&self) -> String {
        let open = self.open.values().filter_map(|l| l.local_addr().ok()).map(|a| a.to_string());
        let failed = self.errors().into_iter().map(|e| format!("{} (failed: {})", e.address, e.why));
        open.chain(failed).collect::<Vec<_>>().join(", ")
    }
}

fn set_password(listener: &Listener, range: IpNet, password: Option<&str>) {
    let single = range.prefix_len() == range.max_prefix_len();
    let done = if single {
        listener.set_password(range.addr(), password)
    } else {
        listener.set_range_password(range, password)
    };
    if let Err(e) = done {
        warn!(peer = %range, error = %e, "cannot set the TCP-MD5 key; connections from there will not come up");
    }
}
