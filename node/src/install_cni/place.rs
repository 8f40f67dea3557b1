//! Files put in place and taken away again: the plugins, with a record of those of others that were installed here, so
//! that `--remove` takes these and leaves what the node had or got from elsewhere.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File, Permissions},
    io::{self, Write as _},
    os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

use super::{BINARIES, InstallArgs, OTHERS, Places, SHIPPED, calico};

/// In the folder of the plugins: a line for each of others that was installed here, `NAME SIZE CHECKSUM`; two of a name
/// while one takes the other's place.
const RECORD: &str = ".brindle-plugins";

/// Installs the plugins, of others those that the conflist `called` calls or that ours come with; says what was done.
pub(super) fn plugins(args: &InstallArgs, called: &BTreeSet<String>) -> Result<Vec<String>> {
    let from = match &args.from {
        Some(dir) => dir.clone(),
        None => {
            let own = std::env::current_exe().context("cannot find this program's own folder")?;
            own.parent().context("this program has no folder")?.to_owned()
        }
    };
    let mut done = Vec::new();
    fs::create_dir_all(&args.places.bin_dir).with_context(|| args.places.bin_dir.display().to_string())?;
    for name in BINARIES.into_iter().filter(|b| !skipped(args, b)) {
        let (source, place) = (from.join(name), args.places.bin_dir.join(name));
        if !args.update_binaries && place.exists() {
            leave(&place, "not to be updated", &mut done);
            continue;
        }
        let bytes =
            fs::read(&source).with_context(|| format!("cannot read the plugin {}", source.display()))?;
        put(&place, &bytes, 0o755, &mut done)?;
    }
    calico::stand_in(args, &from, args.update_binaries, &mut done)?;
    others(args, called, &mut done)?;
    Ok(done)
}

pub(super) fn skipped(args: &InstallArgs, name: &str) -> bool {
    args.skip_binaries.iter().any(|s| s.trim() == name)
}

/// Plugins of others: what a node has from elsewhere is the node's own affair, newer or older. One that was installed here,
/// and is as it was then, is brought up to date as ours are.
fn others(args: &InstallArgs, called: &BTreeSet<String>, done: &mut Vec<String>) -> Result<()> {
    let mut record = Record::read(&args.places.bin_dir);
    for name in OTHERS.into_iter().filter(|o| !skipped(args, o)) {
        let place = args.places.bin_dir.join(name);
        let there = fs::symlink_metadata(&place);
        if let Ok(there) = &there {
            // A link is not what was put there.
            let untouched = there.is_file() && fs::read(&place).is_ok_and(|bytes| record.fits(name, &bytes));
            if !untouched || !args.update_binaries {
                let why = match (untouched, record.names(name)) {
                    (true, _) => "not to be updated",
                    (false, true) => "changed since it was installed",
                    (false, false) => "there already",
                };
                leave(&place, why, done);
                continue;
            }
        }
        match fs::read(args.others.join(name)) {
            Ok(bytes) => {
                // Before the file, beside what is there now: whatever this is interrupted by, it is known for ours.
                record.note(name, &bytes)?;
                put(&place, &bytes, 0o755, done)?;
                record.settle(name, &bytes)?;
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                if there.is_ok() {
                    leave(&place, &format!("{} has no newer one", args.others.display()), done);
                } else if SHIPPED.contains(&name) || called.contains(name) {
                    done.push(format!(
                        "{}: missing, and {} has none; install the CNI reference plugins if something calls it",
                        place.display(),
                        args.others.display()
                    ));
                }
            }
            Err(e) => return Err(e).with_context(|| args.others.join(name).display().to_string()),
        }
    }
    Ok(())
}

/// A plugin that stays as it is, but for the bit without which nobody can call it.
pub(super) fn leave(place: &Path, why: &str, done: &mut Vec<String>) {
    let shown = place.display();
    let lacks = fs::metadata(place).is_ok_and(|m| m.is_file() && !executable(&m));
    let line = match lacks.then(|| fs::set_permissions(place, Permissions::from_mode(0o755))) {
        None => format!("{shown}: {why}, left alone"),
        Some(Ok(())) => format!("{shown}: {why}, made executable"),
        Some(Err(e)) => format!("{shown}: {why}, not executable, and cannot be made so: {e}"),
    };
    done.push(line);
}

fn executable(m: &fs::Metadata) -> bool {
    m.permissions().mode() & 0o100 != 0
}

/// Puts a file in place, unless it is there already.
pub(super) fn put(path: &Path, bytes: &[u8], mode: u32, done: &mut Vec<String>) -> Result<()> {
    let shown = path.display();
    // The bit is set by a new file: the old one may be somebody else's, whose mode is not for us to change.
    let usable = || mode & 0o100 == 0 || fs::metadata(path).is_ok_and(|m| executable(&m));
    if fs::read(path).is_ok_and(|there| there == bytes) && usable() {
        done.push(format!("{shown}: unchanged"));
        return Ok(());
    }
    replace(path, bytes, mode)
        .with_context(|| format!("cannot write {shown}; the former file, if any, is untouched"))?;
    done.push(format!("{shown}: written"));
    Ok(())
}

fn replace(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let folder = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
    let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?.to_string_lossy();
    // Runtimes read `*.conf`, `*.conflist` and `*.json` only.
    let temporary = folder.join(format!(".{name}.{}.tmp", std::process::id()));
    // Of a process that was killed: in a container every one has the same number.
    match fs::remove_file(&temporary) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let written = (|| {
        let mut file = File::options().write(true).create_new(true).mode(mode).open(&temporary)?;
        file.write_all(bytes)?;
        // Whatever the umask is.
        file.set_permissions(Permissions::from_mode(mode))?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        File::open(folder)?.sync_all()
    })();
    if written.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    written
}

