//! What stands before the command on a command line: kubectl and calicoctl take flags there, and so do we. They are
//! moved behind the command, where clap knows which commands take them.

use std::ffi::OsString;

use clap::{
    Args,
    error::{ContextKind, ContextValue, ErrorKind},
};

/// The same flags once more, for help and completion of `brindlectl` itself. Nothing reads them: [`arrange`] has moved
/// them before clap looks.
#[derive(Debug, Args)]
#[command(next_help_heading = "Options of most commands, which may also stand before them")]
pub(crate) struct EarlyArgs {
    /// The datastore, see `brindlectl get --help`.
    #[arg(long = "datastore", id = "early_datastore", value_name = "URL")]
    _datastore: Option<OsString>,
    /// The datastore of this lab.
    #[arg(long = "lab", id = "early_lab", value_name = "LAB")]
    _lab: Option<OsString>,
    /// The datastore that this configuration file of calicoctl names.
    #[arg(short = 'c', long = "config", id = "early_config", value_name = "FILE")]
    _config: Option<OsString>,
    /// The cluster of this kubeconfig.
    #[arg(long = "kubeconfig", id = "early_kubeconfig", value_name = "FILE")]
    _kubeconfig: Option<OsString>,
    /// This context of the kubeconfig.
    #[arg(long = "context", id = "early_context", value_name = "NAME")]
    _context: Option<OsString>,
    /// The namespace, for kinds that have one.
    #[arg(short = 'n', long = "namespace", id = "early_namespace", value_name = "NAMESPACE")]
    _namespace: Option<OsString>,
    /// calicoctl's; what goes wrong is always told.
    #[arg(short = 'l', long = "log-level", id = "early_log_level", value_name = "LEVEL", hide = true, value_parser = ["panic", "fatal", "error", "warn", "info", "debug"])]
    _log_level: Option<String>,
}

/// Flags with a value that are moved behind the command.
const MOVED: [(&str, &str); 6] = [
    ("--datastore", ""),
    ("--lab", ""),
    ("--config", "-c"),
    ("--kubeconfig", ""),
    ("--context", ""),
    ("--namespace", "-n"),
];
/// Flags that stay before it, and those of them that have a value.
const STAY: [(&str, &str, bool); 3] =
    [("--output", "-o", true), ("--log-level", "-l", true), ("--allow-version-mismatch", "", false)];

/// Whether a word is this flag; and if so, whether its value is in the next word.
fn is(word: &str, long: &str, short: &str) -> Option<bool> {
    if word == long || (!short.is_empty() && word == short) {
        return Some(true);
    }
    let glued = word.strip_prefix(long).is_some_and(|rest| rest.starts_with('='))
        || (!short.is_empty() && !word.starts_with("--") && word.starts_with(short));
    glued.then_some(false)
}

/// The command line with such flags behind the command. What is not understood stays where it is, for clap to say so.
pub(crate) fn arrange(typed: Vec<OsString>) -> Vec<OsString> {
    let mut at = 1;
    let (mut stay, mut moved) = (Vec::new(), Vec::new());
    while let Some(word) = typed.get(at).and_then(|w| w.to_str()).filter(|w| w.starts_with('-')) {
        let moving = MOVED.iter().find_map(|(long, short)| is(word, long, short));
        let staying =
            STAY.iter().find_map(|(long, short, value)| is(word, long, short).map(|next| next && *value));
        let (to, next) = match (moving, staying) {
            (Some(next), _) => (&mut moved, next),
            (None, Some(next)) => (&mut stay, next),
            (None, None) => break,
        };
        let end = at + if next { 2 } else { 1 };
        let Some(words) = typed.get(at..end) else { return typed };
        to.extend_from_slice(words);
        at = end;
    }
    let Some((program, rest)) = typed.first().zip(typed.get(at..)).filter(|(_, rest)| !rest.is_empty())
    else {
        return typed;
    };
    // What `lab exec` runs has flags of its own.
    let end = rest.iter().position(|w| w == "--").unwrap_or(rest.len());
    let (command, own) = rest.split_at(end);
    [std::slice::from_ref(program), &stay, command, &moved, own].concat()
}

/// Adds what to type to clap's word that there is no such command, where calicoctl has it.
pub(crate) fn explain(error: &mut clap::Error) {
    if error.kind() != ErrorKind::InvalidSubcommand {
        return;
    }
    let Some(ContextValue::String(word)) = error.get(ContextKind::InvalidSubcommand) else { return };
    let tip = match word.as_str() {
        "run" => "the agent is a program of its own, and no container: brindle-node run --help",
        "convert" => "files of calicoctl's v3 are taken as they are; others calicoctl up to 3.31 converts",
        _ => return,
    };
    error.insert(ContextKind::Suggested, ContextValue::StyledStrs(vec![tip.into()]));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_move_behind_the_command() {
        for (typed, wanted) in [
            ("get nodes", "get nodes"),
            ("--datastore x get nodes", "get nodes --datastore x"),
            ("--kubeconfig k get nodes", "get nodes --kubeconfig k"),
            ("--datastore=x -c f --context=c ipam show", "ipam show --datastore=x -c f --context=c"),
            ("-cf get -n a", "get -n a -cf"),
            ("-o json --lab l status --watch", "-o json status --watch --lab l"),
            ("-ojson -n shop get np", "-ojson get np -n shop"),
            ("-l debug --namespace n get np", "-l debug get np --namespace n"),
            (
                "--allow-version-mismatch --datastore x version",
                "--allow-version-mismatch version --datastore x",
            ),
            ("--lab l lab exec n -- ip --brief a", "lab exec n --lab l -- ip --brief a"),
            // Nothing to move, or nothing to move it behind.
            ("--help --datastore x", "--help --datastore x"),
            ("--datastore", "--datastore"),
            ("--datastore x", "--datastore x"),
            ("--datastores x get", "--datastores x get"),
            ("", ""),
        ] {
            let words = |line: &str| -> Vec<OsString> {
                std::iter::once("brindlectl").chain(line.split_whitespace()).map(OsString::from).collect()
            };
            assert_eq!(arrange(words(typed)), words(wanted), "{typed}");
        }
    }
}
