//! A datastore on a read-only file system, such as a backup on a medium: SQLite cannot make the log and the index beside it
//! that it works with elsewhere. Nobody writes there, so that it can be read without.

use std::{fs, path::Path};

use brindle_config_core::store::StoreError;
use rusqlite::{Connection, ErrorCode, OpenFlags};

use super::{db::Failure, fault, pair::beside};

/// Opens it to be read, after opening it as usual failed like this; whatever it is not an answer to is given back.
pub(super) fn open(path: &Path, failure: Failure) -> Result<Connection, Failure> {
    let cannot_open =
        matches!(&failure, Failure::Sql(e) if e.sqlite_error_code() == Some(ErrorCode::CannotOpen));
    if !cannot_open || !path.is_file() || !fault::is_on_read_only(path) {
        return Err(failure);
    }
    let log = beside(path, "-wal");
    if fs::metadata(&log).is_ok_and(|m| m.len() > 0) {
        let (path, log) = (path.display(), log.display());
        return Err(StoreError::Broken(format!(
            "{path}: the file system is read-only, and what {log} holds is not taken in yet, which needs a writable one; \
             copy both files to another folder and read the copy"
        ))
        .into());
    }
    let flags =
        OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX | OpenFlags::SQLITE_OPEN_URI;
    Ok(Connection::open_with_flags(uri(path), flags)?)
}

/// The file as one that does not change.
fn uri(path: &Path) -> String {
    let mut uri = "file:".to_owned();
    for byte in path.as_os_str().as_encoded_bytes() {
        match byte {
            b'/' | b'.' | b'-' | b'_' => uri.push(char::from(*byte)),
            b if b.is_ascii_alphanumeric() => uri.push(char::from(*b)),
            b => uri += &format!("%{b:02X}"),
        }
    }
    uri + "?immutable=1"
}

#[cfg(test)]
mod tests {
    use brindle_config_core::{Key, Kind, store::Expect};

    use super::*;
    use crate::{sqlite::db::Db, testing::TempDir};

    #[test]
    fn a_frozen_file_is_read_whatever_it_is_called() {
        let dir = TempDir::new();
        let path = dir.path("a b?c#d%20\u{e9}.db");
        let key = Key::new(Kind::BgpPeer, None, "a");
        let mut db = Db::open(&path, true).expect("creates");
        db.put(&key, "{}", Expect::Any).expect("writes");
        drop(db);
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_URI;
        let conn = Connection::open_with_flags(uri(&path), flags).expect("opens");
        let n: i64 = conn.query_row("SELECT count(*) FROM entries", [], |r| r.get(0)).expect("reads");
        assert_eq!(n, 1);
    }
}
