//! The algebra of one block: give, give this one, take back. In memory only; whoever calls writes the result with
//! compare-and-swap. Fields and their order of use are those of Calico's IPAMBlock:
//! - `unallocated` is a queue: taken at the head, returned at the tail, so an address rests as long as possible;
//! - `attributes` are shared by equal owners, and renumbered when one goes;
//! - an ordinal remembers the block's sequence number of the moment it was given, so that a late release of an
//!   earlier owner does not hit the present one.

use std::{collections::BTreeMap, net::IpAddr};

use brindle_config_core::ipam::{AllocationAttribute, IpamBlockSpec};
use ipnet::IpNet;

use crate::{
    names,
    net::{self, MAX_BLOCK_BITS, Reservations},
    time::Now,
};

/// Addresses Calico holds back for Windows; they do not make a block used.
const WINDOWS_HANDLE: &str = "windows-reserved-ipam-handle";

/// Who an address is given to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Owner {
    /// `<network>.<containerID>`, `ipip-tunnel-addr-<node>`, …
    pub handle: String,
    /// `pod`, `namespace`, `node`, `timestamp`, `type`, …
    pub attributes: BTreeMap<String, String>,
}

/// An address to take back, and what must still be true of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Release {
    pub ip: IpAddr,
    pub handle: Option<String>,
    pub sequence: Option<u64>,
}

impl Release {
    /// Takes the address back whoever holds it.
    pub const fn of(ip: IpAddr) -> Self {
        Self { ip, handle: None, sequence: None }
    }
}

/// What a release did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Released {
    pub addresses: Vec<IpAddr>,
    /// Asked for, but free already.
    pub unallocated: Vec<IpAddr>,
    /// How many per handle, for the handle records.
    pub by_handle: BTreeMap<String, u32>,
}

/// Why the algebra refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BlockError {
    #[error("block {cidr}: {reason}")]
    Malformed { cidr: IpNet, reason: String },
    #[error("{ip} is not in block {cidr}")]
    Outside { ip: IpAddr, cidr: IpNet },
    #[error("{ip} is already assigned to {holder}")]
    Assigned { ip: IpAddr, holder: String },
    #[error("{ip} now belongs to handle {found:?}, not to {wanted:?}")]
    OtherHandle { ip: IpAddr, wanted: String, found: String },
    #[error("{ip} was given again since: its sequence number is {found}, not {wanted}")]
    OtherSequence { ip: IpAddr, wanted: u64, found: u64 },
}

/// An address in use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Allocation<'a> {
    pub ip: IpAddr,
    pub attribute: &'a AllocationAttribute,
    pub sequence: u64,
}

impl Allocation<'_> {
    /// The owner's handle, if it has one.
    pub fn handle(&self) -> Option<&str> {
        self.attribute.handle_id.as_deref().map(names::sanitized)
    }

    /// Whether the address only waits for its cooldown to end.
    pub fn cooling(&self) -> bool {
        is_cooling(self.attribute)
    }
}

fn is_cooling(a: &AllocationAttribute) -> bool {
    a.handle_id.is_none() && a.released_at.is_some()
}

/// A block whose records have been checked against each other.
#[derive(Clone, Debug, PartialEq)]
pub struct Block {
    spec: IpamBlockSpec,
}

impl Block {
    /// A new block of a host, all free. The sequence numbers of a block that was deleted and made again must not
    /// repeat: they start at the time.
    pub fn new(cidr: IpNet, host: &str, now: Now) -> Result<Self, BlockError> {
        let cidr = cidr.trunc();
        let size = checked_size(&cidr)?;
        Ok(Self {
            spec: IpamBlockSpec {
                cidr,
                affinity: Some(names::host_affinity(host)),
                affinity_claim_time: Some(now.rfc3339()),
                allocations: vec![None; size],
                unallocated: (0..size).collect(),
                attributes: Vec::new(),
                sequence_number: now.0,
                sequence_number_for_allocation: BTreeMap::new(),
                deleted: false,
                strict_affinity: false,
                extra: BTreeMap::new(),
            },
        })
    }

