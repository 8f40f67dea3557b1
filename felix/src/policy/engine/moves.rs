//! Addresses of this host that come and go: host endpoints may be known by nothing else.

use brindle_kernel::netlink::{Group, Monitor, NetlinkError, Waker};
use tokio::sync::mpsc;

/// A thread that listens, as long as this is kept.
pub(super) struct Moves {
    heard: mpsc::Receiver<()>,
    waker: Option<Waker>,
}

impl Moves {
    /// Begins in the network namespace of the calling thread. Without the kernel's word the slow checks find out.
    pub(super) fn begin() -> Self {
        // Several changes are one to look at.
        let (tx, heard) = mpsc::channel(1);
        let begun = Monitor::open(&[Group::AddrsV4, Group::AddrsV6]).map_err(|e| e.to_string());
        let begun = begun.and_then(|monitor| {
            let waker = monitor.waker();
            let listen = move || listen(monitor, &tx);
            let thread = std::thread::Builder::new().name("policy-addrs".into()).spawn(listen);
            thread.map(|_| waker).map_err(|e| e.to_string())
        });
        let waker = begun
            .inspect_err(|e| tracing::warn!("changed addresses of this host are found by slow checks: {e}"))
            .ok();
        Self { heard, waker }
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

fn listen(mut monitor: Monitor, tx: &mpsc::Sender<()>) {
    while !tx.is_closed() {
        match monitor.next(None) {
            Ok(events) if events.is_empty() => {}
            // What was lost may have been one.
            Ok(_) | Err(NetlinkError::Overrun { .. }) => {
                // One that waits already says as much.
                let _ = tx.try_send(());
            }
            Err(e) => {
                tracing::warn!("changed addresses of this host are found by slow checks: {e}");
                return;
            }
        }
    }
}
