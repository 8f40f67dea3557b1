//! Which handles the collector is taking back, in a file below the state folder. An agent that dies after the block is
//! written and before the handle's record is leaves a record that holds nothing, and so does a release that fails there; of
//! a DEL or a GC the runtime reminds the next agent by asking again, of what the collector began nobody would. A handle
//! stays in the file until its release is done, or what it left is.

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
};

use brindle_kernel::files;

use super::{refused::Refused, service::Service};

/// Name of the file: a handle on each line.
const COLLECTING: &str = "ipam-collecting";

impl Service {
    /// Before a release. Where it cannot be written the release is worth more than the word of it.
    pub(super) async fn begin_collecting(&self, handles: &[String]) {
        self.note_collecting(handles, &[]).await;
    }

    /// After one that was done.
    pub(super) async fn end_collecting(&self, handles: &[String]) {
        self.note_collecting(&[], handles).await;
    }

    /// Tasks of the collector follow one another, so nobody writes the file in between.
    async fn note_collecting(&self, begun: &[String], done: &[String]) {
        let (folder, begun, done) = (self.state_dir.clone(), begun.to_vec(), done.to_vec());
        let noted = tokio::task::spawn_blocking(move || note(&folder, begun, &done)).await;
        if let Err(e) = noted.unwrap_or_else(|e| Err(io::Error::other(e))) {
            tracing::debug!("{COLLECTING}: {e}");
        }
    }

    /// What an agent before this one, or a look before this one, did not finish. Addresses are not touched: those that are
    /// leaked are found again. One that cannot be finished now waits for the next look, and no other with it.
    pub(super) async fn finish_collecting(&self) {
        let begun = read(&self.state_dir).unwrap_or_else(|e| {
            tracing::debug!("{COLLECTING}: {e}");
            BTreeSet::new()
        });
        let mut done = Vec::new();
        for handle in begun {
            match self.finish(&handle).await {
                Ok(true) => done.push(handle),
                Ok(false) => {}
                Err(refused) => {
                    tracing::warn!(%handle, "the record of a collected handle stays for now: {}", refused.msg);
                }
            }
        }
        if !done.is_empty() {
            self.end_collecting(&done).await;
        }
    }

    /// Whether there is nothing left to finish: its record is gone, or holds addresses, which then go with it. Not so while
    /// an ADD under way has it, or when somebody else wrote the same records.
    async fn finish(&self, handle: &str) -> Result<bool, Refused> {
        let _turns = self.turns_of_handle(handle).await;
        if self.claims.hold(handle) {
            return Ok(false);
        }
        if self.allocator.lock().await.forget_empty_handle(handle).await? {
            tracing::info!(%handle, "leaked addresses were collected before; their handle is gone now too");
            return Ok(true);
        }
        Ok(!self.reader.held_by(handle).await?.is_empty())
    }
}

fn file(folder: &Path) -> PathBuf {
    folder.join(COLLECTING)
}

fn read(folder: &Path) -> io::Result<BTreeSet<String>> {
    match fs::read(file(folder)) {
        // Of a line that is damaged no record will be found.
        Ok(bytes) => {
            let text = String::from_utf8_lossy(&bytes);
            Ok(text.lines().filter(|l| !l.is_empty()).map(str::to_owned).collect())
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(BTreeSet::new()),
        Err(e) => Err(e),
    }
}

/// Adds and removes lines, on the disk when it returns; with the last line the file goes.
fn note(folder: &Path, begun: Vec<String>, done: &[String]) -> io::Result<()> {
    let before = read(folder)?;
    let mut lines = before.clone();
    lines.extend(begun);
    lines.retain(|l| !done.contains(l));
    if lines == before {
        return Ok(());
    }
    if lines.is_empty() {
        return fs::remove_file(file(folder));
    }
    let text: String = lines.into_iter().map(|line| line + "\n").collect();
    files::replace(&file(folder), text.as_bytes(), 0o644, true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_handle_has_a_line_until_it_is_done() {
        let folder = std::env::temp_dir().join(format!("bt-{}-collecting", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let all = |handles: &[&str]| handles.iter().map(|h| (*h).to_owned()).collect::<Vec<_>>();
        let lines = || read(&folder).unwrap().into_iter().collect::<Vec<_>>();
        note(&folder, all(&["net.a"]), &[]).unwrap();
        note(&folder, all(&["net.b", "net.c"]), &[]).unwrap();
        assert_eq!(lines(), ["net.a", "net.b", "net.c"], "one that is begun takes no other away");
        note(&folder, vec![], &all(&["net.b", "net.never"])).unwrap();
        assert_eq!(lines(), ["net.a", "net.c"]);
        note(&folder, vec![], &all(&["net.a", "net.c"])).unwrap();
        assert!(!file(&folder).exists());
        note(&folder, vec![], &all(&["net.a"])).unwrap();
        // What an agent before wrote had no end of the last line.
        fs::write(file(&folder), "net.a\nnet.b").unwrap();
        note(&folder, all(&["net.c"]), &[]).unwrap();
        assert_eq!(lines(), ["net.a", "net.b", "net.c"]);
        fs::remove_dir_all(&folder).unwrap();
    }
}
