//! Forms of names, labels and annotations (RFC 1123, k8s.io/apimachinery/pkg/util/validation), and the checks of
//! `metadata` every object passes.

use serde_json::Value;

use super::status::Cause;

const LABEL: &str = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')";
const SUBDOMAIN: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";
const DNS1035: &str = "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic character, and end with an alphanumeric character (e.g. 'my-name',  or 'abc-123', regex used for validation is '[a-z]([-a-z0-9]*[a-z0-9])?')";
const QUALIFIED: &str = "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')";
const VALUE: &str = "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')";

/// All annotations together, bytes.
const ANNOTATIONS: usize = 256 << 10;

/// What a name must look like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    Subdomain,
    Label,
    Dns1035,
    /// One path segment: names of RBAC objects.
    Segment,
}

fn is_label(s: &str) -> bool {
    let edge = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit();
    let b = s.as_bytes();
    !b.is_empty() && edge(b[0]) && edge(b[b.len() - 1]) && b.iter().all(|&c| edge(c) || c == b'-')
}

impl Form {
    /// The server's sentence, when the name is wrong.
    pub(crate) fn check(self, name: &str) -> Result<(), String> {
        let limit = match self {
            Self::Subdomain => 253,
            Self::Label | Self::Dns1035 => 63,
            Self::Segment => {
                return match name {
                    "." | ".." => Err(format!("may not be '{name}'")),
                    n if n.contains('/') => Err("may not contain '/'".into()),
                    n if n.contains('%') => Err("may not contain '%'".into()),
                    _ => Ok(()),
                };
            }
        };
        if name.len() > limit {
            return Err(format!("must be no more than {limit} bytes"));
        }
        let (ok, why) = match self {
            Self::Subdomain => (name.split('.').all(is_label), SUBDOMAIN),
            Self::Label => (is_label(name), LABEL),
            _ => (is_label(name) && !name.as_bytes()[0].is_ascii_digit(), DNS1035),
        };
        if ok { Ok(()) } else { Err(why.to_owned()) }
    }
}

fn is_name_part(s: &str) -> bool {
    let edge = |c: u8| c.is_ascii_alphanumeric();
    let b = s.as_bytes();
    !b.is_empty() && edge(b[0]) && edge(b[b.len() - 1]) && b.iter().all(|&c| edge(c) || b"-_.".contains(&c))
}

/// A label or annotation key, or a finalizer.
pub(crate) fn qualified(key: &str) -> Result<(), String> {
    let (prefix, name) = match key.split_once('/') {
        Some((p, n)) => (Some(p), n),
        None => (None, key),
    };
    if let Some(p) = prefix {
        if p.is_empty() {
            return Err("prefix part must be non-empty".into());
        }
        Form::Subdomain.check(p).map_err(|e| format!("prefix part {e}"))?;
    }
    if name.is_empty() {
        return Err("name part must be non-empty".into());
    }
    if name.len() > 63 {
        return Err("name part must be no more than 63 bytes".into());
    }
    if is_name_part(name) { Ok(()) } else { Err(QUALIFIED.to_owned()) }
}

pub(crate) fn label_value(value: &str) -> Result<(), String> {
    if value.len() > 63 {
        return Err("must be no more than 63 bytes".into());
    }
    if value.is_empty() || is_name_part(value) { Ok(()) } else { Err(VALUE.to_owned()) }
}

/// Findings about `metadata`.
pub(crate) fn metadata(object: &Value, form: Form) -> Vec<Cause> {
    let mut out = Vec::new();
    let meta = &object["metadata"];
    let name = meta["name"].as_str().unwrap_or("");
    if name.is_empty() {
        out.push(Cause::required("metadata.name", "name or generateName is required"));
    } else if let Err(e) = form.check(name) {
        out.push(Cause::invalid("metadata.name", &name.into(), &e));
    }
    for (k, v) in meta["labels"].as_object().into_iter().flatten() {
        if let Err(e) = qualified(k) {
            out.push(Cause::invalid("metadata.labels", &k.as_str().into(), &e));
        }
        if let Err(e) = label_value(v.as_str().unwrap_or("")) {
            out.push(Cause::invalid("metadata.labels", v, &e));
        }
    }
    let mut size = 0;
    for (k, v) in meta["annotations"].as_object().into_iter().flatten() {
        if let Err(e) = qualified(&k.to_lowercase()) {
            out.push(Cause::invalid("metadata.annotations", &k.as_str().into(), &e));
        }
        size += k.len() + v.as_str().unwrap_or("").len();
    }
    if size > ANNOTATIONS {
        out.push(Cause::too_long("metadata.annotations", ANNOTATIONS as u64));
    }
    for (i, o) in meta["ownerReferences"].as_array().into_iter().flatten().enumerate() {
        for field in ["apiVersion", "kind", "name", "uid"] {
            if o[field].as_str().unwrap_or("").is_empty() {
                let detail =
                    if field == "apiVersion" { "version must not be empty" } else { "must not be empty" };
                out.push(Cause::invalid(
                    format!("metadata.ownerReferences[{i}].{field}"),
                    &"".into(),
                    detail,
                ));
            }
        }
    }
    for f in meta["finalizers"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        if let Err(e) = qualified(f) {
            out.push(Cause::invalid("metadata.finalizers", &f.into(), &e));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn names_have_forms() {
        for ok in ["a", "a-b", "10.0.0.1", "a.b-c"] {
            assert!(Form::Subdomain.check(ok).is_ok(), "{ok}");
        }
        for wrong in ["", "A", "a_b", "-a", "a-", "a..b", "a/b", &"a".repeat(254)] {
            assert!(Form::Subdomain.check(wrong).is_err(), "{wrong}");
        }
        assert!(Form::Label.check("a.b").is_err() && Form::Dns1035.check("1a").is_err());
        assert!(Form::Segment.check("system:node").is_ok());
        assert!(qualified("projectcalico.org/IPv4Address").is_ok() && qualified("a/b/c").is_err());
    }

    #[test]
    fn metadata_is_checked_with_the_servers_words() {
        let causes = metadata(&json!({"metadata": {"name": "A", "labels": {"k": "-"}}}), Form::Subdomain);
        assert_eq!(causes.len(), 2);
        assert!(causes[0].message.starts_with("Invalid value: \"A\": a lowercase RFC 1123 subdomain must"));
        let large = json!({"metadata": {"name": "a", "annotations": {"k": "x".repeat(300_000)}}});
        assert_eq!(
            metadata(&large, Form::Subdomain)[0].message,
            "Too long: may not be more than 262144 bytes"
        );
    }
}
