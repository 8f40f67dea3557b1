//! Code points and their names, nothing else: message types, error codes and subcodes, capabilities, attributes.
//!
//! Registries: "BGP Parameters" and "Capability Codes" of IANA.

/// The AS number that stands for one of four octets where only two fit (RFC 6793).
pub const AS_TRANS: u16 = 23_456;

/// Capability codes (RFC 5492).
pub mod capability {
    pub const MULTI_PROTOCOL: u8 = 1;
    pub const ROUTE_REFRESH: u8 = 2;
    pub const EXTENDED_MESSAGE: u8 = 6;
    pub const GRACEFUL_RESTART: u8 = 64;
    pub const FOUR_OCTET_AS: u8 = 65;
    pub const ADD_PATH: u8 = 69;
    pub const ENHANCED_ROUTE_REFRESH: u8 = 70;
    pub const LONG_LIVED_GRACEFUL_RESTART: u8 = 71;
    pub const FQDN: u8 = 73;
}

/// Path attribute type codes.
pub mod attr {
    pub const ORIGIN: u8 = 1;
    pub const AS_PATH: u8 = 2;
    pub const NEXT_HOP: u8 = 3;
    pub const MED: u8 = 4;
    pub const LOCAL_PREF: u8 = 5;
    pub const ATOMIC_AGGREGATE: u8 = 6;
    pub const AGGREGATOR: u8 = 7;
    pub const COMMUNITIES: u8 = 8;
    pub const ORIGINATOR_ID: u8 = 9;
    pub const CLUSTER_LIST: u8 = 10;
    pub const MP_REACH: u8 = 14;
    pub const MP_UNREACH: u8 = 15;
    pub const EXT_COMMUNITIES: u8 = 16;
    pub const AS4_PATH: u8 = 17;
    pub const AS4_AGGREGATOR: u8 = 18;
    pub const IPV6_EXT_COMMUNITIES: u8 = 25;
    pub const LARGE_COMMUNITIES: u8 = 32;
    pub const ONLY_TO_CUSTOMER: u8 = 35;
}

/// NOTIFICATION error codes.
pub mod error {
    pub const HEADER: u8 = 1;
    pub const OPEN: u8 = 2;
    pub const UPDATE: u8 = 3;
    pub const HOLD_TIMER: u8 = 4;
    pub const FSM: u8 = 5;
    pub const CEASE: u8 = 6;
    pub const ROUTE_REFRESH: u8 = 7;
    pub const SEND_HOLD_TIMER: u8 = 8;
}

/// Subcodes of "Message Header Error" (RFC 4271 section 6.1).
pub mod header {
    pub const NOT_SYNCHRONIZED: u8 = 1;
    pub const BAD_LENGTH: u8 = 2;
    pub const BAD_TYPE: u8 = 3;
}

/// Subcodes of "OPEN Message Error" (RFC 4271 section 6.2, RFC 5492, RFC 9234).
pub mod open {
    pub const UNSPECIFIC: u8 = 0;
    pub const UNSUPPORTED_VERSION: u8 = 1;
    pub const BAD_PEER_AS: u8 = 2;
    pub const BAD_IDENTIFIER: u8 = 3;
    pub const UNSUPPORTED_PARAMETER: u8 = 4;
    pub const UNACCEPTABLE_HOLD_TIME: u8 = 6;
    pub const UNSUPPORTED_CAPABILITY: u8 = 7;
    pub const ROLE_MISMATCH: u8 = 11;
}

/// Subcodes of "UPDATE Message Error" (RFC 4271 section 6.3).
pub mod update {
    pub const MALFORMED_ATTRIBUTE_LIST: u8 = 1;
    pub const UNRECOGNIZED_WELL_KNOWN: u8 = 2;
    pub const MISSING_WELL_KNOWN: u8 = 3;
    pub const ATTRIBUTE_FLAGS: u8 = 4;
    pub const ATTRIBUTE_LENGTH: u8 = 5;
    pub const INVALID_ORIGIN: u8 = 6;
    pub const INVALID_NEXT_HOP: u8 = 8;
    pub const OPTIONAL_ATTRIBUTE: u8 = 9;
    pub const INVALID_NETWORK: u8 = 10;
    pub const MALFORMED_AS_PATH: u8 = 11;
}

/// Subcodes of "Finite State Machine Error" (RFC 6608).
pub mod fsm {
    pub const UNSPECIFIC: u8 = 0;
    pub const UNEXPECTED_IN_OPEN_SENT: u8 = 1;
    pub const UNEXPECTED_IN_OPEN_CONFIRM: u8 = 2;
    pub const UNEXPECTED_IN_ESTABLISHED: u8 = 3;
}

