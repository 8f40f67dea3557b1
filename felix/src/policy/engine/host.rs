//! Addresses of this host, by which host endpoints with expectedIPs are known: read with each step. While they cannot be
//! read, what was known holds; no rule goes because the kernel did not answer.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    time::{Duration, Instant},
};

use brindle_kernel::netlink::{NetlinkError, Rtnl};

/// After how long they are read again when that failed.
const AGAIN: Duration = Duration::from_secs(1);

/// Addresses and their devices.
pub(in crate::policy) type ByAddress = BTreeMap<IpAddr, String>;

/// What is known of them, while somebody asks.
#[derive(Default)]
pub(super) struct HostAddresses {
    known: ByAddress,
    /// They were read since they are asked for.
    read: bool,
    problem: Option<String>,
    again: Option<Instant>,
}

/// What a reading changed.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Learned {
    Nothing,
    Changed,
    /// They were never read: which rules are wanted cannot be told.
    Unknown,
}

impl HostAddresses {
    /// Takes a reading; `None`: nobody asks for them.
    pub(super) fn learn(&mut self, reading: Option<Result<ByAddress, String>>, now: Instant) -> Learned {
        self.again = None;
        let next = match reading {
            None => {
                self.read = false;
                ByAddress::new()
            }
            Some(Ok(next)) => {
                self.read = true;
                next
            }
            Some(Err(why)) => {
                self.again = Some(now + AGAIN);
                let text = format!(
                    "addresses of this host cannot be read: {why}; host endpoints with expectedIPs stay as they were"
                );
                if self.problem.as_ref() != Some(&text) {
                    tracing::warn!("{text}");
                }
                self.problem = Some(text);
                return if self.read { Learned::Nothing } else { Learned::Unknown };
            }
        };
        if let Some(old) = self.problem.take() {
            tracing::info!(old = %old, new = "read", "policy");
        }
        if next == self.known {
            return Learned::Nothing;
        }
        self.known = next;
        Learned::Changed
    }

    pub(super) fn known(&self) -> &ByAddress {
        &self.known
    }

    /// What stands in the way.
    pub(super) fn problem(&self) -> Option<&String> {
        self.problem.as_ref()
    }

    /// When they are read again.
    pub(super) fn due(&self) -> Option<Instant> {
        self.again
    }
}

/// Which device has which address.
pub(in crate::policy) fn addresses() -> Result<ByAddress, NetlinkError> {
    let mut rtnl = Rtnl::open()?;
    let names: BTreeMap<u32, String> = rtnl.links()?.into_iter().map(|l| (l.index, l.name)).collect();
    let all = rtnl.addrs(None)?;
    Ok(all.into_iter().filter_map(|a| Some((a.net.addr(), names.get(&a.link)?.clone()))).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_known_holds_while_the_kernel_does_not_answer() {
        let now = Instant::now();
        let eth0 = ByAddress::from([(IpAddr::from([192, 0, 2, 1]), "eth0".to_owned())]);
        let failed = || Some(Err("no buffer space".to_owned()));
        let mut host = HostAddresses::default();
        // After a start the rules of the last run stand: nothing is written that leaves some of them out.
        assert_eq!(host.learn(failed(), now), Learned::Unknown);
        assert!(host.problem().is_some_and(|p| p.contains("no buffer space")), "{:?}", host.problem());
        assert_eq!(host.due(), Some(now + AGAIN));
        assert_eq!(host.learn(Some(Ok(eth0.clone())), now), Learned::Changed);
        assert_eq!((host.problem(), host.due()), (None, None));
        assert_eq!(host.learn(failed(), now), Learned::Nothing);
        assert_eq!((host.known(), host.due()), (&eth0, Some(now + AGAIN)));
        assert!(host.problem().is_some());
        assert_eq!(host.learn(Some(Ok(eth0.clone())), now), Learned::Nothing);
        assert_eq!(host.problem(), None);
        // Nobody asks, and then somebody does: what was known long ago is not what is there.
        assert_eq!(host.learn(None, now), Learned::Changed);
        assert_eq!(host.learn(failed(), now), Learned::Unknown);
        assert_eq!(host.learn(None, now), Learned::Nothing);
        assert_eq!((host.problem(), host.due()), (None, None));
    }
}
