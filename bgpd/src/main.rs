//! `brindle-bgpd`: see `cli`.

fn main() -> std::process::ExitCode {
    brindle_bgpd::cli::main()
}
