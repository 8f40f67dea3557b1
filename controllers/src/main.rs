//! `brindle-controllers`: see `cli`.

fn main() -> std::process::ExitCode {
    brindle_controllers::cli::main()
}
