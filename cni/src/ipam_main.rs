//! `brindle-ipam`: the CNI address plugin.

use std::process::ExitCode;

fn main() -> ExitCode {
    brindle_cni::plugin::main(brindle_cni::plugin::Program::Ipam)
}
