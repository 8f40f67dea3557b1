//! The driver of the kernel tunnel's filter: reads back what is there with `iptables-save` and `ipset save`, writes the
//! difference. Decisions are `felix_core::ipip_filter`'s. A machine without these programs has no filter and says so;
//! nothing else depends on it.

use std::{collections::BTreeSet, time::Duration};

use brindle_felix_core::ipip_filter::{self as wanted, SET, SHADOW};
use brindle_kernel::exec::{self, ExecError};
use ipnet::Ipv4Net;

/// A slow machine, and others that hold the lock of the tables.
const TIMEOUT: Duration = Duration::from_secs(15);
/// Families of programs, in order of preference: what the distribution chose, then the older kind, for kernels without
/// nf_tables.
const TOOLS: [&str; 2] = ["iptables", "iptables-legacy"];

/// A filter, as felix needs it.
pub(crate) trait Filter: Send {
    /// Makes it take packets from these sources only. `look`: read back what is there, somebody may have changed it.
    fn ensure(&mut self, sources: &BTreeSet<Ipv4Net>, look: bool) -> Result<(), String>;
    /// Packets dropped since it was first made. `read`: as of now, which starts a program; else as last read.
    fn dropped(&mut self, read: bool) -> u64;
    /// Takes it away.
    fn remove(&mut self) -> Result<(), String>;
}

/// The programs of this machine.
#[derive(Default)]
pub(crate) struct Tables {
    tool: Option<&'static str>,
    /// Members of the set, as far as we know.
    told: Option<BTreeSet<Ipv4Net>>,
    /// Counted by a chain that was written anew since.
    before: u64,
    last: u64,
}

fn run(program: &str, args: &[&str], stdin: Option<&str>) -> Result<String, ExecError> {
    let out = exec::run(program, args, stdin.map(str::as_bytes), TIMEOUT)?.success()?;
    Ok(out.text())
}

impl Tables {
    fn save(&self, tool: &str) -> Result<String, ExecError> {
        run(&format!("{tool}-save"), &["-t", "filter", "-c"], None)
    }

    /// Writes the difference with the first family of programs that works.
    fn write(&mut self, plan: impl Fn(&str) -> Option<String>) -> Result<(), String> {
        let mut errors = Vec::new();
        let tools = self.tool.map_or_else(|| TOOLS.to_vec(), |t| vec![t]);
        for tool in tools {
            let done = self.save(tool).and_then(|saved| match plan(&saved) {
                None => Ok(()),
                Some(script) => {
                    // What the old chain counted goes with it.
                    self.before = self.before.saturating_add(wanted::dropped(&saved).unwrap_or(0));
                    self.last = 0;
                    tracing::info!(tool, cause = "it was not as wanted", "writing the tunnel's filter");
                    run(&format!("{tool}-restore"), &["-w", "5", "--noflush"], Some(&script)).map(drop)
                }
            });
            match done {
                Ok(()) => {
                    self.tool = Some(tool);
                    return Ok(());
                }
                Err(e) => errors.push(e.to_string()),
            }
        }
        // It may work another time with the other one.
        self.tool = None;
        Err(errors.join("; "))
    }

    fn fill(&mut self, sources: &BTreeSet<Ipv4Net>) -> Result<(), String> {
        let saved = match run("ipset", &["save", SET], None) {
            Ok(text) => Some(text),
            // There is no such set yet.
            Err(ExecError::Failed { .. }) => None,
            Err(e) => return Err(e.to_string()),
        };
        if let Some(script) = wanted::fill(saved.as_deref(), sources) {
            run("ipset", &["restore"], Some(&script)).map_err(|e| e.to_string())?;
        }
        self.told = Some(sources.clone());
        Ok(())
    }
}

impl Filter for Tables {
    fn ensure(&mut self, sources: &BTreeSet<Ipv4Net>, look: bool) -> Result<(), String> {
        // The set first: the rule refers to it, and must not drop what it will accept.
        if look || self.told.as_ref() != Some(sources) {
            self.fill(sources)?;
        }
        if look || self.tool.is_none() {
            self.write(wanted::install)?;
        }
        Ok(())
    }

    fn dropped(&mut self, read: bool) -> u64 {
        if let Some(tool) = self.tool.filter(|_| read)
            && let Ok(saved) = self.save(tool)
        {
            self.last = wanted::dropped(&saved).unwrap_or(0);
        }
        self.before.saturating_add(self.last)
    }

    fn remove(&mut self) -> Result<(), String> {
        self.write(wanted::remove)?;
        self.tool = None;
        self.told = None;
        for set in [SET, SHADOW] {
            match run("ipset", &["destroy", set], None) {
                // It was not there.
                Ok(_) | Err(ExecError::Failed { .. }) => {}
                Err(e) => return Err(e.to_string()),
            }
        }
        Ok(())
    }
}
