//! Recording of inputs: one JSON line each, so that a run can be replayed against the pure speaker.
//!
//! The first line is `{"speaker": SpeakerConfig}`, the others `{"at": milliseconds, "input": Input}`, plus
//! `{"at": …, "tick": true}` where only time passed, and at the end of a file that has reached its limit
//! `{"stopped": reason}`. `replay` runs it again.

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
use tracing::{error, warn};

#[derive(Serialize)]
#[serde(untagged)]
enum Line<'a> {
    Speaker { speaker: &'a SpeakerConfig },
    Input { at: u64, input: &'a Input },
    Tick { at: u64, tick: bool },
    Stopped { stopped: &'a str },
}

/// Writes until the first failure or until the file has its largest size, which it reports once; routing goes on
/// without it. A recording is only good from its beginning, so the file is not rotated. It holds what peers say, but
/// no passwords; it is readable by its owner only.
#[derive(Debug)]
pub(crate) struct Recorder {
    path: PathBuf,
    out: Option<BufWriter<File>>,
    /// Octets that may still be written.
    left: u64,
}

impl Recorder {
    /// Begins a recording. Those of earlier runs are what somebody is after: they are kept, and this one goes into
    /// `PATH.1`, `PATH.2`, and so on. `most`: the largest size of all of them together, octets.
    pub(crate) fn create(path: &Path, most: u64) -> io::Result<Self> {
        use std::os::unix::fs::OpenOptionsExt;
        let mut left = most;
        let mut to = path.to_owned();
        for n in 1_u32.. {
            match std::fs::metadata(&to) {
                Ok(there) if there.is_file() && there.len() > 0 => left = left.saturating_sub(there.len()),
                _ => break,
            }
            let mut next = path.as_os_str().to_owned();
            next.push(format!(".{n}"));
            to = next.into();
        }
        if to != path {
            warn!(kept = %path.display(), file = %to.display(), "recordings of earlier runs are kept; going on in a new file");
        }
        if left == 0 {
            warn!(file = %path.display(), "nothing is recorded: those of earlier runs have the largest size (--record-limit)");
            return Ok(Self { path: to, out: None, left });
        }
        let file = File::options().append(true).create(true).mode(0o600).open(&to)?;
        Ok(Self { path: to, out: Some(BufWriter::new(file)), left })
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
        let mut counted = Counted { out, written: 0 };
        let result = serde_json::to_writer(&mut counted, line)
            .map_err(io::Error::from)
            .and_then(|()| counted.write_all(b"\n"));
        self.left = self.left.saturating_sub(counted.written);
        self.check(result);
        if self.left == 0
            && let Some(out) = &mut self.out
        {
            let stopped = "the file has reached its largest size";
            let last = serde_json::to_string(&Line::Stopped { stopped }).unwrap_or_default();
            let result = writeln!(out, "{last}").and_then(|()| out.flush());
            self.check(result);
            self.out = None;
            warn!(file = %self.path.display(), "recording ends here: {stopped} (--record-limit)");
        }
    }

    fn check(&mut self, result: io::Result<()>) {
        if let Err(e) = result {
            error!(file = %self.path.display(), error = %e, "recording of inputs stopped");
            self.out = None;
        }
    }
}

/// Counts what goes through.
struct Counted<'a> {
    out: &'a mut BufWriter<File>,
    written: u64,
}

impl Write for Counted<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = self.out.write(bytes)?;
        self.written = self.written.saturating_add(n as u64);
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn earlier_recordings_are_kept_and_count() {
        let dir = std::env::temp_dir().join(format!("bt-{}-kept", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let path = dir.join("r.jsonl");
        let run = |at| {
            let mut recorder = Recorder::create(&path, 150).unwrap();
            recorder.tick(Mono(at));
            recorder.flush();
        };
        let read = |name: &str| std::fs::read_to_string(dir.join(name)).unwrap_or_default();
        std::fs::write(&path, "").unwrap();
        (1..=3).for_each(run);
        for (name, at) in [("r.jsonl", 1), ("r.jsonl.1", 2), ("r.jsonl.2", 3)] {
            assert_eq!(read(name), format!("{{\"at\":{at},\"tick\":true}}\n"));
        }
        std::fs::write(dir.join("r.jsonl.3"), [b'x'; 100]).unwrap();
        run(5);
        assert_eq!(read("r.jsonl.4"), "", "there is no room for more");
        std::fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn a_recording_stops_at_its_limit_and_says_so_in_the_file() {
        let path = std::env::temp_dir().join(format!("bt-{}-limit.jsonl", std::process::id()));
        let mut recorder = Recorder::create(&path, 100).unwrap();
        for at in 0..1_000 {
            recorder.tick(Mono(at));
        }
        recorder.flush();
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        assert!(text.len() < 200, "{text}");
        assert!(text.ends_with("{\"stopped\":\"the file has reached its largest size\"}\n"), "{text}");
    }
}
