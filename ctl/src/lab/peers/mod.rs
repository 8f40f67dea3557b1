//! Other people's routers in a lab: what to write into their configuration files and how to start them. The
//! configurations say what Calico says to BIRD and what an operator says to a top-of-rack switch. Text only; files
//! and processes are the business of `agents`.

pub(crate) mod bird;
pub(crate) mod frr;

use std::path::PathBuf;

/// A program to start in a namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Program {
    /// Candidates, best first; an absolute path or a name on PATH.
    pub(crate) candidates: &'static [&'static str],
    /// Debian package to install when there is none.
    pub(crate) package: &'static str,
    /// User it changes to by itself, who must own the place's directory and files.
    pub(crate) owner: Option<&'static str>,
    pub(crate) args: Vec<String>,
    /// Written before it starts: path and content.
    pub(crate) files: Vec<(PathBuf, String)>,
}
