//! Bounded retries after lost compare-and-swap writes. Waiting needs a clock, so whoever has one passes it in.

use std::{future::Future, pin::Pin, sync::Arc};

use crate::error::IpamError;

/// Calico's budget per loop.
pub(crate) const MAX_ATTEMPTS: u32 = 100;

/// How to wait before the n-th retry (from 1). Implementations add jitter; they bound the wait.
pub trait Pause: Send + Sync {
    fn pause(&self, attempt: u32) -> Pin<Box<dyn Future<Output = ()> + Send + '_>>;

    /// A write is done, and the one that belongs to it is not: where a test lets the process die. One of [`STEPS`].
    /// Nothing happens by default: only who can be made to die there has something to do.
    fn passed(&self, _step: &'static str) {}
}

/// What [`Pause::passed`] may be told, in the order of an assignment that claims a block, and of a release.
pub const STEPS: [&str; 6] = [
    "ipam.claim.pending",
    "ipam.claim.created",
    "ipam.assign.counted",
    "ipam.assign.written",
    "ipam.release.written",
    "ipam.release.forgotten",
];

/// Retries at once.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoPause;

impl Pause for NoPause {
    fn pause(&self, _attempt: u32) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        Box::pin(async {})
    }
}

/// One loop's count of attempts.
pub(crate) struct Retry {
    pause: Arc<dyn Pause>,
    attempt: u32,
}

impl Retry {
    pub(crate) fn new(pause: &Arc<dyn Pause>) -> Self {
        Self { pause: Arc::clone(pause), attempt: 0 }
    }

    /// Waits for the next attempt, or gives up on `what`.
    pub(crate) async fn again(&mut self, what: impl FnOnce() -> String) -> Result<(), IpamError> {
        self.attempt += 1;
        if self.attempt >= MAX_ATTEMPTS {
            return Err(IpamError::Contention { what: what(), attempts: self.attempt });
        }
        self.pause.pause(self.attempt).await;
        Ok(())
    }
}
