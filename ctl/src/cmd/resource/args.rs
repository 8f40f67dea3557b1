//! What may be typed after `get`, `apply` and their siblings: calicoctl's words, with its flags.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

/// Which datastore a command speaks to.
#[derive(Clone, Debug, Args)]
pub(crate) struct StoreArgs {
    /// The datastore: `sqlite:PATH`, `etcd:http://HOST:2379` or `kubernetes:KUBECONFIG` (default: `BRINDLE_DATASTORE`, then
    /// what calicoctl's file and variables say, then `sqlite:/var/lib/brindle/brindle.db`, then the only lab here).
    #[arg(long, value_name = "URL")]
    pub(crate) datastore: Option<String>,
    /// The datastore of this lab (it wins over --datastore and --config).
    #[arg(long, value_name = "LAB")]
    pub(crate) lab: Option<String>,
    /// The datastore that this configuration file of calicoctl names (kind CalicoAPIConfig; it wins over --datastore).
    /// Without any of these /etc/calico/calicoctl.cfg is read, if it is there.
    #[arg(short = 'c', long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// The cluster of this kubeconfig: the same as `--datastore kubernetes:FILE`.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["datastore", "lab", "config"])]
    pub(crate) kubeconfig: Option<PathBuf>,
    /// This context of the kubeconfig, instead of its current one.
    #[arg(long, value_name = "NAME")]
    pub(crate) context: Option<String>,
}

/// Files of resources.
#[derive(Debug, Args)]
pub(crate) struct FileArgs {
    /// YAML or JSON: a file, a folder, or `-` for standard input. May be given more than once.
    #[arg(short = 'f', long = "filename", value_name = "FILE", required = true)]
    pub(crate) files: Vec<PathBuf>,
    /// Look for files in folders within folders too.
    #[arg(short = 'R', long)]
    pub(crate) recursive: bool,
    /// Files and folders without any resource are no error.
    #[arg(long)]
    pub(crate) skip_empty: bool,
    /// Do what can be done when some documents are wrong (without it, nothing is written then).
    #[arg(long = "continue")]
    pub(crate) go_on: bool,
}

/// Namespace of namespaced kinds.
#[derive(Clone, Debug, Args)]
pub(crate) struct NamespaceArgs {
    /// The namespace, for kinds that have one, where a resource names none.
    #[arg(short = 'n', long, value_name = "NAMESPACE")]
    pub(crate) namespace: Option<String>,
}

/// `get`.
#[derive(Debug, Args)]
pub(crate) struct GetArgs {
    #[command(flatten)]
    pub(crate) store: StoreArgs,
    #[command(flatten)]
    pub(crate) namespace: NamespaceArgs,
    /// A kind, plural or short name (several with commas), then names of resources; or KIND/NAME.
    #[arg(value_name = "KIND [NAME]")]
    pub(crate) what: Vec<String>,
    /// The resources named in this file, folder or standard input (`-`).
    #[arg(short = 'f', long = "filename", value_name = "FILE", conflicts_with = "what")]
    pub(crate) files: Vec<PathBuf>,
    /// Look for files in folders within folders too.
    #[arg(short = 'R', long)]
    pub(crate) recursive: bool,
    /// Resources of every namespace.
    #[arg(short = 'A', long, visible_short_alias = 'a')]
    pub(crate) all_namespaces: bool,
    /// Only resources with labels that match this selector, `zone == "a"` or as kubectl has it, `zone=a,!old`.
    #[arg(short = 'l', long, value_name = "SELECTOR")]
    pub(crate) selector: Option<String>,
    /// Leave out what belongs to this cluster (uid, resourceVersion, creationTimestamp, status).
    #[arg(long)]
    pub(crate) export: bool,
    /// Then show what changes, until ended: rows as they change, or one document for each change.
    #[arg(short = 'w', long)]
    pub(crate) watch: bool,
    /// Show only what changes from now on.
    #[arg(long)]
    pub(crate) watch_only: bool,
    /// With --watch: say of each whether it was ADDED, MODIFIED or DELETED.
    #[arg(long)]
    pub(crate) output_watch_events: bool,
}

