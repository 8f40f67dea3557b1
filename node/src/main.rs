//! `brindle-node`: see the library.

fn main() -> std::process::ExitCode {
    brindle_node::main()
}
