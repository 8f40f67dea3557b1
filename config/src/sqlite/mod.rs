//! The SQLite store: many processes share one file, without a server and without polling.
//!
//! - `db`: schema and transactions; `fault`: what each error means. Synchronous.
//! - `worker`: a thread that owns one connection, so that no caller's runtime ever waits for a disk.
//! - `feed`: how a commit in one process wakes the watches in all others.
//! - `frozen`: reading a file on a file system nobody can write.
//! - `pair`: a log is never replayed over another file than the one it was begun for.
//! - `store`: the `Store` trait over these.
//!
//! Files: `PATH` (0600), SQLite's own `PATH-wal` and `PATH-shm`, `PATH.feed`, 8 bytes whose modification is the signal,
//! and `PATH.lock`. The whole set must live on a local file system.

mod db;
mod fault;
mod feed;
mod frozen;
mod pair;
mod store;
mod worker;

#[cfg(test)]
mod tests;

pub use store::SqliteStore;
