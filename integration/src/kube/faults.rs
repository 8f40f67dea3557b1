//! Troubles tests can make: delays, read-only storage, refusals that go away after some calls.

use std::time::Duration;

use serde_json::json;

use super::{
    rbac::Call,
    status::{Answer, Status},
};

/// A refusal given instead of an answer.
#[derive(Clone, Debug)]
pub struct Refusal {
    /// Empty: every verb.
    pub verb: String,
    /// With the sub-resource; empty: every one.
    pub resource: String,
    /// 429, 500, 503 and so on.
    pub code: u16,
    /// Seconds of Retry-After.
    pub retry_after: Option<u32>,
    /// How often.
    pub times: usize,
}

#[derive(Debug, Default)]
pub(crate) struct Faults {
    pub delay: Option<Duration>,
    pub read_only: bool,
    /// A field that cannot be selected by, as in servers of before it could.
    pub unselectable: Option<String>,
    pub refusals: Vec<Refusal>,
}

impl Faults {
    /// The refusal for this call and its field selector, which uses it up.
    pub(crate) fn refuse(&mut self, call: &Call, fields: &str) -> Answer<()> {
        let hit = self.refusals.iter_mut().find(|r| {
            r.times > 0
                && call.path.is_none()
                && (r.verb.is_empty() || r.verb == call.verb)
                && (r.resource.is_empty() || r.resource == call.resource)
        });
        if let Some(r) = hit {
            r.times -= 1;
            let (reason, message) = match r.code {
                429 => (
                    "TooManyRequests",
                    "the server has received too many requests and has asked us to try again later",
                ),
                503 => ("ServiceUnavailable", "the server is currently unable to handle the request"),
                504 => (
                    "Timeout",
                    "the server was unable to return a response in the time allotted, but may still be processing the request",
                ),
                _ => ("InternalError", "Internal error occurred: the fault a test asked for"),
            };
            let details = r.retry_after.map_or_else(|| json!({}), |s| json!({"retryAfterSeconds": s}));
            return Err(Status::new(r.code, reason, message).with(details));
        }
        if let Some(field) = self.unselectable.as_ref().filter(|f| fields.contains(f.as_str())) {
            return Err(Status::bad_request(format!("field label not supported: {field}")));
        }
        let writes = !matches!(call.verb.as_str(), "get" | "list" | "watch" | "head");
        if self.read_only && writes {
            return Err(Status::plain_error("etcdserver: mvcc: database space exceeded"));
        }
        Ok(())
    }
}
