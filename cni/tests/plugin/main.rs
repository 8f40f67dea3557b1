//! The real programs, started as a runtime starts them, against an agent played by the test.

mod attach;
mod detach;
mod stage;
mod stdio;
