//! `brindle`: the CNI plugin; `brindle-ipam` where it is called by that name (a link in the image, a copy on nodes).

use std::{env, ffi::OsStr, path::Path, process::ExitCode};

use brindle_cni::plugin::{self, Program};

fn main() -> ExitCode {
    let own = env::args_os().next().unwrap_or_default();
    let ipam = Path::new(&own).file_name() == Some(OsStr::new("brindle-ipam"));
    plugin::main(if ipam { Program::Ipam } else { Program::Interface })
}
