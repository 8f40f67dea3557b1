//! The error object of the CNI specification: a code that runtimes act on, a message, details.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::conf::VERSIONS;

/// Error codes. 1–99 are the specification's, those from 100 on are ours.
pub mod code {
    /// The configuration's `cniVersion` is not supported.
    pub const VERSION: u32 = 1;
    /// A field of the configuration is not supported.
    pub const FIELD: u32 = 2;
    /// The container is unknown or gone.
    pub const CONTAINER: u32 = 3;
    /// A CNI_* variable is missing or invalid.
    pub const ENVIRONMENT: u32 = 4;
    /// I/O failed.
    pub const IO: u32 = 5;
    /// Something could not be decoded.
    pub const DECODE: u32 = 6;
    /// The configuration is invalid.
    pub const CONFIG: u32 = 7;
    /// A transient condition: try again later.
    pub const TRY_AGAIN: u32 = 11;
    /// STATUS: ADD cannot be served now.
    pub const NOT_AVAILABLE: u32 = 50;
    /// STATUS: nor can it, and containers attached already may not reach everything.
    pub const LIMITED: u32 = 51;
    /// No address to give.
    pub const POOL_EXHAUSTED: u32 = 100;
    /// The address asked for is taken.
    pub const DUPLICATE_ADDRESS: u32 = 101;
    /// New flows of the pod cannot be denied while what it may do is not known.
    pub const NOT_READY: u32 = 103;
    /// The container's interface exists already, or in another namespace.
    pub const ATTACHED: u32 = 104;
    /// Plugin and agent do not speak the same protocol.
    pub const PROTOCOL: u32 = 107;
    /// Something does not look as it should (CHECK), or the kernel or the agent failed.
    pub const FAILED: u32 = 110;
}

/// A failed operation, as the runtime will read it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub struct CniError {
    pub code: u32,
    #[serde(rename = "msg")]
    pub message: String,
    /// What to do about it.
    #[serde(rename = "details", default, skip_serializing_if = "String::is_empty")]
    pub hint: String,
}

impl CniError {
    /// With the next step that goes for all errors of this code.
    pub fn new(code: u32, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), hint: next_step(code) }
    }

    /// Says better what to do about it.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        let hint = hint.into();
        if !hint.is_empty() {
            self.hint = hint;
        }
        self
    }

    /// An invalid or missing variable.
    pub fn env(message: impl Into<String>) -> Self {
        Self::new(code::ENVIRONMENT, message)
    }

    /// An invalid configuration.
    pub fn config(message: impl Into<String>) -> Self {
        Self::new(code::CONFIG, message)
    }
}

/// What to do when nothing better is known than the code.
fn next_step(code: u32) -> String {
    let step = match code {
        code::VERSION => return format!("supported: {}", VERSIONS.join(", ")),
        code::FIELD | code::CONFIG => {
            "correct the network configuration (/etc/cni/net.d), or the pod's annotation it comes from"
        }
        code::CONTAINER => "the container is gone: DEL it and make it anew",
        code::ENVIRONMENT => "the container runtime sets the CNI_* variables: see its log and its version",
        code::IO => "see that what the message names exists and has room, as root, and try again",
        code::DECODE => {
            "check the network configuration (/etc/cni/net.d), for instance with python3 -m json.tool FILE"
        }
        code::TRY_AGAIN | code::NOT_READY => "try again; if it stays so, see the agent's log",
        code::NOT_AVAILABLE | code::LIMITED => "see the agent's log",
        code::POOL_EXHAUSTED => "see brindlectl ipam show",
        code::DUPLICATE_ADDRESS => "brindlectl ipam why ADDRESS says who has it",
        code::ATTACHED => "DEL the other attachment first",
        code::PROTOCOL => "install plugin and agent of one version",
        _ => "see the agent's log; a pod that is deleted is made anew",
    };
    step.to_owned()
}

impl fmt::Display for CniError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        if !self.hint.is_empty() {
            write!(f, " ({})", self.hint)?;
        }
        Ok(())
    }
}

impl From<brindle_kernel::netlink::NetlinkError> for CniError {
    fn from(e: brindle_kernel::netlink::NetlinkError) -> Self {
        let error = Self::new(code::FAILED, e.to_string());
        if e.is_permission() { error.hint("run as root (CAP_NET_ADMIN)") } else { error }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_always_says_what_to_do_next() {
        for code in [1, 2, 3, 4, 5, 6, 7, 11, 50, 51, 100, 101, 103, 104, 107, 110, 999] {
            let general = CniError::new(code, "m");
            assert!(!general.hint.is_empty(), "{code}");
            assert_eq!(general.clone().hint(""), general, "nothing is no better advice");
            assert_eq!(general.hint("sharpen").hint, "sharpen");
        }
    }
}
