//! Capabilities (RFC 5492): one code, one length, one value.
//!
//! A capability we know but whose value is malformed becomes [`Capability::Unknown`]: it is ignored like any other
//! we do not understand, and stays visible. The session goes without that feature; it is never a reason to crash.

use bytes::{BufMut, BytesMut};

use super::{
    cursor::{Cursor, patch},
    error::EmitError,
    iana::capability as code,
    types::{Capability, GrFamily},
};

/// GRACEFUL RESTART: the sender restarts (RFC 4724).
const GR_RESTARTING: u16 = 0x8000;
/// GRACEFUL RESTART: routes outlive a NOTIFICATION (RFC 8538).
const GR_NOTIFICATION: u16 = 0x4000;
/// Restart time in the same field, 12 bits.
const GR_TIME: u16 = 0x0fff;
/// Forwarding state of a family was preserved.
const GR_FORWARDING: u8 = 0x80;

impl Capability {
    /// The code point.
    pub const fn code(&self) -> u8 {
        match self {
            Self::MultiProtocol { .. } => code::MULTI_PROTOCOL,
            Self::RouteRefresh => code::ROUTE_REFRESH,
            Self::ExtendedMessage => code::EXTENDED_MESSAGE,
            Self::GracefulRestart { .. } => code::GRACEFUL_RESTART,
            Self::FourOctetAs(_) => code::FOUR_OCTET_AS,
            Self::AddPath(_) => code::ADD_PATH,
            Self::EnhancedRouteRefresh => code::ENHANCED_ROUTE_REFRESH,
            Self::LongLivedGracefulRestart(_) => code::LONG_LIVED_GRACEFUL_RESTART,
            Self::Fqdn { .. } => code::FQDN,
            Self::Unknown { code, .. } => *code,
        }
    }

    pub(super) fn parse(code: u8, value: &[u8]) -> Self {
        let known = match code {
            code::MULTI_PROTOCOL => multi_protocol(value),
            code::ROUTE_REFRESH => value.is_empty().then_some(Self::RouteRefresh),
            code::EXTENDED_MESSAGE => value.is_empty().then_some(Self::ExtendedMessage),
            code::GRACEFUL_RESTART => graceful_restart(value),
            code::FOUR_OCTET_AS => value.try_into().ok().map(|v| Self::FourOctetAs(u32::from_be_bytes(v))),
            code::ADD_PATH => add_path(value),
            code::ENHANCED_ROUTE_REFRESH => value.is_empty().then_some(Self::EnhancedRouteRefresh),
            code::LONG_LIVED_GRACEFUL_RESTART => long_lived(value),
            code::FQDN => fqdn(value),
            _ => None,
        };
        known.unwrap_or_else(|| Self::Unknown { code, value: value.to_vec() })
    }

    pub(super) fn emit(&self, out: &mut BytesMut) -> Result<(), EmitError> {
        out.put_u8(self.code());
        let at = out.len();
        out.put_u8(0);
        match self {
            Self::RouteRefresh | Self::ExtendedMessage | Self::EnhancedRouteRefresh => {}
            Self::MultiProtocol { afi, safi } => {
                out.put_u16(*afi);
                out.put_slice(&[0, *safi]);
            }
            Self::GracefulRestart { restarting, notification, restart_time, families } => {
                let flag = |on: bool, bit: u16| if on { bit } else { 0 };
                out.put_u16(
                    flag(*restarting, GR_RESTARTING)
                        | flag(*notification, GR_NOTIFICATION)
                        | (*restart_time).min(GR_TIME),
                );
                for f in families {
                    out.put_u16(f.afi);
                    out.put_slice(&[f.safi, if f.forwarding_preserved { GR_FORWARDING } else { 0 }]);
                }
            }
            Self::FourOctetAs(asn) => out.put_u32(*asn),
            Self::AddPath(families) => {
                for (afi, safi, mode) in families {
                    out.put_u16(*afi);
                    out.put_slice(&[*safi, *mode]);
                }
            }
            Self::LongLivedGracefulRestart(families) => {
                for (afi, safi, flags, seconds) in families {
                    out.put_u16(*afi);
                    out.put_slice(&[*safi, *flags]);
                    let [_, a, b, c] = (*seconds).min(0xff_ffff).to_be_bytes();
                    out.put_slice(&[a, b, c]);
                }
            }
            Self::Fqdn { host, domain } => {
                for name in [host, domain] {
                    let too_long = EmitError::TooLong { what: "host name", len: name.len(), max: 255 };
                    out.put_u8(u8::try_from(name.len()).map_err(|_| too_long)?);
                    out.put_slice(name.as_bytes());
                }
            }
            Self::Unknown { value, .. } => out.put_slice(value),
        }
        let len = out.len().saturating_sub(at).saturating_sub(1);
        let field =
            u8::try_from(len).map_err(|_| EmitError::TooLong { what: "capability", len, max: 255 })?;
        patch(out, at, [field]);
        Ok(())
    }
}

fn multi_protocol(value: &[u8]) -> Option<Capability> {
    let [a, b, _reserved, safi] = *value else { return None };
    Some(Capability::MultiProtocol { afi: u16::from_be_bytes([a, b]), safi })
}

fn graceful_restart(value: &[u8]) -> Option<Capability> {
    let mut cur = Cursor::new(value);
    let head = cur.u16()?;
    let families = every::<4, _>(cur.rest(), |[a, b, safi, flags]| GrFamily {
        afi: u16::from_be_bytes([a, b]),
        safi,
        forwarding_preserved: flags & GR_FORWARDING != 0,
    })?;
    Some(Capability::GracefulRestart {
        restarting: head & GR_RESTARTING != 0,
        notification: head & GR_NOTIFICATION != 0,
        restart_time: head & GR_TIME,
        families,
    })
}

fn add_path(value: &[u8]) -> Option<Capability> {
    let families = every::<4, _>(value, |[a, b, safi, mode]| (u16::from_be_bytes([a, b]), safi, mode))?;
    // RFC 7911 section 4: any other mode makes the capability one we do not understand.
    families.iter().all(|(_, _, mode)| matches!(mode, 1..=3)).then_some(Capability::AddPath(families))
}

fn long_lived(value: &[u8]) -> Option<Capability> {
    every::<7, _>(value, |[a, b, safi, flags, x, y, z]| {
        (u16::from_be_bytes([a, b]), safi, flags, u32::from_be_bytes([0, x, y, z]))
    })
    .map(Capability::LongLivedGracefulRestart)
}

fn fqdn(value: &[u8]) -> Option<Capability> {
    let mut cur = Cursor::new(value);
    let (host, domain) = (cur.counted()?, cur.counted()?);
    let text = |b: &[u8]| std::str::from_utf8(b).ok().map(str::to_owned);
    if !cur.is_empty() {
        return None;
    }
    Some(Capability::Fqdn { host: text(host)?, domain: text(domain)? })
}

/// Cuts `value` into records of `N` octets; `None` if it is not a whole number of them.
fn every<const N: usize, T>(value: &[u8], read: impl Fn([u8; N]) -> T) -> Option<Vec<T>> {
    let (records, rest) = value.as_chunks::<N>();
    rest.is_empty().then(|| records.iter().map(|r| read(*r)).collect())
}
