//! Arithmetic over addresses and blocks: ordinals, the n-th block of a pool, and the walk over a pool's blocks from a
//! start that differs per host. Nothing here knows of records.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

/// The largest block this code handles: 2^12 addresses (IPv4 /20, IPv6 /116), Calico's own limit.
pub const MAX_BLOCK_BITS: u8 = 12;

const fn width(net: &IpNet) -> u8 {
    match net {
        IpNet::V4(_) => 32,
        IpNet::V6(_) => 128,
    }
}

fn bits(ip: IpAddr) -> u128 {
    match ip {
        IpAddr::V4(a) => u128::from(u32::from(a)),
        IpAddr::V6(a) => u128::from(a),
    }
}

fn from_bits(like: &IpNet, value: u128) -> Option<IpAddr> {
    match like {
        IpNet::V4(_) => u32::try_from(value).ok().map(|v| IpAddr::V4(Ipv4Addr::from(v))),
        IpNet::V6(_) => Some(IpAddr::V6(Ipv6Addr::from(value))),
    }
}

/// Number of addresses, saturating (only `::/0` saturates).
pub fn size(net: &IpNet) -> u128 {
    1_u128.checked_shl(u32::from(width(net).saturating_sub(net.prefix_len()))).unwrap_or(u128::MAX)
}

/// The address with this ordinal in the network.
pub fn nth(net: &IpNet, ordinal: u128) -> Option<IpAddr> {
    if ordinal >= size(net) {
        return None;
    }
    from_bits(net, bits(net.network()).checked_add(ordinal)?)
}

/// The ordinal of the address in the network.
pub fn ordinal(net: &IpNet, ip: IpAddr) -> Option<u128> {
    if !net.contains(&ip) {
        return None;
    }
    bits(ip).checked_sub(bits(net.network()))
}

/// The block of this prefix length that holds the address.
pub fn block_of(ip: IpAddr, block_size: u8) -> Option<IpNet> {
    IpNet::new(ip, block_size).ok().map(|n| n.trunc())
}

/// The blocks of a pool, once around from a start index. Never materialises them: an IPv6 pool may have 2^58.
#[derive(Clone, Debug)]
pub struct BlockWalk {
    pool: IpNet,
    block_size: u8,
    count: u128,
    next: u128,
    left: u128,
}

impl BlockWalk {
    /// Blocks of `block_size` in `pool`, beginning at `seed` modulo their number. Empty when the pool is smaller than
    /// a block or the length is out of range.
    pub fn new(pool: IpNet, block_size: u8, seed: u64) -> Self {
        let pool = pool.trunc();
        let count = block_size
            .checked_sub(pool.prefix_len())
            .filter(|_| block_size <= width(&pool))
            .map_or(0, |b| 1_u128.checked_shl(u32::from(b)).unwrap_or(u128::MAX));
        let next = if count == 0 { 0 } else { u128::from(seed) % count };
        Self { pool, block_size, count, next, left: count }
    }

    /// Number of blocks in the pool.
    pub const fn total(&self) -> u128 {
        self.count
    }

    fn at(&self, index: u128) -> Option<IpNet> {
        let shift = u32::from(width(&self.pool).checked_sub(self.block_size)?);
        // A shift by the whole width happens for a /0 block only, whose index is 0.
        let base = bits(self.pool.network()).checked_add(index.checked_shl(shift).unwrap_or(0))?;
        IpNet::new(from_bits(&self.pool, base)?, self.block_size).ok()
    }

    fn advance(&mut self, steps: u128) {
        let steps = steps.min(self.left);
        self.left -= steps;
        // `next` < `count` and `steps` <= `count`; for a saturated count the sum is reduced without overflow.
        let room = self.count - self.next;
        self.next = if steps >= room { steps - room } else { self.next + steps };
    }

    /// Passes over the rest of `covering` (a network at least as large as a block): the whole range is of no use.
    pub fn pass_over(&mut self, covering: &IpNet) {
        let Some(shift) = width(&self.pool).checked_sub(self.block_size).map(u32::from) else { return };
        let first = bits(covering.network()).saturating_sub(bits(self.pool.network()));
        let last = bits(covering.broadcast()).saturating_sub(bits(self.pool.network()));
        let (first, last) =
            (first.checked_shr(shift).unwrap_or(0), last.checked_shr(shift).unwrap_or(0).min(self.count - 1));
        if (first..=last).contains(&self.next) {
            self.advance(last - self.next + 1);
        }
    }
}

impl Iterator for BlockWalk {
    type Item = IpNet;

    fn next(&mut self) -> Option<IpNet> {
        if self.left == 0 {
            return None;
        }
        let block = self.at(self.next);
        self.advance(1);
        block
    }
}

/// A start for [`BlockWalk`] that is the same for a host at every start of its agent (FNV-1a of the name).
pub fn host_seed(host: &str) -> u64 {
    host.bytes().fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0000_0100_0000_01b3))
}

/// Networks whose addresses are never given unasked (IPReservation).
#[derive(Clone, Debug, Default)]
pub struct Reservations(Vec<IpNet>);

impl Reservations {
    /// From the `reservedCIDRs` of all reservations.
    pub fn new(nets: impl IntoIterator<Item = IpNet>) -> Self {
        Self(nets.into_iter().map(|n| n.trunc()).collect())
    }

    /// Whether the address is reserved.
    pub fn contains(&self, ip: IpAddr) -> bool {
        self.0.iter().any(|n| n.contains(&ip))
    }

    /// A reservation that covers the whole network.
    pub fn covering(&self, net: &IpNet) -> Option<&IpNet> {
        self.0.iter().find(|r| r.contains(net))
    }

