//! How programs are asked from elsewhere. Agents by brindlectl: TLS 1.3 with raw public keys (RFC 8446, RFC 7250) that
//! both derive from one token of the cluster; what is said over the channel is `brindle_config_core::status`; who listens
//! and who dials are the agent and brindlectl (docs/adr/0004). All programs by Prometheus and kubelet: `http`, `metrics`. What
//! they say unasked: `log`, and beside it `aside`. What they are told by whoever starts them: `arguments`, and by a terminal that goes: `hangup`. What a
//! panic costs at most: `defect`.

pub mod arguments;
pub mod aside;
pub mod defect;
pub mod hangup;
pub mod http;
pub mod log;
pub mod metrics;
mod tls;
mod token;

pub use tls::{client, server, server_name};
pub use token::{MIN_TOKEN, Token, TokenError};
pub use tokio_rustls::{TlsAcceptor, rustls};
