//! What a long command says while it works: a line per stage with its time, a bar where it waits on a terminal;
//! with `-o json` an event per line (`begin`, `stage`), flushed at once, so that a program can follow.

use std::{
    io::IsTerminal as _,
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::json;

use crate::{
    args::Format,
    out::{self, Mood, WIDTH, paint},
};

/// Width of the stage names.
const STAGE: usize = 11;

/// Reports stages.
pub(crate) struct Progress {
    format: Format,
    colours: bool,
    start: Instant,
}

/// A stage under way. Ends with [`Stage::done`]; dropped otherwise it leaves nothing behind.
pub(crate) struct Stage<'a> {
    owner: &'a Progress,
    name: &'static str,
    start: Instant,
    bar: Option<ProgressBar>,
}

impl Progress {
    pub(crate) fn new(format: Format) -> Self {
        Self { format, colours: out::colours(), start: Instant::now() }
    }

    pub(crate) fn colours(&self) -> bool {
        self.colours
    }

    pub(crate) fn elapsed(&self) -> Duration {
        self.start.elapsed()
    }

    /// A line for people only.
    pub(crate) fn say(&self, text: &str) {
        if self.format == Format::Table {
            crate::out::say!("{text}");
        }
    }

    /// An event for programs only.
    pub(crate) fn event(&self, value: &serde_json::Value) {
        if self.format == Format::Json {
            out::json(value);
        }
    }

    /// Begins a stage; `total` > 0 shows a bar on a terminal.
    pub(crate) fn stage(&self, name: &'static str, total: usize) -> Stage<'_> {
        self.event(&json!({ "event": "begin", "stage": name }));
        let bar = (total > 0 && self.format == Format::Table && std::io::stdout().is_terminal()).then(|| {
            let bar = ProgressBar::with_draw_target(
                Some(u64::try_from(total).unwrap_or(u64::MAX)),
                ProgressDrawTarget::stdout(),
            );
            if let Ok(style) = ProgressStyle::with_template(&format!(
                "{{elapsed_precise}}   {name:<STAGE$} [{{bar:30}}] {{pos}}/{{len}} {{msg}}"
            )) {
                bar.set_style(style.progress_chars("=> "));
            }
            bar
        });
        Stage { owner: self, name, start: Instant::now(), bar }
    }
}

impl Stage<'_> {
    /// How much is done.
    pub(crate) fn at(&self, done: usize) {
        if let Some(bar) = &self.bar {
            bar.set_position(u64::try_from(done).unwrap_or(u64::MAX));
        }
    }

    /// Ends the stage with its line.
    pub(crate) fn done(self, ok: bool, text: &str) {
        let took = self.start.elapsed();
        self.done_in(took, ok, text);
    }

    /// Ends a stage that went on beside another one and took `took` by itself.
    pub(crate) fn done_in(self, took: Duration, ok: bool, text: &str) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        let o = self.owner;
        o.event(&json!({
            "event": "stage", "stage": self.name, "ok": ok, "text": text,
            "ms": u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
        }));
        if o.format == Format::Table {
            let verdict =
                if ok { paint("ok", Mood::Good, o.colours) } else { paint("FAILED", Mood::Bad, o.colours) };
            let head = format!("{:>7.2}s  {:<STAGE$} ", took.as_secs_f64(), self.name);
            let mut lines = wrap(text, WIDTH - head.len() - 8).into_iter();
            let first = lines.next().unwrap_or_default();
            crate::out::say!("{head}{first:<width$} {verdict}", width = WIDTH - head.len() - 7);
            for line in lines {
                crate::out::say!("{:width$}{line}", "", width = head.len());
            }
        }
    }
}

impl Drop for Stage<'_> {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar
            && !bar.is_finished()
        {
            bar.finish_and_clear();
        }
    }
}

/// Breaks text at spaces.
pub(crate) fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines: Vec<String> = vec![String::new()];
    for word in text.split(' ') {
        let last = lines.last_mut().expect("there is always a line");
        if !last.is_empty() && last.chars().count() + 1 + word.chars().count() > width {
            lines.push(word.to_owned());
        } else {
            if !last.is_empty() {
                last.push(' ');
            }
            last.push_str(word);
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::wrap;

    #[test]
    fn long_texts_break_at_spaces_and_lose_nothing() {
        let text = "one two three four five six seven eight nine ten";
        let lines = wrap(text, 12);
        assert!(lines.iter().all(|l| l.len() <= 12));
        assert_eq!(lines.join(" "), text);
        assert_eq!(wrap("", 10), [""]);
    }
}
