//! The CNI_* environment, checked before anything is done with it. Every error names the variable (code 4).

use std::path::{Component, Path, PathBuf};

use crate::{aside, error::CniError};

/// Longest value accepted for any variable.
const MAX_VALUE: usize = 4096;
/// Longest container id; Docker's and containerd's are 64.
const MAX_ID: usize = 253;
/// [`is_name`] for people.
pub(crate) const NAME_RULE: &str =
    "it begins with a letter or digit and has only letters, digits, '_', '.' and '-', 253 at most";

/// CNI_COMMAND.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    Add,
    Del,
    Check,
    Status,
    Gc,
    Version,
}

impl Command {
    fn parse(text: &str) -> Result<Self, CniError> {
        match text {
            "ADD" => Ok(Self::Add),
            "DEL" => Ok(Self::Del),
            "CHECK" => Ok(Self::Check),
            "STATUS" => Ok(Self::Status),
            "GC" => Ok(Self::Gc),
            "VERSION" => Ok(Self::Version),
            other => Err(CniError::env(format!("CNI_COMMAND: unknown command {other:?}"))
                .hint("ADD, DEL, CHECK, STATUS, GC or VERSION")),
        }
    }
}

/// Where the values come from; tests give a map.
pub type Lookup<'a> = &'a dyn Fn(&str) -> Option<String>;

/// The command alone: VERSION needs nothing else.
pub fn command(lookup: Lookup<'_>) -> Result<Command, CniError> {
    let text = required(lookup, "CNI_COMMAND")?;
    Command::parse(&text)
}

/// What the runtime says about one attachment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attachment {
    pub container_id: String,
    pub ifname: String,
    /// None: the runtime does not know it any more (DEL only).
    pub netns: Option<PathBuf>,
    pub args: Args,
}

/// CNI_ARGS, as far as known; the rest is ignored as Kubernetes asks (`IgnoreUnknown`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Args {
    pub pod_namespace: Option<String>,
    pub pod_name: Option<String>,
    pub pod_uid: Option<String>,
    /// An address asked for.
    pub ips: Vec<std::net::IpAddr>,
    /// A MAC asked for.
    pub mac: Option<brindle_kernel::netlink::Mac>,
}

impl Attachment {
    /// Reads CNI_CONTAINERID, CNI_IFNAME, CNI_NETNS, CNI_ARGS. The namespace may be missing for DEL.
    pub fn read(lookup: Lookup<'_>, command: Command) -> Result<Self, CniError> {
        let container_id = required(lookup, "CNI_CONTAINERID")?;
        check_id("CNI_CONTAINERID", &container_id)?;
        let ifname = required(lookup, "CNI_IFNAME")?;
        check_ifname("CNI_IFNAME", &ifname)?;
        if command == Command::Add {
            check_new_ifname("CNI_IFNAME", &ifname)?;
        }
        if command == Command::Del {
            // No ADD succeeded with what is wrong here, and a DEL that cannot succeed is repeated for ever.
            let netns =
                lenient(optional(lookup, "CNI_NETNS")).flatten().and_then(|path| lenient(check_netns(&path)));
            let args = lenient(optional(lookup, "CNI_ARGS")).flatten().unwrap_or_default();
            return Ok(Self { container_id, ifname, netns, args: Args::whose(&args) });
        }
        let netns = optional(lookup, "CNI_NETNS")?.ok_or_else(|| missing("CNI_NETNS"))?;
        let netns = Some(check_netns(&netns)?);
        let args = optional(lookup, "CNI_ARGS")?.unwrap_or_default();
        let args = if command == Command::Add { Args::parse(&args)? } else { Args::whose(&args) };
        Ok(Self { container_id, ifname, netns, args })
    }
}

/// What is wrong is said and left out.
fn lenient<T>(read: Result<T, CniError>) -> Option<T> {
    read.inspect_err(|e| aside::say(format_args!("brindle: {}; left out", e.message))).ok()
}

fn missing(name: &str) -> CniError {
    CniError::env(format!("required environment variable {name} is missing"))
}

fn optional(lookup: Lookup<'_>, name: &str) -> Result<Option<String>, CniError> {
    let Some(value) = lookup(name).filter(|v| !v.is_empty()) else { return Ok(None) };
    if value.len() > MAX_VALUE {
        return Err(CniError::env(format!("{name} has {} bytes, {MAX_VALUE} are allowed", value.len())));
    }
    if value.contains(|c: char| c.is_control()) {
        return Err(CniError::env(format!("{name} contains a control character")));
    }
    Ok(Some(value))
}

fn required(lookup: Lookup<'_>, name: &str) -> Result<String, CniError> {
    optional(lookup, name)?.ok_or_else(|| missing(name))
}

/// The specification's rule for container ids and network names.
pub(crate) fn is_name(text: &str) -> bool {
    text.len() <= MAX_ID
        && text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-'))
}

