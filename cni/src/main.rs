//! `brindle`: the CNI plugin; `brindle-ipam` or `loopback` where it is called by that name (a link in the image, a copy on
//! nodes).

use std::{env, path::Path, process::ExitCode};

use brindle_cni::plugin::{self, Program};

fn main() -> ExitCode {
    let own = env::args_os().next().unwrap_or_default();
    plugin::main(Program::called(Path::new(&own)))
}
