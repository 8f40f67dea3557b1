//! `brindle-bgpd` in the foreground: starts the speaker from a file or from a datastore and runs it until a signal.
//!
//! SIGHUP reads the file again: peers whose text did not change are not disturbed. SIGTERM and SIGINT end every
//! session with Cease; with `drainTime`, peers are asked to move traffic away first (RFC 8326).

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use brindle_admin::defect::{outlived, words};
use brindle_config_core::store::StoreError;
use tokio::signal::unix::{SignalKind, signal};
use tracing::{error, info, warn};

use crate::{
    admin::AdminSocket,
    cli::{give_back, usage},
    fault,
    follow::AFTER_DEFECT,
    follow::{Environment, Follower, from_store},
    handle::{Running, Unanswered},
    metrics,
    mrt::{self, MrtSettings},
    record::Recorder,
    settings::Settings,
    spawn,
};

/// Where peers and routes come from.
#[derive(Clone, Debug)]
pub enum Source {
    File(PathBuf),
    Datastore { url: String, node: String, secrets: PathBuf },
}

/// What to run.
#[derive(Clone, Debug)]
pub struct Daemon {
    pub source: Source,
    pub admin_socket: PathBuf,
    pub record: Option<PathBuf>,
    /// Largest size of the recording, octets.
    pub record_limit: u64,
    /// Where Prometheus asks.
    pub metrics: Option<SocketAddr>,
    /// Instead of the file's.
    pub router_id: Option<Ipv4Addr>,
    /// How long peers may react to our leaving (RFC 8326), until a file says otherwise.
    pub drain_time: Duration,
    pub mrt: Option<MrtSettings>,
    /// The file's content as read at start, to be applied first. `None` with a datastore.
    pub settings: Option<Settings>,
}

/// Runs until SIGTERM or SIGINT.
///
/// # Errors
/// What keeps it from starting: the admin socket, a listening address, the datastore, the recording; or the end of
/// the speaker by a defect.
pub async fn run(daemon: Daemon) -> Result<()> {
    let mut hangup = signal(SignalKind::hangup()).context("cannot watch for SIGHUP")?;
    let mut term = signal(SignalKind::terminate()).context("cannot watch for SIGTERM")?;
    let mut int = signal(SignalKind::interrupt()).context("cannot watch for SIGINT")?;

    let admin = AdminSocket::bind(&daemon.admin_socket)?;
    let recorder = match &daemon.record {
        Some(path) => Some(
            Recorder::create(path, daemon.record_limit)
                .with_context(|| format!("cannot record to {}", path.display()))?,
        ),
        None => None,
    };
    // What we announced is forwarded by others, so it survived us: a peer that kept it need not let go of it.
    let restarting = admin.replaced();
    if restarting {
        info!(cause = "an earlier run ended without a goodbye", "announcing a graceful restart");
    }
    let scrapes = match daemon.metrics {
        Some(address) => Some(metrics::listen(address).await?),
        None => None,
    };
    let (mut running, fib) = spawn::start(recorder, restarting);
    // Nobody programs routes here.
    drop(fib);
    let _follower = start(&daemon, &running).await?;
    let _mrt = match &daemon.mrt {
        Some(settings) => Some(mrt::start(settings, &running.handle).await?),
        None => None,
    };
    if let Some(listener) = scrapes {
        tokio::spawn(metrics::serve(listener, running.handle.clone()));
    }
    let admin = tokio::spawn(admin.serve(running.handle.clone()));
    // What starting took, most of what a daemon with few routes would hold.
    give_back();
    info!(pid = std::process::id(), version = env!("CARGO_PKG_VERSION"), "brindle-bgpd runs");

    let mut drain_time = daemon.drain_time;
    loop {
        tokio::select! {
            _ = term.recv() => break,
            _ = int.recv() => break,
            _ = hangup.recv() => {
                match outlived(reload(&daemon, &running)).await {
                    Ok(Some(changed)) => drain_time = changed,
                    Ok(None) => {}
                    Err(panic) => {
                        error!(what = words(&panic), "SIGHUP: a defect; the configuration stays. Please report it");
                    }
                }
            }
            () = running.ended() => {
                admin.abort();
                bail!("the speaker ended by a defect; see the log above");
            }
        }
    }
    if !drain_time.is_zero() && running.handle.drain().await.is_ok() {
        info!(seconds = drain_time.as_secs(), "peers move traffic away; another signal ends this at once");
        tokio::select! {
            _ = term.recv() => {}
            _ = int.recv() => {}
            () = running.ended() => {}
            () = tokio::time::sleep(drain_time) => {}
        }
    }
    admin.abort();
    // Its file goes with it; waiting for the abort is waiting for that.
    let _ = admin.await;
    running.shutdown().await;
    Ok(())
}

