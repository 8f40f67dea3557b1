//! OPEN (RFC 4271 section 4.2) and its optional parameters, also in the long form of RFC 9072.
//!
//! What needs the configuration to judge (is this the AS we expect, is this our own identifier) is the session's
//! business.

use std::net::Ipv4Addr;

use bytes::{BufMut, BytesMut};

use super::{
    cursor::Cursor,
    error::{DecodeError, EmitError},
    iana::{AS_TRANS, error, open},
    types::{Capability, Open},
};

const VERSION: u8 = 4;
const PARAM_CAPABILITIES: u8 = 2;
/// RFC 9072: this parameter type announces the long form.
const PARAM_EXTENDED: u8 = 255;

impl Open {
    /// The AS number for the two-octet field "My Autonomous System".
    pub fn my_as(asn: u32) -> u16 {
        u16::try_from(asn).unwrap_or(AS_TRANS)
    }

    pub(super) fn parse(body: &[u8]) -> Result<Self, DecodeError> {
        let mut cur = Cursor::new(body);
        let fixed = (cur.u8(), cur.u16(), cur.u16(), cur.u32(), cur.u8());
        let (Some(version), Some(my_as), Some(hold_time), Some(id), Some(params_len)) = fixed else {
            return Err(refuse(open::UNSPECIFIC, "OPEN ends inside its fixed part"));
        };
        if version != VERSION {
            let data = u16::from(VERSION).to_be_bytes();
            let what = format!("BGP version {version}, 4 expected");
            return Err(DecodeError::new(error::OPEN, open::UNSUPPORTED_VERSION, &data, what));
        }
        if my_as == 0 {
            return Err(refuse(open::BAD_PEER_AS, "AS number 0 (RFC 7607)"));
        }
        if matches!(hold_time, 1 | 2) {
            return Err(refuse(
                open::UNACCEPTABLE_HOLD_TIME,
                format!("hold time {hold_time} s, 0 or at least 3"),
            ));
        }
        if id == 0 {
            return Err(refuse(open::BAD_IDENTIFIER, "BGP identifier 0.0.0.0 (RFC 6286)"));
        }
        let capabilities = parse_params(params_len, cur)?;
        let mut asn = None;
        for capability in &capabilities {
            if let Capability::FourOctetAs(n) = capability {
                if *n == 0 {
                    return Err(refuse(
                        open::BAD_PEER_AS,
                        "AS number 0 in the 4-octet capability (RFC 7607)",
                    ));
                }
                asn.get_or_insert(*n);
            }
        }
        Ok(Self {
            asn: asn.unwrap_or(u32::from(my_as)),
            hold_time,
            router_id: Ipv4Addr::from(id),
            capabilities,
        })
    }

    /// All capabilities go into one parameter; the long form is used only when they need it.
    pub(super) fn emit(&self, out: &mut BytesMut) -> Result<(), EmitError> {
        out.put_u8(VERSION);
        out.put_u16(Self::my_as(self.asn));
        out.put_u16(self.hold_time);
        out.put_slice(&self.router_id.octets());
        if self.capabilities.is_empty() {
            out.put_u8(0);
            return Ok(());
        }
        let mut value = BytesMut::new();
        for capability in &self.capabilities {
            capability.emit(&mut value)?;
        }
        // RFC 9072 allows 255 octets in the short form; some take that length for the long one.
        match u8::try_from(value.len().saturating_add(2)) {
            Ok(total) if total < PARAM_EXTENDED => {
                out.put_slice(&[total, PARAM_CAPABILITIES, total.saturating_sub(2)]);
            }
            _ => {
                let too_long =
                    EmitError::TooLong { what: "capabilities", len: value.len(), max: usize::from(u16::MAX) };
                let len = u16::try_from(value.len()).map_err(|_| too_long)?;
                let total = len.checked_add(3).ok_or(too_long)?;
                out.put_slice(&[PARAM_EXTENDED, PARAM_EXTENDED]);
                out.put_u16(total);
                out.put_u8(PARAM_CAPABILITIES);
                out.put_u16(len);
            }
        }
        out.put_slice(&value);
        Ok(())
    }
}

/// The parameters after their one-octet length.
fn parse_params(len: u8, rest: Cursor<'_>) -> Result<Vec<Capability>, DecodeError> {
    let malformed = |what: &str| refuse(open::UNSPECIFIC, what);
    let mut rest = rest;
    // RFC 9072 section 2: the type octet 255 in the first place tells the long form, whatever the short length says.
    let extended = len != 0 && rest.rest().first() == Some(&PARAM_EXTENDED);
    let len = if extended {
        rest.u8();
        usize::from(rest.u16().ok_or_else(|| malformed("extended optional parameters end in their length"))?)
    } else {
        usize::from(len)
    };
    if len != rest.len() {
        return Err(malformed("optional parameters and message differ in length"));
    }
    let mut capabilities = Vec::new();
    while !rest.is_empty() {
        let kind = rest.u8();
        let len = if extended { rest.u16().map(usize::from) } else { rest.u8().map(usize::from) };
        let (Some(kind), Some(value)) = (kind, len.and_then(|n| rest.take(n))) else {
            return Err(malformed("an optional parameter ends early"));
        };
        if kind != PARAM_CAPABILITIES {
            return Err(refuse(open::UNSUPPORTED_PARAMETER, format!("optional parameter of type {kind}")));
        }
        let mut value = Cursor::new(value);
        while !value.is_empty() {
            let (Some(code), Some(body)) = (value.u8(), value.counted()) else {
                return Err(malformed("a capability ends early"));
            };
            capabilities.push(Capability::parse(code, body));
        }
    }
    Ok(capabilities)
}

fn refuse(subcode: u8, what: impl Into<String>) -> DecodeError {
    DecodeError::new(error::OPEN, subcode, &[], what)
}

#[cfg(test)]
mod tests;