    /// A block as read. Records that contradict each other are refused, for whatever we gave from them could be in
    /// use; a wrong free list is rebuilt, for it follows from the rest.
    pub fn from_spec(mut spec: IpamBlockSpec) -> Result<Self, BlockError> {
        let cidr = spec.cidr;
        let malformed = |reason: String| BlockError::Malformed { cidr, reason };
        if cidr != cidr.trunc() {
            return Err(malformed("the cidr has host bits".into()));
        }
        let size = checked_size(&cidr)?;
        if spec.allocations.len() != size {
            return Err(malformed(format!("{} allocations for {size} addresses", spec.allocations.len())));
        }
        if let Some(bad) = spec.allocations.iter().flatten().find(|i| **i >= spec.attributes.len()) {
            return Err(malformed(format!(
                "an allocation names attribute {bad} of {}",
                spec.attributes.len()
            )));
        }
        let mut queued = vec![false; size];
        let allocations = &spec.allocations;
        spec.unallocated.retain(|o| {
            let free = allocations.get(*o).is_some_and(Option::is_none);
            free && queued.get_mut(*o).is_some_and(|q| !std::mem::replace(q, true))
        });
        let lost = queued.iter().zip(&spec.allocations).enumerate();
        spec.unallocated.extend(lost.filter(|(_, (q, a))| !**q && a.is_none()).map(|(o, _)| o));
        Ok(Self { spec })
    }

    pub fn spec(&self) -> &IpamBlockSpec {
        &self.spec
    }

    pub fn cidr(&self) -> IpNet {
        self.spec.cidr
    }

    /// The node it belongs to.
    pub fn host(&self) -> Option<&str> {
        self.spec.host()
    }

    /// Who it belongs to: a node by its name, or `virtual:NAME`.
    pub fn owner(&self) -> Option<&str> {
        self.spec.affinity.as_deref().and_then(names::owner_of)
    }

    /// Whether it belongs to this node (or virtual owner).
    pub fn is_of(&self, owner: &str) -> bool {
        self.owner() == Some(owner)
    }

    /// When its present owner claimed it.
    pub fn claimed(&self) -> Option<Now> {
        self.spec.affinity_claim_time.as_deref().and_then(Now::parse_rfc3339)
    }

    /// Gives up to `n` free addresses that are not reserved, longest free first.
    pub fn auto_assign(&mut self, n: usize, owner: &Owner, reserved: &Reservations) -> Vec<IpAddr> {
        let cidr = self.spec.cidr;
        let mut given = Vec::new();
        let mut ordinals = Vec::new();
        if reserved.clear_of(&cidr) {
            let n = n.min(self.spec.unallocated.len());
            ordinals.extend(self.spec.unallocated.drain(..n));
            given.extend(ordinals.iter().filter_map(|o| net::nth(&cidr, *o as u128)));
        } else {
            self.spec.unallocated.retain(|ordinal| {
                if given.len() >= n {
                    return true;
                }
                let Some(ip) = net::nth(&cidr, *ordinal as u128).filter(|ip| !reserved.contains(*ip)) else {
                    return true;
                };
                given.push(ip);
                ordinals.push(*ordinal);
                false
            });
        }
        if !ordinals.is_empty() {
            let attribute = self.attribute_for(owner);
            for ordinal in ordinals {
                self.mark(ordinal, attribute);
            }
        }
        given
    }

    /// Gives this very address, reserved or not.
    pub fn assign(&mut self, ip: IpAddr, owner: &Owner) -> Result<(), BlockError> {
        let ordinal = self.ordinal(ip)?;
        if let Some(held) = self.allocation(ip) {
            let holder = match held.handle() {
                Some(h) => format!("handle {h}"),
                None if held.cooling() => "its last owner until it has cooled down".into(),
                None => "an owner without a handle".into(),
            };
            return Err(BlockError::Assigned { ip, holder });
        }
        let attribute = self.attribute_for(owner);
        self.spec.unallocated.retain(|o| *o != ordinal);
        self.mark(ordinal, attribute);
        Ok(())
    }

