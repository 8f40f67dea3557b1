//! `brindlectl`: see the library.

fn main() -> std::process::ExitCode {
    brindle_ctl::main()
}
