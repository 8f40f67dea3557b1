//! How `get` shows resources: as one answer, or one by one as they change. Some at a time; what is printed is forgotten.

use anyhow::{Result, bail};
use brindle_config_core::{Kind, store::Entry};
use serde_json::{Value, json};

use super::{
    columns::{self, Facts},
    form::{Column, Form},
    get, into_shown,
    select::Selection,
};
use crate::out::{self, Table};

/// Rows shown at a time.
const PIECE: usize = 1000;
/// Octets collected before they are written.
const BUFFER: usize = 1 << 16;

/// What a shown resource looks like.
pub(super) struct Shape<'a> {
    pub(super) form: &'a Form,
    pub(super) everywhere: bool,
    pub(super) export: bool,
    pub(super) facts: Facts,
}

impl Shape<'_> {
    fn value(&self, entry: Entry) -> Value {
        let mut value = into_shown(entry);
        if self.export {
            get::export(&mut value);
        }
        value
    }
}

/// Prints entries as one answer.
pub(super) fn all(entries: Vec<Entry>, selection: &Selection, shape: &Shape<'_>) -> Result<()> {
    let single = matches!(selection, Selection::Named(keys) if keys.len() == 1);
    let mut values = entries;
    let first = |values: Vec<Entry>| values.into_iter().next().map(|e| shape.value(e)).unwrap_or_default();
    match shape.form {
        Form::Json if single => out::say!("{}", pretty(&first(values))),
        Form::Json => list_as_json(values, selection, shape),
        Form::Yaml if single => out::put!("{}", brindle_config::yaml::to_yaml(&first(values))),
        Form::Yaml => list_as_yaml(values, selection, shape),
        Form::Name => {
            let mut lines = Buffer::default();
            for e in values {
                lines.add(&format!("{}\n", name(&e)));
            }
            lines.flush();
        }
        Form::Template(_) | Form::Go(_) => {
            let value = if single {
                first(values)
            } else {
                list(values.into_iter().map(|e| shape.value(e)).collect(), selection)
            };
            let mut text = Buffer::default();
            let filled = fill(shape.form, &value, &mut text);
            text.end_line();
            filled?;
        }
        Form::Table | Form::Wide | Form::Columns(_) | Form::Other(..) => {
            // Those of a kind lie together; sorting keeps the order among them.
            values.sort_by_key(|e| e.key.kind);
            let mut rows = Rows::new(shape, false);
            // Headings say that there is nothing, and of what; those of several kinds would not.
            match selection {
                Selection::Kinds(kinds) if values.is_empty() => match kinds.as_slice() {
                    [kind] => rows.begin(*kind)?,
                    kinds => {
                        let names: Vec<&str> = kinds.iter().map(|k| k.plural()).collect();
                        out::remark(format_args!("no {}", names.join(", no ")));
                    }
                },
                _ => {}
            }
            for e in values {
                rows.add(None, e)?;
            }
            rows.flush();
        }
    }
    Ok(())
}

/// What became of a resource; the words are those of a watch of Kubernetes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Event {
    Added,
    Modified,
    Deleted,
}

impl Event {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Added => "ADDED",
            Self::Modified => "MODIFIED",
            Self::Deleted => "DELETED",
        }
    }
}

/// Resources one by one, as they change: documents of their own, or rows.
pub(super) struct Stream<'a> {
    shape: &'a Shape<'a>,
    events: bool,
    rows: Rows<'a>,
    text: Buffer,
    documents: usize,
}

impl<'a> Stream<'a> {
    pub(super) fn new(shape: &'a Shape<'a>, events: bool) -> Self {
        Self { shape, events, rows: Rows::new(shape, events), text: Buffer::default(), documents: 0 }
    }