/// Whether a pod's device can have this MAC: neither a group's, nor none at all, nor that of the other end, of which the kernel
/// would make the same link-local address. Says why not.
pub(crate) fn check_station(mac: brindle_kernel::netlink::Mac) -> Result<(), &'static str> {
    if mac == crate::names::HOST_MAC {
        return Err("what the host's end of every pod has");
    }
    if mac.0[0] & 1 == 0 && mac.0 != [0; 6] { Ok(()) } else { Err("not the address of one station") }
}

fn check_id(variable: &str, id: &str) -> Result<(), CniError> {
    if is_name(id) {
        return Ok(());
    }
    Err(CniError::env(format!("{variable} {id:?} is not valid")).hint(NAME_RULE))
}

fn check_ifname(variable: &str, name: &str) -> Result<(), CniError> {
    let bad = |why: &str| Err(CniError::env(format!("{variable} {name:?} is not valid: {why}")));
    if name.len() > crate::names::MAX_IFNAME {
        return bad("longer than 15 bytes");
    }
    if name == "." || name == ".." {
        return bad("not a device name");
    }
    if name.contains(|c: char| c == '/' || c == ':' || c.is_whitespace()) {
        return bad("it contains '/', ':' or white space");
    }
    Ok(())
}

/// Names that the kernel takes for something else: those of settings of all devices, and patterns it completes.
fn check_new_ifname(variable: &str, name: &str) -> Result<(), CniError> {
    let why = match name {
        "all" | "default" => "the kernel's settings of all devices have this name",
        _ if name.contains('%') => "it contains '%', which the kernel replaces by a number",
        _ => return Ok(()),
    };
    Err(CniError::env(format!("{variable} {name:?} is not valid: {why}")))
}

/// An absolute path without detours. Whether it is a network namespace is found out when it is opened.
fn check_netns(text: &str) -> Result<PathBuf, CniError> {
    let path = Path::new(text);
    let straight = path.components().all(|c| matches!(c, Component::RootDir | Component::Normal(_)));
    if !path.is_absolute() || !straight {
        return Err(CniError::env(format!("CNI_NETNS {text:?} is not an absolute path without '..'"))
            .hint("like /run/netns/NAME or /proc/PID/ns/net"));
    }
    Ok(path.to_owned())
}

impl Args {
    /// Which pod it is; nothing else is looked at.
    fn whose(text: &str) -> Self {
        let mut args = Self::default();
        for pair in text.split(';').filter(|p| p.starts_with("K8S_POD_")) {
            let Some(read) = lenient(Self::parse(pair)) else { continue };
            args.pod_namespace = read.pod_namespace.or(args.pod_namespace);
            args.pod_name = read.pod_name.or(args.pod_name);
            args.pod_uid = read.pod_uid.or(args.pod_uid);
        }
        args
    }

