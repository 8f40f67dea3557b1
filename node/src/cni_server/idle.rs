//! Blocks of this node that have been empty for a while go back, for other nodes to use. [`brindle_ipam::idle`] decides.

use brindle_ipam::{View, idle::Idle};

use super::{
    leaks::{LeakArgs, Mode},
    now,
    refused::Refused,
    service::Service,
};

impl Service {
    /// One look.
    pub(super) async fn look_for_idle_blocks(&self, idle: &mut Idle, args: &LeakArgs) -> Result<(), Refused> {
        self.unlocked().await?;
        let view = View::load(&*self.store, &self.node).await?;
        let blocks = self.blocks().await?;
        for block in idle.look(&self.node, &blocks, &view, args.ipam_gc_grace, now()) {
            if args.ipam_gc == Mode::DryRun {
                tracing::info!(block = %block.cidr, "unused block of this node; not given back: dry run");
            } else if self.allocator.lock().await.give_back(block, &view, now()).await? {
                tracing::info!(block = %block.cidr, cause = "empty for the grace period", "block of addresses given back");
            }
        }
        Ok(())
    }
}
