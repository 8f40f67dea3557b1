//! `policy`: what network policy does, from the resources of the datastore alone; no agent is asked.

pub(crate) mod args;
mod ends;
mod nat;
mod service;
mod trace;
mod way;

use anyhow::Result;

use self::args::{PolicyArgs, PolicyCommand};
use super::resource::{block_on, open};
use crate::{Outcome, args::Format};

/// Carries a command out.
pub(crate) fn run(args: &PolicyArgs, format: Format) -> Result<Outcome> {
    match &args.command {
        PolicyCommand::Trace(a) => {
            let listing = block_on(async {
                let store = open(&a.store)?;
                let kinds = [&brindle_felix_core::calc::KINDS[..], &way::KINDS].concat();
                Ok(store.list(&kinds).await?)
            })?;
            trace::trace(&listing.entries, a, format)
        }
    }
}
