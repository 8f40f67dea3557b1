//! The package against a store that is interleaved, interrupted and interrogated by the test.

mod assign;
mod cluster;
mod leaks;
mod race;
mod sim;
mod storm;
mod tunnel;
mod warm;
