//! Calls to an API server: bytes in, bytes out. kube makes the connections, logs in and reloads tokens and authorities; its
//! typed layer is not used, so that an object costs what is read of it.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use brindle_config_core::store::StoreError;
use http::{Method, Request, header};
use http_body_util::BodyExt;
use kube::client::Body;
use tokio::{sync::OnceCell, time::Instant};

use super::{KubeSettings, kinds::Api, object::Status, settings::causes};
use crate::jitter;

/// How long a call may take.
const CALL: Duration = Duration::from_secs(30);
/// How long a page of a list may take: much data, and a server that has just started.
const LIST: Duration = Duration::from_secs(90);
/// How often a call is made again because the server asks for that.
const REPEATS: u32 = 10;
/// Longest that followers stay away because the server asks for that.
const AWAY: Duration = Duration::from_secs(60);
/// Most bytes of an answer: a page holds 500 objects of at most some megabytes, mostly of some kilobytes.
const MOST: usize = 512 << 20;

const AGENT: &str = concat!("brindle/", env!("CARGO_PKG_VERSION"));

/// Why a call failed.
#[derive(Debug)]
pub(super) enum Failure {
    /// The server's answer.
    Api(Status),
    /// There was none.
    Transport(StoreError),
}

/// What a call carries.
pub(super) enum Payload {
    None,
    Json(Vec<u8>),
    MergePatch(Vec<u8>),
}

/// A connection pool to one API server, made with the first call.
pub(super) struct Client {
    settings: KubeSettings,
    kube: Mutex<Option<(kube::Client, String)>>,
    api: OnceCell<Api>,
    /// Until when the server asked to be left alone (Retry-After).
    later: Mutex<Option<Instant>>,
}

impl Client {
    pub(super) fn new(settings: KubeSettings) -> Self {
        Self { settings, kube: Mutex::new(None), api: OnceCell::new(), later: Mutex::new(None) }
    }

    /// For what Kubernetes itself has; which of Calico's groups there is, if any, is not asked.
    pub(super) fn core(settings: KubeSettings) -> Self {
        Self { api: OnceCell::new_with(Some(Api::V1)), ..Self::new(settings) }
    }

    fn held(&self) -> std::sync::MutexGuard<'_, Option<(kube::Client, String)>> {
        // Only clones and assignments happen under the lock: it is whole whatever panicked.
        self.kube.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How messages name the server.
    pub(super) fn name(&self) -> String {
        self.held().as_ref().map_or_else(|| self.settings.name(), |(_, name)| name.clone())
    }

    async fn kube(&self) -> Result<kube::Client, StoreError> {
        if let Some((client, _)) = &*self.held() {
            return Ok(client.clone());
        }
        let config = self.settings.config().await?;
        let name = format!("kubernetes {}", config.cluster_url.to_string().trim_end_matches('/'));
        let client = kube::Client::try_from(config).map_err(|e| {
            StoreError::Broken(format!("{name}: cannot set up the connection: {}", causes(&e)))
        })?;
        *self.held() = Some((client.clone(), name));
        Ok(client)
    }

    /// Forgets the login, so that the next call reads the kubeconfig again.
    fn forget(&self) {
        *self.held() = None;
    }

    /// The pause of a follower before attempt `n` of what failed: at least as long as the server asked for.
    pub(super) fn pause(&self, n: u32) -> Duration {
        let later = *self.later.lock().unwrap_or_else(PoisonError::into_inner);
        let asked = later.map(|at| at.saturating_duration_since(Instant::now())).unwrap_or_default();
        jitter::back_off(n).max(if asked.is_zero() { asked } else { asked + jitter::back_off(n) })
    }

    async fn send(
        &self,
        method: &Method,
        path: &str,
        payload: &Payload,
    ) -> Result<http::Response<Body>, Failure> {
        let client = self.kube().await.map_err(Failure::Transport)?;
        let (content, body) = match payload {
            Payload::None => ("", Vec::new()),
            Payload::Json(b) => ("application/json", b.clone()),
            Payload::MergePatch(b) => ("application/merge-patch+json", b.clone()),
        };
        let mut request = Request::builder()
            .method(method.clone())
            .uri(path)
            .header(header::USER_AGENT, AGENT)
            .header(header::ACCEPT, "application/json");
        if !content.is_empty() {
            request = request.header(header::CONTENT_TYPE, content);
        }
        let request = request
            .body(Body::from(body))
            .map_err(|e| Failure::Transport(StoreError::Broken(format!("{}: {path}: {e}", self.name()))))?;
        let answer = client.send(request).await.map_err(|e| Failure::Transport(self.unreachable(&e)))?;
        if answer.status().is_success() {
            return Ok(answer);
        }
        let code = answer.status().as_u16();
        if code == 401 {
            self.forget();
        }
        let seconds = answer.headers().get(header::RETRY_AFTER).and_then(|v| v.to_str().ok()?.parse().ok());
        let retry_after =
            seconds.filter(|_| matches!(code, 429 | 500..=599)).map(|s: u32| Duration::from_secs(s.into()));
        if let Some(wait) = retry_after {
            let at = Instant::now() + wait.min(AWAY);
            let mut later = self.later.lock().unwrap_or_else(PoisonError::into_inner);
            *later = (*later).max(Some(at));
        }
        let text = answer.into_body().collect().await.map(|b| b.to_bytes()).unwrap_or_default();
        let mut status = serde_json::from_slice::<Status>(&text).unwrap_or_else(|_| Status {
            message: String::from_utf8_lossy(&text).chars().take(200).collect::<String>().trim().to_owned(),
            ..Status::default()
        });
        status.code = code;
        status.retry_after = retry_after;
        Err(Failure::Api(status))
    }

