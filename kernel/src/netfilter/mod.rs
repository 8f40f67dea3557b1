//! Packet filter, sets of addresses and tracked flows of one namespace, as a trait: the tools of the distribution
//! ([`Tools`]), a model with fault injection in `fake`. Text in, text out; what it means is the caller's business.

mod conntrack;
mod elements;
mod tools;
mod variant;

pub use conntrack::{Conntrack, Flow, Tuple};
pub use tools::Tools;
pub use variant::{Variant, VariantChoice, choose};

use crate::{exec::ExecError, netlink::NetlinkError};

/// Which of the two rule sets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum IpVersion {
    V4,
    V6,
}

/// A call that failed. The text says what to do where something can be done.
#[derive(Debug, thiserror::Error)]
pub enum NfError {
    #[error("{tool} is not installed ({looked}); install the package {package}")]
    Missing { tool: String, looked: String, package: &'static str },
    /// Whether anything took effect is unknown; read back.
    #[error("{tool}: another process has held the lock for {seconds} s; trying again")]
    Locked { tool: String, seconds: u64 },
    /// The tool said no. Of a restore over several tables some may have taken effect; read back.
    #[error("{tool} refused: {why}{}", culprit.as_ref().map(|l| format!(" (line: {l})")).unwrap_or_default())]
    Refused { tool: String, why: String, culprit: Option<String> },
    #[error("{0}")]
    Exec(#[from] ExecError),
    #[error("{0}")]
    Netlink(#[from] NetlinkError),
}

/// The filter of one namespace. Blocking.
pub trait Netfilter: Send {
    /// iptables-save of all tables.
    fn save(&mut self, version: IpVersion) -> Result<String, NfError>;
    /// iptables-restore --noflush; each table of the input takes effect as a whole or not at all.
    fn restore(&mut self, version: IpVersion, input: &str) -> Result<(), NfError>;
    /// Chooses between the two iptables.
    fn set_variant(&mut self, variant: Variant);
    /// What one make holds, whatever was chosen, without loading anything into the kernel. `None`: nothing at all.
    fn probe(&mut self, variant: Variant, version: IpVersion) -> Result<Option<String>, NfError>;
    /// What the plain name `iptables` is on this machine.
    fn default_variant(&mut self) -> Result<Variant, NfError>;
    /// `ipset save`.
    fn save_sets(&mut self) -> Result<String, NfError>;
    /// `ipset restore`: line by line, ends at the first that fails; the lines before it have taken effect.
    fn restore_sets(&mut self, input: &str) -> Result<(), NfError>;
    /// `nft -j list table`; `None`: there is no such table.
    fn nft_list(&mut self, version: IpVersion, table: &str) -> Result<Option<String>, NfError>;
    /// `nft -f -`: everything or nothing.
    fn nft(&mut self, input: &str) -> Result<(), NfError>;
    /// Tracked flows.
    fn flows(&mut self, version: IpVersion) -> Result<Vec<Flow>, NfError>;
    /// Another hand on the same namespace, to be used on another thread started from this one.
    fn again(&self) -> Box<dyn Netfilter>;
    /// Forgets flows; one that is gone already is no error. Gives how many there were.
    fn forget(&mut self, flows: &[Flow]) -> Result<usize, NfError>;
    /// Sets or clears bits of the connection marks of flows and leaves their other bits; one that is gone already is no
    /// error. Gives how many there were.
    fn mark(&mut self, flows: &[Flow], bits: u32, set: bool) -> Result<usize, NfError>;
}
