//! The real programs, started as a runtime starts them, against an agent played by the test.

mod attach;
mod delegated;
mod detach;
mod loopback;
mod reserve;
mod stage;
mod stdio;
