//! Which handles the collector is taking back, in a file below the state folder. An agent that dies after the block is
//! written and before the handle's record is leaves a record that holds nothing; of a DEL or a GC the runtime reminds the next
//! agent by asking again, of what the collector began nobody would.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::Path,
};

use super::{refused::Refused, service::Service};

/// Name of the file: a handle on each line.
const COLLECTING: &str = "ipam-collecting";

impl Service {
    /// Before a release. Where it cannot be written the release is worth more than the word of it.
    pub(super) async fn begin_collecting(&self, handles: &[String]) {
        let (file, text) = (self.state_dir.join(COLLECTING), handles.join("\n"));
        let written = tokio::task::spawn_blocking(move || note(&file, &text)).await;
        if let Some(e) = written.map_or_else(|e| Some(e.to_string()), |w| w.err().map(|e| e.to_string())) {
            tracing::debug!("{COLLECTING}: {e}");
        }
    }

    /// After it.
    pub(super) fn end_collecting(&self) {
        match fs::remove_file(self.state_dir.join(COLLECTING)) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => tracing::debug!("{COLLECTING}: {e}"),
            _ => {}
        }
    }

    /// What an agent before this one, or a look before this one, did not finish. Addresses are not touched: those that are
    /// leaked are found again.
    pub(super) async fn finish_collecting(&self) -> Result<(), Refused> {
        // Tasks of the collector follow one another, so it is nobody's who is still at it.
        let Ok(text) = fs::read_to_string(self.state_dir.join(COLLECTING)) else { return Ok(()) };
        for handle in text.lines().filter(|h| !h.is_empty()) {
            let _turns = self.turns_of_handle(handle).await;
            if self.claims.hold(handle) {
                continue;
            }
            if self.allocator.lock().await.forget_empty_handle(handle).await? {
                tracing::info!(%handle, "leaked addresses were collected before; their handle is gone now too");
            }
        }
        self.end_collecting();
        Ok(())
    }
}

fn note(file: &Path, text: &str) -> io::Result<()> {
    let mut file = File::create(file)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}