    /// One call and its whole answer. A server that asks to come again is kept to that, within the time of the call.
    pub(super) async fn call(
        &self,
        method: Method,
        path: &str,
        payload: Payload,
    ) -> Result<Vec<u8>, Failure> {
        self.within(CALL, self.patiently(CALL, method, path, payload)).await
    }

    /// One page of a list.
    pub(super) async fn page(&self, path: &str) -> Result<Vec<u8>, Failure> {
        self.within(LIST, self.patiently(LIST, Method::GET, path, Payload::None)).await
    }

    async fn within<T>(
        &self,
        time: Duration,
        call: impl Future<Output = Result<T, Failure>>,
    ) -> Result<T, Failure> {
        tokio::time::timeout(time, call).await.unwrap_or_else(|_| {
            let text = format!("{}: no answer within {} s", self.name(), time.as_secs());
            Err(Failure::Transport(StoreError::Unavailable(text)))
        })
    }

    async fn patiently(
        &self,
        time: Duration,
        method: Method,
        path: &str,
        payload: Payload,
    ) -> Result<Vec<u8>, Failure> {
        let end = Instant::now() + time;
        let mut repeats = 0;
        loop {
            let status = match self.whole(&method, path, &payload).await {
                Err(Failure::Api(status)) => status,
                other => return other,
            };
            // What was refused because there is too much to do was not done; after other troubles a write may have been.
            let asked = status.retry_after.filter(|_| status.code == 429 || method == Method::GET);
            let wait = asked.map(|asked| asked + jitter::back_off(repeats));
            let Some(wait) = wait.filter(|wait| repeats < REPEATS && Instant::now() + *wait < end) else {
                return Err(Failure::Api(status));
            };
            tracing::debug!(path, ?wait, code = status.code, "the server asks to come again later");
            tokio::time::sleep(wait).await;
            repeats += 1;
        }
    }

