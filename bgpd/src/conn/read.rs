//! The reader: framing and decoding, so that the speaker task sees values. Bounded: it does not read on until the
//! speaker has taken what it sent, so a flooding peer is slowed by its own TCP window.

use std::{sync::Arc, time::Duration};

use brindle_bgpd_core::{
    speaker::{ConnId, Input},
    wire::{
        Message, WireCx,
        frame::{MsgType, next_frame},
    },
};
use bytes::{Buf, BytesMut};
use tokio::{
    io::{AsyncRead, AsyncReadExt},
    sync::{Semaphore, mpsc, watch},
    time::timeout,
};

use super::{Exit, Mode, READ_BATCH, Report, Token};

/// Room for most sessions, which are idle most of the time; grows to [`READ_BATCH`] while a peer has much to say.
const IDLE_BUFFER: usize = 4096;
/// Messages handed over at a time.
const BATCH: usize = 128;
/// Reports a reader may be ahead of the speaker: what one peer's flood costs in memory, and of the places in the inbox.
pub(crate) const AHEAD: usize = 4;
/// How long, and how much, is read from a connection being closed, so that the peer gets our NOTIFICATION and not
/// a reset.
const DRAIN_TIME: Duration = Duration::from_secs(2);
const DRAIN_OCTETS: usize = 1 << 20;

/// Reads until the connection ends or the speaker wants no more of it. `ahead` has [`AHEAD`] permits: one goes with each
/// report, and the speaker gives it back when it has taken the last message of that; closed when it wants no more.
pub(crate) async fn read(
    token: Token,
    conn: ConnId,
    mut socket: impl AsyncRead + Unpin,
    mut mode: watch::Receiver<Mode>,
    inbox: mpsc::Sender<Report>,
    ahead: Arc<Semaphore>,
) -> Exit {
    let mut buf = BytesMut::with_capacity(IDLE_BUFFER);
    loop {
        let now = *mode.borrow_and_update();
        let cx = match now {
            Mode::Open => WireCx::default(),
            Mode::Negotiated(cx) => cx,
            Mode::Closing => return drain(&mut socket).await,
        };
        let decoded = decode(conn, &mut buf, &cx);
        if !decoded.inputs.is_empty() {
            match ahead.acquire().await {
                Ok(permit) => permit.forget(),
                // The mode says how it ends.
                Err(_) => continue,
            }
            if inbox.send(Report::Inputs { token, inputs: decoded.inputs }).await.is_err() {
                return Exit::Closed;
            }
        }
        match decoded.then {
            Then::ReadMore => {}
            Then::DecodeMore => continue,
            // What follows an OPEN cannot be read before the speaker has negotiated; and after a message that did
            // not decode nothing can. The next mode is then `Closing`.
            Then::AwaitMode => {
                if mode.changed().await.is_err() {
                    return Exit::Closed;
                }
                continue;
            }
        }
        make_room(&mut buf);
        tokio::select! {
            got = socket.read_buf(&mut buf) => match got {
                Ok(0) => return Exit::Lost { token, why: closed(&buf) },
                Ok(_) => {}
                Err(e) => return Exit::Lost { token, why: e.to_string() },
            },
            changed = mode.changed() => if changed.is_err() {
                return Exit::Closed;
            },
        }
    }
}

fn closed(rest: &BytesMut) -> String {
    if rest.is_empty() {
        "the peer closed the connection".into()
    } else {
        format!("the peer closed the connection within a message ({} octets of it came)", rest.len())
    }
}

/// What the reader does next.
enum Then {
    ReadMore,
    /// A batch is full and the buffer is not empty.
    DecodeMore,
    AwaitMode,
}

struct Decoded {
    inputs: Vec<Input>,
    then: Then,
}

/// Takes complete messages off the buffer, up to and including an OPEN or one that does not decode.
fn decode(conn: ConnId, buf: &mut BytesMut, cx: &WireCx) -> Decoded {
    let mut inputs = Vec::new();
    let bad = |inputs: &mut Vec<Input>, e: brindle_bgpd_core::wire::DecodeError| {
        inputs.push(Input::BadMessage { conn, notification: e.notification, what: e.what });
    };
    loop {
        if inputs.len() == BATCH {
            return Decoded { inputs, then: Then::DecodeMore };
        }
        let (kind, len) = match next_frame(buf, cx.max_len()) {
            Ok(Some(frame)) => frame,
            Ok(None) => return Decoded { inputs, then: Then::ReadMore },
            Err(e) => {
                bad(&mut inputs, e);
                return Decoded { inputs, then: Then::AwaitMode };
            }
        };
        let frame = buf.get(..len).expect("next_frame saw all of it");
        match Message::parse(frame, cx) {
            Ok(message) => inputs.push(Input::Message { conn, message }),
            Err(e) => {
                bad(&mut inputs, e);
                return Decoded { inputs, then: Then::AwaitMode };
            }
        }
        buf.advance(len);
        if kind == MsgType::Open {
            return Decoded { inputs, then: Then::AwaitMode };
        }
    }
}

/// A small buffer for an idle peer, a large one while reads fill it.
fn make_room(buf: &mut BytesMut) {
    if buf.is_empty() && buf.capacity() < IDLE_BUFFER {
        *buf = BytesMut::with_capacity(IDLE_BUFFER);
    } else if buf.len() == buf.capacity() {
        buf.reserve(READ_BATCH.saturating_sub(buf.len()).max(IDLE_BUFFER));
    }
}

