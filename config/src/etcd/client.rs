//! The connection: endpoints, TLS, tokens, deadlines, and what an error of the server means to a caller.

use std::{
    sync::{Mutex, MutexGuard},
    time::Duration,
};

use brindle_config_core::store::StoreError;
use tonic::{
    Code, Request, Status, Streaming,
    client::Grpc,
    codegen::http::uri::PathAndQuery,
    metadata::{Ascii, MetadataValue},
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity},
};
use tonic_prost::ProstCodec;

use super::{
    pb::{
        AuthenticateRequest, AuthenticateResponse, CompactionRequest, CompactionResponse, RangeRequest,
        RangeResponse, TxnRequest, TxnResponse, WatchCreateRequest, WatchRequest, WatchResponse,
    },
    settings::EtcdSettings,
};

/// How long a connection may take to come about.
const CONNECT: Duration = Duration::from_secs(5);
/// How long a call may take.
const CALL: Duration = Duration::from_secs(15);
/// How often an idle connection is tried, so that a dead server is noticed while only watching.
const KEEPALIVE: Duration = Duration::from_secs(10);
/// Largest answer; pages are far smaller.
const LARGEST: usize = 256 << 20;

/// A client of one cluster; clones of the channel share connections.
pub(super) struct Client {
    settings: EtcdSettings,
    dialed: Mutex<Option<Dialed>>,
    token: Mutex<Option<MetadataValue<Ascii>>>,
}

/// What was dialed, and the certificates and keys it was dialed with.
struct Dialed {
    channel: Channel,
    pems: Vec<Vec<u8>>,
}

impl Client {
    pub(super) fn new(settings: EtcdSettings) -> Self {
        Self { settings, dialed: Mutex::new(None), token: Mutex::new(None) }
    }

    /// The cluster's name in messages.
    pub(super) fn name(&self) -> String {
        self.settings.name()
    }

    /// Connections are made when they are needed, and again when they break.
    fn channel(&self) -> Result<Channel, StoreError> {
        let mut dialed = self.dialed();
        if let Some(d) = &*dialed {
            return Ok(d.channel.clone());
        }
        let pems = self.pems()?;
        let channel = self.dial()?;
        *dialed = Some(Dialed { channel: channel.clone(), pems });
        Ok(channel)
    }

