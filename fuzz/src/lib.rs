//! What the codec targets share: building frames around fuzzed parts, and the laws every frame is held to.

use brindle_bgpd_core::wire::{Message, WireCx};

// The laws the property tests check; here for many more inputs.
#[path = "../../bgpd/core/tests/wire/laws.rs"]
mod laws;

/// A session from the bits of one octet.
pub fn session(bits: u8) -> WireCx {
    WireCx {
        four_octet_as: bits & 1 == 0,
        extended_message: bits & 2 != 0,
        add_path: [bits & 4 != 0, bits & 8 != 0],
        ibgp: bits & 16 != 0,
    }
}

/// A frame of this type around a body; `None` if that is too long for any message.
pub fn frame(kind: u8, body: &[&[u8]]) -> Option<Vec<u8>> {
    let body = body.concat();
    let mut frame = vec![0xff; 16];
    frame.extend_from_slice(&u16::try_from(body.len().checked_add(19)?).ok()?.to_be_bytes());
    frame.push(kind);
    frame.extend(body);
    Some(frame)
}

/// A field preceded by its length in two octets.
pub fn field(bytes: &[u8]) -> Option<Vec<u8>> {
    let mut v = u16::try_from(bytes.len()).ok()?.to_be_bytes().to_vec();
    v.extend_from_slice(bytes);
    Some(v)
}

/// Reads one frame; it must be refused as documented, or mean the same after having been written again.
pub fn check(frame: &[u8], cx: &WireCx) {
    laws::check_any(frame, cx);
}

/// Reads one frame of bytes that must not cost the session.
pub fn check_kept(frame: &[u8], cx: &WireCx) {
    laws::check_any(frame, cx);
    if let Err(e) = Message::parse(frame, cx) {
        panic!("{} resets: {e}", e.notification);
    }
}

/// A refusal must carry a known code and fit into its own NOTIFICATION.
pub fn check_refusal(e: &brindle_bgpd_core::wire::DecodeError, bytes: &[u8]) {
    laws::check_refusal(e, bytes);
}
