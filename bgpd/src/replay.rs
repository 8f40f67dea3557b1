//! Running a recording again: the inputs of `--record` against a new speaker, at the moments they came. What follows
//! depends on nothing else, so a fault that was recorded happens again, as often as wanted.
//!
//! Sockets take everything at once here: what a slow peer changes is when it hears of a route, not what it hears.

use std::{
    collections::{BTreeMap, VecDeque},
    io::{BufRead, Write},
};

use brindle_bgpd_core::{
    speaker::{ConnId, Input, Output, Speaker, SpeakerConfig},
    time::Mono,
    wire::{Message, WireCx, next_frame},
};
use bytes::BytesMut;
use serde::{Deserialize, Serialize};

use crate::view::{self, RibPath};

/// A line of a recording.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Line {
    Speaker {
        speaker: Box<SpeakerConfig>,
    },
    Input {
        at: Mono,
        input: Box<Input>,
    },
    Tick {
        at: Mono,
        #[expect(dead_code, reason = "tells the line from others")]
        tick: bool,
    },
    Stopped {
        #[expect(dead_code, reason = "tells the line from others")]
        stopped: String,
    },
}

/// What the speaker did.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Did {
    /// An output.
    Output { at: Mono, output: Output },
    /// UPDATEs pulled for a connection.
    Sent { at: Mono, conn: ConnId, message: Message },
}

/// Why a recording cannot be run.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    #[error("line {line}: not a line of a recording: {why}")]
    Line { line: usize, why: String },
    #[error("line {0}: an input before the first speaker; the file has lost its beginning")]
    NoSpeaker(usize),
    #[error("there is no recording in it")]
    Empty,
    #[error("cannot read: {0}")]
    Read(#[from] std::io::Error),
}

/// A speaker under replay.
#[derive(Debug, Default)]
pub struct Replay {
    speaker: Option<Speaker>,
    write: BTreeMap<ConnId, WireCx>,
    lines: usize,
    /// The last line, if the speaker ended while it wrote it.
    pub torn: Option<usize>,
    /// Inputs, and moments when only time passed.
    pub inputs: usize,
    pub ticks: usize,
    pub outputs: usize,
    pub sent: usize,
    /// Moment of the last line.
    pub at: Mono,
}

impl Replay {
    /// Runs a recording to its end; `each` is told everything the speaker did. A last line that is not whole is what a
    /// crash leaves: it is left out, and `torn` says so.
    ///
    /// # Errors
    /// [`ReplayError`], with the line. What came before it was run.
    pub fn run(&mut self, mut from: impl BufRead, mut each: impl FnMut(&Did)) -> Result<(), ReplayError> {
        let mut line = Vec::new();
        while from.read_until(b'\n', &mut line)? > 0 {
            let text = std::mem::take(&mut line);
            let whole = text.strip_suffix(b"\n");
            self.lines += 1;
            if whole.is_some_and(<[u8]>::is_empty) {
                continue;
            }
            let parsed = match serde_json::from_slice(&text) {
                Ok(parsed) => parsed,
                Err(_) if whole.is_none() => {
                    self.torn = Some(self.lines);
                    break;
                }
                Err(e) => return Err(ReplayError::Line { line: self.lines, why: e.to_string() }),
            };
            match parsed {
                Line::Speaker { speaker } => {
                    self.speaker = Some(Speaker::new(*speaker));
                    self.write.clear();
                }
                Line::Input { at, input } => {
                    self.inputs += 1;
                    self.step(at, |s, out| s.handle(at, *input, out), &mut each)?;
                }
                Line::Tick { at, .. } => {
                    self.ticks += 1;
                    self.step(at, |s, out| s.on_time(at, out), &mut each)?;
                }
                Line::Stopped { .. } => {}
            }
        }
        if self.speaker.is_none() { Err(ReplayError::Empty) } else { Ok(()) }
    }

