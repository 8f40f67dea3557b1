//! The IPIP carrier: device `tunl0` for a kernel without ipip. A process of its own, so that
//! traffic does not stop when the agent does: TUN device on the inner side, raw socket of IP
//! protocol 4 on the outer side, wire-compatible with kernel ipip.
//!
//! - [`control`] is the protocol the agent speaks to it, with a client and a launcher: all that
//!   another package needs.
//! - The rest is the program `brindle-ipip`: `keeper` starts it again when it dies, `run` puts it together, `outbound` and `inbound` are
//!   one thread per direction, `server` answers the control socket, `shared` is what they share.
//!
//! Which packet goes where, and in which form, is decided in `brindle-felix-core::ipip`; here are
//! only the loops around it. Design: docs/design/ipip.md, decision: docs/adr/0003-ipip-carrier.md.

pub mod control;
mod inbound;
pub mod keeper;
mod outbound;
pub mod run;
mod server;
mod shared;