async fn drain(socket: &mut (impl AsyncRead + Unpin)) -> Exit {
    let mut scrap = [0u8; 2048];
    let all = async {
        let mut seen = 0;
        while seen < DRAIN_OCTETS {
            match socket.read(&mut scrap).await {
                Ok(0) | Err(_) => break,
                Ok(n) => seen += n,
            }
        }
    };
    // Too slow is as good as done: the NOTIFICATION has had its time.
    let _ = timeout(DRAIN_TIME, all).await;
    Exit::Closed
}

#[cfg(test)]
mod tests {
    use brindle_bgpd_core::wire::Notification;
    use tokio::io::AsyncWriteExt;

    use super::*;

    const CONN: ConnId = ConnId(1);

    fn keepalive() -> Vec<u8> {
        let mut b = BytesMut::new();
        Message::Keepalive.emit(&WireCx::default(), &mut b).unwrap();
        b.to_vec()
    }

    fn open() -> Vec<u8> {
        let mut b = BytesMut::new();
        let open = brindle_bgpd_core::wire::Open {
            asn: 64512,
            hold_time: 90,
            router_id: "10.0.0.1".parse().unwrap(),
            capabilities: vec![],
        };
        Message::Open(open).emit(&WireCx::default(), &mut b).unwrap();
        b.to_vec()
    }

    #[test]
    fn messages_are_taken_off_one_by_one_and_a_partial_one_stays() {
        let mut buf = BytesMut::new();
        buf.extend_from_slice(&keepalive());
        buf.extend_from_slice(&keepalive());
        buf.extend_from_slice(&keepalive()[..7]);
        let d = decode(CONN, &mut buf, &WireCx::default());
        assert_eq!(d.inputs.len(), 2);
        assert!(matches!(d.then, Then::ReadMore));
        assert_eq!(buf.len(), 7);
    }

    #[test]
    fn nothing_is_decoded_behind_an_open_or_a_broken_message() {
        let mut buf = BytesMut::new();
        buf.extend_from_slice(&open());
        buf.extend_from_slice(&keepalive());
        let d = decode(CONN, &mut buf, &WireCx::default());
        assert!(matches!((d.inputs.len(), d.then), (1, Then::AwaitMode)));
        let mut buf = BytesMut::from(&b"GET / HTTP/1.1\r\n"[..]);
        let d = decode(CONN, &mut buf, &WireCx::default());
        assert!(matches!(d.then, Then::AwaitMode));
        let Input::BadMessage { notification: Notification { code, subcode, .. }, .. } = &d.inputs[0] else {
            panic!("{:?}", d.inputs)
        };
        assert_eq!((*code, *subcode), (1, 1));
    }

    #[tokio::test]
    async fn the_reader_waits_after_an_open_and_goes_on_when_told_how() {
        let (mut peer, socket) = tokio::io::duplex(256);
        let (mode_tx, mode) = watch::channel(Mode::Open);
        let (inbox, mut reports) = mpsc::channel(4);
        let ahead = Arc::new(Semaphore::new(AHEAD));
        let task = tokio::spawn(read(Token(1), CONN, socket, mode, inbox, Arc::clone(&ahead)));
        peer.write_all(&[open(), keepalive()].concat()).await.unwrap();
        let Some(Report::Inputs { inputs, .. }) = reports.recv().await else { panic!() };
        assert_eq!((inputs.len(), ahead.available_permits()), (1, AHEAD - 1));
        tokio::task::yield_now().await;
        assert!(reports.try_recv().is_err());
        mode_tx.send(Mode::Negotiated(WireCx::default())).unwrap();
        let Some(Report::Inputs { inputs, .. }) = reports.recv().await else { panic!() };
        assert_eq!(inputs, [Input::Message { conn: CONN, message: Message::Keepalive }]);
        drop(peer);
        assert!(matches!(task.await.unwrap(), Exit::Lost { .. }));
    }

    #[tokio::test]
    async fn a_reader_is_a_few_reports_ahead_and_goes_on_when_they_are_taken_or_nobody_wants_them() {
        let (mut peer, socket) = tokio::io::duplex(1 << 20);
        let (mode_tx, mode) = watch::channel(Mode::Negotiated(WireCx::default()));
        let (inbox, mut reports) = mpsc::channel(64);
        let ahead = Arc::new(Semaphore::new(AHEAD));
        let task = tokio::spawn(read(Token(1), CONN, socket, mode, inbox, Arc::clone(&ahead)));
        peer.write_all(&keepalive().repeat(20 * BATCH)).await.unwrap();
        while ahead.available_permits() > 0 {
            tokio::task::yield_now().await;
        }
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
        assert_eq!(reports.len(), AHEAD);
        assert!(reports.recv().await.is_some());
        ahead.add_permits(1);
        while reports.len() < AHEAD {
            tokio::task::yield_now().await;
        }
        mode_tx.send(Mode::Closing).unwrap();
        ahead.close();
        drop(peer);
        assert!(matches!(task.await.unwrap(), Exit::Closed));
    }

    #[tokio::test(start_paused = true)]
    async fn a_closing_connection_is_read_to_its_end_but_not_for_ever() {
        let (_peer, socket) = tokio::io::duplex(256);
        let (_mode_tx, mode) = watch::channel(Mode::Closing);
        let (inbox, _reports) = mpsc::channel(4);
        assert!(matches!(
            read(Token(1), CONN, socket, mode, inbox, Arc::new(Semaphore::new(AHEAD))).await,
            Exit::Closed
        ));
    }
}
