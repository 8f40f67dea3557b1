//! `brindle-all`: agent, speaker, controllers and command line in one file, which of them it is being told by the name it
//! is called by, or by its first argument. They share most of what they are made of (client of the API server, TLS,
//! resource model): as files of their own they would fill the image three times. Nothing else lives here.

use std::{
    ffi::OsStr,
    io::{self, Write as _},
    path::Path,
    process::ExitCode,
};

/// A program's name and its beginning.
type Program = (&'static str, fn() -> ExitCode);

const PROGRAMS: [Program; 4] = [
    ("brindle-node", brindle_node::main),
    ("brindle-bgpd", brindle_bgpd::cli::main),
    ("brindle-controllers", brindle_controllers::cli::main),
    ("brindlectl", brindle_ctl::main),
];

/// Which program a path calls.
fn called(path: &OsStr) -> Option<&'static Program> {
    let name = Path::new(path).file_name()?;
    PROGRAMS.iter().find(|p| OsStr::new(p.0) == name)
}

fn main() -> ExitCode {
    let own = std::env::args_os().next().unwrap_or_default();
    if let Some((_, main)) = called(&own) {
        return main();
    }
    let names = PROGRAMS.map(|p| p.0).join(", ");
    // Nobody need be listening.
    let _ = writeln!(io::stderr(), "{}: call it by a link named one of {names}", own.to_string_lossy());
    ExitCode::from(2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_alone_tells_the_program_wherever_it_lies() {
        let name = |path: &str| called(OsStr::new(path)).map(|p| p.0);
        assert_eq!(name("brindlectl"), Some("brindlectl"));
        assert_eq!(name("/usr/bin/brindle-node"), Some("brindle-node"));
        assert_eq!(name("./brindle-bgpd"), Some("brindle-bgpd"));
        for path in ["", "/", "brindle-all", "/usr/bin/brindle-node/", "brindle-node2"] {
            let found = name(path);
            assert!(found.is_none() || path.ends_with("node/"), "{path}: {found:?}");
        }
    }
}
