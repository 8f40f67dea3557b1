//! The tools of the distribution: iptables-save and -restore of the chosen make, ipset, nft; flows by netlink.

use std::{
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use super::{
    Conntrack, Flow, IpVersion, Netfilter, NfError, Variant,
    elements::{self, Elements},
};
use crate::{
    exec::{Output, run_command},
    sysctl,
};

/// How long a restore waits for the lock of iptables, seconds.
const LOCK: u64 = 10;
/// How long any tool may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// Changes of more members are not left to nft when the kernel has refused them: nft walks through a whole set for every
/// member it removes.
const NFT_MEMBERS: usize = 256;
/// Modules of the kernel, also those it was built with that have parameters, as ip_set has.
const MODULES: &str = "/sys/module";
/// Where tools are looked for beside PATH.
const SBIN: [&str; 4] = ["/usr/sbin", "/sbin", "/usr/local/sbin", "/usr/bin"];

/// The real thing, in the namespace of the calling thread.
pub struct Tools {
    variant: Variant,
    /// Variables for the tools (another lock file, for instance).
    env: Vec<(String, String)>,
    lock: u64,
    flows: Option<Conntrack>,
    elements: Option<Elements>,
}

impl Default for Tools {
    fn default() -> Self {
        Self::new(Variant::Nft)
    }
}

impl Tools {
    pub fn new(variant: Variant) -> Self {
        Self { variant, env: Vec::new(), lock: LOCK, flows: None, elements: None }
    }

    /// With a variable for the tools.
    #[must_use]
    pub fn env(mut self, key: &str, value: &str) -> Self {
        self.env.push((key.to_owned(), value.to_owned()));
        self
    }

    /// With another time to wait for the lock, seconds.
    #[must_use]
    pub fn lock_wait(mut self, seconds: u64) -> Self {
        self.lock = seconds;
        self
    }

    /// Whether the kernel holds legacy tables in this namespace. Asking iptables-legacy would load them.
    pub fn legacy_tables(version: IpVersion) -> bool {
        let file = match version {
            IpVersion::V4 => "/proc/thread-self/net/ip_tables_names",
            IpVersion::V6 => "/proc/thread-self/net/ip6_tables_names",
        };
        std::fs::read_to_string(file).is_ok_and(|t| !t.trim().is_empty())
    }

    /// `None`: the kernel did not say.
    fn has_table(&mut self, version: IpVersion, table: &str) -> Option<bool> {
        let mut socket = match self.elements.take() {
            Some(open) => open,
            None => Elements::open().ok()?,
        };
        let there = socket.has_table(version, table).ok()?;
        self.elements = Some(socket);
        Some(there)
    }

    /// iptables-save of one make, whatever was chosen.
    pub fn save_of(&self, variant: Variant, version: IpVersion) -> Result<String, NfError> {
        let program = Self::program(variant, version, "save");
        Ok(self.run(&program, "iptables", &[], None)?.into_text())
    }

    /// The make's own name where it is installed under it, else the plain one.
    fn program(variant: Variant, version: IpVersion, verb: &str) -> String {
        let base = match version {
            IpVersion::V4 => "iptables",
            IpVersion::V6 => "ip6tables",
        };
        let make = match variant {
            Variant::Legacy => "legacy",
            Variant::Nft => "nft",
        };
        let own = format!("{base}-{make}-{verb}");
        if find(&own).is_some() { own } else { format!("{base}-{verb}") }
    }

    fn run(
        &self,
        program: &str,
        package: &'static str,
        args: &[&str],
        input: Option<&str>,
    ) -> Result<Output, NfError> {
        let Some(path) = find(program) else {
            return Err(NfError::Missing {
                tool: program.to_owned(),
                looked: "PATH and the sbin folders".into(),
                package,
            });
        };
        let mut command = Command::new(path);
        command.args(args).env("LC_ALL", "C").envs(self.env.iter().map(|(k, v)| (k, v)));
        let out = run_command(&mut command, input.map(str::as_bytes), PATIENCE)?;
        if out.status.success() {
            return Ok(out);
        }
        let said = String::from_utf8_lossy(&out.stderr);
        if said.contains("xtables lock") {
            return Err(NfError::Locked { tool: program.to_owned(), seconds: self.lock });
        }
        // Warnings stand beside the reason.
        let lines: Vec<&str> = said.lines().map(str::trim).filter(|l| !l.is_empty()).collect();
        let why: Vec<&str> = lines.iter().copied().filter(|l| !l.starts_with("# Warning")).take(4).collect();
        Err(NfError::Refused {
            tool: program.to_owned(),
            why: why.join("; "),
            culprit: input.and_then(|i| culprit(i, &said)),
        })
    }
}

/// The line a tool complains of, when it gives a number.
fn culprit(input: &str, said: &str) -> Option<String> {
    let number = |after: &str| {
        let (_, rest) = said.split_once(after)?;
        let digits: String = rest.trim_start().chars().take_while(char::is_ascii_digit).collect();
        digits.parse::<usize>().ok()
    };
    let n = number("occurred at line:")
        .or_else(|| number("in line "))
        .or_else(|| number("line:"))
        .or_else(|| number("/dev/stdin:"))?;
    let line = input.lines().nth(n.checked_sub(1)?)?;
    Some(line.chars().take(200).collect())
}

fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain(SBIN.iter().map(PathBuf::from));
    folders.map(|f| f.join(program)).find(|p| Path::is_file(p))
}

