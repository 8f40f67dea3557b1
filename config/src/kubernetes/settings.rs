//! `kubernetes:` URLs, and the configuration of the client behind them.

use std::{
    env, fmt,
    path::{Path, PathBuf},
};

use super::overrides::Overrides;
use crate::{calico_variable, hidden::Hidden};
use brindle_config_core::store::StoreError;
use kube::{
    Config,
    config::{KubeConfigOptions, Kubeconfig, KubeconfigError},
};

/// Where an API server is, and as whom to talk to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KubeSettings {
    from: Source,
    /// Of the kubeconfig; its own choice unless given.
    context: Option<String>,
    /// What stands above the kubeconfig.
    over: Overrides,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Source {
    /// `KUBECONFIG`, else the service account of the pod, else `~/.kube/config`.
    Environment,
    Kubeconfig(PathBuf),
    /// The text of one, and where it stands.
    Inline(String, Hidden),
    /// No kubeconfig: what stands above one is all. Who says so.
    Single(String),
    /// Plain HTTP without a login: tests, and `kubectl proxy`.
    Plain(String),
}

const EXPECTED: &str = "expected kubernetes: (in a pod, or with KUBECONFIG) or kubernetes:PATH of a kubeconfig, each with ?context=NAME if \
     another than its own is meant, or kubernetes:http://HOST:PORT";

fn broken(text: &str, why: impl fmt::Display) -> StoreError {
    StoreError::Broken(format!("datastore \"kubernetes:{text}\": {why}; {EXPECTED}"))
}

impl KubeSettings {
    /// Reads what stands behind `kubernetes:` in a URL. No file is opened.
    pub fn parse(text: &str) -> Result<Self, StoreError> {
        let (place, context) = match text.split_once("?context=") {
            Some((place, context)) if !place.contains("://") => (place, Some(context.to_owned())),
            _ => (text, None),
        };
        if context.as_deref().is_some_and(str::is_empty) {
            return Err(broken(text, "the context has no name"));
        }
        let from = match place {
            "" => Source::Environment,
            url if url.starts_with("http://") => {
                let uri: http::Uri = url.parse().map_err(|e| broken(text, e))?;
                if uri.host().is_none_or(str::is_empty) || uri.query().is_some() {
                    return Err(broken(text, "no host, or more than a host and a port"));
                }
                Source::Plain(url.trim_end_matches('/').to_owned())
            }
            url if url.contains("://") => {
                return Err(broken(text, "only a kubeconfig can say how to log in to an https:// server"));
            }
            path => Source::Kubeconfig(path.into()),
        };
        Ok(Self { from, context, over: Overrides::default() })
    }

    /// A kubeconfig by its text; `name` is where that stands.
    pub(crate) fn inline(name: &str, text: &str) -> Self {
        let from = Source::Inline(name.to_owned(), Hidden(text.to_owned()));
        Self { from, context: None, over: Overrides::default() }
    }

    /// A server by single fields; `name` is where they stand.
    pub(crate) fn single(name: &str) -> Self {
        Self { from: Source::Single(name.to_owned()), context: None, over: Overrides::default() }
    }

    /// The same with these fields above those of the kubeconfig.
    pub(crate) fn with_overrides(self, over: Overrides) -> Self {
        Self { over, ..self }
    }

    /// The same with this context of the kubeconfig.
    pub(crate) fn with_context(self, context: &str) -> Self {
        Self { context: Some(context.to_owned()), ..self }
    }

    /// How messages call the source before the server is known.
    pub(super) fn name(&self) -> String {
        match &self.from {
            Source::Environment => "kubernetes".into(),
            Source::Kubeconfig(path) => format!("kubernetes ({})", path.display()),
            Source::Inline(name, _) | Source::Single(name) => format!("kubernetes ({name})"),
            Source::Plain(url) => format!("kubernetes {url}"),
        }
    }

    /// Reads the configuration; files are read anew with each call.
    pub(super) async fn config(&self) -> Result<Config, StoreError> {
        let mut config = match &self.from {
            Source::Plain(url) => Config::new(url.parse().map_err(|e| broken(url, e))?),
            Source::Kubeconfig(path) => self.of_file(path).await?,
            Source::Inline(name, text) => self.of_text(name, text).await?,
            Source::Single(name) => self.of_single(name, &self.over).await?,
            Source::Environment => self.of_environment().await?,
        };
        // What a call does after a refusal is for its caller to say, who knows what it was for.
        config.default_retry = false;
        config.read_timeout = None;
        Ok(config)
    }

    async fn of_file(&self, path: &Path) -> Result<Config, StoreError> {
        let shown = path.display().to_string();
        let fail = |e: KubeconfigError| {
            let why = match &e {
                // The file is named already.
                KubeconfigError::ReadConfig(why, _) => format!("{why}; name another: kubernetes:FILE"),
                e => format!("{}; make a new one, or name another", causes(e)),
            };
            StoreError::Broken(format!("kubeconfig {shown}: {why}"))
        };
        let kubeconfig = Kubeconfig::read_from(path).map_err(fail)?;
        self.of_kubeconfig(kubeconfig, &self.over, self.context.as_deref()).await.map_err(fail)
    }

