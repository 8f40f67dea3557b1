//! What requests do. One file per family of commands; the lab has a module of its own.

pub(crate) mod bgp;
pub(crate) mod ipam;
pub(crate) mod policy;
pub(crate) mod resource;
mod status;

use anyhow::Result;
use serde_json::json;

use crate::{
    Outcome,
    args::Format,
    lab,
    meaning::{Request, What},
    out,
};

/// Carries out a request.
pub(crate) fn run(request: Request) -> Result<Outcome> {
    let format = request.output;
    match request.what {
        What::Version => {
            let version = env!("CARGO_PKG_VERSION");
            match format {
                Format::Json => out::json(&json!({ "version": version })),
                Format::Table => crate::out::say!("brindlectl {version}"),
            }
            Ok(Outcome::Ok)
        }
        What::Status { admin_socket } => status::status(&admin_socket, format),
        What::Bgp(args) => bgp::run(&args, format),
        What::Resource(request) => resource::run(*request, format),
        What::Ipam(args) => ipam::run(&args, format),
        What::Policy(args) => policy::run(&args, format),
        What::LabList => lab::list(format),
        What::Lab { name, what } => lab::run(&name, what, format),
    }
}
