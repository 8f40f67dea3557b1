//! `route` as it may be typed.

use clap::Args;

use crate::cluster::ReachArgs;

#[derive(Debug, Args)]
pub(crate) struct RouteArgs {
    /// A pod (NAME or NAMESPACE/NAME), a node, or an address.
    pub(crate) from: String,
    /// The same.
    pub(crate) to: String,
    #[command(flatten)]
    pub(crate) reach: ReachArgs,
}