    /// Takes addresses back. One that fails its check fails all. With `cooldown` the addresses are kept aside from
    /// then on (see [`Block::end_cooldown`]), otherwise they are free at once.
    pub fn release(&mut self, wanted: &[Release], cooldown: Option<Now>) -> Result<Released, BlockError> {
        let mut done = Released::default();
        let mut ordinals = Vec::new();
        for r in wanted {
            let ordinal = self.ordinal(r.ip)?;
            let Some(held) = self.allocation(r.ip).filter(|a| !a.cooling()) else {
                done.unallocated.push(r.ip);
                continue;
            };
            let found = held.handle().unwrap_or_default();
            if let Some(sequence) = r.sequence.filter(|s| *s != held.sequence) {
                return Err(BlockError::OtherSequence { ip: r.ip, wanted: sequence, found: held.sequence });
            }
            if let Some(handle) = r.handle.as_deref().filter(|h| !same_handle(h, found)) {
                return Err(BlockError::OtherHandle { ip: r.ip, wanted: handle.into(), found: found.into() });
            }
            if ordinals.contains(&ordinal) {
                continue;
            }
            if !found.is_empty() {
                let count = done.by_handle.entry(found.to_owned()).or_default();
                *count = count.saturating_add(1);
            }
            ordinals.push(ordinal);
            done.addresses.push(r.ip);
        }
        self.free(&ordinals, cooldown);
        Ok(done)
    }

    /// Takes back whatever the handle holds here.
    pub fn release_handle(&mut self, handle: &str, cooldown: Option<Now>) -> Vec<IpAddr> {
        // Owners are compared once, not once for each of their addresses; a handle has one or two.
        let handle = names::sanitized(handle);
        let attributes = self.spec.attributes.iter().enumerate();
        let owned: Vec<usize> = attributes
            .filter(|(_, a)| a.handle_id.as_deref().is_some_and(|h| is_handle(h, handle)))
            .map(|(i, _)| i)
            .collect();
        if owned.is_empty() {
            return Vec::new();
        }
        let (mut ordinals, mut ips) = (Vec::new(), Vec::new());
        for (ordinal, index) in self.spec.allocations.iter().enumerate() {
            if index.is_some_and(|i| owned.contains(&i))
                && let Some(ip) = net::nth(&self.spec.cidr, ordinal as u128)
            {
                ordinals.push(ordinal);
                ips.push(ip);
            }
        }
        self.free(&ordinals, cooldown);
        ips
    }

    /// Frees addresses released at least `seconds` ago.
    pub fn end_cooldown(&mut self, now: Now, seconds: u32) {
        let over: Vec<bool> = self
            .spec
            .attributes
            .iter()
            .map(|a| {
                // A time that does not read is no reason to keep an address for ever.
                let since = a.released_at.as_deref().and_then(Now::parse_rfc3339);
                is_cooling(a) && since.is_none_or(|t| now.secs_since(t) >= u64::from(seconds))
            })
            .collect();
        if !over.contains(&true) {
            return;
        }
        let allocations = self.spec.allocations.iter().enumerate();
        let ordinals: Vec<usize> = allocations
            .filter(|(_, a)| a.is_some_and(|i| over.get(i).copied().unwrap_or(false)))
            .map(|(o, _)| o)
            .collect();
        self.free(&ordinals, None);
    }

    /// Seconds until the address has cooled down; `None`: it does not cool down.
    pub fn cooling_for(&self, ip: IpAddr, now: Now, seconds: u32) -> Option<u64> {
        let held = self.allocation(ip).filter(Allocation::cooling)?;
        let since = held.attribute.released_at.as_deref().and_then(Now::parse_rfc3339).unwrap_or(now);
        Some(u64::from(seconds).saturating_sub(now.secs_since(since)))
    }

    /// Ends the cooldown of one address, for whoever had it.
    pub fn stop_cooling(&mut self, ip: IpAddr) {
        let cools = self.allocation(ip).is_some_and(|a| a.cooling());
        if let Some(ordinal) = self.ordinal(ip).ok().filter(|_| cools) {
            self.free(&[ordinal], None);
        }
    }

