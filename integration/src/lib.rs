//! What the scenario tests and the benchmarks share: where the binaries are, namespaces and processes that are gone
//! when the test is, bounded waiting, labs driven through `brindlectl`, and what to print when something fails.
//!
//! Everything here runs as root and stays inside namespaces whose names begin with `bt-<pid>-`. Panics are meant:
//! this package is a test harness.

pub mod bins;
pub mod cni;
pub mod diag;
pub mod kube;
pub mod kube_node;
pub mod lab;
pub mod meter;
pub mod mrt;
pub mod netns;
pub mod paired;
pub mod peer;
pub mod policy;
pub mod process;
pub mod replay;
pub mod transcript;
pub mod wait;
