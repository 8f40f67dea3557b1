//! What comes and goes on this host and the rules depend on: kube-proxy's device for IPVS, and addresses, by which host
//! endpoints and services are told.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
        mpsc as sync,
    },
    time::Duration,
};

use brindle_kernel::netlink::{Event, Group, Monitor, NetlinkError, Rtnl, Waker};
use tokio::sync::mpsc;

use crate::policy::ipvs;

const GROUPS: [Group; 3] = [Group::Links, Group::AddrsV4, Group::AddrsV6];
/// After how long it is listened again, when that ended or could not begin.
const AGAIN: Duration = Duration::from_secs(5);

/// A thread that listens, as long as this is kept.
pub(super) struct Moves {
    heard: mpsc::Receiver<()>,
    addresses: Arc<AtomicBool>,
    waker: Arc<Mutex<Option<Waker>>>,
    /// The thread's pause is over when this is gone.
    stop: Option<sync::Sender<()>>,
}

impl Moves {
    /// Begins in the network namespace of the calling thread. While the kernel's word cannot be had, slow checks find out.
    pub(super) fn begin() -> Self {
        // Several changes are one to look at.
        let (tx, heard) = mpsc::channel(1);
        let (stop, stopped) = sync::channel();
        let addresses = Arc::new(AtomicBool::new(false));
        let waker = Arc::new(Mutex::new(None));
        let listener = Listener {
            tx,
            stopped,
            again: AGAIN,
            addresses: Arc::clone(&addresses),
            waker: Arc::clone(&waker),
        };
        // Opened here: what happens after this call is heard.
        let monitor = Monitor::open(&GROUPS);
        let thread = std::thread::Builder::new().name("policy-addrs".into());
        if let Err(e) = thread.spawn(move || listener.run(monitor)) {
            tracing::warn!("changed addresses of this host are found by slow checks: {e}");
        }
        Self { heard, addresses, waker, stop: Some(stop) }
    }

    /// Whether addresses matter: most nodes have no use for them, and there are many.
    pub(super) fn tell_of_addresses(&self, wanted: bool) {
        self.addresses.store(wanted, Ordering::Relaxed);
    }

    /// Waits for a change.
    pub(super) async fn next(&mut self) {
        if self.heard.recv().await.is_none() {
            // Nobody listens any more, and why is in the log.
            std::future::pending::<()>().await;
        }
    }
}

impl Drop for Moves {
    fn drop(&mut self) {
        // First closed, then woken: who sets another waker after this looks whether it is closed before it waits.
        self.heard.close();
        self.stop = None;
        if let Some(waker) = self.waker.lock().unwrap_or_else(PoisonError::into_inner).as_ref() {
            waker.wake();
        }
    }
}

/// Devices by their index. What is not known is taken for new when it is told of.
fn names() -> BTreeMap<u32, String> {
    let links = Rtnl::open().and_then(|mut rtnl| rtnl.links()).unwrap_or_default();
    links.into_iter().map(|l| (l.index, l.name)).collect()
}

/// The thread's side.
struct Listener {
    tx: mpsc::Sender<()>,
    stopped: sync::Receiver<()>,
    again: Duration,
    addresses: Arc<AtomicBool>,
    waker: Arc<Mutex<Option<Waker>>>,
}

impl Listener {
    fn run(&self, first: Result<Monitor, NetlinkError>) {
        let mut monitor = first;
        loop {
            let why = match monitor {
                Ok(monitor) => {
                    *self.waker.lock().unwrap_or_else(PoisonError::into_inner) = Some(monitor.waker());
                    let Err(why) = self.listen(monitor) else { return };
                    why
                }
                Err(why) => why,
            };
            tracing::warn!(
                again_in = self.again.as_secs(),
                "changed addresses of this host are found by slow checks for now: {why}"
            );
            if self.stopped.recv_timeout(self.again) != Err(sync::RecvTimeoutError::Timeout) {
                return;
            }
            monitor = Monitor::open(&GROUPS);
            // What happened meanwhile nobody heard.
            self.tell();
        }
    }

    /// Until nobody wants to hear any more.
    fn listen(&self, mut monitor: Monitor) -> Result<(), NetlinkError> {
        let device = || ipvs::device().ok().flatten();
        let mut services = device();
        let mut names = names();
        while !self.tx.is_closed() {
            let told = match monitor.next(None) {
                Ok(events) => {
                    let mut any = false;
                    for e in &events {
                        any |= match e {
                            // Its addresses stay, and host endpoints known by them are for the new name.
                            Event::Link(link)
                                if names
                                    .insert(link.index, link.name.clone())
                                    .is_some_and(|old| old != link.name)
                                    && self.addresses.load(Ordering::Relaxed) =>
                            {
                                true
                            }
                            Event::Link(link) | Event::LinkGone(link) if link.name == ipvs::DEVICE => {
                                services = matches!(e, Event::Link(_)).then_some(link.index);
                                true
                            }
                            Event::LinkGone(link) => {
                                names.remove(&link.index);
                                false
                            }
                            Event::Addr(a) | Event::AddrGone(a) => {
                                services == Some(a.link) || self.addresses.load(Ordering::Relaxed)
                            }
                            _ => false,
                        };
                    }
                    any
                }
                // What was lost may have been one.
                Err(NetlinkError::Overrun { .. }) => {
                    services = device();
                    names = self::names();
                    true
                }
                Err(e) => return Err(e),
            };
            if told {
                self.tell();
            }
        }
        Ok(())
    }

    fn tell(&self) {
        // One that waits already says as much.
        let _ = self.tx.try_send(());
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[test]
    fn listening_begins_again_after_an_error() {
        let (tx, mut heard) = mpsc::channel(1);
        let (stop, stopped) = sync::channel();
        let (addresses, waker) = (Arc::new(AtomicBool::new(true)), Arc::new(Mutex::new(None)));
        let again = Duration::from_millis(1);
        let listener =
            Listener { tx, stopped, again, addresses: Arc::clone(&addresses), waker: Arc::clone(&waker) };
        let failed = NetlinkError::Socket { what: "read".into(), errno: 9 };
        let thread = std::thread::spawn(move || listener.run(Err(failed)));
        assert_eq!(heard.blocking_recv(), Some(()), "what happened meanwhile is looked at");
        let limit = Instant::now() + Duration::from_secs(10);
        while waker.lock().unwrap().is_none() {
            assert!(Instant::now() < limit, "nobody listens");
            std::thread::yield_now();
        }
        drop(Moves { heard, addresses, waker, stop: Some(stop) });
        thread.join().unwrap();
    }

    #[test]
    fn who_waits_to_listen_again_ends_at_once() {
        let (tx, heard) = mpsc::channel(1);
        let (stop, stopped) = sync::channel();
        let (addresses, waker) = (Arc::new(AtomicBool::new(true)), Arc::new(Mutex::new(None)));
        let again = Duration::from_secs(3600);
        let listener =
            Listener { tx, stopped, again, addresses: Arc::clone(&addresses), waker: Arc::clone(&waker) };
        let failed = NetlinkError::Socket { what: "read".into(), errno: 9 };
        let thread = std::thread::spawn(move || listener.run(Err(failed)));
        drop(Moves { heard, addresses, waker, stop: Some(stop) });
        thread.join().unwrap();
    }
}
