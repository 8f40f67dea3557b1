//! UPDATE: cutting the body, reading it with the reactions of RFC 7606, and one [`Update`] into one message.
//!
//! The attributes are read by the table in `attr`; sending many prefixes is the job of `encode`. Prefixes and
//! attributes are parsed independently of each other, so a bad attribute can never hide the prefixes it must
//! withdraw.

use super::{
    attr,
    cursor::Cursor,
    error::DecodeError,
    iana::{error, update},
    nlri,
    types::{NextHop, Prefixes, Reach, Update, WireCx},
};
use crate::af::Family;

/// The three fields of an UPDATE, unread. Two messages with equal `attributes` and session read to equal attributes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RawUpdate<'a> {
    pub withdrawn: &'a [u8],
    pub attributes: &'a [u8],
    pub nlri: &'a [u8],
}

impl<'a> RawUpdate<'a> {
    /// Cuts the body of an UPDATE (the frame without its header).
    ///
    /// # Errors
    /// RFC 7606 section 3 (b): lengths beyond the message are 3/1.
    pub fn split(body: &'a [u8]) -> Result<Self, DecodeError> {
        let mut cur = Cursor::new(body);
        let mut field = |name: &str| {
            let len = cur.u16();
            let left = cur.len();
            len.and_then(|n| cur.take(usize::from(n))).ok_or_else(|| {
                let what = match len {
                    Some(n) => format!("{name} of {n} octets, {left} are left in the message"),
                    None => format!("the message ends before the length of the {name}"),
                };
                reset(update::MALFORMED_ATTRIBUTE_LIST, what)
            })
        };
        let withdrawn = field("withdrawn routes")?;
        let attributes = field("path attributes")?;
        Ok(Self { withdrawn, attributes, nlri: cur.rest() })
    }
}

impl Update {
    /// Reads the body of an UPDATE. Withdrawals come before announcements in effect: a prefix in both is announced.
    ///
    /// # Errors
    /// The closed list of what RFC 7606 still lets end a session: lengths of the fields, syntax of prefixes, a
    /// malformed or repeated MP attribute, an error without any announced prefix, an unknown well-known attribute.
    pub(super) fn parse(body: &[u8], cx: &WireCx) -> Result<Self, DecodeError> {
        let raw = RawUpdate::split(body)?;
        let [add_path_v4, _] = cx.add_path;
        let prefixes = |field, name: &str| {
            nlri::parse(field, add_path_v4)
                .map(Prefixes::V4)
                .map_err(|what| reset(update::INVALID_NETWORK, format!("{name}: {what}")))
        };
        let withdrawn = prefixes(raw.withdrawn, "withdrawn routes")?;
        let announced = prefixes(raw.nlri, "NLRI")?;
        let block = attr::decode(raw.attributes, cx, !announced.is_empty())?;

        let mut out = Self { faults: block.faults, ..Self::default() };
        if raw.withdrawn.is_empty() && raw.nlri.is_empty() {
            out.end_of_rib = if raw.attributes.is_empty() {
                Some(Family::Ipv4Unicast)
            } else {
                // RFC 4724 section 2: an MP_UNREACH that is empty and alone.
                block.mp_unreach.as_ref().filter(|p| block.alone && p.is_empty()).map(Prefixes::family)
            };
        }
        push(&mut out.withdrawn, withdrawn);
        if let Some(p) = block.mp_unreach {
            push(&mut out.withdrawn, p);
        }
        match block.attributes {
            Some(attributes) => {
                if let Some(next_hop) = block.next_hop.filter(|_| !announced.is_empty()) {
                    out.reach.push(Reach { next_hop: NextHop::V4(next_hop), prefixes: announced });
                }
                out.reach.extend(block.mp_reach);
                if !out.reach.is_empty() {
                    out.attributes = Some(attributes);
                }
            }
            None => {
                push(&mut out.withdrawn, announced);
                if let Some(r) = block.mp_reach {
                    push(&mut out.withdrawn, r.prefixes);
                }
            }
        }
        Ok(out)
    }
}

/// Adds prefixes to those of their family; IPv4 comes first.
fn push(list: &mut Vec<Prefixes>, more: Prefixes) {
    if more.is_empty() {
        return;
    }
    for have in list.iter_mut() {
        match (have, &more) {
            (Prefixes::V4(a), Prefixes::V4(b)) => return a.extend_from_slice(b),
            (Prefixes::V6(a), Prefixes::V6(b)) => return a.extend_from_slice(b),
            (Prefixes::V4(_), Prefixes::V6(_)) | (Prefixes::V6(_), Prefixes::V4(_)) => {}
        }
    }
    let at = if more.family() == Family::Ipv4Unicast { 0 } else { list.len() };
    list.insert(at, more);
}

fn reset(subcode: u8, what: String) -> DecodeError {
    DecodeError::new(error::UPDATE, subcode, &[], what)
}

#[cfg(test)]
mod tests;
