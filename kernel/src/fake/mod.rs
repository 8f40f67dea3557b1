//! A model of one network namespace with fault injection (feature `fake`, for tests of this and other packages).
//!
//! [`World`] is the namespace seen from outside: tests create devices, interfere as another process would, script
//! failures and look at the result. [`World::open`] gives what a program under test holds. tests/contract.rs keeps the
//! model honest against Linux.

mod fault;
mod kernel;
mod model;
mod netfilter;

pub use fault::{Call, Fault};
pub use kernel::{FakeEvents, FakeKernel, World};
pub use netfilter::{FakeFilter, FilterWorld, NfCall};
