//! Leaving on purpose: peers are told to find other ways (GRACEFUL_SHUTDOWN, RFC 8326), have some time for it, then the
//! sessions end and with them our routes. The agent itself goes on: pods of this node keep what they have in the kernel.
//! Without it, the end of the agent is a graceful restart (RFC 4724): peers keep our routes for the next one.

use std::{
    sync::atomic::{AtomicU8, Ordering},
    time::{Duration, Instant},
};

use anyhow::{Result, bail};
use brindle_config_core::status::health::Drained;

/// Longest time peers may be given.
pub(crate) const LONGEST: Duration = Duration::from_secs(600);

const SPEAKING: u8 = 0;
const DRAINING: u8 = 1;
const DRAINED: u8 = 2;

/// The speaker's way out.
pub(crate) struct Drain {
    bgp: Option<brindle_bgpd::Handle>,
    state: AtomicU8,
}

impl Drain {
    pub(crate) const fn new(bgp: Option<brindle_bgpd::Handle>) -> Self {
        Self { bgp, state: AtomicU8::new(SPEAKING) }
    }

    /// Whose way out it is.
    pub(crate) const fn speaker(&self) -> Option<&brindle_bgpd::Handle> {
        self.bgp.as_ref()
    }

    /// What is going on, if something is.
    pub(crate) fn state(&self) -> Option<&'static str> {
        match self.state.load(Ordering::Acquire) {
            DRAINING => Some("draining: peers move traffic away"),
            DRAINED => {
                Some("drained: the sessions were ended on purpose; a restart of the agent brings them back")
            }
            _ => None,
        }
    }

    /// Whether the speaker's end was wished for.
    pub(crate) fn is_done(&self) -> bool {
        self.state.load(Ordering::Acquire) == DRAINED
    }

    /// Drains; returns when the sessions are ended.
    pub(crate) async fn run(&self, wait: Duration) -> Result<Drained> {
        let Some(bgp) = &self.bgp else {
            bail!("this agent runs with --networking none: nobody sends traffic here because of it")
        };
        let start = self.state.compare_exchange(SPEAKING, DRAINING, Ordering::AcqRel, Ordering::Acquire);
        if start.is_err() {
            bail!("{}", self.state().unwrap_or("draining"));
        }
        let wait = wait.min(LONGEST);
        let told = async {
            let up = bgp.status().await?.peers.iter().filter(|p| p.state == "Established").count();
            bgp.drain().await?;
            Ok::<_, brindle_bgpd::Unanswered>(up)
        };
        let peers = match told.await {
            Ok(peers) => peers,
            Err(e) => {
                self.state.store(SPEAKING, Ordering::Release);
                return Err(e.into());
            }
        };
        tracing::info!(peers, seconds = wait.as_secs(), "draining: peers move traffic away");
        let begun = Instant::now();
        // Nobody to wait for: nobody waits.
        if peers > 0 {
            tokio::time::sleep(wait).await;
        }
        self.state.store(DRAINED, Ordering::Release);
        bgp.shutdown().await?;
        tracing::info!(peers, "drained: the sessions are ended and our routes withdrawn");
        Ok(Drained { peers, waited: begun.elapsed().as_secs() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_agent_without_a_speaker_has_nothing_to_drain() {
        let drain = Drain::new(None);
        let e = drain.run(Duration::ZERO).await.unwrap_err();
        assert!(e.to_string().contains("--networking none"), "{e}");
        assert!(!drain.is_done() && drain.state().is_none());
    }

    #[tokio::test]
    async fn a_speaker_ends_once_and_it_is_known_why() {
        let (mut running, _fib) = brindle_bgpd::spawn(false);
        let drain = Drain::new(Some(running.handle.clone()));
        let done = drain.run(Duration::from_secs(300)).await.unwrap();
        assert_eq!(done, Drained { peers: 0, waited: 0 }, "without peers nobody waits");
        running.ended().await;
        assert!(drain.is_done());
        let e = drain.run(Duration::ZERO).await.unwrap_err();
        assert!(e.to_string().starts_with("drained"), "{e}");
    }
}
