//! The package against a store that is interleaved, interrupted and interrogated by the test.

mod assign;
mod race;
mod sim;
