//! The wire layer: messages as owned values that cannot be nonsense, `parse` and `emit`.
//!
//! Only bytes and values here: no sessions, no RIB, no policy. RFC 4271 section 4, 4760, 5492, 6793, 2918, 4724,
//! 7911, 8654, and the error classes of 7606. Design note: `docs/design/bgp-wire.md`.
//!
//! Every byte here was written by somebody else, so the lints below forbid what could panic on it.
#![cfg_attr(
    not(test),
    deny(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::expect_used, clippy::panic)
)]

mod aspath;
pub mod attr;
mod capability;
mod cursor;
mod encode;
mod error;
pub mod frame;
pub mod iana;
mod message;
mod nlri;
mod notification;
mod open;
pub mod refresh;
pub mod types;
mod update;

pub use attr::{decode_attrs, encode_attrs};
pub use encode::{UpdateBuilder, announce, end_of_rib, withdraw};
pub use error::{DecodeError, EmitError};
pub use frame::{Header, MsgType, next_frame};
pub use nlri::WirePrefix;
pub use types::*;
pub use update::RawUpdate;
