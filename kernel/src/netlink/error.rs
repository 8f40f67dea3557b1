//! What can go wrong between us and rtnetlink, with what was attempted and the kernel's own words.

use std::{fmt, time::Duration};

use nix::{errno::Errno, libc};

/// A failed netlink operation. `what` names the attempt ("add route 10.0.0.0/26 via 10.1.0.2 dev 4").
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NetlinkError {
    /// The kernel refused the request.
    #[error("{what}: {}{}", Words(*errno), Ext(ext.as_deref()))]
    Refused {
        what: String,
        /// Positive errno.
        errno: i32,
        /// Text of the extended acknowledgement, when the kernel gave one.
        ext: Option<String>,
    },
    /// The socket itself failed (no netlink, no file descriptors, …).
    #[error("{what}: netlink socket: {}", Words(*errno))]
    Socket { what: String, errno: i32 },
    /// No (complete) answer in time. Whether the request took effect is unknown: read back.
    #[error("{what}: no answer from the kernel within {after:?}; read back what took effect")]
    Timeout { what: String, after: Duration },
    /// The kernel dropped messages because our buffer was full: whatever was known is stale, read everything again.
    #[error("{what}: the kernel dropped netlink messages (ENOBUFS); read everything again")]
    Overrun { what: String },
    /// An answer that is truncated or makes no sense.
    #[error("{what}: answer from the kernel is not understood: {reason}")]
    Garbled { what: String, reason: String },
    /// The table changed during every attempt to dump it.
    #[error("{what}: the table changed during each of {attempts} dumps; try again")]
    Unstable { what: String, attempts: u32 },
}

struct Words(i32);

impl fmt::Display for Words {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match Errno::from_raw(self.0) {
            Errno::UnknownErrno => write!(f, "error {}", self.0),
            e => write!(f, "{} ({e:?})", e.desc()),
        }
    }
}

struct Ext<'a>(Option<&'a str>);

impl fmt::Display for Ext<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.map_or(Ok(()), |t| write!(f, ": {t}"))
    }
}

impl NetlinkError {
    /// The positive errno, if one is behind this.
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::Refused { errno, .. } | Self::Socket { errno, .. } => Some(*errno),
            Self::Overrun { .. } => Some(libc::ENOBUFS),
            Self::Timeout { .. } | Self::Garbled { .. } | Self::Unstable { .. } => None,
        }
    }

    /// EEXIST.
    pub fn is_exists(&self) -> bool {
        self.errno() == Some(libc::EEXIST)
    }

    /// The object is not there: ENODEV, ENOENT, ESRCH, ENXIO, EADDRNOTAVAIL.
    pub fn is_not_found(&self) -> bool {
        matches!(
            self.errno(),
            Some(libc::ENODEV | libc::ENOENT | libc::ESRCH | libc::ENXIO | libc::EADDRNOTAVAIL)
        )
    }

    /// The kernel lacks the feature: EOPNOTSUPP, EAFNOSUPPORT, EPROTONOSUPPORT.
    pub fn is_unsupported(&self) -> bool {
        matches!(self.errno(), Some(libc::EOPNOTSUPP | libc::EAFNOSUPPORT | libc::EPROTONOSUPPORT))
    }

    /// EPERM or EACCES: root (CAP_NET_ADMIN) is missing.
    pub fn is_permission(&self) -> bool {
        matches!(self.errno(), Some(libc::EPERM | libc::EACCES))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_names_the_attempt_the_errno_and_the_kernels_words() {
        let e = NetlinkError::Refused {
            what: "add route 10.0.0.0/26 via 1.2.3.4 dev 7".into(),
            errno: libc::EINVAL,
            ext: Some("Nexthop has invalid gateway".into()),
        };
        assert_eq!(
            e.to_string(),
            "add route 10.0.0.0/26 via 1.2.3.4 dev 7: Invalid argument (EINVAL): Nexthop has invalid gateway"
        );
        assert!(!e.is_not_found());
    }

    #[test]
    fn an_unknown_errno_is_shown_as_a_number() {
        let e = NetlinkError::Refused { what: "x".into(), errno: 9999, ext: None };
        assert_eq!(e.to_string(), "x: error 9999");
    }
}
