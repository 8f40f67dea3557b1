//! Texts inside BGP resources: community values and peer addresses. Their errors say what would be right; the caller
//! shows the text.

use std::{
    fmt,
    net::{IpAddr, Ipv6Addr},
    str::FromStr,
};

/// A community value: `aa:nn` (RFC 1997) or `aa:nn:mm` (large, RFC 8092).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum CommunityValue {
    Standard(u16, u16),
    Large(u32, u32, u32),
}

impl FromStr for CommunityValue {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        let bad = || "expected a community aa:nn (0..65535 each) or aa:nn:mm (0..4294967295 each)".to_owned();
        // Digits only: `+1` would parse as a number.
        if !s.bytes().all(|b| b.is_ascii_digit() || b == b':') {
            return Err(bad());
        }
        let parts: Vec<&str> = s.split(':').collect();
        match *parts.as_slice() {
            [a, n] => Ok(Self::Standard(a.parse().map_err(|_| bad())?, n.parse().map_err(|_| bad())?)),
            [a, n, m] => Ok(Self::Large(
                a.parse().map_err(|_| bad())?,
                n.parse().map_err(|_| bad())?,
                m.parse().map_err(|_| bad())?,
            )),
            _ => Err(bad()),
        }
    }
}

impl fmt::Display for CommunityValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Standard(a, n) => write!(f, "{a}:{n}"),
            Self::Large(a, n, m) => write!(f, "{a}:{n}:{m}"),
        }
    }
}

/// `peerIP`: `ip`, `ipv4:port` or `[ipv6]:port`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PeerAddress {
    pub ip: IpAddr,
    /// Absent: the peer's listen port if it is a node, else 179.
    pub port: Option<u16>,
}

impl FromStr for PeerAddress {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        let bad = || "expected an IP address, IPV4:PORT or [IPV6]:PORT".to_owned();
        if let Ok(ip) = s.parse() {
            return Ok(Self { ip, port: None });
        }
        let (ip, port) = match s.strip_prefix('[') {
            Some(inner) => {
                let (ip, port) = inner.split_once(']').ok_or_else(bad)?;
                let ip: Ipv6Addr = ip.parse().map_err(|_| bad())?;
                (IpAddr::V6(ip), port.strip_prefix(':').ok_or_else(bad)?)
            }
            None => {
                let (ip, port) = s.split_once(':').ok_or_else(bad)?;
                (IpAddr::V4(ip.parse().map_err(|_| bad())?), port)
            }
        };
        let port = port.parse().ok().filter(|p| *p != 0 && !port.starts_with('+')).ok_or_else(bad)?;
        Ok(Self { ip, port: Some(port) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn communities_are_read_in_both_forms() {
        assert_eq!("65000:100".parse(), Ok(CommunityValue::Standard(65000, 100)));
        assert_eq!("4200000000:1:2".parse(), Ok(CommunityValue::Large(4_200_000_000, 1, 2)));
        for bad in ["", "1", "65536:1", "1:65536", "1:2:3:4", "a:b", "1:", "+1:2", " 1:2", "4294967296:0:0"] {
            assert!(bad.parse::<CommunityValue>().is_err(), "{bad}");
        }
    }

    #[test]
    fn peer_addresses_may_have_a_port() {
        let peer = |s: &str| s.parse::<PeerAddress>().map(|p| (p.ip.to_string(), p.port));
        assert_eq!(peer("192.0.2.1"), Ok(("192.0.2.1".into(), None)));
        assert_eq!(peer("192.0.2.1:1790"), Ok(("192.0.2.1".into(), Some(1790))));
        assert_eq!(peer("2001:db8::1"), Ok(("2001:db8::1".into(), None)));
        assert_eq!(peer("[2001:db8::1]:1790"), Ok(("2001:db8::1".into(), Some(1790))));
        for bad in [
            "",
            "host",
            "192.0.2.1:",
            "192.0.2.1:0",
            "192.0.2.1:70000",
            "[192.0.2.1]:1",
            "[::1]",
            "[::1]1",
            "::1]:1",
        ] {
            assert!(peer(bad).is_err(), "{bad}");
        }
    }
}
