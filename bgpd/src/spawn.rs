//! Starting a speaker inside a process.

use std::{io, path::Path};

use tokio::sync::{broadcast, mpsc};

use crate::{
    fib::FibQueue,
    handle::{FibStream, Handle, Running},
    record::Recorder,
    speaker_task::SpeakerTask,
};

/// Events kept for those who watch and are slow; what is more is told as a number.
const EVENTS: usize = 1_024;

/// Starts a speaker that knows nothing yet on the current tokio runtime; [`Handle::apply`] tells it what to be, or
/// [`crate::from_store`] does. `restarting`: the routes of an earlier run are still in the kernel, so the first speaker
/// announces a graceful restart and holds [`crate::FibBatch::in_sync`] back until its peers have sent theirs.
///
/// Drop the [`FibStream`] if nobody programs routes.
pub fn spawn(restarting: bool) -> (Running, FibStream) {
    start(None, restarting)
}

/// The same, with every input written to a file, as `brindle-bgpd --record` does; `most`: its largest size, octets.
///
/// # Errors
/// The file cannot be written.
pub fn spawn_recorded(restarting: bool, record: &Path, most: u64) -> io::Result<(Running, FibStream)> {
    Ok(start(Some(Recorder::create(record, most)?), restarting))
}

pub(crate) fn start(recorder: Option<Recorder>, restarting: bool) -> (Running, FibStream) {
    let (orders, taken) = mpsc::channel(16);
    let (queue, stream) = FibQueue::new();
    let (events, _) = broadcast::channel(EVENTS);
    let speaker = SpeakerTask::new(taken, queue, recorder, restarting, events.clone());
    let task = tokio::spawn(speaker.run());
    (Running { handle: Handle { orders, events, kernel: Default::default() }, task }, stream)
}
