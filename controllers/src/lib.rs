//! What needs doing once for a whole cluster, by one process of several: addresses nobody uses, what nodes that are gone
//! left, claims on blocks that stopped halfway, records of handles that hold nothing, addresses of LoadBalancer
//! services, names of policies, host endpoints of nodes.
//!
//! ```text
//! store ──sync──> Facts ──Planner (pure, remembers since when)──> Plan ──act──> store
//!                           ^ a clock's reading          only while the lease is held
//! ```
//!
//! [`facts`] and [`plan`] decide and do no I/O; [`act`] does what they say through the package `ipam`, whose writes are
//! all conditional; [`run`] is the loop around them. A plan is made again from a fresh listing before anything is
//! done, and what was done shows in the next one: there is no state of its own to lose. docs/design/controllers.md.
#![deny(clippy::print_stderr, reason = "it ends the program where nobody reads; aside::say does not")]

pub mod act;
pub mod cli;
pub mod config;
pub mod facts;
pub mod health;
mod kubernetes;
pub mod metrics;
mod outside;
pub mod plan;
mod rests;
pub mod run;
