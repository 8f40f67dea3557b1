//! The brindle-ipip process as felix sees it: found beside our own executable, adopted if it runs, started if not,
//! watched so that its end is noticed at once.

use std::{
    io::Read as _,
    path::{Path, PathBuf},
    process::Child,
    sync::{Arc, OnceLock},
};

use brindle_carrier::control::{Client, Config, How, Launch, Route, ensure};
use brindle_felix_core::desire::Tunnel;
use tokio::sync::mpsc::WeakSender;

use crate::{Settings, handle::FelixInput, tunnel::Carrier};

const PROGRAM: &str = "brindle-ipip";

/// Where the engine listens, known once it runs.
pub(crate) type Inbox = Arc<OnceLock<WeakSender<FelixInput>>>;

pub(crate) struct Process {
    state_dir: PathBuf,
    args: Vec<String>,
    inbox: Inbox,
    client: Option<Client>,
    /// Ours to wait for when it ends. An adopted one is somebody else's.
    child: Option<Child>,
}

impl Process {
    pub(crate) fn new(settings: &Settings, inbox: Inbox) -> Self {
        let (state_dir, args) = (settings.state_dir.clone(), settings.carrier_args.clone());
        Self { state_dir, args, inbox, client: None, child: None }
    }

    fn connect(&mut self, device: &str, want: &Tunnel) -> Result<&mut Client, String> {
        self.reap();
        let wanted = Launch {
            program: program(),
            device: device.into(),
            local: want.local,
            control: self.state_dir.join("carrier.sock"),
            pid_file: self.state_dir.join("carrier.pid"),
            extra: self.args.clone(),
        };
        let carrier = ensure(&wanted).map_err(|e| in_full(&e))?;
        match carrier.how {
            How::Adopted => {
                tracing::info!(
                    pid = carrier.hello.pid,
                    old = "unknown",
                    new = "adopted",
                    cause = "it was running",
                    "carrier"
                );
            }
            How::Started => {
                tracing::info!(
                    pid = carrier.hello.pid,
                    old = "none",
                    new = "started",
                    cause = "none was running",
                    "carrier"
                );
            }
            How::Replaced { why } => {
                tracing::info!(pid = carrier.hello.pid, old = "another", new = "started", cause = %why, "carrier");
            }
        }
        self.child = carrier.child;
        self.watch(&wanted.control);
        Ok(self.client.insert(carrier.client))
    }

    /// A thread that sleeps on a connection of its own until the carrier ends, and then tells the engine.
    fn watch(&self, control: &Path) {
        let Ok(client) = Client::connect(control) else { return };
        let inbox = Arc::clone(&self.inbox);
        let watch = move || {
            let mut socket = client.socket();
            // It never speaks unasked, so the read ends with the process. A time limit set for answers does not hold.
            if socket.set_read_timeout(None).is_ok() {
                drop(socket.read(&mut [0]));
            }
            if let Some(tx) = inbox.get().and_then(WeakSender::upgrade) {
                // A full queue or a gone engine: the slow resync, or nobody, will look.
                drop(tx.blocking_send(FelixInput::Resync("the carrier ended".into())));
            }
        };
        // Without the thread the slow resync notices.
        if let Err(e) = std::thread::Builder::new().name("carrier-watch".into()).spawn(watch) {
            tracing::warn!(error = %e, "cannot watch the carrier");
        }
    }

    fn reap(&mut self) {
        self.client = None;
        if let Some(mut child) = self.child.take()
            && !matches!(child.try_wait(), Ok(Some(_)))
        {
            // Still running, or on its way out: keep it to be waited for.
            self.child = Some(child);
        }
    }
}

impl Carrier for Process {
    fn ensure(&mut self, device: &str, want: &Tunnel) -> Result<(), String> {
        let config = Config {
            mtu: u16::try_from(want.mtu).unwrap_or(u16::MAX),
            routes: want.routes.iter().map(|(&dst, ends)| Route { dst, via: ends.to_vec() }).collect(),
            sources: want.sources.iter().copied().collect(),
        };
        // The address is part of its command line: if that changed, the one running is of no use.
        let usable = self
            .client
            .as_mut()
            .is_some_and(|c| c.hello().is_ok_and(|h| h.local == want.local && h.device == device));
        let client = if usable { self.client.as_mut() } else { None };
        let client = match client {
            Some(client) => client,
            None => self.connect(device, want)?,
        };
        client.set_config(&config).map(drop).map_err(|e| in_full(&e))
    }

    fn alive(&mut self) -> bool {
        self.client.as_mut().is_some_and(|c| c.hello().is_ok())
    }

    fn refused(&mut self) -> Option<u64> {
        let stats = self.client.as_mut()?.stats().ok()?;
        Some(stats.inbound.dropped_unknown_source)
    }

    fn stop(&mut self) {
        let client =
            self.client.take().or_else(|| Client::connect(&self.state_dir.join("carrier.sock")).ok());
        if let Some(client) = client
            && let Err(e) = client.shutdown(false)
        {
            tracing::warn!(error = %in_full(&e), "the carrier was asked to end");
        }
        if let Some(mut child) = self.child.take() {
            drop(child.wait());
        }
    }
}

/// Beside our own executable, or where `BRINDLE_BIN_DIR` says.
fn program() -> PathBuf {
    let dir = std::env::var_os("BRINDLE_BIN_DIR").filter(|d| !d.is_empty()).map(PathBuf::from);
    let beside = || std::env::current_exe().ok().and_then(|exe| exe.parent().map(Path::to_owned));
    dir.or_else(beside).unwrap_or_default().join(PROGRAM)
}

fn in_full(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(e) = source {
        text = format!("{text}: {e}");
        source = e.source();
    }
    text
}
