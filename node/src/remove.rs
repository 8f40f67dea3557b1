//! `brindle-node remove`: a node that is to have no Brindle any more. Files first, so that runtimes ask for nothing new, then
//! the kernel. It holds the agent's lock meanwhile, so that none runs, and none begins.

use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};
use brindle_admin::aside;
use brindle_felix::Removal;
use clap::Args;
use tokio::signal::unix::{SignalKind, signal};

use crate::{
    install_cni::{Places, remove_files},
    lock,
};

#[derive(Debug, Args)]
pub(crate) struct RemoveArgs {
    #[command(flatten)]
    places: Places,
    /// Folder of the agent's own files; it stays
    #[arg(long, env = "BRINDLE_STATE_DIR", value_name = "DIR", default_value = "/var/lib/brindle")]
    state_dir: PathBuf,
    /// Leave the plugins: CRI-O calls them to delete the pods they attached. Once these are gone, remove again
    #[arg(long)]
    keep_plugins: bool,
    /// Also the routes to other nodes and the blackholes of this node's blocks; without them packets between nodes are lost
    /// until somebody else writes routes
    #[arg(long)]
    routes: bool,
    /// Only print what would be removed; an agent may be running
    #[arg(long)]
    dry_run: bool,
    /// Once that is done, wait for SIGTERM: for the container of a DaemonSet
    #[arg(long)]
    stay: bool,
}

/// Removes; whether all of it went. An error: nothing was removed.
pub(crate) fn run(args: &RemoveArgs, mut say: impl FnMut(&str)) -> Result<bool> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let _inside = runtime.enter();
    // From the beginning: one that comes early is not lost.
    let on = |kind| signal(kind).context("cannot handle signals");
    let end =
        if args.stay { Some((on(SignalKind::terminate())?, on(SignalKind::interrupt())?)) } else { None };
    if std::fs::metadata("/proc/self").is_ok_and(|m| std::os::unix::fs::MetadataExt::uid(&m) != 0) {
        bail!("must run as root: it takes rules out of the kernel");
    }
    let lock =
        if args.dry_run { None } else { Some(lock::take(&args.state_dir).context("nothing was removed")?) };
    let mut failed = Vec::new();
    let mut done = match remove_files(&args.places, args.keep_plugins, args.dry_run) {
        Ok(done) => done,
        Err(e) => {
            failed.push(format!("{e:#}"));
            Vec::new()
        }
    };
    let kernel = Removal { state_dir: args.state_dir.clone(), routes: args.routes, dry_run: args.dry_run };
    match kernel.run() {
        Ok(removed) => {
            done.extend(removed.done);
            failed.extend(removed.failed);
        }
        Err(e) => failed.push(e.to_string()),
    }
    if done.is_empty() && failed.is_empty() {
        done.push("nothing of Brindle is left here".into());
    }
    done.iter().for_each(|line| say(line));
    failed.iter().for_each(|line| aside::say(format_args!("brindle-node: {line}")));
    drop(lock);
    if failed.is_empty()
        && let Some((mut term, mut int)) = end
    {
        runtime.block_on(async {
            tokio::select! {
                _ = term.recv() => {}
                _ = int.recv() => {}
            }
        });
    }
    Ok(failed.is_empty())
}