/// Subcodes of "Cease" (RFC 4486, RFC 8538, RFC 9384).
pub mod cease {
    pub const MAX_PREFIXES: u8 = 1;
    pub const ADMIN_SHUTDOWN: u8 = 2;
    pub const PEER_DECONFIGURED: u8 = 3;
    pub const ADMIN_RESET: u8 = 4;
    pub const CONNECTION_REJECTED: u8 = 5;
    pub const OTHER_CONFIG_CHANGE: u8 = 6;
    pub const COLLISION: u8 = 7;
    pub const OUT_OF_RESOURCES: u8 = 8;
    pub const HARD_RESET: u8 = 9;
    pub const BFD_DOWN: u8 = 10;
}

/// Subcodes of "ROUTE-REFRESH Message Error" (RFC 7313).
pub mod refresh {
    pub const INVALID_LENGTH: u8 = 1;
}

/// Name of an error code; "unknown error" for one that is not registered.
pub const fn error_name(code: u8) -> &'static str {
    match code {
        error::HEADER => "message header error",
        error::OPEN => "OPEN message error",
        error::UPDATE => "UPDATE message error",
        error::HOLD_TIMER => "hold timer expired",
        error::FSM => "finite state machine error",
        error::CEASE => "cease",
        error::ROUTE_REFRESH => "ROUTE-REFRESH message error",
        error::SEND_HOLD_TIMER => "send hold timer expired",
        _ => "unknown error",
    }
}

/// Name of a subcode of an error code; `None` where it says nothing more than the code.
pub const fn subcode_name(code: u8, subcode: u8) -> Option<&'static str> {
    Some(match (code, subcode) {
        (error::HEADER, header::NOT_SYNCHRONIZED) => "connection not synchronized",
        (error::HEADER, header::BAD_LENGTH) => "bad message length",
        (error::HEADER, header::BAD_TYPE) => "bad message type",
        (error::OPEN, open::UNSUPPORTED_VERSION) => "unsupported version number",
        (error::OPEN, open::BAD_PEER_AS) => "bad peer AS",
        (error::OPEN, open::BAD_IDENTIFIER) => "bad BGP identifier",
        (error::OPEN, open::UNSUPPORTED_PARAMETER) => "unsupported optional parameter",
        (error::OPEN, open::UNACCEPTABLE_HOLD_TIME) => "unacceptable hold time",
        (error::OPEN, open::UNSUPPORTED_CAPABILITY) => "unsupported capability",
        (error::OPEN, open::ROLE_MISMATCH) => "role mismatch",
        (error::UPDATE, update::MALFORMED_ATTRIBUTE_LIST) => "malformed attribute list",
        (error::UPDATE, update::UNRECOGNIZED_WELL_KNOWN) => "unrecognized well-known attribute",
        (error::UPDATE, update::MISSING_WELL_KNOWN) => "missing well-known attribute",
        (error::UPDATE, update::ATTRIBUTE_FLAGS) => "attribute flags error",
        (error::UPDATE, update::ATTRIBUTE_LENGTH) => "attribute length error",
        (error::UPDATE, update::INVALID_ORIGIN) => "invalid ORIGIN attribute",
        (error::UPDATE, update::INVALID_NEXT_HOP) => "invalid NEXT_HOP attribute",
        (error::UPDATE, update::OPTIONAL_ATTRIBUTE) => "optional attribute error",
        (error::UPDATE, update::INVALID_NETWORK) => "invalid network field",
        (error::UPDATE, update::MALFORMED_AS_PATH) => "malformed AS_PATH",
        (error::FSM, fsm::UNEXPECTED_IN_OPEN_SENT) => "unexpected message in OpenSent",
        (error::FSM, fsm::UNEXPECTED_IN_OPEN_CONFIRM) => "unexpected message in OpenConfirm",
        (error::FSM, fsm::UNEXPECTED_IN_ESTABLISHED) => "unexpected message in Established",
        (error::CEASE, cease::MAX_PREFIXES) => "maximum number of prefixes reached",
        (error::CEASE, cease::ADMIN_SHUTDOWN) => "administrative shutdown",
        (error::CEASE, cease::PEER_DECONFIGURED) => "peer de-configured",
        (error::CEASE, cease::ADMIN_RESET) => "administrative reset",
        (error::CEASE, cease::CONNECTION_REJECTED) => "connection rejected",
        (error::CEASE, cease::OTHER_CONFIG_CHANGE) => "other configuration change",
        (error::CEASE, cease::COLLISION) => "connection collision resolution",
        (error::CEASE, cease::OUT_OF_RESOURCES) => "out of resources",
        (error::CEASE, cease::HARD_RESET) => "hard reset",
        (error::CEASE, cease::BFD_DOWN) => "BFD down",
        (error::ROUTE_REFRESH, refresh::INVALID_LENGTH) => "invalid message length",
        _ => return None,
    })
}