    pub(super) fn show(&mut self, event: Event, entry: &Entry) -> Result<()> {
        let document = || {
            let value = self.shape.value(entry.clone());
            if self.events { json!({"type": event.as_str(), "object": value}) } else { value }
        };
        match self.shape.form {
            Form::Json => self.text.add(&format!("{}\n", pretty(&document()))),
            Form::Yaml => {
                let text = brindle_config::yaml::to_yaml(&document());
                self.text.add(if self.documents > 0 { "---\n" } else { "" });
                self.text.add(&text);
            }
            Form::Name => {
                let word = if self.events { format!("{:<10}", event.as_str()) } else { String::new() };
                self.text.add(&format!("{word}{}\n", name(entry)));
            }
            Form::Template(_) | Form::Go(_) => {
                let value = document();
                let filled = fill(self.shape.form, &value, &mut self.text);
                self.text.end_line();
                filled?;
            }
            Form::Table | Form::Wide | Form::Columns(_) | Form::Other(..) => {
                self.rows.add(Some(event), entry.clone())?
            }
        }
        self.documents += 1;
        Ok(())
    }

    pub(super) fn flush(&mut self) {
        self.rows.flush();
        self.text.flush();
    }
}

/// Text that is written some at a time.
#[derive(Default)]
struct Buffer {
    text: String,
    ended: bool,
}

impl Buffer {
    fn add(&mut self, part: &str) {
        self.text += part;
        if !part.is_empty() {
            self.ended = part.ends_with('\n');
        }
        if self.text.len() > BUFFER {
            self.flush();
        }
    }

    /// Ends the line and writes what there is.
    fn end_line(&mut self) {
        if !self.ended {
            self.add("\n");
        }
        self.flush();
    }

    fn flush(&mut self) {
        if !self.text.is_empty() {
            out::put!("{}", self.text);
            self.text.clear();
        }
    }
}

/// Fills in the template of a form that is one. What was filled in before an error stays.
fn fill(form: &Form, value: &Value, text: &mut Buffer) -> Result<()> {
    let mut add = |part: &str| text.add(part);
    match form {
        Form::Template(t) => t.render(value, &mut add),
        Form::Go(t) => t.render(value, &mut add).map_err(anyhow::Error::msg)?,
        _ => {}
    }
    Ok(())
}

fn name(entry: &Entry) -> String {
    format!("{}/{}", entry.key.kind.as_str().to_lowercase(), entry.key.name)
}

fn pretty(value: &Value) -> String {
    // Values read from a store are trees of strings and numbers, which always serialise.
    serde_json::to_string_pretty(value).unwrap_or_default()
}

/// A list document, which `apply -f` takes again.
fn list(items: Vec<Value>, selection: &Selection) -> Value {
    let kind = match selection {
        Selection::Kinds(kinds) if kinds.len() == 1 => kinds.first().map(|k| format!("{k}List")),
        _ => None,
    };
    let kind = kind.unwrap_or_else(|| "List".to_owned());
    let version =
        if kind == "List" { "v1".to_owned() } else { brindle_config_core::meta::API_VERSION.to_owned() };
    let mut all = json!({"apiVersion": version, "kind": kind});
    // Moved, not copied as the macro would.
    all["items"] = Value::Array(items);
    all
}

/// Prints a list document item by item.
fn list_as_json(entries: Vec<Entry>, selection: &Selection, shape: &Shape<'_>) {
    let frame = pretty(&list(Vec::new(), selection));
    let Some((head, tail)) = frame.split_once("[]").filter(|_| !entries.is_empty()) else {
        return out::say!("{frame}");
    };
    let mut text = Buffer::default();
    text.add(&format!("{head}["));
    for (n, e) in entries.into_iter().enumerate() {
        text.add(if n > 0 { "," } else { "" });
        // No string of JSON holds a line break.
        text.add(&format!("\n    {}", pretty(&shape.value(e)).replace('\n', "\n    ")));
    }
    text.add(&format!("\n  ]{tail}\n"));
    text.flush();
}

/// The same as YAML: each item as the only one of a list.
fn list_as_yaml(entries: Vec<Entry>, selection: &Selection, shape: &Shape<'_>) {
    const EMPTY: &str = "items: []\n";
    let frame = brindle_config::yaml::to_yaml(&list(Vec::new(), selection));
    let Some((head, tail)) = frame.split_once(EMPTY).filter(|_| !entries.is_empty()) else {
        return out::put!("{frame}");
    };
    let mut text = Buffer::default();
    text.add(head);
    text.add("items:\n");
    for e in entries {
        let item = brindle_config::yaml::to_yaml(&json!({"items": [shape.value(e)]}));
        text.add(item.split_once('\n').map_or("", |(_, item)| item));
    }
    text.add(tail);
    text.flush();
}

