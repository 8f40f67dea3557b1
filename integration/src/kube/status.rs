//! Failures as the API server words them: `meta/v1 Status` bodies with code, reason, message and details.
//!
//! The sentences are the interface (`kubectl` prints them, clients match reason and code), so they follow
//! k8s.io/apimachinery/pkg/api/errors.

use serde_json::{Map, Value, json};

/// What a request can come to besides success.
#[derive(Clone, Debug, PartialEq)]
pub struct Status {
    pub code: u16,
    /// Empty: the machine-readable reason is unknown.
    pub reason: String,
    pub message: String,
    pub details: Option<Value>,
    /// The body is this text instead of a `Status` (unknown paths).
    pub plain: bool,
    /// `metadata.continue`: how an expired list can go on inconsistently.
    pub proceed: Option<String>,
}

/// A result of the server's own functions.
pub(crate) type Answer<T> = Result<T, Box<Status>>;

/// One finding about one field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Cause {
    pub reason: &'static str,
    pub message: String,
    pub field: String,
}

impl Cause {
    pub(crate) fn required(field: impl Into<String>, detail: &str) -> Self {
        let message =
            if detail.is_empty() { "Required value".to_owned() } else { format!("Required value: {detail}") };
        Self { reason: "FieldValueRequired", message, field: field.into() }
    }

    pub(crate) fn invalid(field: impl Into<String>, value: &Value, detail: &str) -> Self {
        Self {
            reason: "FieldValueInvalid",
            message: format!("Invalid value: {}: {detail}", shown(value)),
            field: field.into(),
        }
    }

    pub(crate) fn type_invalid(field: impl Into<String>, value: &Value, detail: &str) -> Self {
        Self {
            reason: "FieldValueTypeInvalid",
            message: format!("Invalid value: {}: {detail}", shown(value)),
            field: field.into(),
        }
    }

    pub(crate) fn forbidden(field: impl Into<String>, detail: &str) -> Self {
        Self { reason: "FieldValueForbidden", message: format!("Forbidden: {detail}"), field: field.into() }
    }

    pub(crate) fn unsupported(field: impl Into<String>, value: &Value, choices: &[String]) -> Self {
        let choices: Vec<_> = choices.iter().map(|c| format!("{c:?}")).collect();
        Self {
            reason: "FieldValueNotSupported",
            message: format!("Unsupported value: {}: supported values: {}", shown(value), choices.join(", ")),
            field: field.into(),
        }
    }

    pub(crate) fn duplicate(field: impl Into<String>, value: &Value) -> Self {
        Self {
            reason: "FieldValueDuplicate",
            message: format!("Duplicate value: {}", shown(value)),
            field: field.into(),
        }
    }

    pub(crate) fn too_long(field: impl Into<String>, limit: u64) -> Self {
        Self {
            reason: "FieldValueTooLong",
            message: format!("Too long: may not be more than {limit} bytes"),
            field: field.into(),
        }
    }

    pub(crate) fn too_many(field: impl Into<String>, have: usize, limit: u64) -> Self {
        Self {
            reason: "FieldValueTooMany",
            message: format!("Too many: {have}: must have at most {limit} items"),
            field: field.into(),
        }
    }
}

/// A value as an error message shows it.
fn shown(value: &Value) -> String {
    match value {
        Value::Null => "null".to_owned(),
        other => other.to_string(),
    }
}

impl Status {
    pub(crate) fn new(code: u16, reason: &str, message: impl Into<String>) -> Box<Self> {
        Box::new(Self {
            code,
            reason: reason.to_owned(),
            message: message.into(),
            details: Some(json!({})),
            plain: false,
            proceed: None,
        })
    }

    pub(crate) fn with(mut self: Box<Self>, details: Value) -> Box<Self> {
        self.details = Some(details);
        self
    }

    pub(crate) fn without_details(mut self: Box<Self>) -> Box<Self> {
        self.details = None;
        self
    }

    pub(crate) fn page_not_found() -> Box<Self> {
        let mut s = Self::new(404, "NotFound", "404 page not found\n");
        s.plain = true;
        s
    }

    pub(crate) fn unauthorized() -> Box<Self> {
        Self::new(401, "Unauthorized", "Unauthorized").without_details()
    }

    pub(crate) fn bad_request(message: impl Into<String>) -> Box<Self> {
        Self::new(400, "BadRequest", message).without_details()
    }

