//! Room on the disk that a file is on.

use std::{fs::File, io, os::unix::fs::FileExt, path::Path};

use nix::{
    errno::Errno,
    fcntl::{FallocateFlags, fallocate},
    sys::statvfs::statvfs,
};

/// Octets that whoever is not root may still write there.
pub fn free(path: &Path) -> io::Result<u64> {
    let disk = statvfs(path)?;
    Ok(disk.blocks_available().saturating_mul(disk.fragment_size()))
}

/// Takes room for a part of the file, which grows by it. Where the file system knows no such thing the part is written: a
/// hole would keep nothing. After an error some of it may be taken.
pub fn take(file: &File, from: u64, len: u64) -> io::Result<()> {
    let number = |n: u64| i64::try_from(n).map_err(io::Error::other);
    match fallocate(file, FallocateFlags::empty(), number(from)?, number(len)?) {
        Err(Errno::EOPNOTSUPP) => {
            let len = usize::try_from(len).map_err(io::Error::other)?;
            file.write_all_at(&vec![0xff; len], from)
        }
        done => Ok(done?),
    }
}
