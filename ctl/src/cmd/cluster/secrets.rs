//! What a resource may carry that a report of a fault must not: texts under names that speak of a secret, and the copy of
//! the whole that kubectl keeps in an annotation. References (the name of a Secret and of a key in it) stay.

use serde_json::Value;

const BLANK: &str = "(blanked)";
const WORDS: [&str; 6] = ["password", "passwd", "token", "secret", "credential", "apikey"];
const COPY: &str = "kubectl.kubernetes.io/last-applied-configuration";
/// `secretKeyRef` and its like, and the number of a token's seconds, tell nothing.
const REFERENCES: [&str; 2] = ["secretKeyRef", "secretName"];

fn is_secret(name: &str) -> bool {
    let plain: String = name.to_lowercase().chars().filter(char::is_ascii_alphanumeric).collect();
    WORDS.iter().any(|w| plain.contains(w)) && !REFERENCES.contains(&name)
}

/// Blanks them, wherever they are.
pub(super) fn blank(value: &mut Value) {
    match value {
        Value::Object(members) => {
            members.remove(COPY);
            for (name, inner) in members.iter_mut() {
                match inner {
                    Value::String(text) if is_secret(name) && !text.is_empty() => BLANK.clone_into(text),
                    other => blank(other),
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(blank),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn secrets_go_and_references_stay() {
        let mut value = json!({
            "metadata": {"name": "token-ring", "annotations": {COPY: "{}", "example.org/api-key": "k", "note": "n"}},
            "spec": {"password": {"secretKeyRef": {"name": "bgp", "key": "pw"}}, "authToken": "t", "PASSWD": "p",
                "list": [{"clientSecret": "s", "tokenSeconds": 7, "empty-secret": ""}]},
        });
        blank(&mut value);
        assert_eq!(
            value,
            json!({
                "metadata": {"name": "token-ring", "annotations": {"example.org/api-key": BLANK, "note": "n"}},
                "spec": {"password": {"secretKeyRef": {"name": "bgp", "key": "pw"}}, "authToken": BLANK,
                    "PASSWD": BLANK, "list": [{"clientSecret": BLANK, "tokenSeconds": 7, "empty-secret": ""}]},
            })
        );
    }
}
