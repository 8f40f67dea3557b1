//! Network policy as a whole, through the public interface: against an independent oracle, in every order of updates,
//! and with bad input.

mod bad_input;
mod differential;
mod oracle;
mod scale;
mod sequences;
