//! rtnetlink without a runtime: links, addresses, routes, neighbours, bulk routes, notifications.
//!
//! Requests are encoded with netlink-packet-route; answers are read by hand, attribute by attribute (`decode`), so
//! that an attribute or a link kind nobody has heard of yet cannot spoil a dump, and a dump of 100,000 routes stays
//! cheap. Types in the API are our own.

mod batch;
mod decode;
mod encode;
mod error;
mod monitor;
mod op;
mod rtnl;
pub(crate) mod socket;
mod types;

pub use batch::{BatchReport, RouteBatcher, RouteChange, RouteRefusal};
pub use error::NetlinkError;
#[doc(hidden)]
pub use monitor::read_any;
pub use monitor::{Event, Group, Monitor, Waker};
pub use op::{LinkRef, Op, Veth, VethPeer};
pub use rtnl::Rtnl;
pub use types::{
    Addr, Family, Link, Mac, Neigh, NextHop, ParseMacError, Route, RouteFilter, RouteKind, TABLE_MAIN,
    addr_flag, neigh_state, proto, scope,
};