    fn dialed(&self) -> MutexGuard<'_, Option<Dialed>> {
        self.dialed.lock().expect("no code panics while it holds the connection")
    }

    /// The authority, our certificate and our key as they are now.
    fn pems(&self) -> Result<Vec<Vec<u8>>, StoreError> {
        let s = &self.settings;
        let all = [("etcd ca", &s.ca), ("etcd cert", &s.cert), ("etcd key", &s.key)];
        all.into_iter().filter_map(|(what, pem)| pem.as_ref().map(|p| p.read(what))).collect()
    }

    /// A call did not get through: certificates are renewed in place (a Secret that is mounted), and those of the
    /// connection may have run out.
    fn look_again(&self) {
        let mut dialed = self.dialed();
        if let Some(d) = &*dialed
            && self.pems().is_ok_and(|now| now != d.pems)
        {
            tracing::info!("{}: its certificates were renewed; connecting with the new ones", self.name());
            *dialed = None;
        }
    }

    fn dial(&self) -> Result<Channel, StoreError> {
        let s = &self.settings;
        let mut endpoints = Vec::new();
        for address in &s.endpoints {
            let wrong =
                |e: &dyn std::fmt::Display| StoreError::Broken(format!("etcd endpoint {address}: {e}"));
            let mut endpoint = Endpoint::from_shared(address.clone())
                .map_err(|e| wrong(&e))?
                .connect_timeout(CONNECT)
                .tcp_nodelay(true)
                .http2_keep_alive_interval(KEEPALIVE)
                .keep_alive_timeout(KEEPALIVE)
                .keep_alive_while_idle(true);
            if address.starts_with("https://") {
                let ca = s.ca.as_ref().ok_or_else(|| {
                    wrong(&"https needs the authority that signed the server's certificate: ca=FILE or ETCD_CA_CERT_FILE")
                })?;
                let mut tls =
                    ClientTlsConfig::new().ca_certificate(Certificate::from_pem(ca.read("etcd ca")?));
                if let (Some(cert), Some(key)) = (&s.cert, &s.key) {
                    tls = tls.identity(Identity::from_pem(cert.read("etcd cert")?, key.read("etcd key")?));
                }
                endpoint = endpoint.tls_config(tls).map_err(|e| wrong(&cause(&e)))?;
            }
            endpoints.push(endpoint);
        }
        match <[Endpoint; 1]>::try_from(endpoints) {
            Ok([one]) => Ok(one.connect_lazy()),
            Err(several) => Ok(Channel::balance_list(several.into_iter())),
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
        let (Some(name), Some(password)) = (&self.settings.user, &self.settings.password) else {
            return Ok(None);
        };
        if let Some(token) = self.known_token() {
            return Ok(Some(token));
        }
        let ask = AuthenticateRequest { name: name.clone(), password: password.clone() };
        let answer: AuthenticateResponse = match self.once("/etcdserverpb.Auth/Authenticate", ask, None).await
        {
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

    /// One attempt at one call.
    async fn once<Q, A>(
        &self,
        path: &'static str,
        message: Q,
        token: Option<MetadataValue<Ascii>>,
    ) -> Result<A, Status>
    where
        Q: prost::Message + 'static,
        A: prost::Message + Default + 'static,
    {
        let channel = self.channel().map_err(|e| Status::failed_precondition(e.to_string()))?;
        let work = async {
            let mut grpc = Self::grpc(channel);
            grpc.ready().await.map_err(|e| Status::unavailable(cause(&e)))?;
            let mut request = Request::new(message);
            if let Some(token) = token {
                request.metadata_mut().insert("token", token);
            }
            let answer =
                grpc.unary(request, PathAndQuery::from_static(path), ProstCodec::<Q, A>::default()).await?;
            Ok(answer.into_inner())
        };
        let result = self.in_time(work).await;
        if matches!(&result, Err(s) if matches!(s.code(), Code::Unavailable | Code::Unknown | Code::DeadlineExceeded))
        {
            self.look_again();
        }
        result
    }

    async fn in_time<A>(&self, work: impl Future<Output = Result<A, Status>>) -> Result<A, Status> {
        match tokio::time::timeout(CALL, work).await {
            Ok(result) => result,
            Err(_) => Err(Status::deadline_exceeded(format!("no answer within {} s", CALL.as_secs()))),
        }
    }

    /// A call; with a fresh token when the old one is not good any more.
    async fn call<Q, A>(&self, path: &'static str, message: Q) -> Result<A, StoreError>
    where
        Q: prost::Message + Clone + 'static,
        A: prost::Message + Default + 'static,
    {
        let token = self.token().await?;
        let had_token = token.is_some();
        match self.once(path, message.clone(), token).await {
            Err(s) if had_token && refuses_token(&s) => {
                self.forget_token();
                let token = self.token().await?;
                match self.once(path, message, token).await {
                    Ok(answer) => Ok(answer),
                    Err(s) => Err(self.refusal(&s).await),
                }
            }
            Ok(answer) => Ok(answer),
            Err(s) => Err(self.refusal(&s).await),
        }
    }

    pub(super) async fn range(&self, request: RangeRequest) -> Result<RangeResponse, StoreError> {
        self.call("/etcdserverpb.KV/Range", request).await
    }

    pub(super) async fn txn(&self, request: TxnRequest) -> Result<TxnResponse, StoreError> {
        self.call("/etcdserverpb.KV/Txn", request).await
    }

    pub(super) async fn compact(&self, revision: i64) -> Result<(), StoreError> {
        let _: CompactionResponse =
            self.call("/etcdserverpb.KV/Compact", CompactionRequest { revision }).await?;
        Ok(())
    }

    /// Opens a watch; its first answer says that it stands. With a fresh token when the old one is not good any more.
    pub(super) async fn watch(
        &self,
        create: WatchCreateRequest,
    ) -> Result<Streaming<WatchResponse>, StoreError> {
        let token = self.token().await?;
        let had_token = token.is_some();
        let mut answers = self.watch_once(create.clone(), token).await;
        if had_token && answers.as_ref().is_err_and(refuses_token) {
            self.forget_token();
            let token = self.token().await?;
            answers = self.watch_once(create, token).await;
        }
        match answers {
            Ok(answers) => Ok(answers),
            Err(s) => {
                if s.code() != Code::Unauthenticated {
                    self.look_again();
                }
                Err(self.refusal(&s).await)
            }
        }
    }

    /// One attempt at one watch.
    async fn watch_once(
        &self,
        create: WatchCreateRequest,
        token: Option<MetadataValue<Ascii>>,
    ) -> Result<Streaming<WatchResponse>, Status> {
        use tokio_stream::StreamExt as _;
        let channel = self.channel().map_err(|e| Status::failed_precondition(e.to_string()))?;
        let work = async {
            let mut grpc = Self::grpc(channel);
            grpc.ready().await.map_err(|e| Status::unavailable(cause(&e)))?;
            // The stream stays open on our side: its end would end the watch.
            let ask =
                tokio_stream::once(WatchRequest { create: Some(create) }).chain(tokio_stream::pending());
            let mut request = Request::new(ask);
            if let Some(token) = token {
                request.metadata_mut().insert("token", token);
            }
            let path = PathAndQuery::from_static("/etcdserverpb.Watch/Watch");
            let codec = ProstCodec::<WatchRequest, WatchResponse>::default();
            Ok(grpc.streaming(request, path, codec).await?.into_inner())
        };
        self.in_time(work).await
    }

    /// [`Self::error`], with a look at who it is that answers nothing that can be understood.
    async fn refusal(&self, status: &Status) -> StoreError {
        let error = self.error(status);
        let StoreError::Unavailable(why) = &error else { return error };
        // A connection that came about and broke; what was never reached says nothing.
        if !why.ends_with(BROKE) {
            return error;
        }
        for place in self.settings.endpoints.iter().filter_map(|e| e.strip_prefix("http://")) {
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
        let what = match std::error::Error::source(status) {
            Some(source) if !status.message().contains(&source.to_string()) => {
                format!("{}: {}", status.message(), cause(source))
            }
            _ => status.message().to_owned(),
        };
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
                self.settings.root
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

/// The innermost reason: the outer ones say only that something failed.
fn cause(e: &(dyn std::error::Error + 'static)) -> String {
    let mut innermost = e;
    while let Some(next) = innermost.source() {
        innermost = next;
    }
    innermost.to_string()
}
