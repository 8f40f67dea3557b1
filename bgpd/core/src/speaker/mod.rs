//! The speaker: all peers and the RIB behind one `handle`. The driver owns sockets and the clock.
//!
//! ```text
//! socket -> reader (frames) -> Input::Message -> Speaker -> Output::{Send, Dial, Close, Fib, ..} -> driver
//! ```
//! The driver's loop is: wait for input | `deadline()` | room in an output queue; call `handle`, `on_time` or
//! `next_update`; drain `Output`s in order.

mod io;

pub use io::*;
