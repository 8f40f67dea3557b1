//! How the agent talks to the carrier: JSON, one line a request, one line an answer, over a unix
//! socket of mode 0600. [`Client`] speaks it, [`ensure`] adopts a running carrier or starts one.

mod client;
mod launch;
mod wire;

pub use client::{Client, ClientError};
pub use launch::{Carrier, How, Launch, LaunchError, ensure};
pub use wire::{
    Answer, Config, Configured, Hello, InboundStats, OutboundStats, Request, Route, Stats, VERSION,
};
