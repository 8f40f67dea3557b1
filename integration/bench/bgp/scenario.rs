//! What is measured: how many sessions, which routes, what happens.

use std::net::Ipv4Addr;

use super::wire::{Attrs, Prefix, updates};

/// The daemon's address and AS.
pub(crate) const TARGET: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
pub(crate) const AS: u32 = 64_512;

/// What the neighbors are to the daemon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// Clients of a route reflector.
    Client,
    /// Of the same AS: what they say is not told to others.
    Internal,
    External,
}

/// After everybody knows everything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Then {
    Nothing,
    /// So many prefixes of the first sender are withdrawn and announced again, five times.
    Churn(usize),
    /// Seconds of silence.
    Idle(u64),
    /// The routes are to be in the kernel; nobody is told them.
    Kernel,
}

/// A scenario.
#[derive(Clone, Debug)]
pub(crate) struct Scenario {
    pub(crate) name: &'static str,
    pub(crate) title: &'static str,
    pub(crate) role: Role,
    pub(crate) senders: usize,
    /// Of each sender.
    pub(crate) prefixes: usize,
    /// The last session only receives, and the senders' tables are not looked at.
    pub(crate) receiver: bool,
    /// Prefixes with equal attributes; 0: all of a sender.
    pub(crate) per_set: usize,
    pub(crate) shape: Shape,
    pub(crate) then: Then,
    pub(crate) hold: u16,
}

/// Lengths of the prefixes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shape {
    /// As a Calico node has them: 4 blocks of /26, the others /32.
    Node,
    Hosts,
    Nets,
}

pub(crate) const fn all() -> [Scenario; 6] {
    let s1 = Scenario {
        name: "S1",
        title: "reflector, 100 clients x 64 routes (4 /26 + 60 /32)",
        role: Role::Client,
        senders: 100,
        prefixes: 64,
        receiver: false,
        per_set: 0,
        shape: Shape::Node,
        then: Then::Nothing,
        hold: 180,
    };
    let s2 = Scenario {
        name: "S2",
        title: "reflector, 1,000 clients x 10 /32",
        senders: 1_000,
        prefixes: 10,
        shape: Shape::Hosts,
        ..s1
    };
    let s3 = Scenario {
        name: "S3",
        title: "10 external peers x 100,000 /24, one attribute set each, 1 receiver",
        role: Role::External,
        senders: 10,
        prefixes: 100_000,
        receiver: true,
        shape: Shape::Nets,
        ..s1
    };
    let s4 = Scenario {
        name: "S4",
        title: "100 internal peers x 64 routes into the kernel (brindle: the whole agent, policy included)",
        role: Role::Internal,
        then: Then::Kernel,
        ..s1
    };
    let s5 = Scenario {
        name: "S5",
        title: "churn: 10,000 of 100,000 prefixes withdrawn and announced again, 5 prefixes a set",
        senders: 2,
        prefixes: 50_000,
        per_set: 5,
        then: Then::Churn(10_000),
        ..s3
    };
    let s6 = Scenario {
        name: "S6",
        title: "100 sessions idle for 30 s, hold time 90 s",
        prefixes: 1,
        shape: Shape::Hosts,
        then: Then::Idle(30),
        hold: 90,
        ..s1
    };
    [s1, s2, s3, s4, s5, s6]
}

/// A recorded table through a reflector: one client sends, one receives.
pub(crate) const fn replay() -> Scenario {
    let [s1, ..] = all();
    Scenario {
        name: "MRT",
        title: "a recorded table from one client to another",
        senders: 1,
        prefixes: 0,
        receiver: true,
        ..s1
    }
}

impl Scenario {
    pub(crate) const fn sessions(&self) -> usize {
        self.senders + self.receiver as usize
    }

    /// Address of a neighbor.
    pub(crate) fn address(&self, n: usize) -> Ipv4Addr {
        Ipv4Addr::from_bits(0x0a01_0001 + u32::try_from(n).unwrap_or(0))
    }

    pub(crate) fn asn(&self, n: usize) -> u32 {
        if self.role == Role::External { 65_001 + u32::try_from(n).unwrap_or(0) } else { AS }
    }

    pub(crate) fn prefix(&self, sender: usize, k: usize) -> Prefix {
        let n = u32::try_from(sender * self.prefixes + k).unwrap_or(0);
        match self.shape {
            Shape::Node if k < 4 => (0xac10_0000 + (u32::try_from(sender * 4 + k).unwrap_or(0) << 6), 26),
            Shape::Node | Shape::Hosts => (0x1400_0000 + n, 32),
            Shape::Nets => (0x1400_0000 + (n << 8), 24),
        }
    }

    /// Sender and number of a prefix; `None`: nobody has it.
    pub(crate) fn owner(&self, (address, len): Prefix) -> Option<(usize, usize)> {
        let at = |base: u32, shift: u32| usize::try_from(address.checked_sub(base)? >> shift).ok();
        let n = match (self.shape, len) {
            (Shape::Node, 26) => {
                let n = at(0xac10_0000, 6)?;
                return (n / 4 < self.senders).then_some((n / 4, n % 4));
            }
            (Shape::Node | Shape::Hosts, 32) => at(0x1400_0000, 0)?,
            (Shape::Nets, 24) => at(0x1400_0000, 8)?,
            _ => return None,
        };
        let own = (n / self.prefixes.max(1), n % self.prefixes.max(1));
        (own.0 < self.senders && !(self.shape == Shape::Node && own.1 < 4)).then_some(own)
    }

    /// UPDATEs for the first `count` prefixes of a sender.
    pub(crate) fn announce(&self, sender: usize, count: usize) -> Vec<u8> {
        let per_set = if self.per_set == 0 { count.max(1) } else { self.per_set };
        let prefixes: Vec<Prefix> = (0..count).map(|k| self.prefix(sender, k)).collect();
        let mut out = Vec::new();
        for (set, list) in (0u32..).zip(prefixes.chunks(per_set)) {
            let external = self.role == Role::External;
            let mut path = if external { vec![self.asn(sender)] } else { vec![] };
            let mut communities = vec![];
            if self.per_set > 0 {
                // Three to five ASes, one to four communities, no two sets alike.
                let mix = set.wrapping_mul(2_654_435_761);
                path.extend(
                    [3_356 + mix % 7, 100_000 + set].into_iter().chain((0..mix % 3).map(|n| 200_000 + n)),
                );
                communities.extend((0..=mix % 4).map(|n| 0xfde8_0000 + ((mix >> 8) + n) % 500));
            }
            let attrs =
                Attrs { path, next_hop: self.address(sender).to_bits(), local_pref: !external, communities };
            updates(Some(&attrs.octets()), list, &mut out);
        }
        out
    }

    /// Withdrawals of the same.
    pub(crate) fn withdraw(&self, sender: usize, count: usize) -> Vec<u8> {
        let prefixes: Vec<Prefix> = (0..count).map(|k| self.prefix(sender, k)).collect();
        let mut out = Vec::new();
        updates(None, &prefixes, &mut out);
        out
    }
}
