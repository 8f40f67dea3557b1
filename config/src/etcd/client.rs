//! Calls: which members are asked, tokens, deadlines, and what an error of the server means to a caller.

use std::{error::Error as _, sync::Mutex, time::Duration};

use brindle_config_core::store::StoreError;
use tonic::{
    Code, Request, Status, Streaming,
    client::Grpc,
    codegen::http::uri::PathAndQuery,
    metadata::{Ascii, MetadataValue},
    transport::Channel,
};
use tonic_prost::ProstCodec;

use super::{
    members::{Members, cause},
    pb::{
        AuthenticateRequest, AuthenticateResponse, CompactionRequest, CompactionResponse, Op, RangeRequest,
        RangeResponse, ResponseHeader, TxnRequest, TxnResponse, WatchCreateRequest, WatchRequest,
        WatchResponse,
    },
    settings::EtcdSettings,
};

/// How long a call may take.
const CALL: Duration = Duration::from_secs(15);
/// The same for one that another member can be asked instead: well within the time a lease lasts, so that a member whose
/// machine lost its power costs nobody one. Longer than a connection may take.
const SOON: Duration = Duration::from_secs(6);
/// Largest answer; pages are far smaller.
const LARGEST: usize = 256 << 20;

/// A client of one cluster.
pub(super) struct Client {
    members: Members,
    token: Mutex<Option<MetadataValue<Ascii>>>,
}

/// When what a member failed to do is asked of the next one.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Again {
    /// It changes nothing, so always.
    Reads,
    /// Where it cannot have been done: nothing is written twice.
    Writes,
}

/// A watch that stands.
pub(super) struct Watching {
    pub(super) stream: Streaming<WatchResponse>,
    pub(super) first: WatchResponse,
    /// The connection it runs on.
    turn: u64,
}

impl Client {
    pub(super) fn new(settings: EtcdSettings) -> Self {
        Self { members: Members::new(settings), token: Mutex::new(None) }
    }

    /// The cluster's name in messages.
    pub(super) fn name(&self) -> String {
        self.settings().name()
    }

    fn settings(&self) -> &EtcdSettings {
        &self.members.settings
    }

    /// Asks the member that is spoken to, and the others in turn where it fails; with the turn of the one that served.
    /// The error says what each of them said.
    async fn ask<A, F>(&self, again: Again, attempt: impl Fn(Channel) -> F) -> Result<(A, u64), Status>
    where
        F: Future<Output = Result<A, Status>>,
    {
        let mut left = self.settings().endpoints.len();
        let mut said = Vec::new();
        loop {
            left = left.saturating_sub(1);
            let member = self.members.current().map_err(|e| Status::failed_precondition(e.to_string()))?;
            let limit = if left > 0 && again == Again::Reads { SOON } else { CALL };
            let status = match in_time(limit, attempt(member.channel)).await {
                Ok(answer) => return Ok((answer, member.turn)),
                Err(status) => status,
            };
            if !is_the_members(&status) {
                return Err(status);
            }
            let why = words(&status);
            self.leave(member.turn, &why);
            said.push(format!("{}: {why}", member.address));
            if left == 0 || (again == Again::Writes && !is_unsent(&status)) {
                return Err(match self.settings().endpoints.len() {
                    1 => status,
                    _ => Status::new(status.code(), said.join("; ")),
                });
            }
        }
    }

    fn grpc(channel: Channel) -> Grpc<Channel> {
        Grpc::new(channel).max_decoding_message_size(LARGEST).max_encoding_message_size(LARGEST)
    }

    fn known_token(&self) -> Option<MetadataValue<Ascii>> {
        self.token.lock().expect("no code panics while it holds the token").clone()
    }

    /// The token calls carry; asked for when there is a user and none is known.
    async fn token(&self) -> Result<Option<MetadataValue<Ascii>>, StoreError> {
        let (Some(name), Some(password)) = (&self.settings().user, &self.settings().password) else {
            return Ok(None);
        };
        if let Some(token) = self.known_token() {
            return Ok(Some(token));
        }
        let ask = AuthenticateRequest { name: name.clone(), password: password.clone() };
        let asked = self.once("/etcdserverpb.Auth/Authenticate", Again::Reads, ask, None).await;
        let answer: AuthenticateResponse = match asked {
            Ok(answer) => answer,
            Err(s) => return Err(self.refusal(&s).await),
        };
        let token: MetadataValue<Ascii> = answer
            .token
            .parse()
            .map_err(|_| StoreError::Broken(format!("{}: unusable token", self.name())))?;
        *self.token.lock().expect("no code panics while it holds the token") = Some(token.clone());
        Ok(Some(token))
    }

    /// Whether there was one to forget; the next call logs in anew.
    pub(super) fn forget_token(&self) -> bool {
        self.token.lock().expect("no code panics while it holds the token").take().is_some()
    }

    /// A member failed. With it goes the token: a simple one carries the index at which it was given out, and a cluster
    /// that was restored from an older backup lets each call with it wait, in silence, until it gets there again.
    fn leave(&self, turn: u64, why: &str) {
        if self.members.leave(turn, why) {
            self.forget_token();
        }
    }

