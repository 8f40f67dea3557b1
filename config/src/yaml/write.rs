//! Resources to YAML. Nothing is lost: reading the text gives the same value again.

use serde::Serialize;

/// One document.
pub fn to_yaml<T: Serialize>(value: &T) -> String {
    let options = serde_saphyr::ser_options! { prefer_block_scalars: false };
    serde_saphyr::to_string_with_options(value, options).expect("resources have only strings as keys")
}

/// Documents separated by `---`.
pub fn to_yaml_documents<'a, T: Serialize + 'a>(values: impl IntoIterator<Item = &'a T>) -> String {
    let documents: Vec<String> = values.into_iter().map(|v| to_yaml(v)).collect();
    documents.join("---\n")
}
