//! What SQLite's and the system's errors mean for the person who has to act: each names the file and the remedy.

use std::{
    fs,
    io::{self, Write as _},
    os::unix::fs::{MetadataExt, OpenOptionsExt as _},
    path::Path,
};

use brindle_config_core::store::StoreError;
use rusqlite::{ErrorCode, ffi};

use super::{
    db::{BUSY, Failure},
    pair::beside,
};

pub(super) fn is_busy(e: &rusqlite::Error) -> bool {
    matches!(e.sqlite_error_code(), Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked))
}

pub(super) fn corrupt(path: &Path, detail: &str) -> String {
    let path = path.display();
    // SQLite's verdict has lines; a message is one.
    let detail = detail.lines().map(str::trim).collect::<Vec<_>>().join("; ");
    format!(
        "{path}: is damaged ({detail}); stop what uses it, move it away together with {path}-wal and {path}-shm, \
         then restore a backup or start with an empty one"
    )
}

pub(super) fn io_error(path: &Path, e: &io::Error) -> StoreError {
    let path = path.display();
    StoreError::Broken(match e.kind() {
        io::ErrorKind::PermissionDenied => {
            format!("{path}: permission denied; run as root or as the owner of the file")
        }
        io::ErrorKind::ReadOnlyFilesystem => {
            format!("{path}: the file system is read-only; mount it writable or choose another path")
        }
        io::ErrorKind::StorageFull => format!("{path}: the disk is full; free some space"),
        _ => format!("{path}: {e}"),
    })
}

/// The failure in words.
pub(super) fn explain(path: &Path, failure: Failure) -> StoreError {
    let e = match failure {
        Failure::Store(e) => return e,
        Failure::Sql(e) => e,
    };
    let at = path.display();
    let extended = e.sqlite_error().map_or(0, |e| e.extended_code);
    match e.sqlite_error_code() {
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => StoreError::Unavailable(format!(
            "{at}: locked by another process for more than {} s; find it: fuser -v {at}",
            BUSY.as_secs()
        )),
        Some(ErrorCode::DatabaseCorrupt) => StoreError::Broken(corrupt(path, &e.to_string())),
        Some(ErrorCode::NotADatabase) => StoreError::Broken(format!(
            "{at}: is not a datastore file; choose another path, or move it away to start with an empty one"
        )),
        Some(ErrorCode::ReadOnly | ErrorCode::CannotOpen) if is_on_read_only(path) => {
            io_error(path, &io::ErrorKind::ReadOnlyFilesystem.into())
        }
        Some(ErrorCode::CannotOpen | ErrorCode::SystemIoFailure) if is_full(path) => {
            io_error(path, &io::ErrorKind::StorageFull.into())
        }
        Some(ErrorCode::ReadOnly) => {
            StoreError::Broken(format!("{at}: is read-only; make the file and its directory writable"))
        }
        Some(ErrorCode::PermissionDenied | ErrorCode::AuthorizationForStatementDenied) => {
            io_error(path, &io::ErrorKind::PermissionDenied.into())
        }
        Some(ErrorCode::CannotOpen) if !is_readable(path) => {
            io_error(path, &io::ErrorKind::PermissionDenied.into())
        }
        Some(ErrorCode::CannotOpen) => StoreError::Broken(format!(
            "{at}: cannot be opened ({e}); is its directory there and writable for this user?"
        )),
        Some(ErrorCode::DiskFull) => io_error(path, &io::ErrorKind::StorageFull.into()),
        // A short read is what a truncated file looks like.
        Some(ErrorCode::SystemIoFailure) if extended == ffi::SQLITE_IOERR_SHORT_READ => {
            StoreError::Broken(corrupt(path, "the file is too short"))
        }
        Some(ErrorCode::SystemIoFailure) => StoreError::Broken(format!(
            "{at}: reading or writing failed ({e}); look at the disk and the kernel log"
        )),
        _ => StoreError::Broken(format!("{at}: unexpected answer of the database ({e})")),
    }
}

/// Whether nothing can be written where the file is, for anybody.
pub(super) fn is_on_read_only(path: &Path) -> bool {
    trial(path).is_err_and(|e| e.kind() == io::ErrorKind::ReadOnlyFilesystem)
}

/// SQLite tells a full disk only while it writes the file itself, not while it makes what is beside it.
fn is_full(path: &Path) -> bool {
    trial(path).is_err_and(|e| matches!(e.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded))
}

/// Writes beside the file as much as SQLite needs to open one.
fn trial(path: &Path) -> io::Result<()> {
    let scratch = beside(path, &format!(".trial-{}", std::process::id()));
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&scratch)?;
    let done = file.write_all(&[0; 64 << 10]).and_then(|()| file.sync_data());
    let _ = fs::remove_file(&scratch);
    done
}

/// Whether the mode of the file lets this process read it. Looked up, not tried: see `inspect_file`.
fn is_readable(path: &Path) -> bool {
    let (Ok(file), Ok(me)) = (fs::metadata(path), fs::metadata("/proc/self")) else { return true };
    match me.uid() {
        0 => true,
        uid if uid == file.uid() => file.mode() & 0o400 != 0,
        _ if me.gid() == file.gid() => file.mode() & 0o040 != 0,
        _ => file.mode() & 0o004 != 0,
    }
}