async fn start(daemon: &Daemon, running: &Running) -> Result<Option<Follower>> {
    match (&daemon.source, &daemon.settings) {
        (Source::Datastore { url, node, secrets }, _) => {
            // Waiting or starting again mends only one that does not answer.
            let store = brindle_config::open(url).map_err(|e| match e {
                StoreError::Broken(_) => usage(e),
                e => e.into(),
            })?;
            Ok(Some(from_store(store, node, secrets, Environment::default(), running.handle.clone())))
        }
        (Source::File(_), Some(settings)) => {
            let failed = running.handle.apply(settings.desired.clone()).await?;
            if let Some(first) = failed.first() {
                bail!("{first}; free the address, or change `listen`");
            }
            Ok(None)
        }
        (Source::File(file), None) => bail!("{}: was not read", file.display()),
    }
}

/// Settings that differ from those of the start, and are used only there.
fn only_at_start(daemon: &Daemon, new: &Settings) -> Vec<&'static str> {
    let Some(old) = &daemon.settings else { return Vec::new() };
    [
        ("adminSocket", old.admin_socket != new.admin_socket),
        ("log", old.log != new.log),
        ("mrt", old.mrt != new.mrt),
    ]
    .into_iter()
    .filter_map(|(field, differs)| differs.then_some(field))
    .collect()
}

/// Reads the file again; the drain time is the only setting the caller holds.
async fn reload(daemon: &Daemon, running: &Running) -> Option<Duration> {
    let Source::File(file) = &daemon.source else {
        info!("SIGHUP: nothing to read again, the datastore is followed anyway");
        return None;
    };
    fault::point("bgp.reload");
    let settings = match Settings::read(file) {
        Ok(mut settings) => {
            if let Some(Err(e)) = daemon.router_id.map(|id| settings.set_router_id(id)) {
                error!(error = e, "SIGHUP: the configuration stays as it was");
                return None;
            }
            settings
        }
        Err(e) => {
            error!(error = %e, "SIGHUP: the configuration stays as it was");
            return None;
        }
    };
    let drain_time = settings.drain_time;
    for field in only_at_start(daemon, &settings) {
        warn!("SIGHUP: {field} changes only with a restart");
    }
    let mut done = running.handle.apply(settings.desired.clone()).await;
    if done == Err(Unanswered::Defect) {
        // In case it was only the change from what was before: nobody else would tell the speaker what it should be.
        error!(
            seconds = AFTER_DEFECT.as_secs(),
            "SIGHUP: the configuration met a defect; it is applied once more"
        );
        tokio::time::sleep(AFTER_DEFECT).await;
        done = running.handle.apply(settings.desired).await;
    }
    match done {
        Ok(failed) => {
            for e in failed {
                warn!(error = %e, "trying again every few seconds");
            }
            info!(file = %file.display(), "SIGHUP: configuration read again");
        }
        Err(e) => error!(error = %e, "SIGHUP"),
    }
    Some(drain_time)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn what_needs_a_restart_is_named() {
        let read = |more: &str| {
            Settings::parse(Path::new("x.yaml"), &format!("asNumber: 1\nrouterID: 10.0.0.1\n{more}")).unwrap()
        };
        let daemon = Daemon {
            source: Source::File("x.yaml".into()),
            // Given on the command line: the file's is not used.
            admin_socket: "/given".into(),
            record: None,
            record_limit: 0,
            metrics: None,
            router_id: None,
            drain_time: Duration::ZERO,
            mrt: None,
            settings: Some(read("")),
        };
        let named = |more: &str| only_at_start(&daemon, &read(more)).join(" ");
        assert_eq!(named("drainTime: 5\nlocalPref: 200\n"), "");
        assert_eq!(
            named("adminSocket: /x\nlog: {level: debug}\nmrt: {directory: /y}\n"),
            "adminSocket log mrt"
        );
    }
}
