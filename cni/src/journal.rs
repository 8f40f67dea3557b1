//! DELs taken while no agent was running: one small file each, carried out by the next agent, so that no address leaks.
//!
//! A file is a line `brindle-del 1 LENGTH SUM`, then LENGTH octets of JSON; SUM is the start of their SHA-1. It is
//! written beside its place, synced, and renamed: whoever reads sees all of it or none.

use std::{
    fs,
    io::{self, Write},
    path::{Path, PathBuf},
};

use sha1::{Digest, Sha1};

use crate::proto::Attachment;

const MAGIC: &str = "brindle-del 1";

/// A DEL to carry out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub path: PathBuf,
    pub attachment: Attachment,
}

fn sum(body: &[u8]) -> String {
    Sha1::digest(body).iter().take(8).map(|b| format!("{b:02x}")).collect()
}

/// The octets of a file.
pub fn encode(attachment: &Attachment) -> Vec<u8> {
    // A struct of strings always serialises.
    let body = serde_json::to_vec(attachment).unwrap_or_default();
    let mut all = format!("{MAGIC} {} {}\n", body.len(), sum(&body)).into_bytes();
    all.extend(body);
    all
}

/// What a file says; the error says what is wrong with it.
pub fn decode(bytes: &[u8]) -> Result<Attachment, String> {
    let end = bytes.iter().position(|b| *b == b'\n').ok_or("no header line")?;
    let (head, body) = bytes.split_at(end);
    let body = body.get(1..).unwrap_or_default();
    let head = std::str::from_utf8(head).map_err(|_| "the header is not text")?;
    let rest = head.strip_prefix(MAGIC).ok_or_else(|| format!("the header is not {MAGIC:?}"))?;
    let mut fields = rest.split_ascii_whitespace();
    let len: usize = fields.next().and_then(|f| f.parse().ok()).ok_or("the header has no length")?;
    if body.len() != len {
        return Err(format!("{} octets where {len} were written", body.len()));
    }
    if fields.next() != Some(sum(body).as_str()) {
        return Err("the checksum does not match".into());
    }
    serde_json::from_slice(body).map_err(|e| e.to_string())
}

/// File name of an attachment's entry: distinct for distinct attachments, and no path.
fn file_name(a: &Attachment) -> String {
    let key = sum(format!("{}\n{}\n{}", a.network, a.container_id, a.ifname).as_bytes());
    let id: String = a.container_id.chars().filter(char::is_ascii_alphanumeric).take(40).collect();
    format!("{id}-{key}.del")
}

/// Records a DEL.
pub fn write(dir: &Path, attachment: &Attachment) -> io::Result<()> {
    fs::create_dir_all(dir)?;
    let name = file_name(attachment);
    let temporary = dir.join(format!(".{name}.{}", std::process::id()));
    let result = (|| {
        let mut f = fs::File::create(&temporary)?;
        f.write_all(&encode(attachment))?;
        f.sync_all()?;
        fs::rename(&temporary, dir.join(name))?;
        fs::File::open(dir)?.sync_all()
    })();
    if result.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    result
}

/// All entries, by name. A damaged one is set aside as `*.bad`: what it held is lost, and the collector finds the
/// address.
pub fn read_all(dir: &Path) -> io::Result<Vec<Entry>> {
    let mut entries = Vec::new();
    let listing = match fs::read_dir(dir) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(entries),
        other => other?,
    };
    for item in listing {
        let path = item?.path();
        if path.extension().is_none_or(|e| e != "del") {
            continue;
        }
        match decode(&fs::read(&path)?) {
            Ok(attachment) => entries.push(Entry { path, attachment }),
            Err(_) => fs::rename(&path, path.with_extension("bad"))?,
        }
    }
    entries.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(entries)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attachment(id: &str) -> Attachment {
        Attachment {
            container_id: id.into(),
            ifname: "eth0".into(),
            netns: String::new(),
            network: "n".into(),
            pod: None,
        }
    }

    #[test]
    fn what_is_written_is_read_and_a_file_cut_anywhere_is_refused() {
        let a = attachment("c1");
        let bytes = encode(&a);
        assert_eq!(decode(&bytes).unwrap(), a);
        for cut in 0..bytes.len() {
            assert!(decode(&bytes[..cut]).is_err(), "cut at {cut}");
        }
    }

    #[test]
    fn entries_are_listed_and_damaged_ones_set_aside() {
        let dir = std::env::temp_dir().join(format!("brindle-journal-{}", std::process::id()));
        write(&dir, &attachment("c1")).unwrap();
        write(&dir, &attachment("c1")).unwrap();
        write(&dir, &attachment("../../c2")).unwrap();
        fs::write(dir.join("x.del"), "torn").unwrap();
        let ids: Vec<_> = read_all(&dir).unwrap().into_iter().map(|e| e.attachment.container_id).collect();
        assert_eq!(ids.len(), 2);
        assert!(dir.join("x.bad").exists());
        fs::remove_dir_all(&dir).unwrap();
    }
}
