//! Which datastore a command is about, who named it, and what to type where it is missing or does not answer. Nothing
//! here reads or writes resources.

use std::{path::Path, sync::Arc};

use anyhow::{Result, anyhow, bail, ensure};
use brindle_config::{DEFAULT_URL, calico_variable};
use brindle_config_core::{
    Key, Kind,
    store::{Entry, Expect, Listing, Revision, Store, StoreError, StoreFuture, Subscription, Watch},
};
use serde_json::Value;

use super::args::StoreArgs;
use crate::lab::state::{self, LabDir};

/// Before the path of a configuration file of calicoctl in the name of a datastore; `?context=NAME` may follow.
pub(crate) const CALICO: &str = "calicoctl:";

/// The variable that names a datastore where no flag does.
pub(crate) const VARIABLE: &str = "BRINDLE_DATASTORE";

/// Who named the datastore of a lab that nobody named.
const ONLY_LAB: &str = "the only lab";

/// A datastore by its name, and who gave that.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) url: String,
    /// A flag, a variable, a file, `the default`.
    by: String,
    /// The lab whose it is.
    pub(crate) lab: Option<LabDir>,
}

/// The datastore the arguments are about.
pub(crate) fn place(args: &StoreArgs) -> Result<Place> {
    if let Some(lab) = &args.lab {
        let dir = LabDir::of(lab)?;
        ensure!(dir.exists(), "there is no lab {lab:?}; see `brindlectl lab list`");
        return Ok(Place { url: dir.store_url(), by: format!("--lab {lab}"), lab: Some(dir) });
    }
    let given = std::env::var(VARIABLE).ok().filter(|v| !v.is_empty());
    let file = |path: &Path| format!("{CALICO}{}", path.display());
    let default_file = Path::new(brindle_config::apiconfig::DEFAULT_FILE);
    let (url, by) = if let Some(path) = &args.config {
        (file(path), "--config".to_owned())
    } else if let Some(path) = &args.kubeconfig {
        (format!("kubernetes:{}", path.display()), "--kubeconfig".to_owned())
    } else if let Some(url) = &args.datastore {
        (url.clone(), "--datastore".to_owned())
    } else if let Some(url) = given {
        (url, VARIABLE.to_owned())
    } else if default_file.exists() {
        (file(default_file), brindle_config::apiconfig::DEFAULT_FILE.to_owned())
    } else {
        match calico_variable("DATASTORE_TYPE").as_deref() {
            None => match unnamed() {
                Unnamed::Told(url, by) => (url, by),
                Unnamed::Lab(dir) => {
                    if let Some(context) = &args.context {
                        bail!("--context {context}: the datastore of lab {:?} has none", dir.name());
                    }
                    return Ok(Place { url: dir.store_url(), by: ONLY_LAB.to_owned(), lab: Some(dir) });
                }
            },
            Some("kubernetes") => kubernetes("DATASTORE_TYPE"),
            Some("etcdv3") => ("etcd:".to_owned(), "DATASTORE_TYPE and ETCD_ENDPOINTS".to_owned()),
            Some(other) => bail!("DATASTORE_TYPE={other}: expected kubernetes or etcdv3"),
        }
    };
    let url = match &args.context {
        None => url,
        Some(context) if url.starts_with("kubernetes:") || url.starts_with(CALICO) => {
            format!("{url}?context={context}")
        }
        Some(context) => bail!("--context {context}: the datastore {url} has none; it is not Kubernetes"),
    };
    Ok(Place { url, by, lab: None })
}

/// The API server that variables tell of, or `by`.
fn kubernetes(by: &str) -> (String, String) {
    // The client of Kubernetes does not know the long name.
    match std::env::var("CALICO_KUBECONFIG").ok().filter(|v| !v.is_empty()) {
        Some(file) => (format!("kubernetes:{file}"), "CALICO_KUBECONFIG".to_owned()),
        None => ("kubernetes:".to_owned(), by.to_owned()),
    }
}

/// What is meant where nothing says which kind of datastore.
enum Unnamed {
    /// A datastore, and who told of it.
    Told(String, String),
    Lab(LabDir),
}

/// Where nothing says which kind of datastore: the one of this machine if it has one, else what calicoctl's and kubectl's
/// variables tell of, else the only lab of a machine that has no agent of its own.
fn unnamed() -> Unnamed {
    let here = DEFAULT_URL.strip_prefix("sqlite:").is_some_and(|path| Path::new(path).exists());
    let told = ["ETCD_ENDPOINTS", "K8S_API_ENDPOINT", "KUBECONFIG"];
    match told.into_iter().find(|v| !here && calico_variable(v).is_some()) {
        Some("ETCD_ENDPOINTS") => Unnamed::Told("etcd:".to_owned(), "ETCD_ENDPOINTS".to_owned()),
        Some(by) => {
            let (url, by) = kubernetes(by);
            Unnamed::Told(url, by)
        }
        None => {
            // Whoever may not look for labs has none.
            let alone = !here && !Path::new(crate::cluster::LOCAL_SOCKET).exists();
            match state::all().ok().filter(|_| alone).as_deref() {
                Some([only]) => Unnamed::Lab(only.clone()),
                _ => Unnamed::Told(DEFAULT_URL.to_owned(), "default".to_owned()),
            }
        }
    }
}

