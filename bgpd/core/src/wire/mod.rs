//! The wire layer: messages as owned values that cannot be nonsense, `parse` and `emit`.
//!
//! Only bytes and values here: no sessions, no RIB, no policy. RFC 4271 section 4, 4760, 5492, 6793, 2918, 4724,
//! 7911, 8654, and the error classes of 7606.

pub mod types;

pub use types::*;
