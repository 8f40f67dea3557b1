//! DELs taken while no agent was there. The plugin writes one file per attachment; the agent carries them out when it
//! starts (and looks again now and then), so that no address stays with a container that is gone.
//!
//! A file is one line `brindle-cni-journal 1 LENGTH SHA1`, then that many bytes of JSON. It is written beside its place,
//! synced, and renamed: a crash leaves the old file, the new one, or a `.tmp` that nobody reads. Whatever is cut or
//! damaged is recognised and set aside, never half believed.

use std::{
    fs,
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
    time::{SystemTime, UNIX_EPOCH},
};

use brindle_kernel::disk;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{names::sha1_hex, proto::Attachment};

/// Folder below the state folder.
pub const FOLDER: &str = "cni-journal";
const MAGIC: &str = "brindle-cni-journal 1";
const SUFFIX: &str = "del";
/// Beside the folder: room for entries where the disk has none left.
const RESERVE: &str = "cni-reserve";
/// Octets of it: a node full of pods, a block of the disk each.
pub const RESERVED: u64 = 512 * 1024;
/// Octets given up at a time.
const PART: u64 = 16 * 1024;
/// Parts an entry may use up: more than its octets and its name can need, so that what lacks is something else.
const PARTS: u64 = 8;
/// Larger than any entry; what is longer is no entry.
const MAX_FILE: u64 = 64 * 1024;

/// What the file asks for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    pub attachment: Attachment,
    /// Only addresses are concerned (`brindle-ipam`).
    #[serde(default)]
    pub addresses_only: bool,
}

/// A record and where it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub path: PathBuf,
    pub record: Record,
}

/// What a folder holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Contents {
    pub entries: Vec<Entry>,
    /// Files that are damaged, with the reason; they were renamed to `*.bad`.
    pub damaged: Vec<(PathBuf, String)>,
}

/// Why bytes are no record.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    #[error("no line {MAGIC:?} at its beginning")]
    Header,
    #[error("{found} bytes where {wanted} were written: cut short, or written over")]
    Length { wanted: usize, found: usize },
    #[error("its checksum does not match: damaged")]
    Checksum,
    #[error("its content is not understood: {0}")]
    Content(String),
}

/// The bytes of a file: a [`Record`], or what the agent keeps beside it in the same form.
pub fn encode<T: Serialize>(record: &T) -> Vec<u8> {
    let body = serde_json::to_vec(record).expect("a record of strings and flags always becomes JSON");
    let mut bytes = format!("{MAGIC} {} {}\n", body.len(), sha1_hex(&body)).into_bytes();
    bytes.extend(body);
    bytes
}

/// The record in a file's bytes.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, DecodeError> {
    let end = bytes.iter().position(|b| *b == b'\n').ok_or(DecodeError::Header)?;
    let (head, rest) = bytes.split_at(end);
    let body = rest.get(1..).unwrap_or_default();
    let head =
        std::str::from_utf8(head).ok().and_then(|h| h.strip_prefix(MAGIC)).ok_or(DecodeError::Header)?;
    // Exactly one form: a damaged space read as a leading zero would still be the same number.
    let (digits, sum) = head.strip_prefix(' ').and_then(|h| h.split_once(' ')).ok_or(DecodeError::Header)?;
    let wanted = digits.parse::<usize>().map_err(|_| DecodeError::Header)?;
    if wanted.to_string() != digits {
        return Err(DecodeError::Header);
    }
    if body.len() != wanted {
        return Err(DecodeError::Length { wanted, found: body.len() });
    }
    if sha1_hex(body) != sum {
        return Err(DecodeError::Checksum);
    }
    serde_json::from_slice(body).map_err(|e| DecodeError::Content(e.to_string()))
}

/// What the files of an attachment are called, without what follows the dot.
pub fn file_stem(a: &Attachment) -> String {
    sha1_hex(format!("{}\n{}\n{}", a.network, a.container_id, a.ifname).as_bytes())
}