    /// Free addresses that may be given unasked.
    pub fn free_count(&self, reserved: &Reservations) -> usize {
        if reserved.clear_of(&self.spec.cidr) {
            return self.spec.unallocated.len();
        }
        let ips = self.spec.unallocated.iter().filter_map(|o| net::nth(&self.spec.cidr, *o as u128));
        ips.filter(|ip| !reserved.contains(*ip)).count()
    }

    /// Whether nobody holds an address here.
    pub fn is_empty(&self) -> bool {
        self.allocations().all(|a| a.handle().is_some_and(|h| h.eq_ignore_ascii_case(WINDOWS_HANDLE)))
    }

    /// Addresses in use, cooling ones included, in order.
    pub fn allocations(&self) -> impl Iterator<Item = Allocation<'_>> {
        self.spec.allocations.iter().enumerate().filter_map(|(ordinal, index)| {
            Some(Allocation {
                ip: net::nth(&self.spec.cidr, ordinal as u128)?,
                attribute: self.spec.attributes.get((*index)?)?,
                sequence: self.sequence(ordinal),
            })
        })
    }

    /// Who holds the address.
    pub fn allocation(&self, ip: IpAddr) -> Option<Allocation<'_>> {
        let ordinal = self.ordinal(ip).ok()?;
        let index = (*self.spec.allocations.get(ordinal)?)?;
        Some(Allocation { ip, attribute: self.spec.attributes.get(index)?, sequence: self.sequence(ordinal) })
    }

    /// Takes the block from its owner; the addresses in use stay with theirs.
    pub fn disown(&mut self) {
        self.spec.affinity = None;
        self.spec.affinity_claim_time = None;
    }

    /// The record to write: every write counts the sequence number up.
    pub fn to_write(&self) -> IpamBlockSpec {
        let mut spec = self.spec.clone();
        spec.sequence_number = spec.sequence_number.wrapping_add(1);
        spec
    }

    /// As [`Block::to_write`] left it: what the store now holds.
    pub fn written(&mut self) {
        self.spec.sequence_number = self.spec.sequence_number.wrapping_add(1);
    }

    fn ordinal(&self, ip: IpAddr) -> Result<usize, BlockError> {
        let outside = BlockError::Outside { ip, cidr: self.spec.cidr };
        net::ordinal(&self.spec.cidr, ip).and_then(|o| usize::try_from(o).ok()).ok_or(outside)
    }

    fn sequence(&self, ordinal: usize) -> u64 {
        self.spec.sequence_number_for_allocation.get(Digits::of(ordinal).as_str()).copied().unwrap_or(0)
    }

    fn mark(&mut self, ordinal: usize, attribute: usize) {
        if let Some(slot) = self.spec.allocations.get_mut(ordinal) {
            *slot = Some(attribute);
        }
        let number = self.spec.sequence_number;
        self.spec.sequence_number_for_allocation.insert(Digits::of(ordinal).as_str().to_owned(), number);
    }

    /// Index of the owner's attribute, added when there is none like it.
    fn attribute_for(&mut self, owner: &Owner) -> usize {
        let end = |handle: &str| handle.as_bytes().last_chunk::<8>().copied();
        let own = end(&owner.handle);
        let same = |a: &AllocationAttribute| {
            // The handle first, from its end: of two pods it differs there.
            a.handle_id.as_deref().is_some_and(|h| end(h) == own && h == owner.handle)
                && a.secondary == owner.attributes
                && *a == attribute_of(owner)
        };
        match self.spec.attributes.iter().position(same) {
            Some(found) => found,
            None => self.push_attribute(attribute_of(owner)),
        }
    }

    fn push_attribute(&mut self, attribute: AllocationAttribute) -> usize {
        self.spec.attributes.push(attribute);
        self.spec.attributes.len() - 1
    }

    fn free(&mut self, ordinals: &[usize], cooldown: Option<Now>) {
        if ordinals.is_empty() {
            return;
        }
        let aside = cooldown.map(|since| {
            let aside =
                AllocationAttribute { released_at: Some(since.rfc3339()), ..AllocationAttribute::default() };
            let found = self.spec.attributes.iter().position(|a| *a == aside);
            found.unwrap_or_else(|| self.push_attribute(aside))
        });
        let mut former = Vec::with_capacity(ordinals.len());
        for ordinal in ordinals {
            if let Some(slot) = self.spec.allocations.get_mut(*ordinal) {
                former.extend(std::mem::replace(slot, aside));
            }
            self.spec.sequence_number_for_allocation.remove(Digits::of(*ordinal).as_str());
            if aside.is_none() {
                self.spec.unallocated.push(*ordinal);
            }
        }
        former.sort_unstable();
        former.dedup();
        // From the end, so that those still to be looked at keep their number.
        for index in former.into_iter().rev() {
            if !self.spec.allocations.contains(&Some(index)) {
                self.drop_attribute(index);
            }
        }
        // More owners than addresses in use: a record of others brought some along that own nothing.
        let in_use = self.spec.allocations.len().saturating_sub(self.spec.unallocated.len());
        if self.spec.attributes.len() > in_use {
            self.drop_unused_attributes();
        }
    }

    /// Removes an attribute nobody has any more; those behind it move up.
    fn drop_attribute(&mut self, index: usize) {
        if index >= self.spec.attributes.len() {
            return;
        }
        self.spec.attributes.remove(index);
        for i in self.spec.allocations.iter_mut().flatten() {
            *i -= usize::from(*i > index);
        }
    }

    fn drop_unused_attributes(&mut self) {
        for index in (0..self.spec.attributes.len()).rev() {
            if !self.spec.allocations.contains(&Some(index)) {
                self.drop_attribute(index);
            }
        }
    }
}

