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
    speaker::{DynamicPeers, Input, PeerConfig, SpeakerConfig},
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
/// no passwords, only which are the same; it is readable by its owner only.
#[derive(Debug)]
pub(crate) struct Recorder {
    path: PathBuf,
    out: Option<BufWriter<File>>,
    /// Octets that may still be written.
    left: u64,
    /// Those that were met: what stands for them is their place here.
    passwords: Vec<String>,
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
            return Ok(Self { path: to, out: None, left, passwords: Vec::new() });
        }
        let file = File::options().append(true).create(true).mode(0o600).open(&to)?;
        Ok(Self { path: to, out: Some(BufWriter::new(file)), left, passwords: Vec::new() })
    }

    pub(crate) fn speaker(&mut self, speaker: &SpeakerConfig) {
        let mut speaker = speaker.clone();
        self.number(&mut speaker.dynamic);
        self.line(&Line::Speaker { speaker: &speaker });
    }

    pub(crate) fn input(&mut self, at: Mono, input: &Input) {
        let mut numbered = match input {
            Input::SetPeers(_) | Input::SetDynamic(_) => input.clone(),
            _ => return self.line(&Line::Input { at: at.0, input }),
        };
        match &mut numbered {
            Input::SetPeers(peers) => peers.iter_mut().for_each(|p| self.number_of(p)),
            Input::SetDynamic(ranges) => self.number(ranges),
            _ => {}
        }
        self.line(&Line::Input { at: at.0, input: &numbered });
    }

    fn number(&mut self, ranges: &mut [DynamicPeers]) {
        ranges.iter_mut().for_each(|d| self.number_of(&mut d.template));
    }

    /// A session ends when its password is another one: so it must when the recording is run again.
    fn number_of(&mut self, peer: &mut PeerConfig) {
        let Some(password) = &peer.password else { return };
        let at = self.passwords.iter().position(|p| p == password).unwrap_or_else(|| {
            self.passwords.push(password.clone());
            self.passwords.len() - 1
        });
        peer.password_number = u32::try_from(at + 1).unwrap_or(u32::MAX);
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
    fn another_password_is_seen_as_a_change_and_never_written() {
        let path = std::env::temp_dir().join(format!("bt-{}-passwords.jsonl", std::process::id()));
        let mut recorder = Recorder::create(&path, 1_000_000).unwrap();
        let with = |password: Option<&str>| PeerConfig {
            password: password.map(Into::into),
            ..PeerConfig::new("a", [10, 0, 0, 2].into(), 1)
        };
        let range = |password| {
            let range = "10.1.0.0/24".parse().unwrap();
            vec![DynamicPeers { name: "r".into(), range, template: with(password), max: 9 }]
        };
        let mut speaker = SpeakerConfig::new(1, [10, 0, 0, 1].into());
        speaker.dynamic = range(Some("HUSH"));
        recorder.speaker(&speaker);
        let peers = |password| Input::SetPeers(vec![with(password)]);
        let inputs = [
            peers(Some("FIRST")),
            peers(Some("HUSH")),
            peers(Some("FIRST")),
            peers(None),
            Input::SetDynamic(range(Some("HUSH"))),
            Input::SetDynamic(range(Some("OTHER"))),
        ];
        inputs.iter().for_each(|input| recorder.input(Mono(1), input));
        recorder.flush();
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        for password in ["FIRST", "HUSH", "OTHER"] {
            assert!(!text.contains(password), "{text}");
        }
        let number = |line: &str| {
            let (_, rest) = line.split_once("\"password_number\":")?;
            rest.split(',').next()?.parse::<u32>().ok()
        };
        let numbers: Vec<Option<u32>> = text.lines().map(number).collect();
        assert_eq!(numbers, [Some(1), Some(2), Some(1), Some(2), None, Some(1), Some(3)]);
        // A session under way, or a dial, ends with its password there, too: one for each of the three that follow.
        let mut dials = 0;
        let count = |did: &crate::replay::Did| {
            let text = serde_json::to_string(did).unwrap();
            dials += usize::from(text.contains("\"Dial\""));
        };
        crate::replay::Replay::default().run(text.as_bytes(), count).unwrap();
        assert_eq!(dials, 4);
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
