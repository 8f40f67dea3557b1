//! How answers look: tables for people in 80 columns, JSON for programs, colours only on a terminal.

mod grid;
mod table;

use std::{
    io::{self, IsTerminal as _, Write as _},
    sync::OnceLock,
};

use serde::Serialize;

pub(crate) use grid::Grid;
pub(crate) use table::Table;

use crate::{args::Format, lab::progress::wrap};

/// Columns of the narrowest terminal that must do.
pub(crate) const WIDTH: usize = 80;

/// What a word means; its colour, where there are colours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mood {
    Good,
    Bad,
    Plain,
}

/// Whether stdout takes colours: a terminal, and neither NO_COLOR nor a dumb one.
pub(crate) fn colours() -> bool {
    std::io::stdout().is_terminal()
        && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty())
        && std::env::var_os("TERM").is_none_or(|t| t != "dumb")
}

/// `text` in the colour of `mood`.
pub(crate) fn paint(text: &str, mood: Mood, colours: bool) -> String {
    match (mood, colours) {
        (Mood::Good, true) => format!("\x1b[32m{text}\x1b[0m"),
        (Mood::Bad, true) => format!("\x1b[1;31m{text}\x1b[0m"),
        (Mood::Plain, _) | (_, false) => text.to_owned(),
    }
}

/// Writes to stdout at once, so that whoever follows a pipe sees it. A reader that has gone away is its own
/// business: what was begun is finished all the same.
pub(crate) fn write(text: std::fmt::Arguments<'_>) {
    let mut out = std::io::stdout().lock();
    if let Err(e) = out.write_fmt(text).and_then(|()| out.flush()) {
        // The first error says why; what follows it says the same.
        let _ = FAILED.set(e);
    }
}

/// Whether somebody still reads stdout.
pub(crate) fn open() -> bool {
    FAILED.get().is_none()
}

/// Why stdout does not have all of the answer, unless its reader wanted no more of it.
pub(crate) fn unwritten() -> Option<&'static io::Error> {
    FAILED.get().filter(|e| e.kind() != io::ErrorKind::BrokenPipe)
}

/// The first write that failed.
static FAILED: OnceLock<io::Error> = OnceLock::new();

/// `print!` that survives a closed pipe.
macro_rules! put {
    ($($arg:tt)*) => { $crate::out::write(format_args!($($arg)*)) };
}

/// `println!` that survives a closed pipe.
macro_rules! say {
    ($($arg:tt)*) => { $crate::out::write(format_args!("{}\n", format_args!($($arg)*))) };
}

pub(crate) use {put, say};

/// Prints a sentence, cut at words into lines of a screen.
pub(crate) fn sentence(text: &str) {
    say!("{}", wrap(text, WIDTH - 2).join("\n  "));
}

/// Prints one JSON value on a line of its own.
pub(crate) fn json(value: &impl Serialize) {
    // Only maps with keys that are no strings fail, and there are none.
    say!("{}", serde_json::to_string(value).expect("answers serialise"));
}

/// Prints an error: a line on stderr (cut at words into lines of a screen where a person looks on), or an object on
/// stdout.
pub(crate) fn error(format: Format, error: &anyhow::Error) {
    match format {
        Format::Table => aside(&format!("brindlectl: {error:#}")),
        Format::Json => json(&serde_json::json!({ "error": format!("{error:#}") })),
    }
}

/// Tells on stderr what is no part of the answer.
pub(crate) fn note(text: &str) {
    aside(&format!("brindlectl: {text}"));
}

/// A line on stderr as it is; nobody need read it.
pub(crate) fn remark(text: impl std::fmt::Display) {
    brindle_admin::aside::say(text);
}

fn aside(text: &str) {
    let shown = std::io::stderr().is_terminal().then(|| {
        // What is laid out already, such as what the reader of YAML shows of a file, stays as it is.
        let laid_out = |line: &str| line.starts_with(' ');
        let lines = text.lines().map(|line| match laid_out(line) {
            true => line.to_owned(),
            false => wrap(line, WIDTH - 2).join("\n  "),
        });
        lines.collect::<Vec<_>>().join("\n")
    });
    remark(shown.as_deref().unwrap_or(text));
}
