//! The syntax of Kubernetes names, labels and annotations.

/// Longest name of an object.
const SUBDOMAIN: usize = 253;
/// Longest label of a domain name, longest value of a label.
const LABEL: usize = 63;

/// DNS-1123 subdomain: what objects may be called.
pub fn subdomain(s: &str) -> Result<(), String> {
    if s.len() > SUBDOMAIN {
        return Err(format!("a name has at most {SUBDOMAIN} characters, this one has {}", s.len()));
    }
    if s.split('.').all(is_dns_label) {
        return Ok(());
    }
    Err("a name has lower case letters, digits, - and . and begins and ends with a letter or digit".into())
}

/// DNS-1123 label: what namespaces may be called.
pub fn label(s: &str) -> Result<(), String> {
    if s.len() <= LABEL && is_dns_label(s) {
        return Ok(());
    }
    Err(format!(
        "expected at most {LABEL} lower case letters, digits and -, beginning and ending with a letter or digit"
    ))
}

/// Key of a label or an annotation: `name` or `prefix/name`.
pub fn qualified(s: &str) -> Result<(), String> {
    let (prefix, name) = s.split_once('/').map_or((None, s), |(p, n)| (Some(p), n));
    if prefix.is_none_or(|p| subdomain(p).is_ok()) && !name.is_empty() && is_label_text(name) {
        return Ok(());
    }
    Err(format!(
        "a key is [PREFIX/]NAME; the name has at most {LABEL} letters, digits, -, _ and . and begins and ends with a \
         letter or digit"
    ))
}

/// Value of a label; may be empty.
pub fn label_value(s: &str) -> Result<(), String> {
    if is_label_text(s) {
        return Ok(());
    }
    Err(format!(
        "the value of a label has at most {LABEL} letters, digits, -, _ and . and begins and ends with a letter or digit"
    ))
}

fn is_dns_label(s: &str) -> bool {
    let ok = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    s.starts_with(ok) && s.ends_with(ok) && s.chars().all(|c| ok(c) || c == '-')
}

fn is_label_text(s: &str) -> bool {
    let edge = |c: char| c.is_ascii_alphanumeric();
    s.is_empty()
        || s.len() <= LABEL
            && s.starts_with(edge)
            && s.ends_with(edge)
            && s.chars().all(|c| edge(c) || matches!(c, '-' | '_' | '.'))
}