fn attribute_of(owner: &Owner) -> AllocationAttribute {
    AllocationAttribute {
        handle_id: Some(owner.handle.clone()),
        secondary: owner.attributes.clone(),
        ..AllocationAttribute::default()
    }
}

/// An ordinal in decimal, the key of its sequence number, without an allocation.
struct Digits {
    text: [u8; 20],
    start: usize,
}

impl Digits {
    fn of(mut n: usize) -> Self {
        let mut out = Self { text: [b'0'; 20], start: 20 };
        loop {
            out.start -= 1;
            if let Some(place) = out.text.get_mut(out.start) {
                // One decimal digit.
                *place = b'0' + u8::try_from(n % 10).unwrap_or(0);
            }
            n /= 10;
            if n == 0 || out.start == 0 {
                return out;
            }
        }
    }

    fn as_str(&self) -> &str {
        self.text.get(self.start..).and_then(|t| std::str::from_utf8(t).ok()).unwrap_or("0")
    }
}

/// Handles are stored under lower-case names, so two spellings are one handle.
pub fn same_handle(a: &str, b: &str) -> bool {
    is_handle(a, names::sanitized(b))
}

/// The same for a handle that is looked for among many, `wanted` being sanitized: nothing is read of one of another length,
/// and most others differ at their end already, where the container's id is.
fn is_handle(stored: &str, wanted: &str) -> bool {
    let (stored, wanted) = (stored.as_bytes(), wanted.as_bytes());
    let Some((id, rest)) = stored.split_at_checked(wanted.len()) else { return false };
    // Whatever follows a carriage return is no part of it.
    rest.first().is_none_or(|c| *c == b'\r')
        && id.iter().rev().zip(wanted.iter().rev()).all(|(a, b)| a.eq_ignore_ascii_case(b))
}

fn checked_size(cidr: &IpNet) -> Result<usize, BlockError> {
    let size = net::size(cidr);
    if size > 1 << MAX_BLOCK_BITS {
        let reason = format!("{size} addresses are more than a block may have (2^{MAX_BLOCK_BITS})");
        return Err(BlockError::Malformed { cidr: *cidr, reason });
    }
    usize::try_from(size)
        .map_err(|_| BlockError::Malformed { cidr: *cidr, reason: "it does not fit in memory".into() })
}

#[cfg(test)]
mod tests;
