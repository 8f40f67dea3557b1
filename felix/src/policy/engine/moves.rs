//! What comes and goes on this host and the rules depend on: kube-proxy's device for IPVS, and addresses, by which host
//! endpoints and services are told.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use brindle_kernel::netlink::{Event, Group, Monitor, NetlinkError, Waker};
use tokio::sync::mpsc;

use crate::policy::ipvs;

/// A thread that listens, as long as this is kept.
pub(super) struct Moves {
    heard: mpsc::Receiver<()>,
    waker: Option<Waker>,
    addresses: Arc<AtomicBool>,
}

impl Moves {
    /// Begins in the network namespace of the calling thread. Without the kernel's word the slow checks find out.
    pub(super) fn begin() -> Self {
        // Several changes are one to look at.
        let (tx, heard) = mpsc::channel(1);
        let addresses = Arc::new(AtomicBool::new(false));
        let wanted = Arc::clone(&addresses);
        let groups = [Group::Links, Group::AddrsV4, Group::AddrsV6];
        let begun = Monitor::open(&groups).map_err(|e| e.to_string());
        let begun = begun.and_then(|monitor| {
            let waker = monitor.waker();
            let listen = move || listen(monitor, &tx, &wanted);
            let thread = std::thread::Builder::new().name("policy-addrs".into()).spawn(listen);
            thread.map(|_| waker).map_err(|e| e.to_string())
        });
        let waker = begun
            .inspect_err(|e| tracing::warn!("changed addresses of this host are found by slow checks: {e}"))
            .ok();
        Self { heard, waker, addresses }
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
        self.heard.close();
        if let Some(waker) = &self.waker {
            waker.wake();
        }
    }
}

fn listen(mut monitor: Monitor, tx: &mpsc::Sender<()>, addresses: &AtomicBool) {
    let device = || ipvs::device().ok().flatten();
    let mut services = device();
    while !tx.is_closed() {
        let told = match monitor.next(None) {
            Ok(events) => {
                let mut any = false;
                for e in &events {
                    any |= match e {
                        Event::Link(link) | Event::LinkGone(link) if link.name == ipvs::DEVICE => {
                            services = matches!(e, Event::Link(_)).then_some(link.index);
                            true
                        }
                        Event::Addr(a) | Event::AddrGone(a) => {
                            services == Some(a.link) || addresses.load(Ordering::Relaxed)
                        }
                        _ => false,
                    };
                }
                any
            }
            // What was lost may have been one.
            Err(NetlinkError::Overrun { .. }) => {
                services = device();
                true
            }
            Err(e) => {
                tracing::warn!("changed addresses of this host are found by slow checks: {e}");
                return;
            }
        };
        if told {
            // One that waits already says as much.
            let _ = tx.try_send(());
        }
    }
}
