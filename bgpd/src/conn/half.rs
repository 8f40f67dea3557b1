//! One direction of a connection. Reader, writer and the speaker task share the socket: the speaker task writes to it
//! as long as it takes what it is given, and the writer waits when it does not.

use std::{
    io::{self, Read as _},
    net::Shutdown,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use socket2::SockRef;
use tokio::{
    io::{AsyncRead, AsyncWrite, Interest, ReadBuf},
    net::TcpStream,
};

/// For one reading or one writing task; not for two of a kind, because the socket knows one waker for each direction.
#[derive(Debug)]
pub(crate) struct Half(pub(crate) Arc<TcpStream>);

impl AsyncRead for Half {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            ready!(self.0.poll_read_ready(cx))?;
            match read_now(&self.0, buf.initialize_unfilled()) {
                Ok(n) => {
                    buf.advance(n);
                    return Poll::Ready(Ok(()));
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                Err(e) => return Poll::Ready(Err(e)),
            }
        }
    }
}

/// Reads what is there. What does not fill the room is all there was: then the next reader waits for the system's word
/// instead of asking in vain first, which for a peer that only sends KEEPALIVEs is every other call.
fn read_now(socket: &TcpStream, room: &mut [u8]) -> io::Result<usize> {
    let mut all = None;
    let done = socket.try_io(Interest::READABLE, || {
        let n = (&*SockRef::from(socket)).read(room)?;
        if n > 0 && n < room.len() {
            all = Some(n);
            return Err(io::ErrorKind::WouldBlock.into());
        }
        Ok(n)
    });
    all.map_or(done, Ok)
}

impl AsyncWrite for Half {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.0.poll_write_ready(cx))?;
            match self.0.try_write(bytes) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                done => return Poll::Ready(done),
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(SockRef::from(&*self.0).shutdown(Shutdown::Write))
    }
}

/// Writes what the socket takes at once; how many octets that was. An error is left for the writer to find, who reports
/// it.
pub(crate) fn write_now(socket: &TcpStream, bytes: &[u8]) -> usize {
    let mut sent = 0;
    while let Some(rest) = bytes.get(sent..).filter(|r| !r.is_empty()) {
        match SockRef::from(socket).send(rest) {
            Ok(0) | Err(_) => break,
            Ok(n) => sent += n,
        }
    }
    sent
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpListener,
    };

    use super::*;

    #[tokio::test]
    async fn every_octet_is_read_whether_or_not_it_fills_the_room() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut peer = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let mut half = Half(Arc::new(listener.accept().await.unwrap().0));
        let mut room = [0; 8];
        // Less than the room, just as much, more; each time the next word comes when nothing is left.
        for len in [3, 8, 20, 1] {
            let word: Vec<u8> = (1..=len).collect();
            peer.write_all(&word).await.unwrap();
            let mut got = Vec::new();
            while got.len() < word.len() {
                let n = half.read(&mut room).await.unwrap();
                assert!(n > 0);
                got.extend_from_slice(&room[..n]);
            }
            assert_eq!(got, word);
        }
        // The end is seen although the last word did not fill the room.
        peer.write_all(b"end").await.unwrap();
        drop(peer);
        assert_eq!(half.read(&mut room).await.unwrap(), 3);
        assert_eq!(half.read(&mut room).await.unwrap(), 0);
    }
}
