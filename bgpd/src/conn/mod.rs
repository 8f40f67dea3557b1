//! Connections: sockets in, messages out. One reader and one writer task per connection, one task per listening
//! socket and per dial; all of them report to the speaker task and hold nothing but a socket. The writer sleeps as long
//! as the socket takes what the speaker task gives it.

mod dial;
mod half;
mod listen;
mod read;
mod write;

use std::{net::SocketAddr, time::Duration};

use brindle_bgpd_core::{speaker::Input, wire::WireCx};
use bytes::BytesMut;
use tokio::net::TcpStream;

pub(crate) use self::{
    dial::{Dial, dial, prepare},
    half::{Half, write_now},
    listen::{Age, Listener},
    read::{AHEAD, read},
    write::write,
};

/// Identity of a connection's tasks. Unlike a `ConnId` it is never used twice, so a late report of a task whose
/// connection is gone cannot be taken for one of its successor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Token(pub(crate) u64);

/// How long a closing connection may take to carry the last NOTIFICATION to the peer.
pub(crate) const LINGER: Duration = Duration::from_secs(5);

/// Octets read at a time from a peer that has much to say.
const READ_BATCH: usize = 64 * 1024;

/// What the tasks tell the speaker task while they run.
#[derive(Debug)]
pub(crate) enum Report {
    Accepted {
        stream: TcpStream,
        /// The address of the socket it came to, as it was asked for.
        via: SocketAddr,
        local: SocketAddr,
        remote: SocketAddr,
        /// Keys that are newer were not there when its handshake was.
        age: u64,
    },
    /// Decoded messages of one connection, oldest first.
    Inputs { token: Token, inputs: Vec<Input> },
    /// The writer has sent its chunk.
    Room { token: Token },
}

/// How a connection's tasks ended.
#[derive(Debug)]
pub(crate) enum Exit {
    Dialed {
        token: Token,
        stream: std::io::Result<TcpStream>,
    },
    /// The connection is of no more use; the text says why.
    Lost {
        token: Token,
        why: String,
    },
    /// The peer has not taken a byte for the send hold time.
    Stalled {
        token: Token,
    },
    /// Closed because the speaker wanted it closed.
    Closed,
}

/// How the reader treats what it gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Nothing is negotiated yet. After an OPEN the reader waits for another mode.
    Open,
    Negotiated(WireCx),
    /// The speaker is done with the connection: nothing that comes is looked at.
    Closing,
}

/// Bytes for the writer.
#[derive(Debug)]
pub(crate) struct Chunk {
    pub(crate) bytes: BytesMut,
    /// Nothing follows: close after it.
    pub(crate) last: bool,
}
