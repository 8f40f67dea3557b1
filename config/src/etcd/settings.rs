//! Where etcd is and how to be let in: the `etcd:` URL, with Calico's `ETCD_*` variables for what it leaves out.

use std::path::PathBuf;

use brindle_config_core::store::StoreError;

use super::keys::ROOT;
use crate::hidden::Hidden;

/// PEM, from a file that is read when it is needed, or as text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pem(From);

#[derive(Clone, Debug, PartialEq, Eq)]
enum From {
    File(PathBuf),
    Text(Hidden),
}

impl Pem {
    /// The text itself.
    pub fn text(text: &str) -> Self {
        Self(From::Text(Hidden(text.to_owned())))
    }

    /// The octets; `what` they are, for the error.
    pub(super) fn read(&self, what: &str) -> Result<Vec<u8>, StoreError> {
        match &self.0 {
            From::File(path) => {
                std::fs::read(path).map_err(|e| StoreError::Broken(format!("{what} {}: {e}", path.display())))
            }
            From::Text(text) => Ok(text.0.clone().into_bytes()),
        }
    }
}

impl<T: AsRef<str>> std::convert::From<T> for Pem {
    /// A file.
    fn from(path: T) -> Self {
        Self(From::File(path.as_ref().into()))
    }
}

/// How to reach an etcd cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EtcdSettings {
    /// `http://HOST:PORT` or `https://HOST:PORT`, at least one.
    pub endpoints: Vec<String>,
    /// Under which everything lies; Calico's is `/calico`.
    pub root: String,
    /// The authorities that sign the servers' certificates.
    pub ca: Option<Pem>,
    /// Our certificate and its key; both or none.
    pub cert: Option<Pem>,
    pub key: Option<Pem>,
    pub user: Option<String>,
    pub password: Option<String>,
}

fn broken(url: &str, what: &str) -> StoreError {
    StoreError::Broken(format!(
        "datastore {url:?}: {what}; expected \
         etcd:http://HOST:2379[,..][?ca=FILE&cert=FILE&key=FILE&user=NAME&password-file=FILE&prefix=/calico]"
    ))
}

impl EtcdSettings {
    /// Reads what follows `etcd:`. `env` answers for environment variables.
    pub fn parse(text: &str, env: impl Fn(&str) -> Option<String>) -> Result<Self, StoreError> {
        let url = format!("etcd:{text}");
        let given = |name: &str| env(name).filter(|v| !v.is_empty());
        let (hosts, options) = text.split_once('?').unwrap_or((text, ""));
        let hosts =
            if hosts.is_empty() { given("ETCD_ENDPOINTS").unwrap_or_default() } else { hosts.to_owned() };
        let endpoints: Vec<String> =
            hosts.split(',').map(str::trim).filter(|h| !h.is_empty()).map(str::to_owned).collect();
        if endpoints.is_empty() {
            return Err(broken(&url, "no endpoint"));
        }
        if let Some(odd) = endpoints.iter().find(|e| !e.starts_with("http://") && !e.starts_with("https://"))
        {
            return Err(broken(&url, &format!("{odd:?} is no http:// or https:// address")));
        }
        let mut settings = Self {
            endpoints,
            root: ROOT.to_owned(),
            ca: given("ETCD_CA_CERT_FILE").map(Pem::from),
            cert: given("ETCD_CERT_FILE").map(Pem::from),
            key: given("ETCD_KEY_FILE").map(Pem::from),
            user: given("ETCD_USERNAME"),
            password: given("ETCD_PASSWORD"),
        };
        for option in options.split('&').filter(|o| !o.is_empty()) {
            let Some((name, value)) = option.split_once('=') else {
                return Err(broken(&url, &format!("option {option:?} has no value")));
            };
            match name {
                "ca" => settings.ca = Some(value.into()),
                "cert" => settings.cert = Some(value.into()),
                "key" => settings.key = Some(value.into()),
                "user" => settings.user = Some(value.to_owned()),
                "password-file" => {
                    let text = std::fs::read_to_string(value)
                        .map_err(|e| broken(&url, &format!("password-file {value}: {e}")))?;
                    settings.password = Some(text.trim_end_matches(['\r', '\n']).to_owned());
                }
                "prefix" if value.starts_with('/') => value.clone_into(&mut settings.root),
                "prefix" => return Err(broken(&url, "prefix must begin with /")),
                other => return Err(broken(&url, &format!("unknown option {other:?}"))),
            }
        }
        if settings.cert.is_some() != settings.key.is_some() {
            return Err(broken(&url, "cert and key go together"));
        }
        if settings.user.is_some() != settings.password.is_some() {
            return Err(broken(
                &url,
                "a user needs a password (password-file, or ETCD_PASSWORD), and the other way round",
            ));
        }
        Ok(settings)
    }

    /// How messages name the cluster: never with a secret.
    pub(super) fn name(&self) -> String {
        format!("etcd {}", self.endpoints.join(","))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn none(_: &str) -> Option<String> {
        None
    }

    #[test]
    fn urls_and_variables_make_settings() {
        let s =
            EtcdSettings::parse("http://a:2379,http://b:2379?prefix=/x&ca=/ca.pem", none).expect("parses");
        assert_eq!(s.endpoints, ["http://a:2379", "http://b:2379"]);
        assert_eq!((s.root.as_str(), s.ca), ("/x", Some("/ca.pem".into())));
        let env = |name: &str| match name {
            "ETCD_ENDPOINTS" => Some("https://e:2379".to_owned()),
            "ETCD_CERT_FILE" => Some("/c".to_owned()),
            "ETCD_KEY_FILE" => Some("/k".to_owned()),
            _ => None,
        };
        let s = EtcdSettings::parse("", env).expect("parses");
        assert_eq!(
            (s.endpoints, s.cert, s.key),
            (vec!["https://e:2379".into()], Some("/c".into()), Some("/k".into()))
        );
    }

    #[test]
    fn mistakes_are_named_with_what_would_be_right() {
        for (text, part) in [
            ("", "no endpoint"),
            ("host:2379", "no http://"),
            ("http://a?cert=/c", "go together"),
            ("http://a?user=u", "needs a password"),
            ("http://a?prefix=x", "begin with /"),
            ("http://a?cafile=x", "unknown option \"cafile\""),
            ("http://a?ca", "has no value"),
            ("http://a?password-file=/nonexistent/p", "/nonexistent/p"),
        ] {
            let e = EtcdSettings::parse(text, none).expect_err(text).to_string();
            assert!(e.contains(part) && e.contains("expected etcd:http://HOST:2379"), "{text}: {e}");
        }
    }
}