impl Place {
    /// A lab's.
    pub(crate) fn of_lab(dir: &LabDir) -> Self {
        Self { url: dir.store_url(), by: format!("--lab {}", dir.name()), lab: Some(dir.clone()) }
    }

    /// Opens it; makes an empty one only if `create`.
    pub(crate) fn open(&self, create: bool) -> Result<Arc<dyn Store>> {
        let inner: Result<Arc<dyn Store>, StoreError> = if let Some(rest) = self.url.strip_prefix(CALICO) {
            let (file, context) = match rest.rsplit_once("?context=") {
                Some((file, context)) => (file, Some(context)),
                None => (rest, None),
            };
            brindle_config::apiconfig::open(file.as_ref(), context)
        } else {
            match self.url.strip_prefix("sqlite:").filter(|path| !path.is_empty()) {
                Some(path) => {
                    let path = Path::new(path);
                    self.must_be_there(path, create)?;
                    let open = if create {
                        brindle_config::SqliteStore::open
                    } else {
                        brindle_config::SqliteStore::open_existing
                    };
                    open(path).map(|s| Arc::new(s) as Arc<dyn Store>)
                }
                None => brindle_config::open(&self.url),
            }
        };
        match inner {
            Ok(inner) => Ok(Arc::new(Advised { inner, advice: self.advice(), named: self.named() })),
            Err(StoreError::Broken(why)) => Err(anyhow!("{why}{}", self.named())),
            Err(e) => Err(e.into()),
        }
    }

    /// What to tell who is about to change the datastore of a lab that nobody named.
    pub(crate) fn unasked(&self) -> Option<String> {
        let dir = self.lab.as_ref().filter(|_| self.by == ONLY_LAB)?;
        Some(format!("no datastore is named; this is about lab {:?}, the only one here", dir.name()))
    }

    /// Who named it, to put behind what is said of it.
    fn named(&self) -> String {
        match self.by.as_str() {
            "default" => " (the default datastore)".to_owned(),
            ONLY_LAB => " (of the only lab here)".to_owned(),
            by => format!(" (named by {by})"),
        }
    }

    /// A file of SQLite that is not there, or its folder where the file would be made.
    fn must_be_there(&self, path: &Path, create: bool) -> Result<()> {
        let named = self.named();
        let folder = path.parent().filter(|p| !p.as_os_str().is_empty());
        if let Some(folder) = folder.filter(|f| create && !f.exists()) {
            bail!("there is no folder {} for the datastore{named}; make it: mkdir -p {0}", folder.display());
        }
        if create || path.exists() {
            return Ok(());
        }
        let flag = if self.url == DEFAULT_URL { String::new() } else { format!(" --datastore {}", self.url) };
        bail!(
            "there is no datastore {}{named}; name another with --datastore URL or -c FILE, or a lab's with --lab; an agent makes it: \
             brindle-node run{flag}",
            path.display()
        )
    }

    /// What to look at when it does not answer.
    fn advice(&self) -> Option<String> {
        let named = self.named();
        let shown = |url: &str| brindle_config::shown_url(url);
        if let Some(rest) = self.url.strip_prefix("etcd:") {
            let given = calico_variable("ETCD_ENDPOINTS").unwrap_or_default();
            let hosts = if rest.is_empty() || rest.starts_with('?') { given } else { rest.to_owned() };
            let hosts = shown(&hosts);
            return Some(format!(
                "is etcd running there{named}? Ask it: etcdctl --endpoints={hosts} endpoint health"
            ));
        }
        if let Some(rest) = self.url.strip_prefix("kubernetes:") {
            let (place, context) = rest.split_once("?context=").unwrap_or((rest, ""));
            let look = if place.starts_with("http://") {
                format!("curl {place}/version")
            } else {
                let file = if place.is_empty() { String::new() } else { format!(" --kubeconfig {place}") };
                let context =
                    if context.is_empty() { String::new() } else { format!(" --context {context}") };
                format!("kubectl{file}{context} cluster-info")
            };
            return Some(format!("is the API server running there{named}? Ask it: {look}"));
        }
        let file = self.url.strip_prefix(CALICO)?;
        let file = file.rsplit_once("?context=").map_or(file, |(file, _)| file);
        Some(format!("is it running there? The address is that of {file}"))
    }
}

/// Whether an error says that nobody was reached.
fn unreached(why: &str) -> bool {
    let why = why.to_lowercase();
    ["connect", "dns", "timed out", "timeout", "deadline", "unreachable", "no answer"]
        .iter()
        .any(|w| why.contains(w))
}

/// A datastore whose errors end with what to look at.
struct Advised {
    inner: Arc<dyn Store>,
    advice: Option<String>,
    /// Who named it.
    named: String,
}

