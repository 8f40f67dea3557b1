//! The writer: takes what the socket did not take at once, and says when it has.

use std::time::Duration;

use tokio::{
    io::{AsyncWrite, AsyncWriteExt},
    sync::{mpsc, watch},
    time::{Instant, sleep, sleep_until, timeout},
};

use super::{Chunk, Exit, LINGER, Mode, Report, Token};

/// Writes chunks until one is the last, or the connection is lost. `send_hold`: how long the peer may refuse to read
/// (RFC 9687); it may change at any time.
pub(crate) async fn write(
    token: Token,
    mut socket: impl AsyncWrite + Unpin,
    mut chunks: mpsc::Receiver<Chunk>,
    mut mode: watch::Receiver<Mode>,
    inbox: mpsc::Sender<Report>,
    mut send_hold: watch::Receiver<Duration>,
) -> Exit {
    while let Some(Chunk { mut bytes, last }) = chunks.recv().await {
        let hurry = async {
            if mode.wait_for(|m| *m == Mode::Closing).await.is_ok() {
                sleep(LINGER).await;
            }
        };
        tokio::select! {
            sent = socket.write_all_buf(&mut bytes) => if let Err(e) = sent {
                return Exit::Lost { token, why: e.to_string() };
            },
            () = stalled(&mut send_hold) => return Exit::Stalled { token },
            () = hurry => return Exit::Closed,
        }
        if last {
            // The reader drains the other half; an error means that the peer is gone already.
            let _ = timeout(LINGER, socket.shutdown()).await;
            return Exit::Closed;
        }
        if inbox.send(Report::Room { token }).await.is_err() {
            return Exit::Closed;
        }
    }
    Exit::Closed
}

/// Waits for the send hold time, whatever it is by then.
async fn stalled(send_hold: &mut watch::Receiver<Duration>) {
    let since = Instant::now();
    loop {
        let until = since + *send_hold.borrow_and_update();
        tokio::select! {
            () = sleep_until(until) => return,
            changed = send_hold.changed() => if changed.is_err() {
                // Nobody is left who could change it.
                return sleep_until(until).await;
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::BytesMut;
    use tokio::io::AsyncReadExt;

    use super::*;

    struct Rig {
        chunks: mpsc::Sender<Chunk>,
        mode: watch::Sender<Mode>,
        reports: mpsc::Receiver<Report>,
        peer: tokio::io::DuplexStream,
        send_hold: watch::Sender<Duration>,
        task: tokio::task::JoinHandle<Exit>,
    }

    fn rig(room: usize) -> Rig {
        let (peer, socket) = tokio::io::duplex(room);
        let (chunks, rx) = mpsc::channel(1);
        let (mode, mode_rx) = watch::channel(Mode::Open);
        let (inbox, reports) = mpsc::channel(4);
        let (send_hold, hold_rx) = watch::channel(Duration::from_secs(480));
        let task = tokio::spawn(write(Token(7), socket, rx, mode_rx, inbox, hold_rx));
        Rig { chunks, mode, reports, peer, send_hold, task }
    }

    fn chunk(n: usize, last: bool) -> Chunk {
        Chunk { bytes: BytesMut::from(vec![7u8; n].as_slice()), last }
    }

    #[tokio::test]
    async fn a_chunk_is_acknowledged_once_the_socket_took_it_and_the_last_one_closes() {
        let mut r = rig(64);
        r.chunks.send(chunk(10, false)).await.unwrap();
        assert!(matches!(r.reports.recv().await, Some(Report::Room { token: Token(7) })));
        r.chunks.send(chunk(3, true)).await.unwrap();
        assert!(matches!(r.task.await.unwrap(), Exit::Closed));
        let mut got = Vec::new();
        r.peer.read_to_end(&mut got).await.unwrap();
        assert_eq!(got.len(), 13);
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_never_reads_is_stalled_after_the_send_hold_time() {
        let r = rig(8);
        r.chunks.send(chunk(100, false)).await.unwrap();
        assert!(matches!(r.task.await.unwrap(), Exit::Stalled { token: Token(7) }));
    }

    #[tokio::test(start_paused = true)]
    async fn another_send_hold_time_counts_from_when_the_peer_stopped_to_read() {
        let r = rig(8);
        let start = tokio::time::Instant::now();
        r.chunks.send(chunk(100, false)).await.unwrap();
        sleep(Duration::from_secs(20)).await;
        r.send_hold.send(Duration::from_secs(600)).unwrap();
        sleep(Duration::from_secs(480)).await;
        assert!(!r.task.is_finished());
        r.send_hold.send(Duration::from_secs(510)).unwrap();
        assert!(matches!(r.task.await.unwrap(), Exit::Stalled { token: Token(7) }));
        let waited = start.elapsed().as_secs();
        assert!((509..=511).contains(&waited), "{waited}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_closing_connection_does_not_wait_that_long() {
        let r = rig(8);
        let start = tokio::time::Instant::now();
        r.chunks.send(chunk(100, false)).await.unwrap();
        r.mode.send(Mode::Closing).unwrap();
        assert!(matches!(r.task.await.unwrap(), Exit::Closed));
        assert!(start.elapsed() <= LINGER);
    }
}
