//! Path attributes: one row each, and the walk over them that applies RFC 7606.
//!
//! [`TABLE`] is the whole truth about an attribute: code, flags, where it is allowed, what an error leads to, how it
//! is read and written. Tests and documentation iterate it. The functions the rows name are in `attr::read` and
//! `attr::write`; nothing here knows about messages or sessions.

use std::fmt;

use super::{
    cursor::Cursor,
    error::DecodeError,
    frame::MAX_LEN,
    iana::{attr as code, error, update},
    types::{AttrFault, AttrSet, Reaction, UnknownAttr, WireCx},
};

mod read;
mod write;

pub(super) use read::{Bad, Block, Draft};
pub use write::encode_attrs;
pub(super) use write::{Out, put_header, put_next_hop};

/// Attribute flags (RFC 4271 section 4.3). The lower four bits mean nothing.
pub mod flag {
    pub const OPTIONAL: u8 = 0x80;
    pub const TRANSITIVE: u8 = 0x40;
    pub const PARTIAL: u8 = 0x20;
    pub const EXTENDED_LENGTH: u8 = 0x10;
}

const WELL_KNOWN: u8 = flag::TRANSITIVE;
const OPTIONAL_TRANSITIVE: u8 = flag::OPTIONAL | flag::TRANSITIVE;
const OPTIONAL: u8 = flag::OPTIONAL;
/// The bits an attribute's definition fixes.
const KIND: u8 = flag::OPTIONAL | flag::TRANSITIVE;

/// On which sessions an attribute means something. Elsewhere it is discarded unread and never sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    Everywhere,
    /// RFC 7606 sections 7.5, 7.9, 7.10.
    Ibgp,
    /// RFC 6793 section 4.1: between two speakers with 4-octet numbers it has no business.
    TwoOctetPeers,
}

/// One attribute.
#[derive(Clone, Copy)]
pub struct AttrRow {
    pub code: u8,
    pub name: &'static str,
    /// The Optional and Transitive bits it must have.
    pub flags: u8,
    pub scope: Scope,
    /// Other bits were set (RFC 7606 section 3 (c)).
    pub on_flags: Reaction,
    /// Length or value were wrong.
    pub on_error: Reaction,
    /// Where its error handling is written.
    pub rfc: &'static str,
    read: fn(&mut Draft<'_>, u8, &[u8]) -> Result<(), Bad>,
    write: fn(&mut Out<'_>) -> Result<(), super::error::EmitError>,
}

impl fmt::Debug for AttrRow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.name, self.code)
    }
}

use Reaction::{Discard as D, SessionReset as R, TreatAsWithdraw as W};
use Scope::{Everywhere, Ibgp, TwoOctetPeers};

macro_rules! row {
    ($code:ident, $name:literal, $flags:ident, $scope:ident, $on_flags:ident, $on_error:ident, $rfc:literal, $fun:ident) => {
        AttrRow {
            code: code::$code,
            name: $name,
            flags: $flags,
            scope: $scope,
            on_flags: $on_flags,
            on_error: $on_error,
            rfc: $rfc,
            read: read::$fun,
            write: write::$fun,
        }
    };
}

/// Every attribute we understand, ascending by code: the order they are sent in (RFC 4271 section 5). The MP
/// attributes are sent in front of all others (RFC 7606 section 5.1), by whoever has the prefixes.
#[rustfmt::skip]
pub static TABLE: [AttrRow; 18] = [
    //  code                  name                   flags                scope          flags  error  error handling
    row!(ORIGIN,              "ORIGIN",              WELL_KNOWN,          Everywhere,    W,     W,     "7606 7.1",  origin),
    row!(AS_PATH,             "AS_PATH",             WELL_KNOWN,          Everywhere,    W,     W,     "7606 7.2",  as_path),
    row!(NEXT_HOP,            "NEXT_HOP",            WELL_KNOWN,          Everywhere,    W,     W,     "7606 7.3",  next_hop),
    row!(MED,                 "MULTI_EXIT_DISC",     OPTIONAL,            Everywhere,    W,     W,     "7606 7.4",  med),
    row!(LOCAL_PREF,          "LOCAL_PREF",          WELL_KNOWN,          Ibgp,          W,     W,     "7606 7.5",  local_pref),
    row!(ATOMIC_AGGREGATE,    "ATOMIC_AGGREGATE",    WELL_KNOWN,          Everywhere,    W,     D,     "7606 7.6",  atomic_aggregate),
    row!(AGGREGATOR,          "AGGREGATOR",          OPTIONAL_TRANSITIVE, Everywhere,    W,     D,     "7606 7.7",  aggregator),
    row!(COMMUNITIES,         "COMMUNITIES",         OPTIONAL_TRANSITIVE, Everywhere,    W,     W,     "7606 7.8",  communities),
    row!(ORIGINATOR_ID,       "ORIGINATOR_ID",       OPTIONAL,            Ibgp,          W,     W,     "7606 7.9",  originator_id),
    row!(CLUSTER_LIST,        "CLUSTER_LIST",        OPTIONAL,            Ibgp,          W,     W,     "7606 7.10", cluster_list),
    row!(MP_REACH,            "MP_REACH_NLRI",       OPTIONAL,            Everywhere,    R,     R,     "7606 5.3, 7.11", mp_reach),
    row!(MP_UNREACH,          "MP_UNREACH_NLRI",     OPTIONAL,            Everywhere,    R,     R,     "7606 5.3, 7.12", mp_unreach),
    row!(EXT_COMMUNITIES,     "EXTENDED COMMUNITIES", OPTIONAL_TRANSITIVE, Everywhere,   W,     W,     "7606 7.14", ext_communities),
    row!(AS4_PATH,            "AS4_PATH",            OPTIONAL_TRANSITIVE, TwoOctetPeers, W,     D,     "6793 6",    as4_path),
    row!(AS4_AGGREGATOR,      "AS4_AGGREGATOR",      OPTIONAL_TRANSITIVE, TwoOctetPeers, W,     D,     "6793 6",    as4_aggregator),
    row!(IPV6_EXT_COMMUNITIES, "IPV6 EXTENDED COMMUNITIES", OPTIONAL_TRANSITIVE, Everywhere, W, W,     "7606 7.15", ipv6_ext_communities),
    row!(LARGE_COMMUNITIES,   "LARGE_COMMUNITY",     OPTIONAL_TRANSITIVE, Everywhere,    W,     W,     "8092 6",    large_communities),
    row!(ONLY_TO_CUSTOMER,    "ONLY_TO_CUSTOMER",    OPTIONAL_TRANSITIVE, Everywhere,    W,     W,     "9234 5",    only_to_customer),
];

