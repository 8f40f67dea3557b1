//! Network policy: what applies to the endpoints of this node, and what that means for a packet.
//!
//! [`active`] holds the hand-over types between the calculation graph and the dataplane: the renderers of iptables and
//! nftables and the `verdict` function read the same ones. No I/O, no clock.

pub mod active;
pub mod state;
pub mod verdict;
