//! The conflist after it was written: without it the node is not ready for new pods, so the agent puts it back when somebody
//! takes it away. Whoever writes another one in its place is let be until the agent's next start.

use std::{fs, io, path::PathBuf};

use super::place::put;

/// A conflist this agent wrote.
pub(crate) struct Kept {
    path: PathBuf,
    text: String,
    /// What was said of it last, so that it is said once.
    said: String,
}

impl Kept {
    pub(super) fn new(path: PathBuf, text: String) -> Self {
        Self { path, text, said: String::new() }
    }

    /// One look.
    pub(crate) fn look(&mut self) {
        let shown = self.path.display().to_string();
        let said = match fs::read(&self.path) {
            Ok(there) if there == self.text.as_bytes() => String::new(),
            Ok(_) => {
                format!(
                    "conflist {shown}: somebody changed it; left alone, the next start of the agent writes it again"
                )
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => match self.put_back() {
                Ok(()) => {
                    tracing::warn!(
                        "conflist {shown}: somebody removed it; written again (stop the agent first to remove it for good)"
                    );
                    String::new()
                }
                Err(e) => {
                    format!("conflist {shown}: somebody removed it, and it cannot be written again: {e:#}")
                }
            },
            Err(e) => format!("conflist {shown}: {e}"),
        };
        if !said.is_empty() && said != self.said {
            tracing::warn!("{said}");
        }
        self.said = said;
    }

    fn put_back(&self) -> anyhow::Result<()> {
        if let Some(folder) = self.path.parent() {
            fs::create_dir_all(folder)?;
        }
        put(&self.path, self.text.as_bytes(), 0o644, &mut Vec::new())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_conflist_that_was_removed_comes_back_and_a_changed_one_stays() {
        let dir = std::env::temp_dir().join(format!("bt-{}-kept", std::process::id()));
        let path = dir.join("net.d/10-brindle.conflist");
        let mut kept = Kept::new(path.clone(), "ours\n".into());
        let now = || fs::read_to_string(&path).unwrap_or_default();
        kept.look();
        assert_eq!(now(), "ours\n", "with its folder");
        fs::remove_file(&path).unwrap();
        kept.look();
        assert_eq!(now(), "ours\n");
        fs::write(&path, "theirs").unwrap();
        kept.look();
        assert_eq!((&*now(), kept.said.contains("left alone")), ("theirs", true));
        fs::remove_dir_all(&dir).unwrap();
        // Where it cannot be written, that is said, and it is tried again.
        fs::write(&dir, "in the way").unwrap();
        kept.look();
        assert!(!kept.said.is_empty(), "{}", kept.said);
        fs::remove_file(&dir).unwrap();
        kept.look();
        assert_eq!((&*now(), &*kept.said), ("ours\n", ""));
        fs::remove_dir_all(&dir).unwrap();
    }
}
