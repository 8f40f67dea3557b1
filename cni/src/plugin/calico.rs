//! The plugins under the names of Calico's, on a node taken over from it. A runtime that deletes a pod by the configuration
//! it was made with (CRI-O) calls `calico`, and that one asks the API server with a token that Calico's agent renewed. So what
//! Calico attached is deleted by ours; nothing is attached under these names.

use super::Program;
use crate::{
    env::Command,
    error::{CniError, code},
};

/// Where a pod's network is now.
const INSTEAD: &str = "Brindle's own conflist (10-brindle.conflist) attaches pods: start brindle-node, which writes it; of other \
    networks the type is brindle, the ipam.type brindle-ipam; `brindle-node remove` puts Calico's plugin back";

/// As which program to go on; `None`: there is nothing to do.
pub(super) fn instead(program: Program, command: Command) -> Result<Option<Program>, CniError> {
    let own = match program {
        Program::Calico => Program::Interface,
        Program::CalicoIpam => Program::Ipam,
        own => return Ok(Some(own)),
    };
    let refused =
        || format!("this node was taken over from Calico: {} attaches nothing any more", program.name());
    match command {
        Command::Add => Err(CniError::config(refused()).hint(INSTEAD)),
        Command::Status => Err(CniError::new(code::NOT_AVAILABLE, refused()).hint(INSTEAD)),
        // Calico's own compares nothing either, and its results do not say what ours does.
        Command::Check => Ok(None),
        Command::Del | Command::Gc | Command::Version => Ok(Some(own)),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn by_calicos_names_things_are_taken_away_and_nothing_is_made() {
        for (path, own) in
            [("/opt/cni/bin/calico", Program::Interface), ("/opt/cni/bin/calico-ipam", Program::Ipam)]
        {
            let program = Program::called(Path::new(path));
            assert!(path.ends_with(program.name()), "{path}");
            for command in [Command::Del, Command::Gc, Command::Version] {
                assert_eq!(instead(program, command), Ok(Some(own)), "{path} {command:?}");
            }
            assert_eq!(instead(program, Command::Check), Ok(None));
            let codes = [Command::Add, Command::Status].map(|c| instead(program, c).unwrap_err().code);
            assert_eq!(codes, [code::CONFIG, code::NOT_AVAILABLE], "{path}");
            assert_eq!(instead(own, Command::Add), Ok(Some(own)));
        }
        let kept = Program::called(Path::new("/opt/cni/bin/calico.before-brindle"));
        assert_eq!(kept, Program::Interface, "whatever else it is called");
    }
}
