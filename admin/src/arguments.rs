//! Arguments of a program with their environment. A variable that is set and empty is one that is not set, as calico-node
//! has it: a manifest's way to leave something open.

use std::ffi::{OsStr, OsString};

use clap::{Arg, Command, CommandFactory, FromArgMatches, builder::Resettable, error::Error};

/// Those of this process; whatever is wrong with them ends it, as clap does.
#[must_use]
pub fn parse<T: CommandFactory + FromArgMatches>() -> T {
    try_parse_from(std::env::args_os()).unwrap_or_else(|e| e.exit())
}

/// These, the program's name first.
///
/// # Errors
/// What is wrong with them, and requests for help.
pub fn try_parse_from<T: CommandFactory + FromArgMatches>(
    typed: impl IntoIterator<Item = OsString>,
) -> Result<T, Error> {
    let is_empty = |name: &OsStr| std::env::var_os(name).is_some_and(|value| value.is_empty());
    let mut matches = without(T::command(), &is_empty).try_get_matches_from(typed)?;
    T::from_arg_matches_mut(&mut matches).map_err(|e| e.format(&mut T::command()))
}

/// The command, in whose arguments no variable counts that is empty.
fn without(command: Command, is_empty: &dyn Fn(&OsStr) -> bool) -> Command {
    let open = |arg: Arg| match arg.get_env().is_some_and(is_empty) {
        true => arg.env(Resettable::Reset),
        false => arg,
    };
    command.mut_args(open).mut_subcommands(|sub| without(sub, is_empty))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The only variable every test has; what it is said to be counts here, not what it is.
    fn path(is_empty: bool) -> Option<String> {
        let arg = Arg::new("x").long("x").env("PATH");
        let command = Command::new("p").subcommand(Command::new("s").arg(arg));
        let matches = without(command, &|name| is_empty && name == "PATH").get_matches_from(["p", "s"]);
        matches.subcommand_matches("s").and_then(|m| m.get_one::<String>("x").cloned())
    }

    #[test]
    fn an_empty_variable_is_none() {
        assert_eq!(path(false), std::env::var("PATH").ok());
        assert_eq!(path(true), None);
    }
}