    /// Parses `K=V;K=V`.
    pub fn parse(text: &str) -> Result<Self, CniError> {
        let mut args = Self::default();
        for pair in text.split(';').filter(|p| !p.is_empty()) {
            let Some((key, value)) = pair.split_once('=') else {
                return Err(CniError::env(format!("CNI_ARGS: {pair:?} is not KEY=VALUE")));
            };
            let invalid = |why: &str| CniError::env(format!("CNI_ARGS: {key}={value:?} is not valid: {why}"));
            match key {
                "K8S_POD_NAME" if !value.is_empty() => {
                    if !is_name(value) {
                        return Err(invalid("not a pod name"));
                    }
                    args.pod_name = Some(value.to_owned());
                }
                "K8S_POD_NAMESPACE" if !value.is_empty() => {
                    if !is_name(value) || value.len() > 63 {
                        return Err(invalid("not a namespace name"));
                    }
                    args.pod_namespace = Some(value.to_owned());
                }
                "K8S_POD_UID" if !value.is_empty() => args.pod_uid = Some(value.to_owned()),
                "IP" if !value.is_empty() => {
                    // Several with commas, and some runtimes write CIDRs.
                    let ips = value.split(',').map(|one| one.split('/').next().unwrap_or(one).trim().parse());
                    args.ips = ips.collect::<Result<_, _>>().map_err(|_| invalid("not an IP address"))?;
                }
                "MAC" if !value.is_empty() => {
                    let mac: brindle_kernel::netlink::Mac =
                        value.parse().map_err(|_| invalid("not a MAC address"))?;
                    check_station(mac).map_err(invalid)?;
                    args.mac = Some(mac);
                }
                _ => {}
            }
        }
        Ok(args)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn read(command: Command, vars: &[(&str, &str)]) -> Result<Attachment, CniError> {
        let map: BTreeMap<&str, &str> = vars.iter().copied().collect();
        Attachment::read(&|k| map.get(k).map(|v| (*v).to_owned()), command)
    }

    const GOOD: [(&str, &str); 4] = [
        ("CNI_CONTAINERID", "9f3a"),
        ("CNI_IFNAME", "eth0"),
        ("CNI_NETNS", "/run/netns/x"),
        ("CNI_ARGS", "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web-0;K8S_POD_UID=7"),
    ];

    #[test]
    fn a_kubelets_environment_is_read() {
        let a = read(Command::Add, &GOOD).unwrap();
        assert_eq!(a.args.pod_name.as_deref(), Some("web-0"));
        assert_eq!(a.args.pod_namespace.as_deref(), Some("default"));
        assert_eq!(a.netns.as_deref(), Some(Path::new("/run/netns/x")));
    }

    #[test]
    fn every_bad_value_is_code_4_and_names_its_variable() {
        let cases = [
            ("CNI_CONTAINERID", "", "CNI_CONTAINERID is missing"),
            ("CNI_CONTAINERID", "../x", "CNI_CONTAINERID \"../x\" is not valid"),
            ("CNI_CONTAINERID", "-x", "CNI_CONTAINERID \"-x\" is not valid"),
            ("CNI_CONTAINERID", "a\nb", "CNI_CONTAINERID contains a control character"),
            ("CNI_IFNAME", "", "CNI_IFNAME is missing"),
            ("CNI_IFNAME", "sixteen-is-a-lot", "longer than 15 bytes"),
            ("CNI_IFNAME", "a/b", "contains '/'"),
            ("CNI_IFNAME", "a b", "white space"),
            ("CNI_IFNAME", "..", "not a device name"),
            ("CNI_IFNAME", "all", "settings of all devices"),
            ("CNI_IFNAME", "default", "settings of all devices"),
            ("CNI_IFNAME", "eth%d", "contains '%'"),
            ("CNI_NETNS", "", "CNI_NETNS is missing"),
            ("CNI_NETNS", "netns/x", "not an absolute path"),
            ("CNI_NETNS", "/run/netns/../../etc/passwd", "without '..'"),
            ("CNI_ARGS", "K8S_POD_NAME", "is not KEY=VALUE"),
            ("CNI_ARGS", "K8S_POD_NAME=a/b", "not a pod name"),
            ("CNI_ARGS", "K8S_POD_NAMESPACE=a;K8S_POD_NAMESPACE=b/c", "not a namespace name"),
            ("CNI_ARGS", "IP=10.0.0.300", "not an IP address"),
            ("CNI_ARGS", "MAC=01:00:5e:00:00:01", "not the address of one station"),
        ];
        for (variable, value, want) in cases {
            let mut vars = GOOD.to_vec();
            vars.retain(|(k, _)| *k != variable);
            vars.push((variable, value));
            let e = read(Command::Add, &vars).unwrap_err();
            assert_eq!(e.code, 4, "{variable}={value:?}: {e}");
            assert!(e.message.contains(want), "{variable}={value:?}: {e}");
        }
    }

    #[test]
    fn del_works_without_a_namespace() {
        let vars: Vec<_> = GOOD.iter().copied().filter(|(k, _)| *k != "CNI_NETNS").collect();
        assert_eq!(read(Command::Del, &vars).unwrap().netns, None);
        assert_eq!(read(Command::Check, &vars).unwrap_err().code, 4);
    }

    #[test]
    fn addresses_come_with_commas_and_lengths() {
        let ips = |text: &str| Args::parse(&format!("IP={text}")).map(|a| a.ips).map_err(|e| e.code);
        let both = ["10.20.0.5", "fd00:20::5"].map(|ip| ip.parse().unwrap());
        assert_eq!(ips("10.20.0.5,fd00:20::5"), Ok(both.to_vec()));
        assert_eq!(ips("10.20.0.5/32,fd00:20::5/128"), Ok(both.to_vec()));
        assert_eq!(ips("10.20.0.5/24"), Ok(both[..1].to_vec()));
        assert_eq!(ips("10.20.0.5,"), Err(4));
        assert_eq!(ips("10.20.0.5,x/32"), Err(4));
    }

    #[test]
    fn del_leaves_out_what_no_add_succeeded_with() {
        let wrong = [
            ("CNI_ARGS", "IP=300.1.1.1;K8S_POD_NAME=web-0;MAC=x;nonsense;K8S_POD_NAMESPACE=default"),
            ("CNI_NETNS", "netns/../x"),
        ];
        for (variable, value) in wrong {
            let mut vars = GOOD.to_vec();
            vars.retain(|(k, _)| *k != variable);
            vars.push((variable, value));
            assert_eq!(read(Command::Add, &vars).unwrap_err().code, 4, "{variable}");
            let a = read(Command::Del, &vars).unwrap();
            assert_eq!(a.args.pod_name.as_deref(), Some("web-0"));
            assert_eq!(a.args.pod_namespace.as_deref(), Some("default"));
            assert_eq!((&*a.args.ips, a.args.mac), (&[][..], None));
        }
    }

    proptest! {
        #[test]
        fn any_environment_is_an_answer(values in prop::collection::vec(".{0,40}", 4)) {
            let names = ["CNI_CONTAINERID", "CNI_IFNAME", "CNI_NETNS", "CNI_ARGS"];
            let vars: Vec<(&str, &str)> = names.into_iter().zip(values.iter().map(String::as_str)).collect();
            if let Err(e) = read(Command::Add, &vars) {
                prop_assert_eq!(e.code, 4);
            }
        }
    }
}
