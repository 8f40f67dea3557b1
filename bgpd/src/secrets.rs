//! Secrets for stores that have none of their own: a folder with one folder per secret and one file per key, as
//! Kubernetes mounts them (`DIR/NAME/KEY`).

use std::path::PathBuf;

use tracing::warn;

use crate::peers::ClusterState;

/// Where `brindle-bgpd` looks unless told otherwise.
pub const DEFAULT_SECRETS: &str = "/var/lib/brindle/secrets";

/// A folder of secrets.
#[derive(Clone, Debug)]
pub(crate) struct Secrets(pub(crate) PathBuf);

impl Secrets {
    /// Reads what the resources refer to; whether anything is another than before.
    pub(crate) fn read(&self, state: &mut ClusterState) -> bool {
        let mut changed = false;
        for (name, key) in state.wanted_secrets() {
            changed |= match self.value(&name, &key) {
                Some(value) => state.set_secret(&name, &key, &value),
                None => state.forget_secret(&name, &key),
            };
        }
        changed
    }

    pub(crate) fn value(&self, name: &str, key: &str) -> Option<String> {
        let plain = |s: &str| !s.is_empty() && s != "." && s != ".." && !s.contains('/');
        if !(plain(name) && plain(key)) {
            return None;
        }
        let file = self.0.join(name).join(key);
        match std::fs::read_to_string(&file) {
            Ok(text) => Some(text.trim_end_matches(['\r', '\n']).to_owned()).filter(|t| !t.is_empty()),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => None,
            Err(error) => {
                warn!(file = %file.display(), %error, "a secret cannot be read");
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_a_file_and_nothing_outside_the_folder_is_read() {
        let dir = std::env::temp_dir().join(format!("bgpd-secrets-{}", std::process::id()));
        std::fs::create_dir_all(dir.join("bgp")).unwrap();
        std::fs::write(dir.join("bgp/tor"), "s3cret\n").unwrap();
        std::fs::write(dir.join("bgp/empty"), "\n").unwrap();
        assert_eq!(Secrets(dir.clone()).value("bgp", "tor").as_deref(), Some("s3cret"));
        for (name, key) in
            [("bgp", "empty"), ("bgp", "none"), ("..", "bgp"), ("bgp", "../bgp/tor"), ("", "tor")]
        {
            assert_eq!(Secrets(dir.clone()).value(name, key), None, "{name} {key}");
        }
        std::fs::remove_dir_all(dir).unwrap();
    }
}