    async fn whole(&self, method: &Method, path: &str, payload: &Payload) -> Result<Vec<u8>, Failure> {
        let mut body = self.send(method, path, payload).await?.into_body();
        let mut all = Vec::new();
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|e| Failure::Transport(self.cut(&e)))?;
            if let Some(data) = frame.data_ref() {
                if all.len() + data.len() > MOST {
                    let text =
                        format!("{}: the answer to {path} is larger than {} MiB", self.name(), MOST >> 20);
                    return Err(Failure::Transport(StoreError::Broken(text)));
                }
                all.extend_from_slice(data);
            }
        }
        Ok(all)
    }

    /// Opens a stream of lines (a watch). Who follows waits by itself ([`Self::pause`]), and says meanwhile what for.
    pub(super) async fn lines(&self, path: &str) -> Result<Lines, Failure> {
        let answer = self.within(CALL, self.send(&Method::GET, path, &Payload::None)).await?;
        Ok(Lines { body: answer.into_body(), buffer: Vec::new(), searched: 0 })
    }

    fn cut(&self, e: &dyn std::error::Error) -> StoreError {
        StoreError::Unavailable(format!("{}: the connection broke: {}", self.name(), causes(e)))
    }

    /// A call that found no server, or one that is not trusted.
    fn unreachable(&self, e: &kube::Error) -> StoreError {
        let name = self.name();
        let text = causes(e);
        let has = |word: &str| text.contains(word);
        if matches!(e, kube::Error::Auth(_)) {
            self.forget();
            return StoreError::Broken(format!(
                "{name}: cannot log in: {text}; renew the kubeconfig's credentials"
            ));
        }
        if has("certificate") || has("UnknownIssuer") || has("NotValidYet") || has("HandshakeFailure") {
            self.forget();
            let hint = if has("Expired") || has("expired") || has("NotValidYet") || has("not valid yet") {
                "compare the clocks of both machines, and renew the certificate if it has run out"
            } else {
                "certificate-authority of the kubeconfig must be the one that signed the server's certificate"
            };
            return StoreError::Broken(format!("{name}: TLS: {text}; {hint}"));
        }
        StoreError::Unavailable(format!("{name}: {text}"))
    }

    /// Which of Calico's API groups the cluster has. Asked once; a cluster that has neither is asked again.
    pub(super) async fn api(&self) -> Result<Api, Failure> {
        self.api.get_or_try_init(|| self.discover()).await.copied()
    }

    async fn discover(&self) -> Result<Api, Failure> {
        #[derive(serde::Deserialize)]
        struct Groups {
            #[serde(default)]
            groups: Vec<Group>,
        }
        #[derive(serde::Deserialize)]
        struct Group {
            #[serde(default)]
            name: String,
        }
        let answer = self.call(Method::GET, "/apis", Payload::None).await?;
        let groups: Groups = serde_json::from_slice(&answer).map_err(|e| {
            Failure::Transport(StoreError::Broken(format!(
                "{}: /apis is no list of API groups: {e}",
                self.name()
            )))
        })?;
        let has = |name: &str| groups.groups.iter().any(|g| g.name == name);
        match (has("crd.projectcalico.org"), has("projectcalico.org")) {
            (true, true) => self.beside_native().await.map(|()| Api::V1),
            (true, false) => Ok(Api::V1),
            (false, true) => Ok(Api::V3),
            (false, false) => Err(Failure::Transport(StoreError::Broken(format!(
                "{}: the cluster has no CRDs of Calico's API; apply them: kubectl apply -k deploy/crds",
                self.name()
            )))),
        }
    }

    /// The cluster has both groups. As a rule `projectcalico.org` is served by Calico's own API server, which shows what
    /// `crd.projectcalico.org` holds. Pools in the one and none in the other is something else: a cluster with native
    /// definitions, to which the others were added. Going on would be starting anew beside its pools and policies.
    async fn beside_native(&self) -> Result<(), Failure> {
        const OURS: &str = "/apis/crd.projectcalico.org/v1/ippools?limit=1";
        const NATIVE: &str = "/apis/projectcalico.org/v3/ippools?limit=1";
        if self.has_items(OURS).await? != Some(false) || self.has_items(NATIVE).await? != Some(true) {
            return Ok(());
        }
        Err(Failure::Transport(StoreError::Broken(format!(
            "{}: the cluster has IPPools of projectcalico.org/v3, and none in crd.projectcalico.org, which would be used: were \
             Brindle's definitions added to a cluster that has native ones? To go on with those: kubectl delete -k deploy/crds \
             (it deletes what crd.projectcalico.org holds as well), and install without them, with deploy/overlays/native or \
             helm's --skip-crds. To begin anew in crd.projectcalico.org: make an IPPool there (kubectl)",
            self.name()
        ))))
    }

    /// Whether a list has something in it; `None`: that is not told.
    async fn has_items(&self, path: &str) -> Result<Option<bool>, Failure> {
        #[derive(serde::Deserialize)]
        struct Items {
            #[serde(default)]
            items: Vec<serde::de::IgnoredAny>,
        }
        match self.call(Method::GET, path, Payload::None).await {
            Ok(answer) => {
                Ok(serde_json::from_slice::<Items>(&answer).ok().map(|list| !list.items.is_empty()))
            }
            // No right, no such kind, or an API server behind this one that is away.
            Err(Failure::Api(_)) => Ok(None),
            Err(failure) => Err(failure),
        }
    }
}

/// The lines of an answer that goes on.
pub(super) struct Lines {
    body: Body,
    buffer: Vec<u8>,
    /// Bytes of the buffer known to hold no end of a line.
    searched: usize,
}

impl Lines {
    /// The next line; `None` at the end. Not cancel safe: its caller keeps the future.
    pub(super) async fn next(&mut self) -> Result<Option<Vec<u8>>, String> {
        loop {
            let unseen = self.buffer.get(self.searched..).unwrap_or_default();
            if let Some(i) = unseen.iter().position(|b| *b == b'\n') {
                let rest = self.buffer.split_off(self.searched + i + 1);
                let mut line = std::mem::replace(&mut self.buffer, rest);
                line.pop();
                self.searched = 0;
                return Ok(Some(line));
            }
            self.searched = self.buffer.len();
            match self.body.frame().await {
                // What came of a line without its end is no event.
                None => return Ok(None),
                Some(Err(e)) => return Err(causes(&e)),
                Some(Ok(frame)) => {
                    if let Some(data) = frame.data_ref() {
                        if self.buffer.len() + data.len() > MOST {
                            return Err(format!("an event is larger than {} MiB", MOST >> 20));
                        }
                        self.buffer.extend_from_slice(data);
                    }
                }
            }
        }
    }

    /// Whether a whole line is there already.
    pub(super) fn ready(&self) -> bool {
        self.buffer.get(self.searched..).unwrap_or_default().contains(&b'\n')
    }
}