/// The row of a code, if we understand it.
pub fn row(code: u8) -> Option<&'static AttrRow> {
    TABLE.binary_search_by_key(&code, |r| r.code).ok().and_then(|i| TABLE.get(i))
}

/// One attribute as it lies in the message.
struct Raw<'a> {
    flags: u8,
    code: u8,
    value: &'a [u8],
    /// All of it, for a NOTIFICATION.
    whole: &'a [u8],
}

/// Why the next attribute cannot be cut off: its code, if there was one, and words.
struct Cut {
    code: Option<u8>,
    what: String,
}

impl<'a> Raw<'a> {
    fn next(cur: &mut Cursor<'a>) -> Result<Self, Cut> {
        let at = cur.rest();
        let (flags, code) = (cur.u8(), cur.u8());
        let len = match flags {
            Some(f) if f & flag::EXTENDED_LENGTH != 0 => cur.u16().map(usize::from),
            _ => cur.u8().map(usize::from),
        };
        let (Some(flags), Some(code_), Some(len)) = (flags, code, len) else {
            return Err(Cut { code, what: format!("{} octets are too few for an attribute", at.len()) });
        };
        let left = cur.len();
        let Some(value) = cur.take(len) else {
            return Err(Cut { code, what: format!("declares {len} octets, {left} are left") });
        };
        let whole = at.get(..at.len().saturating_sub(cur.len())).unwrap_or(at);
        Ok(Self { flags, code: code_, value, whole })
    }
}

/// Most faults listed for one message: enough to see what is wrong, whatever the peer sends.
const FAULTS_MAX: usize = 16;

/// What was wrong so far. A session reset leaves the walk at once and is not in here.
#[derive(Debug, Default)]
pub(super) struct Faults {
    list: Vec<AttrFault>,
    /// The first error that withdraws: what a reset would say, should there turn out to be nothing to withdraw.
    withdraw: Option<DecodeError>,
}

impl Faults {
    fn discard(&mut self, code: u8, what: String) {
        self.list(AttrFault { code, reaction: D, what });
    }

    fn withdraw(&mut self, code: u8, subcode: u8, data: &[u8], what: String) {
        if self.withdraw.is_none() {
            self.withdraw = Some(refuse(code, subcode, data, &what));
        }
        self.list(AttrFault { code, reaction: W, what });
    }

    fn list(&mut self, fault: AttrFault) {
        if self.list.len() < FAULTS_MAX {
            self.list.push(fault);
        } else if fault.reaction > D
            && self.list.iter().all(|f| f.reaction == D)
            && let Some(last) = self.list.last_mut()
        {
            *last = fault;
        }
    }
}

/// A session reset for an attribute; the attribute goes into the data as far as it fits.
fn refuse(code: u8, subcode: u8, whole: &[u8], what: &str) -> DecodeError {
    let data = whole.get(..MAX_LEN.saturating_sub(21)).unwrap_or(whole);
    DecodeError::new(error::UPDATE, subcode, data, format!("{}: {what}", Name(code)))
}

