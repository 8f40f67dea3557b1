//! The BGP daemon around `brindle-bgpd-core`: sockets, tasks, and the translation of resources to peers.

mod communities;
mod conn;
mod fib;
mod handle;
mod listeners;
pub mod peers;
mod record;
pub mod settings;

pub use self::handle::{Desired, FibBatch, FibStream, Gone, Handle, ListenError, Running};
