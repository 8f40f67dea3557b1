//! From a neighbor's queue to UPDATE bytes: withdrawals first, then the oldest attribute set with as many prefixes as
//! fit, End-of-RIB at the end. Attributes are encoded once for each set.

use bytes::BytesMut;

use super::{
    adj_out::{AdjOut, Want},
    attrs::Attrs,
    prefix::Prefix,
    table::Table,
};
use crate::wire::{EmitError, Nlri, WireCx, encode_attrs, end_of_rib};

/// Attributes as octets, kept while prefixes with the same set follow.
#[derive(Debug, Default)]
pub(super) struct Block {
    of: Option<(Attrs, WireCx)>,
    octets: BytesMut,
}

impl Block {
    /// The octets of `attrs` for this kind of session.
    fn of<P: Prefix>(&mut self, attrs: &Attrs, cx: &WireCx) -> Result<&[u8], EmitError> {
        if self.of.as_ref().is_none_or(|(a, c)| a != attrs || c != cx) {
            self.of = None;
            self.octets.clear();
            let classic = attrs.next_hop.as_ref().and_then(P::classic);
            encode_attrs(&attrs.set, classic, cx, &mut self.octets)?;
            self.of = Some((attrs.clone(), *cx));
        }
        Ok(&self.octets)
    }

    /// Lets go of the attributes.
    pub(super) fn clear(&mut self) {
        self.of = None;
    }
}

/// Appends messages until `buf` has grown by `limit` octets or more, or nothing waits; whether anything was appended.
pub(super) fn fill<P: Prefix>(
    out: &mut AdjOut,
    want: &impl Want,
    table: &Table<P>,
    cx: &WireCx,
    limit: usize,
    block: &mut Block,
    buf: &mut BytesMut,
) -> bool {
    let start = buf.len();
    while buf.len() - start < limit.max(1) {
        if out.next_withdrawal(want).is_some() {
            withdraw(out, want, table, cx, buf);
        } else if let Some(attrs) = out.next_attrs(want) {
            announce(out, want, table, &attrs, cx, block, buf);
        } else if out.take_end_of_rib() {
            end_of_rib(P::FAMILY, buf);
        } else {
            break;
        }
    }
    buf.len() > start
}

/// One message of withdrawals.
fn withdraw<P: Prefix>(
    out: &mut AdjOut,
    want: &impl Want,
    table: &Table<P>,
    cx: &WireCx,
    buf: &mut BytesMut,
) {
    let mut message = P::withdraw(cx, buf);
    while let Some(n) = out.next_withdrawal(want)
        && message.push(&Nlri { prefix: table.dest(n).prefix, path_id: 0 })
    {
        out.withdrawn();
    }
    message.finish();
}

/// One message of announcements; or, if the attributes are too long for one, one route given up.
fn announce<P: Prefix>(
    out: &mut AdjOut,
    want: &impl Want,
    table: &Table<P>,
    attrs: &Attrs,
    cx: &WireCx,
    block: &mut Block,
    buf: &mut BytesMut,
) {
    let message = match (&attrs.next_hop, block.of::<P>(attrs, cx)) {
        (Some(hop), Ok(octets)) => P::announce(cx, hop, octets, buf).ok(),
        (None, _) | (_, Err(_)) => None,
    };
    if let Some(mut message) = message {
        while let Some(n) = out.next_announcement(attrs, want)
            && message.push(&Nlri { prefix: table.dest(n).prefix, path_id: 0 })
        {
            out.announced(true);
        }
        if message.finish() > 0 {
            return;
        }
    }
    let Some(n) = out.next_announcement(attrs, want) else { return };
    if out.announced(false) {
        // It knows an earlier form, which is no longer true.
        let mut message = P::withdraw(cx, buf);
        let fits = message.push(&Nlri { prefix: table.dest(n).prefix, path_id: 0 });
        debug_assert!(fits, "a withdrawal of one prefix always fits");
        message.finish();
    }
}
