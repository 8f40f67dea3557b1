//! Files that are written as a whole: whoever reads one, also after a full disk, a kill or a power cut, finds what was there
//! before or what is there now.

use std::{
    ffi::OsString,
    fs::{self, File, OpenOptions, Permissions},
    io::{self, Write as _},
    os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _},
    path::Path,
};

/// Puts a file with these octets and permissions in the place of what is there. `durable`: it survives a power cut when
/// this returns; otherwise one may bring back the old file, or leave an empty one. One writer at a time for each path: what
/// is half written stands beside it, as NAME.tmp.
pub fn replace(path: &Path, bytes: &[u8], mode: u32, durable: bool) -> io::Result<()> {
    let name = path.file_name().ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
    let mut temporary = OsString::from(name);
    temporary.push(".tmp");
    let temporary = path.with_file_name(temporary);
    let written = write(&temporary, bytes, mode, durable).and_then(|()| fs::rename(&temporary, path));
    if let Err(e) = written {
        // Of a writer that failed or died before, perhaps; the next one begins anew in any case.
        let _ = fs::remove_file(&temporary);
        return Err(e);
    }
    match path.parent() {
        Some(folder) if durable => {
            let here = folder.as_os_str().is_empty();
            File::open(if here { Path::new(".") } else { folder })?.sync_all()
        }
        _ => Ok(()),
    }
}

fn write(path: &Path, bytes: &[u8], mode: u32, durable: bool) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(path)?;
    // Whatever the umask is, and whoever left one there.
    file.set_permissions(Permissions::from_mode(mode))?;
    file.write_all(bytes)?;
    if durable { file.sync_all() } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    fn folder(name: &str) -> PathBuf {
        let folder = std::env::temp_dir().join(format!("brindle-files-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir(&folder).unwrap();
        folder
    }

    #[test]
    fn a_file_is_replaced_and_nothing_stays_beside_it() {
        let folder = folder("whole");
        let path = folder.join("nodename");
        for (text, mode, durable) in [("one\n", 0o644, true), ("", 0o600, false), ("three\n", 0o600, true)] {
            fs::write(folder.join("nodename.tmp"), "left by a killed writer").unwrap();
            replace(&path, text.as_bytes(), mode, durable).unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), text);
            assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, mode);
            assert_eq!(fs::read_dir(&folder).unwrap().count(), 1);
        }
        fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn a_write_that_fails_leaves_the_old_file_alone() {
        let folder = folder("failed");
        let path = folder.join("kept");
        fs::create_dir(&path).unwrap();
        fs::write(path.join("old"), "old").unwrap();
        assert!(replace(&path, b"new", 0o600, true).is_err(), "a folder is in the way");
        assert_eq!(fs::read_to_string(path.join("old")).unwrap(), "old");
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 1, "and nothing of the new one");
        assert!(replace(Path::new("/"), b"new", 0o600, false).is_err());
        fs::remove_dir_all(&folder).unwrap();
    }
}
