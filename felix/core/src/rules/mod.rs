//! Policy as rules of the kernel: what `policy` calculated becomes chains, sets and hooks (neutral, `ir`), and these
//! become iptables and ipset input or one nftables transaction.
//!
//! ```text
//! policies, endpoints ─ render ─> Layout ─┬─ iptables ─ table_plan(read back) ─> iptables-restore input
//!                                         └─ nft ────── nft_plan(read back) ───> nft -f input
//! members of sets ───────────────────────── sets (ipset) / nft_plan
//! ```
//! Pure: what was read back is an argument, what is to be written is a value. See docs/design/policy-dataplane.md.

pub mod around;
pub mod aside;
pub mod calico;
pub mod endpoint;
pub mod iptables;
pub mod ipvs;
pub mod ir;
pub mod layout;
pub mod marks;
pub mod model;
pub mod names;
pub mod nft;
pub mod nft_plan;
mod pods;
pub mod policy;
pub mod sets;
pub mod table_plan;
pub mod verify;
