//! What can go wrong in the calls of this package. Running out of addresses is no error of auto-assignment: it comes
//! back as a [`Refusal`] beside what was given.

use std::net::IpAddr;

use brindle_config_core::store::StoreError;

use crate::{block::BlockError, refusal::Refusal};

/// A call that failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IpamError {
    #[error("no address: {0}")]
    Refused(Refusal),
    /// The wanted address is in use; names the holder.
    #[error("{ip} is already assigned to {holder}")]
    Assigned { ip: IpAddr, holder: String },
    /// It was given back a moment ago, and is free again in so many seconds.
    #[error("{ip} was given back a moment ago and cools down for {seconds} s more (ipCooldownSeconds)")]
    Cooling { ip: IpAddr, seconds: u64 },
    /// What is stored has changed since the caller looked, so nothing was released.
    #[error("update conflict: {0}")]
    Stale(BlockError),
    #[error("{0}")]
    Malformed(BlockError),
    /// Other writers won every time.
    #[error("gave up on {what} after {attempts} conflicting writes; try again")]
    Contention { what: String, attempts: u32 },
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<BlockError> for IpamError {
    fn from(e: BlockError) -> Self {
        match e {
            BlockError::Assigned { ip, holder } => Self::Assigned { ip, holder },
            BlockError::OtherHandle { .. } | BlockError::OtherSequence { .. } => Self::Stale(e),
            BlockError::Malformed { .. } | BlockError::Outside { .. } => Self::Malformed(e),
        }
    }
}
