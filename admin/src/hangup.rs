//! SIGHUP to a program that has nothing to read again: said, and no more. Service managers and terminals send it, and by
//! default it would end the program without a word.

use std::io;

use tokio::signal::unix::{SignalKind, signal};

/// From now on SIGHUP is logged and nothing else; within a runtime.
///
/// # Errors
/// The signal cannot be handled.
pub fn outlive() -> io::Result<()> {
    let mut hangup = signal(SignalKind::hangup())?;
    tokio::spawn(async move {
        while hangup.recv().await.is_some() {
            tracing::info!("SIGHUP: nothing to read again, settings come from the datastore; going on");
        }
    });
    Ok(())
}
