//! BGP without I/O: codec, connection state machine, RIB and the [`speaker::Speaker`] that ties them together.
//!
//! Deterministic: time is an argument ([`time::Mono`]), sockets and timers belong to the driver in `bgpd`.
//! RFCs: 4271, 4760, 5492, 6793, 2918, 4724 (announced), 4456, 7606, 4486, 8203.

pub mod af;
pub mod fsm;
pub mod policy;
pub mod rib;
pub mod speaker;
pub mod time;
pub mod wire;