/// Takes a file away, if it is there.
pub(super) fn remove_file(path: &Path, done: &mut Vec<String>) -> Result<()> {
    match fs::remove_file(path) {
        Ok(()) => done.push(format!("{}: removed", path.display())),
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        Err(e) => return Err(e).with_context(|| format!("cannot remove {}", path.display())),
    }
    Ok(())
}

/// Takes away what was installed: the conflist first, then the plugins, unless pods still need them for their DEL.
pub(super) fn remove(places: &Places, keep_plugins: bool, dry_run: bool) -> Result<Vec<String>> {
    let mut hand = Hand { dry_run, done: Vec::new() };
    hand.remove(&places.conflist())?;
    let mut record = Record::read(&places.bin_dir);
    calico::give_back(places, &mut record, &mut hand)?;
    if keep_plugins {
        if !dry_run {
            record.keep()?;
        }
        return Ok(hand.done);
    }
    for name in BINARIES {
        hand.remove(&places.bin_dir.join(name))?;
    }
    for (name, marks) in &record.marks {
        let place = places.bin_dir.join(name);
        match fs::read(&place) {
            Ok(bytes) if marks.contains(&mark_of(&bytes)) => hand.remove(&place)?,
            Ok(_) => hand.leave(&place, "changed since it was installed"),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(e).with_context(|| place.display().to_string()),
        }
    }
    if !dry_run {
        record.remove()?;
    }
    Ok(hand.done)
}

/// Takes files away, or only says so.
pub(super) struct Hand {
    dry_run: bool,
    done: Vec<String>,
}

impl Hand {
    /// A file goes, if it is there.
    pub(super) fn remove(&mut self, path: &Path) -> Result<()> {
        if !self.dry_run {
            return remove_file(path, &mut self.done);
        }
        if fs::symlink_metadata(path).is_ok() {
            self.done.push(format!("{}: would be removed", path.display()));
        }
        Ok(())
    }

    /// A file comes back under the name it had.
    pub(super) fn rename(&mut self, from: &Path, to: &Path) -> Result<()> {
        if self.dry_run {
            self.done.push(format!("{}: would be put back as {}", from.display(), to.display()));
            return Ok(());
        }
        fs::rename(from, to)
            .with_context(|| format!("cannot put {} back as {}", from.display(), to.display()))?;
        self.done.push(format!("{}: put back", to.display()));
        Ok(())
    }

    pub(super) fn leave(&mut self, path: &Path, why: &str) {
        self.done.push(format!("{}: {why}, left alone", path.display()));
    }
}

/// Which plugins of others, or in their place, were installed here, and what they were.
pub(super) struct Record {
    path: PathBuf,
    marks: BTreeMap<String, BTreeSet<String>>,
}

impl Record {
    /// What is written there; lines that are not understood count for nothing.
    pub(super) fn read(folder: &Path) -> Self {
        let path = folder.join(RECORD);
        let text = fs::read_to_string(&path).unwrap_or_default();
        let mut marks: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for (name, mark) in text.lines().filter_map(|line| line.split_once(' ')) {
            if OTHERS.contains(&name) || calico::NAMES.contains(&name) {
                marks.entry(name.to_owned()).or_default().insert(mark.to_owned());
            }
        }
        Self { path, marks }
    }

    pub(super) fn names(&self, name: &str) -> bool {
        self.marks.contains_key(name)
    }

    /// Whether this is what was installed.
    pub(super) fn fits(&self, name: &str, bytes: &[u8]) -> bool {
        self.marks.get(name).is_some_and(|marks| marks.contains(&mark_of(bytes)))
    }

    /// This may be there from now on.
    pub(super) fn note(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        match self.marks.entry(name.to_owned()).or_default().insert(mark_of(bytes)) {
            true => self.write(),
            false => Ok(()),
        }
    }

    /// Nothing but this is there from now on.
    pub(super) fn settle(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        let only = BTreeSet::from([mark_of(bytes)]);
        match self.marks.insert(name.to_owned(), only.clone()) {
            Some(before) if before == only => Ok(()),
            _ => self.write(),
        }
    }

    pub(super) fn forget(&mut self, name: &str) {
        self.marks.remove(name);
    }

    /// What it says now, if there is anything to say.
    fn keep(&self) -> Result<()> {
        if self.marks.is_empty() { self.remove() } else { self.write() }
    }

    fn remove(&self) -> Result<()> {
        match fs::remove_file(&self.path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                Err(e).with_context(|| format!("cannot remove {}", self.path.display()))
            }
            _ => Ok(()),
        }
    }

    fn write(&self) -> Result<()> {
        let lines = self.marks.iter().flat_map(|(name, marks)| marks.iter().map(move |m| (name, m)));
        let text: String = lines.map(|(name, mark)| format!("{name} {mark}\n")).collect();
        replace(&self.path, text.as_bytes(), 0o644)
            .with_context(|| format!("cannot write {}", self.path.display()))
    }
}

/// Tells one plugin from another, not from a forgery: size and FNV-1a.
fn mark_of(bytes: &[u8]) -> String {
    let step = |hash: u64, octet: &u8| (hash ^ u64::from(*octet)).wrapping_mul(0x0100_0000_01b3);
    format!("{} {:016x}", bytes.len(), bytes.iter().fold(0xcbf2_9ce4_8422_2325, step))
}
