//! The members of the cluster: one is spoken to for as long as it serves, then the next in the list. (Connections balanced
//! over all of them would each be made by the call that meets it first, and fail with it where nobody is there.)

use std::{
    sync::{Mutex, MutexGuard},
    time::Duration,
};

use brindle_config_core::store::StoreError;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};

use super::settings::EtcdSettings;
use crate::jitter;

/// How long a connection may take to come about.
const CONNECT: Duration = Duration::from_secs(5);
/// How often an idle connection is tried, so that a dead server is noticed while only watching.
const KEEPALIVE: Duration = Duration::from_secs(10);

pub(super) struct Members {
    pub(super) settings: EtcdSettings,
    now: Mutex<Now>,
}

/// Who is spoken to.
struct Now {
    /// Counts connections; the member is this modulo their number.
    turn: u64,
    channel: Option<Channel>,
}

/// The member that is spoken to.
pub(super) struct Member {
    pub(super) turn: u64,
    pub(super) address: String,
    /// Connects with the first call.
    pub(super) channel: Channel,
}

impl Members {
    /// Begins anywhere, so that all programs together burden the members alike.
    pub(super) fn new(settings: EtcdSettings) -> Self {
        let all = u64::try_from(settings.endpoints.len()).unwrap_or(0);
        Self { settings, now: Mutex::new(Now { turn: jitter::below(all), channel: None }) }
    }

    fn now(&self) -> MutexGuard<'_, Now> {
        self.now.lock().expect("no code panics while it holds the connection")
    }

    fn address(&self, turn: u64) -> &str {
        let all = self.settings.endpoints.len();
        let at = usize::try_from(turn).unwrap_or(0).checked_rem(all).unwrap_or(0);
        self.settings.endpoints.get(at).map_or("", String::as_str)
    }

    pub(super) fn current(&self) -> Result<Member, StoreError> {
        let mut now = self.now();
        let address = self.address(now.turn);
        let channel = match now.channel.clone() {
            Some(channel) => channel,
            None => now.channel.insert(self.dial(address)?).clone(),
        };
        Ok(Member { turn: now.turn, address: address.to_owned(), channel })
    }

    /// A member failed: the next call goes to the next one, unless another caller has seen to that. Where there is one
    /// alone it is dialed anew, with the certificates as they are now: those of the connection may have run out, and are
    /// renewed in place (a Secret that is mounted). Whether this call left it.
    pub(super) fn leave(&self, turn: u64, why: &str) -> bool {
        let mut now = self.now();
        if now.turn != turn {
            return false;
        }
        now.turn = turn.wrapping_add(1);
        now.channel = None;
        let (old, new) = (self.address(turn), self.address(now.turn));
        if old != new {
            tracing::info!(old, new, cause = why, "etcd: asking another member");
        }
        true
    }

    fn dial(&self, address: &str) -> Result<Channel, StoreError> {
        let s = &self.settings;
        let wrong = |e: &dyn std::fmt::Display| StoreError::Broken(format!("etcd endpoint {address}: {e}"));
        let mut endpoint = Endpoint::from_shared(address.to_owned())
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
            let mut tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(ca.read("etcd ca")?));
            if let (Some(cert), Some(key)) = (&s.cert, &s.key) {
                tls = tls.identity(Identity::from_pem(cert.read("etcd cert")?, key.read("etcd key")?));
            }
            endpoint = endpoint.tls_config(tls).map_err(|e| wrong(&cause(&e)))?;
        }
        Ok(endpoint.connect_lazy())
    }
}

/// The innermost reason: the outer ones say only that something failed.
pub(super) fn cause(e: &(dyn std::error::Error + 'static)) -> String {
    let mut innermost = e;
    while let Some(next) = innermost.source() {
        innermost = next;
    }
    innermost.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_failure_that_many_meet_is_left_once() {
        let all = ["http://a:1", "http://b:1", "http://c:1"];
        let members = Members::new(EtcdSettings::parse(&all.join(","), |_| None).unwrap());
        let first = members.current().unwrap();
        assert_eq!(members.current().unwrap().address, first.address, "it is stayed with");
        for n in 0..3 {
            assert_eq!(members.leave(first.turn, "gone"), n == 0);
        }
        let mut met = vec![first.address];
        for _ in 0..3 {
            let next = members.current().unwrap();
            members.leave(next.turn, "gone");
            met.push(next.address);
        }
        assert_eq!(met[0], met[3], "all in turn");
        met.truncate(3);
        met.sort();
        assert_eq!(met, all);
    }
}
