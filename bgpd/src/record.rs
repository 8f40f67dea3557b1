//! Recording of inputs: one JSON line each, so that a run can be replayed against the pure speaker.
//!
//! The first line is `{"speaker": SpeakerConfig}`, the others `{"at": milliseconds, "input": Input}`, plus
//! `{"at": …, "tick": true}` where only time passed.

use std::{
    fs::File,
    io::{self, BufWriter, Write},
    path::{Path, PathBuf},
};

use brindle_bgpd_core::{
    speaker::{Input, SpeakerConfig},
    time::Mono,
};
use serde::Serialize;
use tracing::error;

#[derive(Serialize)]
#[serde(untagged)]
enum Line<'a> {
    Speaker { speaker: &'a SpeakerConfig },
    Input { at: u64, input: &'a Input },
    Tick { at: u64, tick: bool },
}

/// Writes until the first failure, which it reports once; routing goes on without it. Holds passwords of peers: the
/// file is readable by its owner only.
#[derive(Debug)]
pub(crate) struct Recorder {
    path: PathBuf,
    out: Option<BufWriter<File>>,
}

impl Recorder {
    pub(crate) fn create(path: &Path) -> io::Result<Self> {
        use std::os::unix::fs::OpenOptionsExt;
        let file = File::options().write(true).create(true).truncate(true).mode(0o600).open(path)?;
        Ok(Self { path: path.to_owned(), out: Some(BufWriter::new(file)) })
    }

    pub(crate) fn speaker(&mut self, speaker: &SpeakerConfig) {
        self.line(&Line::Speaker { speaker });
    }

    pub(crate) fn input(&mut self, at: Mono, input: &Input) {
        self.line(&Line::Input { at: at.0, input });
    }

    pub(crate) fn tick(&mut self, at: Mono) {
        self.line(&Line::Tick { at: at.0, tick: true });
    }

    /// To disk, before the task sleeps.
    pub(crate) fn flush(&mut self) {
        let result = self.out.as_mut().map_or(Ok(()), BufWriter::flush);
        self.check(result);
    }

    fn line(&mut self, line: &Line<'_>) {
        let Some(out) = &mut self.out else { return };
        let result = serde_json::to_writer(&mut *out, line)
            .map_err(io::Error::from)
            .and_then(|()| out.write_all(b"\n"));
        self.check(result);
    }

    fn check(&mut self, result: io::Result<()>) {
        if let Err(e) = result {
            error!(file = %self.path.display(), error = %e, "recording of inputs stopped");
            self.out = None;
        }
    }
}
