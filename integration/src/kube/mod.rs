//! A Kubernetes API server inside the test's process: discovery, built-in kinds, CRDs with structural schemas, LIST and
//! WATCH, patches, RBAC, and the troubles a real one has, on demand.
//!
//! It refuses what the real server (1.36) refuses, with the same `Status` bodies, so that what passes here passes
//! there. What it does not have: admission webhooks, CEL rules of CRDs, conversion webhooks, protobuf, tables, the
//! schedulers and controllers other than garbage collection and namespace clean-up, `metadata.managedFields`.
//!
//! The server runs on a runtime of its own and serves threads and async tests alike.

mod apply;
pub mod audit;
mod builtin;
mod delete;
mod discovery;
mod faults;
mod generate;
mod http;
mod kinds;
mod names;
mod patch;
mod rbac;
mod read;
mod schema;
mod selector;
mod serve;
mod server;
mod stamp;
mod state;
mod status;
mod watching;
mod write;

pub use faults::Refusal;
pub use rbac::{Access, Call, Identity, Rule};
pub use serve::{ApiServer, Bind, Options};
pub use server::{Recorded, Traffic};
pub use status::Status;