/// Rows under headings, a table for each kind. Columns only ever grow, and are as wide as the rows so far want them.
struct Rows<'a> {
    shape: &'a Shape<'a>,
    events: bool,
    /// The kind the rows are of, and its columns.
    of: Option<(Kind, Columns<'a>)>,
    waiting: Table,
    rows: usize,
    widths: Vec<usize>,
}

impl<'a> Rows<'a> {
    fn new(shape: &'a Shape<'a>, events: bool) -> Self {
        Self { shape, events, of: None, waiting: Table::default(), rows: 0, widths: Vec::new() }
    }

    /// Rows of this kind come next, under headings of their own.
    fn begin(&mut self, kind: Kind) -> Result<()> {
        if self.of.as_ref().is_some_and(|(of, _)| *of == kind) {
            return Ok(());
        }
        self.flush();
        if self.of.is_some() {
            out::put!("\n");
        }
        let columns = Columns::new(kind, self.shape.form, self.shape.everywhere)?;
        let mut headings = columns.headings();
        if self.events {
            headings.insert(0, "EVENT");
        }
        self.widths.clear();
        self.waiting = Table::new(&headings);
        self.of = Some((kind, columns));
        Ok(())
    }

    fn add(&mut self, event: Option<Event>, entry: Entry) -> Result<()> {
        self.begin(entry.key.kind)?;
        let Some((_, columns)) = &self.of else { return Ok(()) };
        let key = entry.key.clone();
        let mut row = columns.row(&key.namespace, &self.shape.value(entry), &self.shape.facts);
        match event {
            Some(event) if self.events => row.insert(0, event.as_str().to_owned()),
            // A row more would look like one more change.
            Some(Event::Deleted) => row.push("(deleted)".to_owned()),
            _ => {}
        }
        self.waiting.row(row);
        self.rows += 1;
        if self.rows.is_multiple_of(PIECE) {
            self.flush();
        }
        Ok(())
    }

    fn flush(&mut self) {
        let text = std::mem::take(&mut self.waiting).render_after(&mut self.widths);
        if !text.is_empty() {
            out::put!("{text}");
        }
    }
}

/// The columns of one kind.
struct Columns<'a> {
    namespaced: bool,
    cells: Vec<Cell<'a>>,
}

enum Cell<'a> {
    Known(&'a columns::Col),
    Path(&'a str, &'a super::jsonpath::Path),
}

impl<'a> Columns<'a> {
    fn new(kind: Kind, form: &'a Form, everywhere: bool) -> Result<Self> {
        let all = columns::of(kind.as_str());
        let cells = match form {
            Form::Columns(columns) => columns
                .iter()
                .map(|c| match c {
                    Column::Path(heading, path) => Ok(Cell::Path(heading, path)),
                    Column::Heading(h) => match all.iter().find(|c| c.heading == h) {
                        Some(col) => Ok(Cell::Known(col)),
                        None => {
                            let known: Vec<_> = all.iter().map(|c| c.heading).collect();
                            bail!(
                                "{kind} has no column {h:?}; it has {}, or write HEADING:.path",
                                known.join(", ")
                            )
                        }
                    },
                })
                .collect::<Result<_>>()?,
            _ => {
                let wide = matches!(form, Form::Wide);
                all.iter().filter(|c| if wide { !c.narrow } else { !c.wide }).map(Cell::Known).collect()
            }
        };
        Ok(Self { namespaced: everywhere && kind.namespaced(), cells })
    }

    fn headings(&self) -> Vec<&str> {
        let namespace = self.namespaced.then_some("NAMESPACE");
        let rest = self.cells.iter().map(|c| match c {
            Cell::Known(col) => col.heading,
            Cell::Path(heading, _) => heading,
        });
        namespace.into_iter().chain(rest).collect()
    }

    fn row(&self, namespace: &str, value: &Value, facts: &Facts) -> Vec<String> {
        let namespace = self.namespaced.then(|| namespace.to_owned());
        let rest = self.cells.iter().map(|c| match c {
            Cell::Known(col) => (col.cell)(value, facts),
            Cell::Path(_, path) => Column::cell(path, value),
        });
        namespace.into_iter().chain(rest).collect()
    }
}