impl Tools {
    /// One socket for all that is asked of flows.
    fn conntrack(&mut self) -> Result<&mut Conntrack, NfError> {
        match &mut self.flows {
            Some(open) => Ok(open),
            none => Ok(none.insert(Conntrack::open()?)),
        }
    }
}

impl Netfilter for Tools {
    fn save(&mut self, version: IpVersion) -> Result<String, NfError> {
        self.save_of(self.variant, version)
    }

    fn restore(&mut self, version: IpVersion, input: &str) -> Result<(), NfError> {
        let program = Self::program(self.variant, version, "restore");
        let wait = self.lock.to_string();
        self.run(&program, "iptables", &["--noflush", "--wait", &wait], Some(input)).map(drop)
    }

    fn set_variant(&mut self, variant: Variant) {
        self.variant = variant;
    }

    fn probe(&mut self, variant: Variant, version: IpVersion) -> Result<Option<String>, NfError> {
        if variant == Variant::Legacy && !Self::legacy_tables(version) {
            return Ok(None);
        }
        self.save_of(variant, version).map(Some)
    }

    fn default_variant(&mut self) -> Result<Variant, NfError> {
        let out = self.run("iptables", "iptables", &["--version"], None)?;
        Ok(if out.text().contains("nf_tables") { Variant::Nft } else { Variant::Legacy })
    }

    fn save_sets(&mut self) -> Result<String, NfError> {
        // Without the module there is none, and asking would load it.
        if Path::new(MODULES).is_dir() && !Path::new(MODULES).join("ip_set").exists() {
            return Ok(String::new());
        }
        Ok(self.run("ipset", "ipset", &["save"], None)?.into_text())
    }

    fn restore_sets(&mut self, input: &str) -> Result<(), NfError> {
        self.run("ipset", "ipset", &["restore"], Some(input)).map(drop)
    }

    fn nft_list(&mut self, version: IpVersion, table: &str) -> Result<Option<String>, NfError> {
        let family = match version {
            IpVersion::V4 => "ip",
            IpVersion::V6 => "ip6",
        };
        // What fails here is said better by nft.
        if self.has_table(version, table) == Some(false) {
            return Ok(None);
        }
        match self.run("nft", "nftables", &["-j", "list", "table", family, table], None) {
            Ok(out) => Ok(Some(out.into_text())),
            Err(NfError::Refused { why, .. }) if why.contains("No such file or directory") => Ok(None),
            Err(e) => Err(e),
        }
    }

    fn nft(&mut self, input: &str) -> Result<(), NfError> {
        if let Some(changes) = elements::parse(input) {
            let socket = match self.elements.take() {
                Some(open) => Ok(open),
                None => Elements::open(),
            };
            if let Ok(mut socket) = socket {
                let done = socket.change(&changes);
                if done.is_ok() {
                    self.elements = Some(socket);
                }
                match done {
                    Ok(true) => return Ok(()),
                    // nft would try for minutes and be told the same.
                    Err(e) if elements::count(&changes) > NFT_MEMBERS => return Err(e.into()),
                    // What fails is said better by nft, and a set of another form is nft's.
                    Ok(false) | Err(_) => {}
                }
            }
        }
        self.run("nft", "nftables", &["-f", "-"], Some(input)).map(drop)
    }

    fn flows(&mut self, version: IpVersion) -> Result<Vec<Flow>, NfError> {
        // To list them the kernel walks through a table with room for all of every namespace; that there are none in this
        // one is told at once.
        if sysctl::get("net/netfilter/nf_conntrack_count").is_ok_and(|n| n == "0") {
            return Ok(Vec::new());
        }
        Ok(self.conntrack()?.list(version)?)
    }

    fn again(&self) -> Box<dyn Netfilter> {
        Box::new(Self { env: self.env.clone(), lock: self.lock, ..Self::new(self.variant) })
    }

    fn forget(&mut self, flows: &[Flow]) -> Result<usize, NfError> {
        Ok(self.conntrack()?.forget(flows)?)
    }

    fn mark(&mut self, flows: &[Flow], bits: u32, set: bool) -> Result<usize, NfError> {
        Ok(self.conntrack()?.mark(flows, bits, set)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_tool_is_one_clear_line() {
        let e = Tools::default().run("no-such-tool", "nftables", &[], None).unwrap_err();
        assert_eq!(
            e.to_string(),
            "no-such-tool is not installed (PATH and the sbin folders); install the package nftables"
        );
    }

    #[test]
    fn the_line_a_tool_complains_of_is_found() {
        let input = "*filter\n-A x -j y\nCOMMIT\n";
        assert_eq!(culprit(input, "Error occurred at line: 2\nTry").as_deref(), Some("-A x -j y"));
        assert_eq!(culprit(input, "ipset v7.17: Error in line 2: Set cannot").as_deref(), Some("-A x -j y"));
        assert_eq!(culprit(input, "/dev/stdin:2:4-5: Error: syntax").as_deref(), Some("-A x -j y"));
        assert_eq!(culprit(input, "iptables-restore: line 9 failed"), None);
    }
}