    /// How many addresses of the network are reserved, each counted once; saturating.
    pub fn within(&self, net: &IpNet) -> u128 {
        if self.covering(net).is_some() {
            return size(net);
        }
        let mut inside: Vec<IpNet> = self.0.iter().filter(|r| net.contains(*r)).copied().collect();
        inside.sort_unstable();
        let mut last: Option<IpNet> = None;
        let mut sum = 0_u128;
        for r in inside {
            // In this order a network comes before everything inside it.
            if last.is_none_or(|l| !l.contains(&r)) {
                sum = sum.saturating_add(size(&r));
                last = Some(r);
            }
        }
        sum
    }

    /// Whether every address from `first` to `last` is reserved, be it by several reservations.
    pub fn span(&self, first: IpAddr, last: IpAddr) -> bool {
        let mut at = first;
        loop {
            let Some(over) = self.0.iter().filter(|n| n.contains(&at)).map(IpNet::broadcast).max() else {
                return false;
            };
            if over >= last {
                return true;
            }
            let net = IpNet::from(over);
            let Some(next) = bits(over).checked_add(1).and_then(|b| from_bits(&net, b)) else { return false };
            at = next;
        }
    }

    /// Whether no address of the network can be reserved.
    pub fn clear_of(&self, net: &IpNet) -> bool {
        !self.0.iter().any(|r| r.contains(net) || net.contains(r))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn net(s: &str) -> IpNet {
        s.parse().unwrap()
    }

    #[test]
    fn the_walk_visits_every_block_once_from_any_start() {
        for seed in [0, 1, 2, 3, 4, 1_000_003, u64::MAX] {
            let blocks: Vec<IpNet> = BlockWalk::new(net("10.0.0.0/24"), 26, seed).collect();
            let mut sorted = blocks.clone();
            sorted.sort_unstable();
            sorted.dedup();
            assert_eq!(blocks.len(), 4);
            assert_eq!(sorted.len(), 4);
            assert_eq!(Some(blocks[0]), BlockWalk::new(net("10.0.0.0/24"), 26, 0).nth((seed % 4) as usize));
        }
    }

    #[test]
    fn a_huge_pool_costs_nothing_to_walk() {
        let mut walk = BlockWalk::new(net("fd00::/64"), 122, 7);
        assert_eq!(walk.total(), 1 << 58);
        assert_eq!(walk.next(), Some(net("fd00::1c0/122")));
        walk.pass_over(&net("fd00::/80"));
        assert_eq!(walk.next(), Some(net("fd00::1:0:0:0/122")));
    }

    #[test]
    fn a_pool_that_is_one_block_or_less_is_walked_rightly() {
        assert_eq!(BlockWalk::new(net("10.0.0.0/26"), 26, 9).collect::<Vec<_>>(), [net("10.0.0.0/26")]);
        assert_eq!(BlockWalk::new(net("10.0.0.0/28"), 26, 9).next(), None);
        assert_eq!(BlockWalk::new(net("10.0.0.0/28"), 33, 9).next(), None);
        assert_eq!(BlockWalk::new(net("0.0.0.0/0"), 0, 9).collect::<Vec<_>>(), [net("0.0.0.0/0")]);
        assert_eq!(BlockWalk::new(net("10.0.0.7/32"), 32, 9).collect::<Vec<_>>(), [net("10.0.0.7/32")]);
    }

    #[test]
    fn a_range_is_reserved_when_reservations_span_it() {
        let r = Reservations::new([
            net("10.0.0.0/25"),
            net("10.0.0.128/25"),
            net("10.0.2.0/24"),
            net("fd00::/64"),
        ]);
        let span = |a: &str, b: &str| r.span(a.parse().unwrap(), b.parse().unwrap());
        assert!(
            span("10.0.0.7", "10.0.0.255") && span("10.0.2.9", "10.0.2.9") && span("fd00::1", "fd00::ffff")
        );
        assert!(
            !span("10.0.0.7", "10.0.1.0") && !span("10.0.0.0", "10.0.2.255") && !span("10.1.0.0", "10.1.0.0")
        );
        assert!(
            Reservations::new([net("0.0.0.0/0")])
                .span("0.0.0.0".parse().unwrap(), "255.255.255.255".parse().unwrap())
        );
    }

    #[test]
    fn skipping_wraps_with_the_walk() {
        // Start in the last quarter, skip it: the walk goes on at the beginning and still ends.
        let mut walk = BlockWalk::new(net("10.0.0.0/24"), 26, 3);
        walk.pass_over(&net("10.0.0.192/26"));
        assert_eq!(walk.collect::<Vec<_>>(), [net("10.0.0.0/26"), net("10.0.0.64/26"), net("10.0.0.128/26")]);
    }

    proptest! {
        #[test]
        fn ordinals_and_addresses_are_inverse(addr: u32, len in 0u8..=32, pick: u128) {
            let n = IpNet::new(IpAddr::V4(addr.into()), len).unwrap().trunc();
            let o = pick % size(&n);
            let ip = nth(&n, o).unwrap();
            prop_assert!(n.contains(&ip));
            prop_assert_eq!(ordinal(&n, ip), Some(o));
            prop_assert_eq!(nth(&n, size(&n)), None);
        }

        #[test]
        fn ordinals_and_addresses_are_inverse_in_ipv6(addr: u128, len in 1u8..=128, pick: u128) {
            let n = IpNet::new(IpAddr::V6(addr.into()), len).unwrap().trunc();
            let o = pick % size(&n);
            prop_assert_eq!(ordinal(&n, nth(&n, o).unwrap()), Some(o));
        }
    }
}
