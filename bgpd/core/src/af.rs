//! Address families (RFC 4760).

use std::ops::{Index, IndexMut};

use serde::{Deserialize, Serialize};

/// The families Brindle routes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Family {
    Ipv4Unicast,
    Ipv6Unicast,
}

impl Family {
    /// Both, in wire order.
    pub const ALL: [Self; 2] = [Self::Ipv4Unicast, Self::Ipv6Unicast];

    /// The family a prefix belongs to.
    pub const fn of(prefix: &ipnet::IpNet) -> Self {
        match prefix {
            ipnet::IpNet::V4(_) => Self::Ipv4Unicast,
            ipnet::IpNet::V6(_) => Self::Ipv6Unicast,
        }
    }

    /// (AFI, SAFI).
    pub const fn code(self) -> (u16, u8) {
        match self {
            Self::Ipv4Unicast => (1, 1),
            Self::Ipv6Unicast => (2, 1),
        }
    }

    /// The family with these code points, if it is one of ours.
    pub const fn from_code(afi: u16, safi: u8) -> Option<Self> {
        match (afi, safi) {
            (1, 1) => Some(Self::Ipv4Unicast),
            (2, 1) => Some(Self::Ipv6Unicast),
            _ => None,
        }
    }
}

impl std::fmt::Display for Family {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Ipv4Unicast => "IPv4 unicast",
            Self::Ipv6Unicast => "IPv6 unicast",
        })
    }
}

/// One value per family.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct PerFamily<T>(pub [T; 2]);

impl<T> PerFamily<T> {
    /// Builds each value from its family.
    pub fn from_fn(mut f: impl FnMut(Family) -> T) -> Self {
        Self([f(Family::Ipv4Unicast), f(Family::Ipv6Unicast)])
    }

    /// Every family with its value, in wire order.
    pub fn iter(&self) -> impl Iterator<Item = (Family, &T)> {
        Family::ALL.into_iter().zip(self.0.iter())
    }
}

impl<T> Index<Family> for PerFamily<T> {
    type Output = T;
    fn index(&self, family: Family) -> &T {
        let [v4, v6] = &self.0;
        match family {
            Family::Ipv4Unicast => v4,
            Family::Ipv6Unicast => v6,
        }
    }
}

impl<T> IndexMut<Family> for PerFamily<T> {
    fn index_mut(&mut self, family: Family) -> &mut T {
        let [v4, v6] = &mut self.0;
        match family {
            Family::Ipv4Unicast => v4,
            Family::Ipv6Unicast => v6,
        }
    }
}
