//! MRT (RFC 6396, 8050): dumps of the table (TABLE_DUMP_V2) and archives of what peers send (BGP4MP_ET), on command
//! or by the clock. docs/design/bgpd.md says what is in the files.

mod archive;
mod date;
mod record;
mod table;

use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use brindle_admin::defect::{outlived, words};
use serde::Deserialize;
use tokio::{task::JoinSet, time::sleep};
use tracing::{error, info, warn};

pub(crate) use self::{archive::Archive, table::dump};
use crate::{handle::Handle, view::wall_ms};

/// `mrt:` of the configuration file.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct MrtSettings {
    /// Where the files go; made if it is missing.
    pub directory: PathBuf,
    /// Seconds one `updates.*` file covers. Absent or 0: updates are not kept.
    #[serde(default)]
    pub updates_interval: u32,
    /// Seconds between `bview.*` files. Absent or 0: the table is not dumped.
    #[serde(default)]
    pub table_interval: u32,
    /// Files of each kind that are kept.
    #[serde(default = "ninety_six")]
    pub keep: usize,
}

impl MrtSettings {
    /// The intervals of the public archives.
    pub fn usual(directory: PathBuf) -> Self {
        Self { directory, updates_interval: 900, table_interval: 7_200, keep: ninety_six() }
    }
}

const fn ninety_six() -> usize {
    96
}

/// The tasks behind `mrt:`; they end when this is dropped.
#[derive(Debug)]
pub struct Running(#[expect(dead_code, reason = "its drop ends the tasks")] JoinSet<()>);

/// Starts what the settings ask for.
///
/// # Errors
/// The directory cannot be made or written to.
pub async fn start(settings: &MrtSettings, handle: &Handle) -> io::Result<Running> {
    let fail = |e: io::Error| {
        io::Error::new(e.kind(), format!("mrt.directory: {}: {e}", settings.directory.display()))
    };
    std::fs::create_dir_all(&settings.directory).map_err(fail)?;
    let mut tasks = JoinSet::new();
    if settings.updates_interval > 0 {
        let archive = Archive::start(settings).map_err(fail)?;
        handle.archive(archive).await.map_err(io::Error::other)?;
    }
    if settings.table_interval > 0 {
        tasks.spawn(dumps(settings.clone(), handle.clone()));
    }
    Ok(Running(tasks))
}

/// The table every `table_interval` seconds.
async fn dumps(settings: MrtSettings, handle: Handle) {
    loop {
        sleep(Duration::from_secs(settings.table_interval.into())).await;
        let file = settings.directory.join(format!("bview.{}", date::stamp(wall_ms() / 1_000)));
        match outlived(dump(&handle, &file)).await {
            Ok(Ok((prefixes, paths))) => info!(file = %file.display(), prefixes, paths, "table dumped"),
            Ok(Err(e)) => warn!(file = %file.display(), error = %e, "the table could not be dumped"),
            Err(panic) => {
                error!(file = %file.display(), what = words(&panic), "a defect: the table could not be dumped");
            }
        }
        prune(&settings.directory, "bview.", settings.keep);
    }
}

/// Removes the oldest files of a kind. Their names sort by age.
fn prune(directory: &Path, kind: &str, keep: usize) {
    let Ok(entries) = std::fs::read_dir(directory) else { return };
    let mut names: Vec<String> = entries
        .filter_map(|e| e.ok()?.file_name().into_string().ok())
        .filter(|n| n.strip_prefix(kind).is_some_and(date::is_stamp))
        .collect();
    names.sort_unstable();
    let old = names.len().saturating_sub(keep.max(1));
    for name in names.iter().take(old) {
        if let Err(e) = std::fs::remove_file(directory.join(name)) {
            warn!(file = %name, error = %e, "an old MRT file could not be removed");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_oldest_of_our_own_files_are_removed() {
        let dir = std::env::temp_dir().join(format!("bt-{}-prune", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let names =
            ["bview.20260101.000000", "bview.20260102.000000", "bview.20260103.000000", "bview.mine", "x"];
        for name in names {
            std::fs::write(dir.join(name), "").unwrap();
        }
        prune(&dir, "bview.", 2);
        let left: Vec<bool> = names.iter().map(|n| dir.join(n).exists()).collect();
        assert_eq!(left, [false, true, true, true, true]);
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
