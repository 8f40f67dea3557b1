//! The BGP daemon around `brindle-bgpd-core`: sockets, tasks, and the translation of resources to peers.
//!
//! ```text
//!  store --sync--> follow --translate (peers)--> Desired --+        brindle-bgpd --config FILE.yaml (settings)
//!                                                          |                    |
//!                                                   Handle::apply  <------------+
//!                                                          | orders
//!  listen --+                                              v
//!  dial   --+--> reader --decoded--> inbox ----> [ speaker_task: owns Speaker ] --batches--> FibStream (node: felix)
//!             \  (1 per connection)  (bounded)     |      ^
//!              \                                   | chunk| room
//!               +-- socket                         v      |
//!                      ^------------- bytes ------ writer (1 per connection)
//! ```
//! The speaker task never waits for a peer: readers wait for it (so a flood is slowed by its own TCP window), and
//! writers get their next chunk when the socket took the one before. One armed sleep, at `Speaker::deadline`: an idle
//! daemon wakes only for keepalives. See docs/design/bgpd.md.
#![deny(clippy::print_stderr, reason = "it ends the program where nobody reads; aside::say does not")]

pub mod admin;
pub mod ask;
pub mod cli;
mod conn;
pub mod daemon;
mod fault;
mod fib;
mod follow;
mod handle;
pub mod health;
pub mod import;
mod keys;
mod listeners;
pub mod log;
pub mod metrics;
pub mod mrt;
pub mod peers;
mod record;
mod remembered;
pub mod replay;
mod secrets;
pub mod settings;
pub mod show;
mod spawn;
mod speaker_task;
mod tally;
mod view;

pub use self::{
    follow::{Environment, Follower, from_store},
    handle::{AskKernel, Desired, FibBatch, FibStream, Handle, ListenError, Running, Unanswered},
    remembered::recall,
    secrets::DEFAULT_SECRETS,
    spawn::{spawn, spawn_recorded},
    view::RibPath,
};