/// `apply`, `create`, `replace`, `diff`.
#[derive(Debug, Args)]
pub(crate) struct WriteArgs {
    #[command(flatten)]
    pub(crate) store: StoreArgs,
    #[command(flatten)]
    pub(crate) namespace: NamespaceArgs,
    #[command(flatten)]
    pub(crate) files: FileArgs,
    /// Check and say what would happen; write nothing.
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// With create: resources that exist are no error.
    #[arg(long)]
    pub(crate) skip_exists: bool,
}

/// `validate`: needs no datastore.
#[derive(Debug, Args)]
pub(crate) struct ValidateArgs {
    #[command(flatten)]
    pub(crate) namespace: NamespaceArgs,
    #[command(flatten)]
    pub(crate) files: FileArgs,
    /// As with its siblings; nothing is read from there.
    #[arg(long, hide = true)]
    datastore: Option<String>,
    /// As with its siblings; nothing is read from there.
    #[arg(long, hide = true)]
    lab: Option<String>,
    /// calicoctl's; nothing is read from there.
    #[arg(short = 'c', long, hide = true)]
    config: Option<PathBuf>,
    /// As with its siblings; nothing is read from there.
    #[arg(long, hide = true)]
    kubeconfig: Option<PathBuf>,
    /// calicoctl's; nothing is read from there.
    #[arg(long, hide = true)]
    context: Option<String>,
}

/// `delete`.
#[derive(Debug, Args)]
pub(crate) struct DeleteArgs {
    #[command(flatten)]
    pub(crate) store: StoreArgs,
    #[command(flatten)]
    pub(crate) namespace: NamespaceArgs,
    /// A kind, then names of resources; or KIND/NAME.
    #[arg(value_name = "KIND NAME", required_unless_present = "files")]
    pub(crate) what: Vec<String>,
    /// The resources named in this file, folder or standard input (`-`), whatever else it says of them.
    #[arg(short = 'f', long = "filename", value_name = "FILE", conflicts_with = "what")]
    pub(crate) files: Vec<PathBuf>,
    /// Look for files in folders within folders too.
    #[arg(short = 'R', long)]
    pub(crate) recursive: bool,
    /// Resources that do not exist are no error.
    #[arg(short = 's', long)]
    pub(crate) skip_not_exists: bool,
    /// Say what would happen; delete nothing.
    #[arg(long)]
    pub(crate) dry_run: bool,
}

/// One resource that exists.
#[derive(Clone, Debug, Args)]
pub(crate) struct OneArgs {
    #[command(flatten)]
    pub(crate) store: StoreArgs,
    #[command(flatten)]
    pub(crate) namespace: NamespaceArgs,
    /// The kind; or KIND/NAME.
    pub(crate) kind: String,
    /// The name of the resource.
    pub(crate) name: Option<String>,
}

/// Form of a patch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum PatchType {
    /// As merge: these kinds have no list keys for Kubernetes' strategic merge.
    Strategic,
    /// RFC 7386: members replace, null removes, lists are replaced whole.
    Merge,
    /// RFC 6902: a list of operations.
    Json,
}

/// `patch`.
#[derive(Debug, Args)]
pub(crate) struct PatchArgs {
    #[command(flatten)]
    pub(crate) one: OneArgs,
    /// The patch, as JSON or YAML.
    #[arg(short = 'p', long, value_name = "PATCH")]
    pub(crate) patch: String,
    /// Its form.
    #[arg(short = 't', long = "type", value_enum, default_value_t = PatchType::Strategic)]
    pub(crate) form: PatchType,
    /// Check and say what would happen; write nothing.
    #[arg(long)]
    pub(crate) dry_run: bool,
}

/// `label`.
#[derive(Debug, Args)]
pub(crate) struct LabelArgs {
    #[command(flatten)]
    pub(crate) one: OneArgs,
    /// `KEY=VALUE` to set, `KEY` alone for a label without a value; with --remove, `KEY`.
    #[arg(value_name = "KEY[=VALUE]")]
    pub(crate) labels: Vec<String>,
    /// Give a label that exists another value.
    #[arg(long)]
    pub(crate) overwrite: bool,
    /// Take the label away.
    #[arg(long, conflicts_with = "overwrite")]
    pub(crate) remove: bool,
}

/// `edit`.
#[derive(Debug, Args)]
pub(crate) struct EditArgs {
    #[command(flatten)]
    pub(crate) one: OneArgs,
}
