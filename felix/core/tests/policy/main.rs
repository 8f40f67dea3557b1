//! Network policy as a whole, through the public interface: against an independent oracle, in every order of updates,
//! with bad input, and as whole rule sets kept in files.

mod bad_input;
mod differential;
mod golden;
mod oracle;
mod scale;
mod sequences;
mod settings;
