//! Which log belongs to which database file. SQLite finds a log (`PATH-wal`) by its name alone and replays what is in it:
//! where somebody moved a backup over the file, that would be the log of the file before, and two databases would be
//! mixed. So `PATH.lock` says for which file the log was begun, and is held while a file is opened. A log of another file
//! than the one that is there now is set aside before SQLite sees it.

use std::{
    fs, io,
    os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant, UNIX_EPOCH},
};

use brindle_config_core::store::StoreError;

use super::{db::BUSY, fault::io_error};

/// Which file it is, whatever it is called. The time of its birth tells it from an earlier one with the same number, where
/// the file system knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Identity {
    device: u64,
    inode: u64,
    born: u64,
}

pub(super) fn identity(path: &Path) -> io::Result<Identity> {
    let meta = fs::metadata(path)?;
    let born = meta.created().ok().and_then(|t| t.duration_since(UNIX_EPOCH).ok());
    let born = born.map_or(0, |d| u64::try_from(d.as_nanos()).unwrap_or(0));
    Ok(Identity { device: meta.dev(), inode: meta.ino(), born })
}

pub(super) fn beside(path: &Path, end: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(end);
    name.into()
}

/// Two identities as text of one length, so that it is written at once.
const RECORD: usize = 6 * 21;

fn record(file: Identity, log: Identity) -> String {
    [file, log].map(|i| format!("{:020} {:020} {:020} ", i.device, i.inode, i.born)).concat()
}

fn read_record(text: &str) -> Option<(Identity, Identity)> {
    let numbers: Vec<u64> = text.split_whitespace().map_while(|n| n.parse().ok()).collect();
    let [device, inode, born, log_device, log_inode, log_born] = *numbers.as_slice() else { return None };
    let log = Identity { device: log_device, inode: log_inode, born: log_born };
    Some((Identity { device, inode, born }, log))
}

/// A file is being opened, by nobody else at this moment.
pub(super) struct Opening<'a> {
    path: &'a Path,
    /// Nothing is held where there is no such file yet, or no right to it.
    lock: Option<fs::File>,
    known: Option<(Identity, Identity)>,
}

impl<'a> Opening<'a> {
    /// Waits for others that open it, and sets aside a log that belongs to another file.
    pub(super) fn begin(path: &'a Path) -> Result<Self, StoreError> {
        let mut opening = Self { path, lock: None, known: None };
        let open = fs::OpenOptions::new().read(true).write(true).open(beside(path, ".lock"));
        let Ok(lock) = open else { return Ok(opening) };
        wait_for(&lock, path)?;
        let mut text = [0; RECORD];
        if lock.read_exact_at(&mut text, 0).is_ok() {
            opening.known = std::str::from_utf8(&text).ok().and_then(read_record);
        }
        opening.lock = Some(lock);
        opening.set_aside()?;
        Ok(opening)
    }

    fn set_aside(&self) -> Result<(), StoreError> {
        let (log, index) = (beside(self.path, "-wal"), beside(self.path, "-shm"));
        let (Some((file, its_log)), Ok(file_now), Ok(log_now)) =
            (self.known, identity(self.path), identity(&log))
        else {
            return Ok(());
        };
        if file == file_now || its_log != log_now {
            return Ok(());
        }
        let kept = beside(self.path, "-wal.replaced");
        let path = self.path.display();
        let removed = match fs::remove_file(&index) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
            _ => fs::rename(&log, &kept),
        };
        removed.map_err(|e| {
            StoreError::Broken(format!(
                "{path}: the file was replaced, and {path}-wal is still that of the file before, which cannot be moved \
                 away ({e}); move {path}-wal and {path}-shm away"
            ))
        })?;
        tracing::warn!(
            "{path}: the file was replaced; what the one before had not yet taken in is in {}, which is not used",
            kept.display()
        );
        Ok(())
    }

    /// The file is open with its log: remembers that they belong together.
    pub(super) fn done(mut self, file: Identity) {
        if self.lock.is_none() {
            let lock = beside(self.path, ".lock");
            let open = fs::OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(lock);
            // Who may not write beside the file cannot begin a log there either.
            self.lock = open.ok().filter(|l| wait_for(l, self.path).is_ok());
        }
        let (Some(lock), Ok(log)) = (&self.lock, identity(&beside(self.path, "-wal"))) else { return };
        if self.known == Some((file, log)) {
            return;
        }
        if let Err(error) = lock.write_all_at(record(file, log).as_bytes(), 0) {
            tracing::debug!(path = %self.path.display(), %error, "not noted which log belongs to the file");
        }
    }
}

fn wait_for(lock: &fs::File, path: &Path) -> Result<(), StoreError> {
    let begun = Instant::now();
    loop {
        match lock.try_lock() {
            Ok(()) => return Ok(()),
            Err(fs::TryLockError::WouldBlock) if begun.elapsed() < BUSY => {
                thread::sleep(Duration::from_micros(500 + crate::jitter::below(2000)));
            }
            Err(fs::TryLockError::WouldBlock) => {
                return Err(StoreError::Unavailable(format!(
                    "{}: another process has been opening it for more than {} s; find it: fuser -v {}",
                    path.display(),
                    BUSY.as_secs(),
                    beside(path, ".lock").display()
                )));
            }
            Err(fs::TryLockError::Error(e)) => return Err(io_error(path, &e)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_read_as_it_was_written() {
        let file = Identity { device: 1, inode: u64::MAX, born: 3 };
        let log = Identity { device: 4, inode: 5, born: 0 };
        let text = record(file, log);
        assert_eq!(text.len(), RECORD);
        assert_eq!(read_record(&text), Some((file, log)));
        for text in ["", "1 2 3", "1 2 3 4 5 x", "1 2 3 4 5 6 7"] {
            assert_eq!(read_record(text), None, "{text}");
        }
    }
}