/// File name of an attachment's record: the same for a repeated DEL.
fn file_name(a: &Attachment) -> String {
    format!("{}.{SUFFIX}", file_stem(a))
}

/// Records the DEL for the next agent. When this returns it survives a power cut.
pub fn write(folder: &Path, record: &Record) -> io::Result<PathBuf> {
    save(folder, &file_name(&record.attachment), &encode(record), true)
}

/// Keeps room for entries: when the disk is full, pods must be able to go, for that frees it. Taken in parts, and only of what
/// the disk has beyond as much again for everybody else. Says how many octets are kept, [`RESERVED`] if it can be.
pub fn keep_reserve(state_dir: &Path) -> io::Result<u64> {
    let path = state_dir.join(RESERVE);
    if let Some(len) = fs::metadata(&path).ok().map(|m| m.len()).filter(|len| *len >= RESERVED) {
        return Ok(len);
    }
    let file = fs::OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&path)?;
    loop {
        let len = file.metadata()?.len();
        // Asked for each part: others write meanwhile.
        if len >= RESERVED || disk::free(state_dir)? < RESERVED + PART {
            return Ok(len);
        }
        take(&file, len)?;
    }
}

/// One part more of a reserve of this length, whole or not at all.
fn take(file: &fs::File, len: u64) -> io::Result<()> {
    let taken = disk::take(file, len, PART);
    if taken.is_err() {
        file.set_len(len)?;
    }
    taken
}

/// Gives up a part of the reserve. `false`: there is none.
fn use_reserve(folder: &Path) -> bool {
    let Some(path) = folder.parent().map(|state| state.join(RESERVE)) else { return false };
    let Ok(file) = fs::OpenOptions::new().write(true).open(path) else { return false };
    match file.metadata().map(|m| m.len()) {
        Ok(len) if len > 0 => file.set_len(len.saturating_sub(PART)).is_ok(),
        _ => false,
    }
}

/// Takes back what was given up and did not help: it was no room that lacked, but inodes, say. As far as it is there still.
fn restore_reserve(folder: &Path, parts: u64) -> io::Result<()> {
    let Some(path) = folder.parent().map(|state| state.join(RESERVE)) else { return Ok(()) };
    let file = fs::OpenOptions::new().write(true).open(path)?;
    for _ in 0..parts {
        take(&file, file.metadata()?.len())?;
    }
    Ok(())
}

/// Writes a whole file or none. `durable`: it survives a power cut when this returns; then it may use the reserve, too.
pub fn save(folder: &Path, name: &str, bytes: &[u8], durable: bool) -> io::Result<PathBuf> {
    let mut used = 0;
    loop {
        match try_save(folder, name, bytes, durable) {
            Err(e) if durable && used < PARTS && is_full(&e) && use_reserve(folder) => used += 1,
            Err(e) => {
                let _ = restore_reserve(folder, used);
                return Err(e);
            }
            done => return done,
        }
    }
}

/// The disk has no more room, or none for us.
fn is_full(e: &io::Error) -> bool {
    matches!(e.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

fn try_save(folder: &Path, name: &str, bytes: &[u8], durable: bool) -> io::Result<PathBuf> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    let path = folder.join(name);
    let (mut file, temporary) = begin(folder, name)?;
    let written = (|| {
        file.write_all(bytes)?;
        if durable {
            file.sync_all()?;
        }
        fs::rename(&temporary, &path)?;
        if durable { fs::File::open(folder)?.sync_all() } else { Ok(()) }
    })();
    if let Err(e) = written {
        let _ = fs::remove_file(&temporary);
        return Err(e);
    }
    Ok(path)
}

/// Attempts at a temporary file that no reader takes for a dead writer's.
const ATTEMPTS: u32 = 100;

/// A temporary file that says by its lock that somebody writes it. Process numbers say nothing: the agent and a plugin may
/// live in different namespaces of them, where one number is two processes', or nobody's for the other.
fn begin(folder: &Path, name: &str) -> io::Result<(fs::File, PathBuf)> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
    for _ in 0..ATTEMPTS {
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let temporary = folder.join(format!("{name}.{}-{since}-{n}.tmp", std::process::id()));
        let file = match fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => continue,
            opened => opened?,
        };
        match file.try_lock() {
            // A reader came between the two steps and removed it: it cannot be found any more.
            Ok(()) if file.metadata()?.nlink() == 0 => {}
            // Where locks are not to be had nobody takes a file for stale either.
            Ok(()) | Err(fs::TryLockError::Error(_)) => return Ok((file, temporary)),
            // A reader looks at it this moment, and will remove it.
            Err(fs::TryLockError::WouldBlock) => {}
        }
    }
    Err(io::Error::other("temporary files are removed as fast as they are made"))
}

