//! One plugin's connection: frames in, frames out, one call at a time. Calls are never cut off in the middle: they run
//! on even if the plugin goes away, and an ADD that was given but never registered is taken back.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result};
use brindle_cni::{
    error::code,
    proto::{self, Attachment, Call, Reply, Request},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
    time::timeout,
};

use super::{calls, claims::Caller, service::Service};

/// A plugin that has begun a frame ends it at once, or is stuck. Between ADD and its registration it does its netlink.
const FRAME: Duration = Duration::from_secs(5);
const IDLE: Duration = Duration::from_secs(60);
/// Longest a call may take before the plugin is told to come again (kubelet gives up after 2 minutes).
const CALL: Duration = Duration::from_secs(60);

/// Number of the next connection.
static NEXT: AtomicU64 = AtomicU64::new(0);

/// Serves one connection to its end.
pub(super) async fn serve(mut stream: UnixStream, service: Arc<Service>) {
    let connection = NEXT.fetch_add(1, Ordering::Relaxed);
    let mut session = Session { service, connection, open: Vec::new() };
    if let Err(e) = session.run(&mut stream).await {
        tracing::debug!("CNI client: {e:#}");
    }
    for given in session.open {
        if given.again {
            // The pod may be running on what its first ADD made.
            session.service.claims.take(&given.attachment, connection);
        } else {
            session.service.undo(&given.attachment, connection).await;
        }
    }
}

struct Session {
    service: Arc<Service>,
    connection: u64,
    /// Given on this connection and not registered yet.
    open: Vec<Given>,
}

struct Given {
    attachment: Attachment,
    /// It had been given before.
    again: bool,
}

impl Session {
    async fn run(&mut self, stream: &mut UnixStream) -> Result<()> {
        let uid = stream.peer_cred().context("peer credentials")?.uid();
        if uid != 0 {
            tracing::warn!(uid, "refused a CNI call: only root may ask for addresses");
            let reply = error(code::IO, "only root may talk to the agent".into(), "run as root");
            return Ok(stream.write_all(&proto::encode(&reply)?).await?);
        }
        loop {
            let mut head = [0; 4];
            match timeout(IDLE, stream.read_exact(&mut head)).await? {
                Ok(_) => {}
                Err(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(()),
                Err(e) => return Err(e.into()),
            }
            let (reply, more) = match proto::body_len(head) {
                Ok(len) => {
                    let mut body = vec![0; len];
                    timeout(FRAME, stream.read_exact(&mut body)).await??;
                    (self.answer(&body).await, true)
                }
                // Where the next frame would begin is unknown.
                Err(e) => (error(code::PROTOCOL, e.to_string(), MISFIT), false),
            };
            timeout(FRAME, stream.write_all(&proto::encode(&reply)?)).await??;
            if !more {
                return Ok(());
            }
        }
    }

    async fn answer(&mut self, body: &[u8]) -> Reply {
        let request: Request = match proto::decode(body) {
            Ok(request) => request,
            Err(e) => return error(code::PROTOCOL, e.to_string(), MISFIT),
        };
        if request.version != proto::VERSION {
            let msg = format!(
                "the plugin speaks version {} of the protocol, this agent {}",
                request.version,
                proto::VERSION
            );
            return error(code::PROTOCOL, msg, MISFIT);
        }
        let subject = Subject::of(&request.call);
        let command = calls::command(&request.call);
        let connection = self.connection;
        let was_given = match &subject {
            Subject::Settled(a) => self.open.iter().any(|o| o.attachment == *a),
            _ => false,
        };
        let caller = Caller { connection, was_given };
        let service = Arc::clone(&self.service);
        let mut call = tokio::spawn(async move { service.call(request.call, caller).await });
        let reply = match timeout(CALL, &mut call).await {
            Ok(Ok(reply)) => {
                self.remember(subject, &reply);
                reply
            }
            Ok(Err(e)) => error(code::FAILED, format!("the agent failed: {e}"), "see its log, and report it"),
            Err(_) => {
                let service = Arc::clone(&self.service);
                tokio::spawn(async move {
                    if let (Ok(Reply::Added { again, .. }), Subject::Given(a)) = (call.await, subject) {
                        if again {
                            service.claims.take(&a, connection);
                        } else {
                            service.undo(&a, connection).await;
                        }
                    }
                });
                error(code::TRY_AGAIN, format!("not done within {CALL:?}"), "see the agent's log")
            }
        };
        self.service.calls.count(command, &reply);
        reply
    }

    fn remember(&mut self, subject: Subject, reply: &Reply) {
        match (subject, reply) {
            (Subject::Given(attachment), Reply::Added { again, .. }) => {
                self.open.push(Given { attachment, again: *again });
            }
            (Subject::Settled(a), Reply::Registered | Reply::Deleted) => {
                self.service.claims.take(&a, self.connection);
                self.open.retain(|o| o.attachment != a);
            }
            _ => {}
        }
    }
}

/// What a call means for the list of unfinished ADDs.
enum Subject {
    Given(Attachment),
    Settled(Attachment),
    Other,
}

impl Subject {
    fn of(call: &Call) -> Self {
        match call {
            Call::Add { attachment, .. } => Self::Given(attachment.clone()),
            Call::Register { attachment, .. } | Call::Del { attachment, .. } => {
                Self::Settled(attachment.clone())
            }
            _ => Self::Other,
        }
    }
}

const MISFIT: &str = "plugin and agent do not fit; install both of one version";

fn error(code: u32, msg: String, details: &str) -> Reply {
    Reply::Error { code, msg, details: details.to_owned() }
}
