//! Resources in YAML and JSON files: many documents in, typed resources, warnings and errors with their place out.
//!
//! The only module that names the YAML parser. `split` cuts a file into documents, so that a broken one does not
//! hide the next; `tree` parses one document and keeps where every node is and how every scalar was written;
//! `de` turns nodes into types with errors that name place and field; `read` makes resources of documents;
//! `write` is the way back.
//!
//! What a plain scalar means is decided as Calico's tools do (YAML 1.1: `yes` is a boolean, `014` is octal) where the
//! field wants a boolean or number. Where it wants text, the text as written counts: an unquoted `014` or `yes` in a
//! label stays `014` and `yes`, and the AS number `64512.10` does not become `64512.1`.

mod de;
mod read;
mod split;
mod tree;
mod write;

#[cfg(test)]
mod tests;

pub use read::{
    EMPTY_FILE, EMPTY_FOLDER, Loaded, Loading, Origin, idle_fields, parse_bytes, parse_str, read_one,
    read_one_with_origin, read_path, read_paths, read_paths_in, text,
};
pub use write::{to_yaml, to_yaml_documents};

use std::{fmt, sync::Arc};

/// Largest input read, bytes.
pub const MAX_INPUT: usize = 64 << 20;

/// Where something stands in the input.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    pub file: Arc<str>,
    /// From 1; 0 when the trouble is with the file itself.
    pub document: usize,
    /// From 1; 0 when unknown.
    pub line: usize,
    /// In characters, from 1.
    pub column: usize,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.file)?;
        if self.line > 0 {
            write!(f, ":{}:{}", self.line, self.column)?;
        }
        if self.document > 0 {
            write!(f, ": document {}", self.document)?;
        }
        Ok(())
    }
}

/// Something wrong or doubtful, with its place and field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    pub place: Place,
    /// Path of the field from the top of the document; empty when it is about the whole.
    pub field: String,
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.place)?;
        if !self.field.is_empty() {
            write!(f, "{}: ", self.field)?;
        }
        f.write_str(&self.message)
    }
}

impl std::error::Error for Problem {}