/// Reads the path attributes of an UPDATE. `classic` tells whether the message has prefixes in its NLRI field.
///
/// # Errors
/// What ends the session: see `Update::parse`.
pub(super) fn decode(bytes: &[u8], cx: &WireCx, classic: bool) -> Result<Block, DecodeError> {
    let mut draft = Draft::new(cx, classic);
    let mut seen = Seen::default();
    let mut count: usize = 0;
    let mut cur = Cursor::new(bytes);
    while !cur.is_empty() {
        count = count.saturating_add(1);
        let raw = match Raw::next(&mut cur) {
            Ok(raw) => raw,
            Err(Cut { code: Some(code @ (code::MP_REACH | code::MP_UNREACH)), what }) => {
                // 3 (j): without its prefixes nothing can be withdrawn.
                return Err(refuse(code, update::OPTIONAL_ATTRIBUTE, &[], &what));
            }
            Err(Cut { code, what }) => {
                let subcode = update::MALFORMED_ATTRIBUTE_LIST;
                draft.faults.withdraw(code.unwrap_or(0), subcode, &[], what);
                break;
            }
        };
        if !seen.first(raw.code) {
            if matches!(raw.code, code::MP_REACH | code::MP_UNREACH) {
                let subcode = update::MALFORMED_ATTRIBUTE_LIST;
                return Err(refuse(raw.code, subcode, &[], "occurs more than once"));
            }
            draft.faults.discard(raw.code, "occurs more than once, the first one counts".into());
            continue;
        }
        match row(raw.code) {
            Some(row) => known(row, &raw, cx, &mut draft)?,
            None => unknown(&raw, &mut draft)?,
        }
    }
    draft.finish(&seen, count)
}

/// Reads attributes that [`encode_attrs`] wrote with an equal `cx` and without a next hop; `None` if it did not.
pub fn decode_attrs(octets: &[u8], cx: &WireCx) -> Option<AttrSet> {
    decode(octets, cx, false).ok()?.attributes
}

fn known(row: &AttrRow, raw: &Raw<'_>, cx: &WireCx, draft: &mut Draft<'_>) -> Result<(), DecodeError> {
    match row.scope {
        Scope::Ibgp if !cx.ibgp => {
            draft.faults.discard(row.code, "is not for external sessions".into());
            return Ok(());
        }
        Scope::TwoOctetPeers if cx.four_octet_as => {
            draft.faults.discard(row.code, "is not for sessions with 4-octet AS numbers".into());
            return Ok(());
        }
        Scope::Everywhere | Scope::Ibgp | Scope::TwoOctetPeers => {}
    }
    let (reaction, bad) = if raw.flags & KIND != row.flags {
        let what = format!("flags {:#04x}, the upper two bits must be {:#04x}", raw.flags, row.flags);
        (row.on_flags, Bad { subcode: update::ATTRIBUTE_FLAGS, what })
    } else {
        match (row.read)(draft, raw.flags, raw.value) {
            Ok(()) => return Ok(()),
            Err(bad) => (row.on_error, bad),
        }
    };
    match reaction {
        Reaction::Discard => draft.faults.discard(row.code, bad.what),
        Reaction::TreatAsWithdraw => draft.faults.withdraw(row.code, bad.subcode, raw.whole, bad.what),
        // RFC 4760 section 7 knows one subcode for whatever is wrong with the two attributes that reset.
        Reaction::SessionReset => {
            return Err(refuse(row.code, update::OPTIONAL_ATTRIBUTE, raw.whole, &bad.what));
        }
    }
    Ok(())
}

fn unknown(raw: &Raw<'_>, draft: &mut Draft<'_>) -> Result<(), DecodeError> {
    if raw.flags & flag::OPTIONAL == 0 {
        // RFC 7606 section 3 leaves RFC 4271 section 6.3 in force here: the session ends.
        let what = format!("is well-known by its flags {:#04x}, but not to us", raw.flags);
        return Err(refuse(raw.code, update::UNRECOGNIZED_WELL_KNOWN, raw.whole, &what));
    }
    if raw.flags & flag::TRANSITIVE != 0 {
        draft.set.unknown.push(UnknownAttr {
            flags: OPTIONAL_TRANSITIVE | flag::PARTIAL,
            code: raw.code,
            value: raw.value.to_vec(),
        });
    }
    Ok(())
}

/// The codes that have occurred.
#[derive(Default)]
pub(super) struct Seen([u64; 4]);

impl Seen {
    fn bit(code: u8) -> (usize, u64) {
        (usize::from(code >> 6), 1u64.checked_shl(u32::from(code & 63)).unwrap_or(0))
    }

    /// Notes a code; false if it was noted before.
    fn first(&mut self, code: u8) -> bool {
        let (word, bit) = Self::bit(code);
        let Some(word) = self.0.get_mut(word) else { return false };
        let new = *word & bit == 0;
        *word |= bit;
        new
    }

    pub(super) fn has(&self, code: u8) -> bool {
        let (word, bit) = Self::bit(code);
        self.0.get(word).is_some_and(|w| w & bit != 0)
    }
}

/// `ORIGIN`, or `attribute 213`.
struct Name(u8);

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match row(self.0) {
            Some(row) => f.write_str(row.name),
            None => write!(f, "attribute {}", self.0),
        }
    }
}

/// `ORIGIN: value 3 is not 0, 1 or 2: treated as withdrawn`.
impl fmt::Display for AttrFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let done = match self.reaction {
            Reaction::Discard => "attribute discarded",
            Reaction::TreatAsWithdraw => "treated as withdrawn",
            Reaction::SessionReset => "session reset",
        };
        write!(f, "{}: {}: {done}", Name(self.code), self.what)
    }
}
