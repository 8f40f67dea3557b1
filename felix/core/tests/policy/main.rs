//! Network policy as a whole, through the public interface: against an independent oracle, in every order of updates,
//! with bad input, as whole rule sets kept in files, and as a walk through
//! the rules.

mod bad_input;
mod differential;
mod golden;
mod hosts;
mod oracle;
mod scale;
mod sequences;
mod settings;
mod walk;
