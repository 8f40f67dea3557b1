//! The set of listening sockets: what is wanted, what could be had, and the keys of peers with TCP-MD5.

use std::{
    collections::BTreeMap,
    io,
    net::{IpAddr, SocketAddr},
    os::fd::BorrowedFd,
    sync::atomic::Ordering,
    time::Duration,
};

use brindle_kernel::tcp;
use ipnet::IpNet;
use tokio::{sync::mpsc, time::Instant};
use tracing::info;

use crate::{
    conn::{Age, Listener, Report},
    handle::ListenError,
    keys::{Held, Wanted},
};

/// How often an address that could not be had is tried again, and a key the kernel did not take.
const RETRY: Duration = Duration::from_secs(5);

/// Listening sockets by the address that was asked for.
#[derive(Debug)]
pub(crate) struct Listeners {
    open: BTreeMap<SocketAddr, Open>,
    failed: BTreeMap<SocketAddr, String>,
    retry_at: Option<Instant>,
    wanted: Wanted,
    age: Age,
    inbox: mpsc::Sender<Report>,
}

#[derive(Debug)]
struct Open {
    listener: Listener,
    keys: Held,
}

impl Listeners {
    pub(crate) fn new(inbox: mpsc::Sender<Report>) -> Self {
        Self {
            open: BTreeMap::new(),
            failed: BTreeMap::new(),
            retry_at: None,
            wanted: Wanted::default(),
            age: Age::default(),
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
        self.schedule();
        self.errors()
    }

    fn schedule(&mut self) {
        let all = self.failed.is_empty() && self.open.values().all(|o| o.keys.complete());
        self.retry_at = (!all).then(|| Instant::now() + RETRY);
    }

    /// When [`Listeners::retry`] has something to do.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.retry_at
    }

    /// Tries again what failed. The answer is that of [`Listeners::set_keys`].
    pub(crate) fn retry(&mut self) -> Vec<Report> {
        for address in std::mem::take(&mut self.failed).into_keys() {
            self.open_one(address);
        }
        self.tell_keys()
    }

    fn open_one(&mut self, address: SocketAddr) {
        if self.open.contains_key(&address) {
            return;
        }
        // What comes to it is no older than its keys, unlike what has come to one before it at this address.
        let age = self.age.fetch_add(1, Ordering::SeqCst) + 1;
        let mut keys = Held::default();
        let wanted = self.wanted.of_socket(address.ip());
        let ready = |socket: BorrowedFd<'_>| {
            keys.tell(&wanted, age, |range, password| set(socket, range, password));
        };
        match Listener::open(address, self.inbox.clone(), &self.age, ready) {
            Ok(listener) => {
                info!(address = %listener.local_addr().unwrap_or(address), "listening for BGP");
                self.open.insert(address, Open { listener, keys });
            }
            // "Everywhere" does not include a family this machine has not.
            Err(e) if tcp::is_family_missing(&e) && address.ip().is_unspecified() => {}
            Err(e) => {
                self.failed.insert(address, e.to_string());
            }
        }
    }

    /// The keys of peers and of ranges; those no longer named are removed. The answer: connections that had waited, made
    /// before these keys were set.
    pub(crate) fn set_keys(&mut self, wanted: Wanted) -> Vec<Report> {
        if self.wanted == wanted {
            // What the kernel did not take has its time.
            return Vec::new();
        }
        self.wanted = wanted;
        self.tell_keys()
    }

    /// First the keys, then those who came before; only then does the count go on, so who has it came after both.
    fn tell_keys(&mut self) -> Vec<Report> {
        let age = self.age.load(Ordering::SeqCst) + 1;
        let mut waited = Vec::new();
        for (address, Open { listener, keys }) in &mut self.open {
            let wanted = self.wanted.of_socket(address.ip());
            if keys.tell(&wanted, age, |range, password| set(listener.as_fd(), range, password)) {
                waited.extend(listener.waiting());
            }
        }
        self.age.store(age, Ordering::SeqCst);
        self.schedule();
        waited
    }

    /// The key that somebody must have had who came from there, at this age, to the socket that was asked for as `via`.
    pub(crate) fn key(&self, via: SocketAddr, remote: IpAddr, age: u64) -> Option<&str> {
        self.open.get(&via)?.keys.of(remote, age)
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

fn set(socket: BorrowedFd<'_>, range: IpNet, password: Option<&str>) -> io::Result<()> {
    let password = password.map(str::as_bytes);
    if range.prefix_len() == range.max_prefix_len() {
        tcp::set_md5(socket, range.addr(), password)
    } else {
        tcp::set_md5_range(socket, range, password)
    }
}