    async fn of_kubeconfig(
        &self,
        mut kubeconfig: Kubeconfig,
        over: &Overrides,
        context: Option<&str>,
    ) -> Result<Config, KubeconfigError> {
        over.apply(&mut kubeconfig, context);
        let options =
            KubeConfigOptions { context: context.map(str::to_owned), ..KubeConfigOptions::default() };
        Config::from_custom_kubeconfig(kubeconfig, &options).await
    }

    async fn of_single(&self, name: &str, over: &Overrides) -> Result<Config, StoreError> {
        let config = self.of_kubeconfig(Overrides::empty_kubeconfig(), over, None).await;
        config.map_err(|e| StoreError::Broken(format!("{name}: these cannot be used: {}", causes(&e))))
    }

    async fn of_text(&self, name: &str, text: &Hidden) -> Result<Config, StoreError> {
        let fail = |e: KubeconfigError| {
            StoreError::Broken(format!("{name}: the kubeconfig in it cannot be used: {}", causes(&e)))
        };
        let kubeconfig = Kubeconfig::from_yaml(&text.0).map_err(fail)?;
        self.of_kubeconfig(kubeconfig, &self.over, self.context.as_deref()).await.map_err(fail)
    }

    /// As the variables say: ours are those of Calico's tools, which are kubectl's and more.
    async fn of_environment(&self) -> Result<Config, StoreError> {
        let set = |name: &str| env::var_os(name).is_some_and(|v| !v.is_empty());
        let over = Overrides::of(calico_variable);
        let named = calico_variable("K8S_CURRENT_CONTEXT");
        let context = self.context.as_deref().or(named.as_deref());
        if !set("KUBECONFIG") && over.names_a_server() && context.is_none() {
            return self.of_single("K8S_API_ENDPOINT and its like", &over).await;
        }
        if !set("KUBECONFIG") && set("KUBERNETES_SERVICE_HOST") && context.is_none() {
            return Config::incluster_env().map_err(|e| {
                StoreError::Broken(format!(
                    "kubernetes: the pod's service account cannot be used: {}; the pod needs automountServiceAccountToken",
                    causes(&e)
                ))
            });
        }
        let made = match Kubeconfig::read() {
            Ok(kubeconfig) => self.of_kubeconfig(kubeconfig, &over, context).await,
            Err(e) => Err(e),
        };
        made.map_err(|e| {
            let why = match &e {
                KubeconfigError::ReadConfig(why, path) => format!("{}: {why}", path.display()),
                e => causes(e),
            };
            StoreError::Broken(format!(
                "kubernetes: neither in a pod (KUBERNETES_SERVICE_HOST is not set) nor a usable kubeconfig: {why}; {EXPECTED}"
            ))
        })
    }
}

/// An error with its causes, on one line.
pub(super) fn causes(e: &dyn std::error::Error) -> String {
    let mut text = e.to_string();
    let mut source = e.source();
    while let Some(cause) = source {
        let more = cause.to_string();
        // Many repeat their cause.
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        source = cause.source();
    }
    text.lines().map(str::trim).filter(|l| !l.is_empty()).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_name_a_source() {
        let source = |text: &str| KubeSettings::parse(text).expect(text).from;
        assert_eq!(source(""), Source::Environment);
        assert_eq!(source("/etc/kube/config"), Source::Kubeconfig("/etc/kube/config".into()));
        assert_eq!(source("/c?context=b"), Source::Kubeconfig("/c".into()));
        let context = |text: &str| KubeSettings::parse(text).expect(text).context;
        assert_eq!(context("/c?context=b").as_deref(), Some("b"));
        assert_eq!((context("?context=b").as_deref(), context("/c")), (Some("b"), None));
        assert_eq!(source("http://127.0.0.1:8001/"), Source::Plain("http://127.0.0.1:8001".into()));
    }

    #[test]
    fn mistakes_are_named_with_what_would_be_right() {
        for (text, part) in [
            ("https://host:6443", "kubeconfig"),
            ("http://", "kubernetes:http://"),
            ("http://h?x=y", "more than"),
            ("/c?context=", "no name"),
        ] {
            let e = KubeSettings::parse(text).expect_err(text).to_string();
            assert!(e.contains(part) && e.contains(EXPECTED), "{text}: {e}");
        }
    }

    #[tokio::test]
    async fn a_bad_kubeconfig_is_named() {
        let dir = crate::testing::TempDir::new();
        let path = dir.path("config");
        let fail = async |path: &Path| {
            let settings = KubeSettings::parse(path.to_str().expect("UTF-8")).expect("parses");
            settings.config().await.expect_err("unusable").to_string()
        };
        let e = fail(&path).await;
        assert!(e.contains("No such file") && !e.contains('\n'), "{e}");
        let shown = path.display().to_string();
        assert_eq!(e.matches(&shown).count(), 1, "it is named once: {e}");
        for text in ["", "clusters: [", "apiVersion: v1\nkind: Config\ncurrent-context: nowhere\n"] {
            std::fs::write(&path, text).expect("writes");
            let e = fail(&path).await;
            assert!(e.starts_with("datastore failure: kubeconfig ") && !e.contains('\n'), "{text:?}: {e}");
        }
    }
}