    fn step(
        &mut self,
        at: Mono,
        what: impl FnOnce(&mut Speaker, &mut VecDeque<Output>),
        each: &mut impl FnMut(&Did),
    ) -> Result<(), ReplayError> {
        self.at = at;
        let speaker = self.speaker.as_mut().ok_or(ReplayError::NoSpeaker(self.lines))?;
        let mut out = VecDeque::new();
        what(speaker, &mut out);
        for output in out {
            match &output {
                Output::Negotiated { conn, write, .. } => {
                    self.write.insert(*conn, *write);
                }
                Output::Close { conn } => {
                    self.write.remove(conn);
                }
                _ => {}
            }
            let pending = if let Output::Pending { conn } = &output { Some(*conn) } else { None };
            self.outputs += 1;
            each(&Did::Output { at, output });
            let Some(conn) = pending else { continue };
            let cx = self.write.get(&conn).copied().unwrap_or_default();
            let mut bytes = BytesMut::new();
            while speaker.next_update(conn, 65_536, &mut bytes) {}
            while let Ok(Some((_, len))) = next_frame(&bytes, cx.max_len()) {
                let frame = bytes.split_to(len);
                if let Ok(message) = Message::parse(&frame, &cx) {
                    self.sent += 1;
                    each(&Did::Sent { at, conn, message });
                }
            }
        }
        Ok(())
    }

    /// What the RIB holds at the end.
    pub fn rib(&self) -> Vec<RibPath> {
        self.speaker.as_ref().map_or_else(Vec::new, |s| view::rib(s, None))
    }

    /// Peers at the end: name and state, with what brought them there.
    pub fn peers(&self) -> Vec<(String, String, String)> {
        let all = self.speaker.iter().flat_map(Speaker::peers);
        all.map(|p| (p.name, p.state.to_string(), p.last_error.unwrap_or(p.cause))).collect()
    }

    /// The end as people read it.
    ///
    /// # Errors
    /// Those of `to`.
    pub fn report(&self, to: &mut impl Write) -> std::io::Result<()> {
        if let Some(line) = self.torn {
            writeln!(
                to,
                "line {line} is cut off: the speaker ended while it was written; all before it was run"
            )?;
        }
        writeln!(
            to,
            "{} inputs and {} ticks over {}.{:03} s; {} outputs, {} UPDATEs sent\n",
            self.inputs,
            self.ticks,
            self.at.0 / 1000,
            self.at.0 % 1000,
            self.outputs,
            self.sent
        )?;
        for (name, state, cause) in self.peers() {
            writeln!(to, "{name}: {state} ({cause})")?;
        }
        writeln!(to)?;
        to.write_all(crate::show::rib(&self.rib()).as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mistakes_name_the_line() {
        let run = |text: &str| Replay::default().run(text.as_bytes(), |_| {}).unwrap_err().to_string();
        for empty in ["", "\n", "{\"speaker\": {\"as"] {
            assert_eq!(run(empty), "there is no recording in it", "{empty:?}");
        }
        assert!(run("{\"at\":1,\"tick\":true}\n").starts_with("line 1: an input before"));
        assert!(run("\n\nhello\n").starts_with("line 3: not a line of a recording"));
    }

    #[test]
    fn a_last_line_that_is_cut_off_is_said_and_all_before_it_is_run() {
        let config = serde_json::to_string(&SpeakerConfig::new(1, [10, 0, 0, 1].into())).unwrap();
        let text = format!("{{\"speaker\":{config}}}\n{{\"at\":1,\"tick\":true}}\n{{\"at\":2,\"inp");
        let mut replay = Replay::default();
        replay.run(text.as_bytes(), |_| {}).unwrap();
        assert_eq!((replay.ticks, replay.torn), (1, Some(3)));
        let mut report = Vec::new();
        replay.report(&mut report).unwrap();
        assert!(report.starts_with(b"line 3 is cut off"));
        // Whole but for its end.
        let mut replay = Replay::default();
        replay
            .run(format!("{{\"speaker\":{config}}}\n{{\"at\":1,\"tick\":true}}").as_bytes(), |_| {})
            .unwrap();
        assert_eq!((replay.ticks, replay.torn), (1, None));
    }
}
