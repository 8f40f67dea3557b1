//! Why a call was refused, as the plugin passes it on: CNI code, what happened, what to do.

use brindle_cni::{error::code, proto::Reply};
use brindle_config_core::store::StoreError;
use brindle_ipam::{IpamError, Reason, Refusal};

/// A refused call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Refused {
    pub(super) code: u32,
    pub(super) msg: String,
    pub(super) details: String,
    /// Nothing is wrong with the request: the datastore does not serve it at this time.
    pub(super) datastore: bool,
    /// ... because somebody locked it.
    pub(super) locked: bool,
    /// ... because something is wrong with it that others may not notice: it can be read, and not written.
    pub(super) broken: bool,
}

impl Refused {
    pub(super) fn new(code: u32, msg: impl ToString, details: &str) -> Self {
        let (msg, details) = (msg.to_string(), details.to_owned());
        Self { code, msg, details, datastore: false, locked: false, broken: false }
    }

    /// The datastore cannot be asked. One that is locked can, and says no.
    pub(super) fn is_away(&self) -> bool {
        self.datastore && !self.locked
    }

    /// ClusterInformation says that nobody may write (Calico's words, which people search for).
    pub(super) fn locked() -> Self {
        Self {
            datastore: true,
            locked: true,
            ..Self::new(
                code::TRY_AGAIN,
                "Calico is currently not ready to process requests",
                "ClusterInformation `default` has datastoreReady: false; somebody locked the datastore",
            )
        }
    }
}

impl From<Refused> for Reply {
    fn from(r: Refused) -> Self {
        Self::Error { code: r.code, msg: r.msg, details: r.details }
    }
}

impl From<StoreError> for Refused {
    fn from(e: StoreError) -> Self {
        if let StoreError::Refused { .. } = e {
            return Self::new(code::FAILED, e, "this datastore does not take it, now or later");
        }
        let code = if matches!(e, StoreError::Invalid { .. }) { code::FAILED } else { code::TRY_AGAIN };
        let broken = matches!(e, StoreError::Broken(_));
        let refused = Self::new(code, e, "the agent cannot use its datastore; see its log");
        Self { datastore: true, broken, ..refused }
    }
}

/// What to do about a wish that no free address would fulfil.
fn hint(why: &Refusal) -> &'static str {
    match why.reasons.first() {
        Some(Reason::OutsidePools) => "ask for an address of an enabled IPPool, or add one that has it",
        Some(Reason::UseNotAllowed { .. }) => "ask for an address of a pool whose allowedUses say Workload",
        Some(Reason::ForeignBlock { .. }) => {
            "with strictAffinity a node gives addresses of its own blocks alone: ask for another, or pin the pod to that node"
        }
        _ => "correct the IPPool, or ask for an address of another one",
    }
}

impl From<IpamError> for Refused {
    fn from(e: IpamError) -> Self {
        let (code, hint) = match &e {
            IpamError::Store(store) => return store.clone().into(),
            IpamError::Refused(why) if why.exhausted() => {
                (code::POOL_EXHAUSTED, "add an IPPool, or free addresses")
            }
            IpamError::Refused(why) => (code::CONFIG, hint(why)),
            IpamError::Assigned { .. } => {
                (code::DUPLICATE_ADDRESS, "ask for another address, or delete the pod that has it")
            }
            IpamError::Cooling { .. } => {
                (code::TRY_AGAIN, "nothing needs doing: it is tried again, and given then")
            }
            IpamError::Stale(_) | IpamError::Contention { .. } => {
                (code::TRY_AGAIN, "other nodes write the same blocks; try again")
            }
            IpamError::Malformed(_) => (code::FAILED, "mend or delete this IPAMBlock"),
        };
        Self::new(code, e, hint)
    }
}
