//! Real BGP speakers side by side on one L2 segment of their own: `brindle-bgpd`, BIRD 2, FRR's bgpd, GoBGP,
//! OpenBGPD, ExaBGP.
//!
//! Each [`Segment`] is made of network namespaces of its own and vanishes with its processes when dropped, also by a
//! panic; what a daemon said is printed then. A daemon that is not installed is a failure that names its package.

mod bird;
mod brindle;
mod exabgp;
mod frr;
mod gobgp;
mod openbgpd;
mod segment;

pub use self::{
    bird::Bird,
    brindle::Brindle,
    exabgp::ExaBgp,
    frr::Frr,
    gobgp::Gobgp,
    openbgpd::OpenBgpd,
    segment::{Daemon, Segment, eventually},
};
