//! Our plugin under the names of Calico's. CRI-O deletes a pod by the configuration it was made with, so pods that Calico
//! attached call `calico` for as long as they live, and that one has no valid token soon after Calico's agent has gone. Under
//! these names ours deletes and attaches nothing (`cni::plugin::calico`). The originals wait beside them.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

use super::{
    BINARIES, InstallArgs, Places,
    place::{Hand, Record, leave, put, skipped},
};

/// Calico's plugins.
pub(super) const NAMES: [&str; 2] = ["calico", "calico-ipam"];

/// The original of one.
fn original(folder: &Path, name: &str) -> PathBuf {
    folder.join(format!("{name}.before-brindle"))
}

/// Takes the place of Calico's plugins where that is asked for; what stands there of an earlier time is brought up to date.
pub(super) fn stand_in(args: &InstallArgs, from: &Path, update: bool, done: &mut Vec<String>) -> Result<()> {
    let folder = &args.places.bin_dir;
    let mut record = Record::read(folder);
    for name in NAMES.into_iter().filter(|n| !skipped(args, n)) {
        if !args.take_over && !record.names(name) {
            continue;
        }
        // It is told by its name which it is.
        let source = from.join(BINARIES[0]);
        let bytes =
            fs::read(&source).with_context(|| format!("cannot read the plugin {}", source.display()))?;
        let place = folder.join(name);
        let ours = fs::read(&place).is_ok_and(|there| there == bytes || record.fits(name, &there));
        if ours && !update {
            leave(&place, "not to be updated", done);
            continue;
        }
        if !ours && fs::symlink_metadata(&place).is_ok() {
            if !args.take_over {
                leave(&place, "changed since it was installed", done);
                continue;
            }
            keep(&place, &original(folder, name), done)?;
        }
        // Before the file: whatever this is interrupted by, it is known for ours.
        record.note(name, &bytes)?;
        put(&place, &bytes, 0o755, done)?;
        record.settle(name, &bytes)?;
    }
    Ok(())
}

/// Gives the original a second name; there is no moment without a plugin under its own.
fn keep(place: &Path, original: &Path, done: &mut Vec<String>) -> Result<()> {
    let kept = match fs::remove_file(original) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => fs::hard_link(place, original),
    };
    kept.with_context(|| format!("cannot keep {} as {}", place.display(), original.display()))?;
    done.push(format!("{}: kept as {}", place.display(), original.display()));
    Ok(())
}

/// Puts the originals back.
pub(super) fn give_back(places: &Places, record: &mut Record, hand: &mut Hand) -> Result<()> {
    let folder = &places.bin_dir;
    for name in NAMES {
        let (place, original) = (folder.join(name), original(folder, name));
        let there = fs::symlink_metadata(&place).is_ok();
        let ours = fs::read(&place).is_ok_and(|bytes| record.fits(name, &bytes));
        match (ours || !there, fs::symlink_metadata(&original).is_ok()) {
            (true, true) => hand.rename(&original, &place)?,
            (true, false) => hand.remove(&place)?,
            // Whoever put another one there needs the old one no more.
            (false, true) => hand.remove(&original)?,
            (false, false) if record.names(name) => hand.leave(&place, "changed since it was installed"),
            (false, false) => {}
        }
        record.forget(name);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::{
        super::{remove_files, run, tests::stage},
        *,
    };

    fn names(folder: &Path) -> Vec<String> {
        let all = fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
        let mut all: Vec<_> = all.filter(|n| n.starts_with("calico")).collect();
        all.sort();
        all
    }

    #[test]
    fn calicos_plugins_are_replaced_kept_and_put_back() {
        let (dir, mut args) = stage();
        let folder = args.places.bin_dir.clone();
        fs::create_dir_all(&folder).unwrap();
        let read = |name: &str| fs::read_to_string(folder.join(name)).unwrap();
        for name in NAMES {
            fs::write(folder.join(name), format!("calico's {name}")).unwrap();
        }
        args.plugins_only = true;
        run(&args).unwrap();
        assert_eq!(read("calico"), "calico's calico", "unasked");

        args.take_over = true;
        let done = run(&args).unwrap().join("\n");
        for name in NAMES {
            assert_eq!(read(name), "program brindle", "{done}");
            assert_eq!(read(&format!("{name}.before-brindle")), format!("calico's {name}"));
            let mode = fs::metadata(folder.join(name)).unwrap().permissions().mode();
            assert_eq!(mode & 0o111, 0o111);
        }
        // A new version comes also where nobody asks for the take-over again; the originals stay what they were.
        args.take_over = false;
        fs::write(dir.join("from/brindle"), "next brindle").unwrap();
        run(&args).unwrap();
        assert_eq!((&*read("calico"), &*read("calico.before-brindle")), ("next brindle", "calico's calico"));
        args.take_over = true;
        // One that Calico has installed again is the original from then on.
        fs::write(folder.join("calico"), "calico's newer").unwrap();
        run(&args).unwrap();
        assert_eq!((&*read("calico"), &*read("calico.before-brindle")), ("next brindle", "calico's newer"));

        let said = remove_files(&args.places, false, true).unwrap().join("\n");
        assert!(said.contains("calico.before-brindle: would be put back as "), "{said}");
        assert_eq!(read("calico"), "next brindle", "{said}");
        let done = remove_files(&args.places, false, false).unwrap().join("\n");
        assert_eq!(names(&folder), NAMES, "{done}");
        assert_eq!((&*read("calico"), &*read("calico-ipam")), ("calico's newer", "calico's calico-ipam"));
        assert!(remove_files(&args.places, false, false).unwrap().is_empty());
        assert_eq!(names(&folder), NAMES);
        fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn what_somebody_put_in_their_place_stays_and_pods_may_keep_ours() {
        let (dir, mut args) = stage();
        let folder = args.places.bin_dir.clone();
        (args.plugins_only, args.take_over) = (true, true);
        args.skip_binaries = vec!["calico-ipam".into()];
        run(&args).unwrap();
        assert_eq!(names(&folder), ["calico"], "also where there was none");
        let done = remove_files(&args.places, true, false).unwrap().join("\n");
        assert_eq!(names(&folder), Vec::<String>::new(), "{done}");
        assert!(folder.join("brindle").exists() && folder.join("portmap").exists(), "{done}");

        fs::write(folder.join("calico"), "calico's").unwrap();
        run(&args).unwrap();
        fs::write(folder.join("calico"), "calico's newer").unwrap();
        let done = remove_files(&args.places, false, false).unwrap().join("\n");
        assert_eq!(names(&folder), ["calico"], "{done}");
        assert_eq!(fs::read_to_string(folder.join("calico")).unwrap(), "calico's newer");
        assert!(!folder.join("brindle").exists() && !folder.join("portmap").exists(), "{done}");
        fs::remove_dir_all(dir).unwrap();
    }
}
