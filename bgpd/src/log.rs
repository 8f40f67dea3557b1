//! Log lines on their way to standard error: a queue and a thread that writes it.
//!
//! One thread runs all sessions, so it must never wait for whoever reads the log. When the queue is full, lines are
//! left out, and how many is said as soon as there is room again. Nothing else lives here: what is said, and when, is
//! that of the callers.

use std::{
    io::{self, Write},
    mem,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use tracing_subscriber::{EnvFilter, fmt::MakeWriter};

use crate::settings::LogFormat;

/// Octets that may wait for the reader: some thousand lines.
const ROOM: usize = 1 << 20;
/// How long the end of the program waits for a reader that takes nothing.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// The writer's stack; it makes one line of its own now and then.
const STACK: usize = 256 * 1024;

/// Starts logging to standard error. What was said until the guard is dropped is written then.
///
/// # Errors
/// There is a log already, or no thread can be had.
pub fn to_stderr(format: LogFormat, filter: EnvFilter) -> Result<Flush, String> {
    let failed = |e: String| format!("cannot start logging: {e}");
    let (lines, flush) = start(io::stderr(), ROOM).map_err(|e| failed(e.to_string()))?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(lines);
    match format {
        LogFormat::Text => builder.with_ansi(false).try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    }
    .map_err(|e| failed(e.to_string()))?;
    Ok(flush)
}

/// Understands a level, or a filter such as `info,brindle_bgpd=debug`.
///
/// # Errors
/// What is wrong with it.
pub fn filter(text: &str) -> Result<EnvFilter, String> {
    EnvFilter::try_new(brindle_admin::log::filter(text)?).map_err(|e| e.to_string())
}

fn start(out: impl Write + Send + 'static, room: usize) -> io::Result<(Lines, Flush)> {
    let shared = Arc::new(Shared { room, ..Shared::default() });
    let of_writer = Arc::clone(&shared);
    thread::Builder::new().name("log".into()).stack_size(STACK).spawn(move || of_writer.write_all(out))?;
    Ok((Lines(Arc::clone(&shared)), Flush(shared)))
}

#[derive(Debug, Default)]
struct Shared {
    room: usize,
    queue: Mutex<Queue>,
    /// Something to write.
    more: Condvar,
    /// Something was written.
    done: Condvar,
}

#[derive(Debug, Default)]
struct Queue {
    waiting: Vec<u8>,
    /// The writer has taken something and is not done with it.
    writing: bool,
    /// How often it was done.
    turns: u64,
    left_out: u64,
}

impl Shared {
    /// A line is appended whole or not at all, so a panic elsewhere leaves nothing half done.
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write_all(&self, mut out: impl Write) {
        let mut taken = Vec::new();
        loop {
            let left_out = {
                let mut queue = self.lock();
                queue.writing = false;
                queue.turns = queue.turns.wrapping_add(1);
                self.done.notify_all();
                while queue.waiting.is_empty() {
                    queue = self.more.wait(queue).unwrap_or_else(PoisonError::into_inner);
                }
                mem::swap(&mut taken, &mut queue.waiting);
                queue.writing = true;
                mem::take(&mut queue.left_out)
            };
            // A log nobody takes any more is no reason to end.
            let _ = out.write_all(&taken).and_then(|()| out.flush());
            taken.clear();
            taken.shrink_to(64 * 1024);
            if left_out > 0 {
                tracing::error!(lines = left_out, "log lines were left out: nobody read standard error");
            }
        }
    }
}

/// Takes lines; never waits.
#[derive(Clone, Debug)]
struct Lines(Arc<Shared>);

impl Write for Lines {
    /// One line, as the formatter hands it over.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let mut queue = self.0.lock();
        if queue.waiting.len() + line.len() > self.0.room {
            queue.left_out += 1;
        } else {
            queue.waiting.extend_from_slice(line);
            self.0.more.notify_one();
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Lines {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

/// Writes what waits when it is dropped, unless nobody takes it.
#[derive(Debug)]
#[must_use = "what waits is written when this is dropped"]
pub struct Flush(Arc<Shared>);

impl Drop for Flush {
    fn drop(&mut self) {
        let mut queue = self.0.lock();
        let mut turn = queue.turns;
        let mut until = Instant::now() + LAST_WORDS;
        while queue.writing || !queue.waiting.is_empty() || queue.left_out > 0 {
            if queue.turns != turn {
                (turn, until) = (queue.turns, Instant::now() + LAST_WORDS);
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            queue = self.0.done.wait_timeout(queue, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    /// Takes what is written only when the test says so.
    struct Slow {
        may: mpsc::Receiver<()>,
        took: mpsc::Sender<Vec<u8>>,
    }

    impl Write for Slow {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let _ = self.may.recv();
            let _ = self.took.send(bytes.to_vec());
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_full_queue_drops_whole_lines_says_how_many_and_loses_none_at_the_end() {
        let (may, may_rx) = mpsc::channel();
        let (took, took_rx) = mpsc::channel();
        let (lines, flush) = start(Slow { may: may_rx, took }, 1_000).unwrap();
        let log = tracing_subscriber::fmt().with_writer(lines).with_ansi(false).without_time().finish();
        // The writer's own line goes to the log of the process, which a test has none of.
        let (before, after) = tracing::subscriber::with_default(log, || {
            for n in 0..100 {
                tracing::info!(n, "line");
                // With the first one in its hands the writer takes no more, nor the count of those left out.
                while !flush.0.lock().writing {
                    thread::yield_now();
                }
            }
            let before = flush.0.lock().left_out;
            for _ in 0..100 {
                may.send(()).unwrap();
            }
            while flush.0.lock().left_out > 0 || !flush.0.lock().waiting.is_empty() {
                thread::yield_now();
            }
            tracing::info!("last");
            (before, flush.0.lock().left_out)
        });
        assert!(before > 50 && after == 0, "{before} {after}");
        drop(flush);
        let text = String::from_utf8(took_rx.try_iter().flatten().collect()).unwrap();
        let n = text.lines().filter(|l| l.starts_with(" INFO") && l.contains("line n=")).count() as u64;
        assert_eq!(
            (n + before, text.lines().last().map(|l| l.ends_with("last"))),
            (100, Some(true)),
            "{text}"
        );
    }

    #[test]
    fn a_mistyped_level_is_no_module() {
        for good in ["info", "WARN", "info,brindle_bgpd=debug", "brindle_bgpd", "off"] {
            filter(good).unwrap();
        }
        for (bad, words) in
            [("loud", "\"loud\": expected one of"), ("", "expected"), ("brindle=loud", "expected")]
        {
            let e = filter(bad).unwrap_err();
            assert!(e.contains(words), "{e}");
        }
    }

    #[test]
    fn the_end_does_not_wait_for_a_reader_that_takes_nothing() {
        let (_may, may_rx) = mpsc::channel();
        let (took, _took) = mpsc::channel();
        let (mut lines, flush) = start(Slow { may: may_rx, took }, 1_000).unwrap();
        lines.write_all(b"unread\n").unwrap();
        drop(flush);
    }
}