/// Forgets the record of this attachment, if there is one (a DEL carried out, an ADD that came after it).
pub fn remove(folder: &Path, a: &Attachment) -> io::Result<()> {
    match fs::remove_file(folder.join(file_name(a))) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

/// The record of this attachment, if there is a sound one.
pub fn find(folder: &Path, a: &Attachment) -> Option<Entry> {
    let path = folder.join(file_name(a));
    let record = read_one(&path).ok()?;
    Some(Entry { path, record })
}

/// Reads all records. Files left by a crash while writing are removed; damaged ones are set aside.
pub fn read(folder: &Path) -> io::Result<Contents> {
    let (found, damaged) = read_all(folder, SUFFIX)?;
    let entries = found.into_iter().map(|(path, record)| Entry { path, record }).collect();
    Ok(Contents { entries, damaged })
}

/// Sound files with what they say, and damaged ones with what is wrong with them.
pub type Found<T> = (Vec<(PathBuf, T)>, Vec<(PathBuf, String)>);

/// Reads all files of one suffix; what a crash left is removed, what is damaged set aside.
pub fn read_all<T: DeserializeOwned>(folder: &Path, suffix: &str) -> io::Result<Found<T>> {
    let (mut sound, mut damaged) = (Vec::new(), Vec::new());
    let listing = match fs::read_dir(folder) {
        Ok(listing) => listing,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok((sound, damaged)),
        Err(e) => return Err(e),
    };
    let mut paths = listing.map(|e| e.map(|e| e.path())).collect::<io::Result<Vec<_>>>()?;
    paths.sort();
    for path in paths {
        match path.extension().and_then(|e| e.to_str()) {
            Some("tmp") => remove_stale(&path),
            Some(s) if s == suffix => match read_one(&path) {
                Ok(record) => sound.push((path, record)),
                // Carried out by somebody else since the listing.
                Err(Unread::Io(e)) if e.kind() == io::ErrorKind::NotFound => {}
                Err(Unread::Io(e)) => return Err(e),
                Err(Unread::Damaged(reason)) => {
                    fs::rename(&path, path.with_extension("bad"))?;
                    damaged.push((path, reason));
                }
            },
            _ => {}
        }
    }
    Ok((sound, damaged))
}

enum Unread {
    Io(io::Error),
    Damaged(String),
}

fn read_one<T: DeserializeOwned>(path: &Path) -> Result<T, Unread> {
    let len = fs::metadata(path).map_err(Unread::Io)?.len();
    if len > MAX_FILE {
        return Err(Unread::Damaged(format!("{len} bytes, {MAX_FILE} are the most")));
    }
    let bytes = fs::read(path).map_err(Unread::Io)?;
    decode(&bytes).map_err(|e| Unread::Damaged(e.to_string()))
}

/// Removes the temporary file of a writer that is gone: the kernel took its lock with it. Removed under the lock, so that
/// a writer who has only just made it sees that it is gone.
fn remove_stale(path: &Path) {
    let Ok(file) = fs::File::open(path) else { return };
    if file.try_lock().is_ok() {
        let _ = fs::remove_file(path);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn record(id: &str) -> Record {
        Record {
            attachment: Attachment {
                container_id: id.into(),
                ifname: "eth0".into(),
                netns: String::new(),
                netns_id: String::new(),
                network: "net".into(),
                pod: None,
            },
            addresses_only: false,
        }
    }

    struct Folder(PathBuf);

    impl Folder {
        fn new(tag: &str) -> Self {
            let path = std::env::temp_dir().join(format!("bt-{}-{tag}", std::process::id()));
            let _ = fs::remove_dir_all(&path);
            Self(path)
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn what_is_written_is_read_once_per_attachment() {
        let folder = Folder::new("journal");
        assert_eq!(read(&folder.0).unwrap(), Contents::default());
        for id in ["a", "b", "a"] {
            write(&folder.0, &record(id)).unwrap();
        }
        let found = read(&folder.0).unwrap();
        assert_eq!(found.entries.len(), 2);
        assert_eq!(find(&folder.0, &record("b").attachment).unwrap().record, record("b"));
        assert_eq!(find(&folder.0, &record("c").attachment), None);
        remove(&folder.0, &record("a").attachment).unwrap();
        remove(&folder.0, &record("a").attachment).unwrap();
        let left: Vec<Record> = read(&folder.0).unwrap().entries.into_iter().map(|e| e.record).collect();
        assert_eq!(left, [record("b")]);
    }

    #[test]
    fn a_file_cut_at_any_byte_is_recognised_and_set_aside() {
        let whole = encode(&record("a"));
        for cut in 0..whole.len() {
            assert!(decode::<Record>(&whole[..cut]).is_err(), "cut at {cut}");
        }
        let folder = Folder::new("journal-cut");
        let path = write(&folder.0, &record("a")).unwrap();
        fs::write(&path, &whole[..whole.len() / 2]).unwrap();
        let found = read(&folder.0).unwrap();
        assert!(found.entries.is_empty());
        assert_eq!(found.damaged.len(), 1);
        assert!(path.with_extension("bad").exists());
        assert_eq!(read(&folder.0).unwrap(), Contents::default(), "reported once");
    }

    #[test]
    fn every_flipped_bit_is_noticed() {
        let whole = encode(&record("a"));
        for bit in 0..whole.len() * 8 {
            let mut bytes = whole.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(decode::<Record>(&bytes).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn leftovers_of_a_dead_writer_are_removed_and_those_of_a_live_one_are_not() {
        let folder = Folder::new("journal-tmp");
        fs::create_dir_all(&folder.0).unwrap();
        // By its number the dead one could be this process, and the live one nobody: they are of other namespaces.
        let dead = folder.0.join(format!("x.del.{}.tmp", std::process::id()));
        let live = folder.0.join("x.del.4194305.tmp");
        fs::write(&dead, b"half").unwrap();
        fs::write(&live, b"half").unwrap();
        let writer = fs::File::open(&live).unwrap();
        writer.lock().unwrap();
        read(&folder.0).unwrap();
        assert!(!dead.exists());
        assert!(live.exists());
        drop(writer);
        read(&folder.0).unwrap();
        assert!(!live.exists());
    }

    #[test]
    fn a_reader_takes_no_writers_file_away() {
        let folder = Folder::new("journal-race");
        fs::create_dir_all(&folder.0).unwrap();
        let done = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|s| {
            s.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    read(&folder.0).unwrap();
                }
            });
            for n in 0..300 {
                let written = write(&folder.0, &record(&n.to_string()));
                assert!(written.as_ref().is_ok_and(|p| p.exists()), "{n}: {written:?}");
                remove(&folder.0, &record(&n.to_string()).attachment).unwrap();
            }
            done.store(true, Ordering::Relaxed);
        });
        assert_eq!(fs::read_dir(&folder.0).unwrap().count(), 0);
    }

    proptest! {
        #[test]
        fn any_bytes_are_an_answer(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = decode::<Record>(&bytes);
        }
    }
}