    /// One call, with one token.
    async fn once<Q, A>(
        &self,
        path: &'static str,
        again: Again,
        message: Q,
        token: Option<MetadataValue<Ascii>>,
    ) -> Result<A, Status>
    where
        Q: prost::Message + Clone + 'static,
        A: prost::Message + Default + 'static,
    {
        let attempt = |channel: Channel| {
            let mut request = Request::new(message.clone());
            if let Some(token) = token.clone() {
                request.metadata_mut().insert("token", token);
            }
            async move {
                let mut grpc = Self::grpc(channel);
                grpc.ready().await.map_err(|e| Status::from_error(e.into()))?;
                let path = PathAndQuery::from_static(path);
                Ok(grpc.unary(request, path, ProstCodec::<Q, A>::default()).await?.into_inner())
            }
        };
        self.ask(again, attempt).await.map(|(answer, _)| answer)
    }

    /// A call; with a fresh token when the old one is not good any more.
    async fn call<Q, A>(&self, path: &'static str, again: Again, message: Q) -> Result<A, StoreError>
    where
        Q: prost::Message + Clone + 'static,
        A: prost::Message + Default + 'static,
    {
        let token = self.token().await?;
        let had_token = token.is_some();
        match self.once(path, again, message.clone(), token).await {
            Err(s) if had_token && refuses_token(&s) => {
                self.forget_token();
                let token = self.token().await?;
                match self.once(path, again, message, token).await {
                    Ok(answer) => Ok(answer),
                    Err(s) => Err(self.refusal(&s).await),
                }
            }
            Ok(answer) => Ok(answer),
            Err(s) => Err(self.refusal(&s).await),
        }
    }

    pub(super) async fn range(&self, request: RangeRequest) -> Result<RangeResponse, StoreError> {
        self.call("/etcdserverpb.KV/Range", Again::Reads, request).await
    }

    /// Where the cluster is now; whoever answers has asked the others.
    pub(super) async fn now(&self) -> Result<Option<ResponseHeader>, StoreError> {
        let request = RangeRequest { key: b"\0".to_vec(), limit: 1, ..Default::default() };
        Ok(self.range(request).await?.header)
    }

    pub(super) async fn txn(&self, request: TxnRequest) -> Result<TxnResponse, StoreError> {
        let mut ops = request.success.iter().chain(&request.failure);
        let reads = ops.all(|op| matches!(op.request, Some(Op::Range(_)) | None));
        let again = if reads { Again::Reads } else { Again::Writes };
        self.call("/etcdserverpb.KV/Txn", again, request).await
    }

    pub(super) async fn compact(&self, revision: i64) -> Result<(), StoreError> {
        let _: CompactionResponse =
            self.call("/etcdserverpb.KV/Compact", Again::Writes, CompactionRequest { revision }).await?;
        Ok(())
    }

    /// Opens a watch; its first answer says that it stands. With a fresh token when the old one is not good any more.
    pub(super) async fn watch(&self, create: WatchCreateRequest) -> Result<Watching, StoreError> {
        let token = self.token().await?;
        let had_token = token.is_some();
        let mut answers = self.watch_once(&create, token).await;
        if had_token && answers.as_ref().is_err_and(refuses_token) {
            self.forget_token();
            let token = self.token().await?;
            answers = self.watch_once(&create, token).await;
        }
        match answers {
            Ok(watching) => Ok(watching),
            Err(s) => Err(self.refusal(&s).await),
        }
    }

    /// One watch, with one token.
    async fn watch_once(
        &self,
        create: &WatchCreateRequest,
        token: Option<MetadataValue<Ascii>>,
    ) -> Result<Watching, Status> {
        use tokio_stream::StreamExt as _;
        let attempt = |channel: Channel| {
            // The stream stays open on our side: its end would end the watch.
            let ask = tokio_stream::once(WatchRequest { create: Some(create.clone()) })
                .chain(tokio_stream::pending());
            let mut request = Request::new(ask);
            // A member that is cut off from the others hears of no change; with this it ends the watch.
            request.metadata_mut().insert("hasleader", MetadataValue::from_static("true"));
            if let Some(token) = token.clone() {
                request.metadata_mut().insert("token", token);
            }
            async move {
                let mut grpc = Self::grpc(channel);
                grpc.ready().await.map_err(|e| Status::from_error(e.into()))?;
                let path = PathAndQuery::from_static("/etcdserverpb.Watch/Watch");
                let codec = ProstCodec::<WatchRequest, WatchResponse>::default();
                let mut stream = grpc.streaming(request, path, codec).await?.into_inner();
                match stream.message().await? {
                    Some(first) => Ok((stream, first)),
                    None => Err(Status::unavailable("the watch ended at once")),
                }
            }
        };
        let ((stream, first), turn) = self.ask(Again::Reads, attempt).await?;
        Ok(Watching { stream, first, turn })
    }

    /// A watch ended that nobody had ended: what it says, and the next one goes to another member.
    pub(super) fn broke(&self, watching: &Watching, status: &Status) -> StoreError {
        self.leave(watching.turn, &words(status));
        self.error(status)
    }

    /// [`Self::error`], with a look at who it is that answers nothing that can be understood.
    async fn refusal(&self, status: &Status) -> StoreError {
        let error = self.error(status);
        let StoreError::Unavailable(why) = &error else { return error };
        // A connection that came about and broke; what was never reached says nothing.
        if !why.contains(BROKE) {
            return error;
        }
        for place in self.settings().endpoints.iter().filter_map(|e| e.strip_prefix("http://")) {
            if speaks_tls(place.trim_end_matches('/')).await {
                let name = self.name();
                return StoreError::Broken(format!(
                    "{name}: it wants TLS there: write https://{place}, and name the authority that signed its \
                     certificate (ca=FILE, ETCD_CA_CERT_FILE)"
                ));
            }
        }
        error
    }

    /// What a refusal means to the caller.
    pub(super) fn error(&self, status: &Status) -> StoreError {
        let what = words(status);
        let name = self.name();
        match status.code() {
            Code::FailedPrecondition if what.starts_with("datastore failure") => {
                StoreError::Broken(what.trim_start_matches("datastore failure: ").to_owned())
            }
            Code::Unauthenticated => StoreError::Broken(format!(
                "{name}: {what}; check user and password (ETCD_USERNAME, ETCD_PASSWORD)"
            )),
            Code::InvalidArgument if what.contains("authentication failed") => StoreError::Broken(format!(
                "{name}: {what}; check user and password (ETCD_USERNAME, ETCD_PASSWORD)"
            )),
            Code::InvalidArgument if what.contains("user name is empty") => StoreError::Broken(format!(
                "{name}: it wants a user and a password (ETCD_USERNAME, ETCD_PASSWORD)"
            )),
            Code::PermissionDenied => StoreError::Broken(format!(
                "{name}: {what}; the user needs read and write access to the keys under {}",
                self.settings().root
            )),
            Code::ResourceExhausted if what.contains("space exceeded") => StoreError::Broken(format!(
                "{name}: {what}; compact and defragment it, then disarm the alarm (etcdctl alarm disarm)"
            )),
            // Users and roles change while we log in.
            Code::InvalidArgument if what.contains(OLD_TOKEN) => {
                StoreError::Unavailable(format!("{name}: {what}"))
            }
            Code::InvalidArgument | Code::ResourceExhausted | Code::Unimplemented => {
                StoreError::Broken(format!("{name}: {what}"))
            }
            _ => StoreError::Unavailable(format!("{name}: {what}")),
        }
    }
}

async fn in_time<A>(limit: Duration, work: impl Future<Output = Result<A, Status>>) -> Result<A, Status> {
    match tokio::time::timeout(limit, work).await {
        Ok(result) => result,
        Err(_) => Err(Status::deadline_exceeded(format!("no answer within {} s", limit.as_secs()))),
    }
}

/// A status with what it comes from.
fn words(status: &Status) -> String {
    match status.source() {
        Some(source) if !status.message().contains(&source.to_string()) => {
            format!("{}: {}", status.message(), cause(source))
        }
        _ => status.message().to_owned(),
    }
}

/// Whether the fault is of the member that was asked, or of the way to it: another one may serve. What a server has sent
/// has no source.
fn is_the_members(status: &Status) -> bool {
    matches!(status.code(), Code::Unavailable | Code::DeadlineExceeded) || status.source().is_some()
}

/// Whether there was no connection to send anything on.
fn is_unsent(status: &Status) -> bool {
    std::iter::successors(status.source(), |&e| e.source()).any(|e| e.is::<tonic::ConnectError>())
}

/// How a server names a token (JWT) that was given out before users and roles were changed.
const OLD_TOKEN: &str = "revision of auth store is old";

/// Whether the server does not take the token of a call: it has run out, or is older than the users and roles.
fn refuses_token(status: &Status) -> bool {
    status.code() == Code::Unauthenticated || status.message().contains(OLD_TOKEN)
}

/// The same of the words a watch was refused with; etcd 3.4 calls an old token a lack of permission.
pub(super) fn may_be_the_token(reason: &str) -> bool {
    [OLD_TOKEN, "invalid auth token", "permission denied"].iter().any(|w| reason.contains(w))
}

/// What the transport says of a connection that came about and broke.
const BROKE: &str = "transport error";

/// Whether somebody answers in TLS at `HOST:PORT`: a handshake that cannot be meant is refused with an alert.
async fn speaks_tls(place: &str) -> bool {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    /// A record with a ClientHello of one octet.
    const NONSENSE: [u8; 10] = [22, 3, 1, 0, 5, 1, 0, 0, 1, 0];
    const ALERT: u8 = 21;
    let ask = async {
        let mut stream = tokio::net::TcpStream::connect(place).await.ok()?;
        stream.write_all(&NONSENSE).await.ok()?;
        let mut head = [0; 2];
        stream.read_exact(&mut head).await.ok()?;
        // The kind of the record, and the major version that is the same in all.
        Some(head == [ALERT, 3])
    };
    tokio::time::timeout(Duration::from_secs(1), ask).await.ok().flatten().unwrap_or_default()
}