impl Advised {
    fn advise(&self, e: StoreError) -> StoreError {
        match (e, &self.advice) {
            (StoreError::Unavailable(why), Some(advice)) if unreached(&why) => {
                StoreError::Unavailable(format!("{why}; {advice}"))
            }
            // Something else that speaks HTTP.
            (StoreError::Broken(why), _) if why.contains("grpc-status") => {
                StoreError::Broken(format!("{why}; what answers there is no etcd{}", self.named))
            }
            (StoreError::Broken(why), _) if why.starts_with("kubeconfig ") => {
                StoreError::Broken(format!("{why}{}", self.named))
            }
            (e, _) => e,
        }
    }

    fn call<'a, T: 'a>(&'a self, call: StoreFuture<'a, T>) -> StoreFuture<'a, T> {
        Box::pin(async move { call.await.map_err(|e| self.advise(e)) })
    }
}

impl Store for Advised {
    fn get<'a>(&'a self, key: &'a Key) -> StoreFuture<'a, Entry> {
        self.call(self.inner.get(key))
    }

    fn list<'a>(&'a self, kinds: &'a [Kind]) -> StoreFuture<'a, Listing> {
        self.call(self.inner.list(kinds))
    }

    fn put<'a>(&'a self, key: &'a Key, value: Value, expect: Expect) -> StoreFuture<'a, Revision> {
        self.call(self.inner.put(key, value, expect))
    }

    fn would_hold<'a>(&'a self, key: &'a Key, value: Value, expect: Expect) -> StoreFuture<'a, Value> {
        self.call(self.inner.would_hold(key, value, expect))
    }

    fn delete<'a>(&'a self, key: &'a Key, expect: Expect) -> StoreFuture<'a, Revision> {
        self.call(self.inner.delete(key, expect))
    }

    fn watch<'a>(&'a self, kinds: &'a [Kind], from: Revision) -> StoreFuture<'a, Box<dyn Watch>> {
        self.call(self.inner.watch(kinds, from))
    }

    fn keeps_names_as_written(&self) -> bool {
        self.inner.keeps_names_as_written()
    }

    fn for_node(&self, node: &str) -> Option<Arc<dyn Store>> {
        self.inner.for_node(node)
    }

    fn subscribe(&self, kinds: &[Kind]) -> Option<Box<dyn Subscription>> {
        self.inner.subscribe(kinds)
    }

    fn follows(&self, kinds: &[Kind]) -> Option<bool> {
        self.inner.follows(kinds)
    }

    fn waits_for(&self, kinds: &[Kind]) -> Vec<String> {
        self.inner.waits_for(kinds)
    }

    fn visit_followed(&self, kinds: &[Kind], each: &mut dyn FnMut(Entry)) -> bool {
        self.inner.visit_followed(kinds, each)
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    fn advice(url: &str, by: &str) -> Option<String> {
        Place { url: url.into(), by: by.into(), lab: None }.advice()
    }

    #[test]
    fn who_does_not_answer_can_be_asked_by_other_means() {
        assert_eq!(
            advice("etcd:http://a:2379,http://b:2379?ca=/secret", "--datastore").unwrap(),
            "is etcd running there (named by --datastore)? Ask it: etcdctl --endpoints=http://a:2379,http://b:2379 \
             endpoint health"
        );
        assert_eq!(
            advice("kubernetes:/etc/k?context=prod", VARIABLE).unwrap(),
            "is the API server running there (named by BRINDLE_DATASTORE)? Ask it: kubectl --kubeconfig /etc/k \
             --context prod cluster-info"
        );
        assert!(advice("kubernetes:http://h:8001", "x").unwrap().ends_with("curl http://h:8001/version"));
        assert!(advice("calicoctl:/c?context=x", "--config").unwrap().ends_with("that of /c"));
        assert_eq!(advice("sqlite:/x", "x"), None);
    }

    #[test]
    fn a_kubeconfig_is_the_datastore_of_its_cluster() {
        let args = |context: Option<&str>| StoreArgs {
            datastore: None,
            lab: None,
            config: None,
            kubeconfig: Some("/etc/k".into()),
            context: context.map(str::to_owned),
        };
        let Place { url, by, .. } = place(&args(Some("prod"))).unwrap();
        assert_eq!((url.as_str(), by.as_str()), ("kubernetes:/etc/k?context=prod", "--kubeconfig"));
        assert_eq!(place(&args(None)).unwrap().url, "kubernetes:/etc/k");
    }

    #[test]
    fn a_missing_file_is_told_from_a_missing_folder() {
        let at = |path: PathBuf| {
            let url = format!("sqlite:{}", path.display());
            Place { url, by: "--datastore".into(), lab: None }
        };
        let there = std::env::temp_dir();
        let open = |place: Place, create| place.open(create).err().map(|e| e.to_string()).unwrap();
        let e = open(at(there.join("no-such.db")), false);
        assert!(
            e.starts_with("there is no datastore ") && e.contains("(named by --datastore); name another"),
            "{e}"
        );
        let e = open(at(there.join("no-such-folder/x.db")), true);
        assert!(
            e.starts_with("there is no folder ") && e.contains("no-such-folder for the datastore"),
            "{e}"
        );
    }
}
