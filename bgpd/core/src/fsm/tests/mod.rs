//! Tests of the state machine: the whole (state, event) table, two simulated neighbors, random event strings.

mod pair;
mod scenarios;
mod table;
