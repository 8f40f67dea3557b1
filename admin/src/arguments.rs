//! Arguments of a program with their environment. A variable that is set and empty is one that is not set, as calico-node
//! has it: a manifest's way to leave something open.

use std::ffi::{OsStr, OsString};

use clap::{
    Arg, Command, CommandFactory, FromArgMatches,
    builder::Resettable,
    error::{ContextKind, ContextValue, Error},
};

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
    let mut command = without(T::command(), &is_empty);
    let mut matches = command.try_get_matches_from_mut(typed).map_err(|e| with_variable(e, &mut command))?;
    T::from_arg_matches_mut(&mut matches).map_err(|e| e.format(&mut T::command()))
}

/// A switch, as calico-node, Felix and Go read it; whatever else is written is no way of switching something on.
///
/// # Errors
/// What was expected.
pub fn boolean(text: &str) -> Result<bool, String> {
    match text.to_ascii_lowercase().as_str() {
        "true" | "t" | "1" | "yes" | "y" | "on" => Ok(true),
        "false" | "f" | "0" | "no" | "n" | "off" => Ok(false),
        _ => Err("expected true or false".to_owned()),
    }
}

/// Says of a value that cannot be meant which variable it comes from: whoever wrote a manifest knows no flags.
fn with_variable(mut e: Error, command: &mut Command) -> Error {
    // Parsing has built only the subcommand that was typed, and no other argument can be shown.
    command.build();
    let (Some(ContextValue::String(arg)), Some(ContextValue::String(value))) =
        (e.get(ContextKind::InvalidArg), e.get(ContextKind::InvalidValue))
    else {
        return e;
    };
    if let Some(name) = variable(command, arg, value) {
        let tip = format!("this is the value of the variable {name}");
        e.insert(ContextKind::Suggested, ContextValue::StyledStrs(vec![tip.into()]));
    }
    e
}

fn variable(command: &Command, arg: &str, value: &str) -> Option<String> {
    let gives = |name: &&OsStr| std::env::var(name).is_ok_and(|v| v == value);
    let of_arg = command.get_arguments().filter(|a| a.get_env().is_some() && a.to_string() == arg);
    let own = of_arg.filter_map(Arg::get_env).find(gives);
    own.map(|name| name.to_string_lossy().into_owned())
        .or_else(|| command.get_subcommands().find_map(|sub| variable(sub, arg, value)))
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
    fn a_switch_is_on_off_or_refused() {
        for on in ["true", "True", "t", "T", "1", "yes", "Y", "on"] {
            assert_eq!(boolean(on), Ok(true), "{on}");
        }
        for off in ["false", "FALSE", "f", "0", "no", "n", "off"] {
            assert_eq!(boolean(off), Ok(false), "{off}");
        }
        for other in ["", "perhaps", "tru", " true", "2"] {
            assert!(boolean(other).is_err(), "{other:?}");
        }
    }

    #[test]
    fn a_value_that_cannot_be_meant_is_said_with_its_variable() {
        let arg = Arg::new("x").long("x").env("PATH").value_parser(boolean);
        // One that is not typed comes first, with an argument that takes a value.
        let other = Command::new("o").arg(Arg::new("y").long("y").env("PATH").num_args(1));
        let mut command = Command::new("p").subcommands([other, Command::new("s").arg(arg)]);
        let told = |command: &mut Command, typed: &[&str]| {
            let e = command.try_get_matches_from_mut(typed).unwrap_err();
            with_variable(e, command).to_string()
        };
        let e = told(&mut command, &["p", "s"]);
        assert!(e.contains("expected true or false") && e.contains("the variable PATH"), "{e}");
        let e = told(&mut command, &["p", "s", "--x", "typed"]);
        assert!(e.contains("expected true or false") && !e.contains("PATH"), "{e}");
    }

    #[test]
    fn an_empty_variable_is_none() {
        assert_eq!(path(false), std::env::var("PATH").ok());
        assert_eq!(path(true), None);
    }
}
