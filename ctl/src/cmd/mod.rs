//! What requests do. One file per family of commands; the lab has a module of its own.

pub(crate) mod bgp;
pub(crate) mod cluster;
pub(crate) mod datastore;
pub(crate) mod documents;
pub(crate) mod ipam;
pub(crate) mod node;
pub(crate) mod policy;
pub(crate) mod resource;
pub(crate) mod route;
pub(crate) mod status;
pub(crate) mod version;

use anyhow::Result;

use crate::{
    Outcome, lab,
    meaning::{Request, What},
};

/// Carries out a request.
pub(crate) fn run(request: Request) -> Result<Outcome> {
    let format = request.output;
    match request.what {
        What::Version(args) => version::run(&args, format),
        What::Status(args) => status::run(&args, format),
        What::Route(args) => route::run(&args, format),
        What::Datastore(args) => datastore::run(&args, format),
        What::Completion(args) => documents::completion(&args),
        What::Man(args) => documents::man(&args, format),
        What::Reference => documents::reference(),
        What::Node(args) => node::run(&args, format),
        What::Cluster(args) => cluster::run(&args, format),
        What::Bgp(args) => bgp::run(&args, format),
        What::Resource(request) => resource::run(*request, format),
        What::Ipam(args) => ipam::run(&args, format),
        What::Policy(args) => policy::run(&args, format),
        What::LabList => lab::list(format),
        What::Lab { name, what } => lab::run(&name, what, format),
    }
}
