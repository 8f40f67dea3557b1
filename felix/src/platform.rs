//! The seam between the engine and the kernel: what it reads and writes, and the Linux implementation.

use brindle_kernel::{
    netlink::{
        Addr, BatchReport, Link, NetlinkError, Op, Route, RouteBatcher, RouteChange, RouteFilter, Rtnl,
    },
    sysctl,
};

/// A failed reading or setting, in words that name it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct PlatformError(pub String);

impl From<NetlinkError> for PlatformError {
    fn from(e: NetlinkError) -> Self {
        Self(e.to_string())
    }
}

/// The kernel as felix needs it. All calls block.
pub trait Platform: Send {
    fn links(&mut self) -> Result<Vec<Link>, PlatformError>;
    fn addrs(&mut self) -> Result<Vec<Addr>, PlatformError>;
    /// The main table, both families.
    fn routes(&mut self) -> Result<Vec<Route>, PlatformError>;
    fn change_routes(&mut self, changes: &[RouteChange]) -> BatchReport;
    /// One link or address operation.
    fn link_op(&mut self, op: Op) -> Result<(), NetlinkError>;
    /// Writes a setting if it differs; true if it wrote.
    fn ensure(&mut self, key: &str, value: &str) -> Result<bool, PlatformError>;
}

/// The network namespace of the thread that made it.
pub struct Linux {
    rtnl: Rtnl,
    batcher: RouteBatcher,
}

impl Linux {
    /// Opens the sockets.
    pub fn open() -> Result<Self, PlatformError> {
        Ok(Self { rtnl: Rtnl::open()?, batcher: RouteBatcher::open()? })
    }
}

impl Platform for Linux {
    fn links(&mut self) -> Result<Vec<Link>, PlatformError> {
        Ok(self.rtnl.links()?)
    }

    fn addrs(&mut self) -> Result<Vec<Addr>, PlatformError> {
        Ok(self.rtnl.addrs(None)?)
    }

    fn routes(&mut self) -> Result<Vec<Route>, PlatformError> {
        Ok(self.rtnl.routes(&RouteFilter::main())?)
    }

    fn change_routes(&mut self, changes: &[RouteChange]) -> BatchReport {
        self.batcher.apply(changes)
    }

    fn link_op(&mut self, op: Op) -> Result<(), NetlinkError> {
        self.rtnl.run_all(&[op])
    }

    fn ensure(&mut self, key: &str, value: &str) -> Result<bool, PlatformError> {
        sysctl::ensure(key, value).map_err(|e| PlatformError(e.to_string()))
    }
}
