//! Addresses from another IPAM plugin (`ipam.type` host-local or static) on our interface. It is called as the
//! specification says: found in CNI_PATH, the same environment, the whole configuration on its standard input.

use std::{
    io::Write,
    path::{Path, PathBuf},
    process::{Command as Process, Stdio},
};

use ipnet::IpNet;
use serde_json::Value;

use crate::{
    error::{CniError, code},
    result::Answer,
};

/// Another IPAM plugin.
#[derive(Clone, Debug)]
pub(crate) struct Delegate {
    kind: String,
    input: Vec<u8>,
}

impl Delegate {
    /// `input` is the network configuration as it came.
    pub(crate) fn new(kind: &str, input: &[u8]) -> Self {
        Self { kind: kind.to_owned(), input: input.to_vec() }
    }

    /// ADD: its addresses, each for the pod alone.
    pub(crate) fn add(&self) -> Result<Vec<IpNet>, CniError> {
        let out = self.call("ADD")?;
        let answer: Answer = serde_json::from_slice(&out).map_err(|e| {
            CniError::new(code::DECODE, format!("ipam plugin {}: its result does not decode: {e}", self.kind))
        })?;
        if answer.ips.is_empty() {
            return Err(CniError::new(
                code::FAILED,
                format!("ipam plugin {}: its result has no address", self.kind),
            ));
        }
        Ok(answer.ips.iter().map(|ip| IpNet::from(ip.address.addr())).collect())
    }

    pub(crate) fn del(&self) -> Result<(), CniError> {
        self.call("DEL").map(drop)
    }

    pub(crate) fn check(&self) -> Result<(), CniError> {
        self.call("CHECK").map(drop)
    }

    /// STATUS or GC, if it is new enough to know them.
    pub(crate) fn forward(&self, verb: &str) -> Result<(), CniError> {
        let out = self.run("VERSION", br#"{"cniVersion":"1.1.0"}"#)?;
        let versions: Value = serde_json::from_slice(&out).unwrap_or_default();
        let knows = versions.pointer("/supportedVersions").and_then(Value::as_array);
        if knows.is_some_and(|l| l.iter().any(|v| v == "1.1.0")) {
            self.call(verb)?;
        }
        Ok(())
    }

    fn call(&self, verb: &str) -> Result<Vec<u8>, CniError> {
        self.run(verb, &self.input)
    }

    fn run(&self, verb: &str, input: &[u8]) -> Result<Vec<u8>, CniError> {
        let program = self.find()?;
        let failed = |e: std::io::Error| CniError::new(code::IO, format!("{}: {e}", program.display()));
        let mut child = Process::new(&program)
            .env("CNI_COMMAND", verb)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .map_err(failed)?;
        if let Some(mut stdin) = child.stdin.take() {
            // One that refuses before it reads has said why.
            let _ = stdin.write_all(input);
        }
        let out = child.wait_with_output().map_err(failed)?;
        if out.status.success() {
            return Ok(out.stdout);
        }
        let said: Option<CniError> = serde_json::from_slice(&out.stdout).ok();
        Err(match said {
            Some(e) => CniError { message: format!("ipam plugin {}: {}", self.kind, e.message), ..e },
            None => CniError::new(code::FAILED, format!("ipam plugin {} failed: {}", self.kind, out.status)),
        })
    }

    fn find(&self) -> Result<PathBuf, CniError> {
        let path = std::env::var_os("CNI_PATH").unwrap_or_default();
        let found = std::env::split_paths(&path).filter(|d| d.is_absolute()).map(|d| d.join(&self.kind));
        found.into_iter().find(|p| Path::is_file(p)).ok_or_else(|| {
            CniError::env(format!("ipam.type: {:?} is in no folder of CNI_PATH {path:?}", self.kind))
                .hint("install it there: it is one of the reference CNI plugins")
        })
    }
}
