//! `ipam`: who has which address, whether the records are sound, and the few changes a person makes to them. Words and
//! tables are calicoctl's where it has them.

pub(crate) mod args;
mod change;
mod check;
mod show;
mod why;
mod world;

use anyhow::Result;

use self::{
    args::{IpamArgs, IpamCommand},
    world::World,
};
use super::resource::{block_on, open, open_to_change};
use crate::{Outcome, args::Format};

/// Carries a command out.
pub(crate) fn run(args: &IpamArgs, format: Format) -> Result<Outcome> {
    let world = |store: &super::resource::args::StoreArgs| {
        let store = store.clone();
        block_on(async move { World::read(&*open(&store)?).await })
    };
    match &args.command {
        IpamCommand::Show(a) => show::show(&world(&a.store)?, a, format),
        IpamCommand::Check(a) => check::check(&world(&a.store)?, a, format),
        IpamCommand::Why(a) => why::why(&world(&a.store)?, a, format),
        IpamCommand::Release(a) => {
            block_on(async { change::release(open_to_change(&a.store, false)?, a, format).await })
        }
        IpamCommand::Configure(a) => {
            block_on(async { change::configure(open_to_change(&a.store, false)?, a, format).await })
        }
        IpamCommand::Split(a) => {
            block_on(async { change::split(open_to_change(&a.store, false)?, a, format).await })
        }
        IpamCommand::Reserve(a) => {
            block_on(async { change::reserve(open_to_change(&a.store, false)?, a, format).await })
        }
    }
}