    pub(crate) fn method_not_allowed() -> Box<Self> {
        Self::new(405, "MethodNotAllowed", "the server does not allow this method on the requested resource")
    }

    pub(crate) fn not_found(group: &str, plural: &str, name: &str) -> Box<Self> {
        Self::new(404, "NotFound", format!("{} {name:?} not found", qualified(plural, group)))
            .with(named(name, group, plural))
    }

    pub(crate) fn already_exists(group: &str, plural: &str, name: &str) -> Box<Self> {
        Self::new(409, "AlreadyExists", format!("{} {name:?} already exists", qualified(plural, group)))
            .with(named(name, group, plural))
    }

    pub(crate) fn conflict(group: &str, plural: &str, name: &str, why: &str) -> Box<Self> {
        let what = qualified(plural, group);
        Self::new(409, "Conflict", format!("Operation cannot be fulfilled on {what} {name:?}: {why}"))
            .with(named(name, group, plural))
    }

    pub(crate) fn modified(group: &str, plural: &str, name: &str) -> Box<Self> {
        let why =
            "the object has been modified; please apply your changes to the latest version and try again";
        Self::conflict(group, plural, name, why)
    }

    pub(crate) fn forbidden(group: &str, plural: &str, name: &str, why: &str) -> Box<Self> {
        let what = qualified(plural, group);
        let message = if name.is_empty() {
            format!("{what} is forbidden: {why}")
        } else {
            format!("{what} {name:?} is forbidden: {why}")
        };
        Self::new(403, "Forbidden", message).with(named(name, group, plural))
    }

    /// 422. `kind` is qualified by the group as the real server does it: `IPPool.crd.projectcalico.org`.
    pub(crate) fn invalid(group: &str, kind: &str, name: &str, causes: &[Cause]) -> Box<Self> {
        let texts: Vec<_> = causes.iter().map(|c| format!("{}: {}", c.field, c.message)).collect();
        let texts =
            if let [one] = texts.as_slice() { one.clone() } else { format!("[{}]", texts.join(", ")) };
        let mut details = named(name, group, kind);
        details["causes"] = causes
            .iter()
            .map(|c| json!({"reason": c.reason, "message": c.message, "field": c.field}))
            .collect::<Vec<_>>()
            .into();
        Self::new(422, "Invalid", format!("{} {name:?} is invalid: {texts}", qualified(kind, group)))
            .with(details)
    }

    pub(crate) fn unsupported_media_type(accepted: &[&str]) -> Box<Self> {
        let list = accepted.join(", ");
        Self::new(
            415,
            "UnsupportedMediaType",
            format!(
                "the body of the request was in an unknown format - accepted media types include: {list}"
            ),
        )
    }

    /// An error of the storage that no API error stands for: 500 and no reason.
    pub(crate) fn plain_error(message: impl Into<String>) -> Box<Self> {
        Self::new(500, "", message).without_details()
    }

    pub(crate) fn expired(message: impl Into<String>) -> Box<Self> {
        Self::new(410, "Expired", message).without_details()
    }

    /// The body sent.
    pub fn body(&self) -> Value {
        let mut o = Map::new();
        o.insert("kind".into(), "Status".into());
        o.insert("apiVersion".into(), "v1".into());
        o.insert(
            "metadata".into(),
            self.proceed.as_ref().map_or_else(|| json!({}), |c| json!({"continue": c})),
        );
        o.insert("status".into(), "Failure".into());
        o.insert("message".into(), self.message.clone().into());
        if !self.reason.is_empty() {
            o.insert("reason".into(), self.reason.clone().into());
        }
        if let Some(d) = &self.details {
            o.insert("details".into(), d.clone());
        }
        o.insert("code".into(), self.code.into());
        Value::Object(o)
    }

    /// `details.retryAfterSeconds`, which is also a header.
    pub(crate) fn retry_after(&self) -> Option<u64> {
        self.details.as_ref()?.get("retryAfterSeconds")?.as_u64()
    }
}

fn qualified(what: &str, group: &str) -> String {
    if group.is_empty() { what.to_owned() } else { format!("{what}.{group}") }
}

fn named(name: &str, group: &str, kind: &str) -> Value {
    let mut o = Map::new();
    for (k, v) in [("name", name), ("group", group), ("kind", kind)] {
        if !v.is_empty() {
            o.insert(k.to_owned(), v.into());
        }
    }
    Value::Object(o)
}
