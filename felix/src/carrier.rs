//! The brindle-ipip process as felix sees it: found beside our own executable, started once, adopted afterwards.

use std::path::{Path, PathBuf};

use brindle_felix_core::desire::Tunnel;

use crate::tunnel::Carrier;

pub(crate) struct Process {
    state_dir: PathBuf,
}

impl Process {
    pub(crate) fn new(state_dir: &Path) -> Self {
        Self { state_dir: state_dir.to_owned() }
    }
}

impl Carrier for Process {
    fn ensure(&mut self, _want: &Tunnel) -> Result<(), String> {
        Err(format!("no carrier in {}", self.state_dir.display()))
    }

    fn refused(&mut self) -> Option<u64> {
        None
    }

    fn stop(&mut self) {}
}
