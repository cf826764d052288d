//! A recipe's values as a tree in which every value knows where it was written.
//!
//! serde would lose the places, and its messages name Rust types; the tree keeps both the places (also in files that a
//! recipe `extends`) and the order in which keys were written.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use toml::de::{DeTable, DeValue};

use crate::diagnostic::{Kind, Place, Problem};

/// Where a value comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A recipe file.
    File {
        /// As it was opened.
        file: Arc<Path>,
        /// From 1.
        line: usize,
        /// From 1, in characters.
        column: usize,
    },
    /// The built-in defaults (`no43 recipe show --defaults`).
    Default {
        /// In `defaults.toml`.
        line: usize,
    },
    /// `--set`, with its text.
    Set(Arc<str>),
}

impl Origin {
    /// For a problem's place; a default has none.
    #[must_use]
    pub fn place(&self) -> Option<Place> {
        match self {
            Self::File { file, line, column } => {
                Some(Place { file: file.to_path_buf(), line: *line, column: *column })
            }
            Self::Default { .. } => None,
            Self::Set(_) => Some(Place::whole("--set")),
        }
    }

    /// The folder against which a relative path in this value counts; `None` means the working directory.
    pub(crate) fn folder(&self) -> Option<&Path> {
        match self {
            Self::File { file, .. } => file.parent().filter(|folder| *folder != Path::new("")),
            Self::Default { .. } | Self::Set(_) => None,
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File { file, line, .. } => write!(f, "{}:{line}", file.display()),
            Self::Default { line } => write!(f, "default, line {line}"),
            Self::Set(text) => write!(f, "--set {text}"),
        }
    }
}

/// A value and where it was written.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// The value.
    pub value: Value,
    /// Where it was written; for a table made of several, the uppermost.
    pub origin: Origin,
}

/// TOML's values, as far as a recipe has them.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// `true` or `false`
    Bool(bool),
    /// A whole number.
    Int(i64),
    /// A text.
    Text(String),
    /// A list, or an array of tables.
    List(Vec<Node>),
    /// A table.
    Table(Table),
    /// Something that no key of a recipe takes: a float, a date or a number past 64 bits, as it was written.
    Other(&'static str, String),
}

impl Value {
    /// What a person calls it.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::Bool(_) => "true or false",
            Self::Int(_) => "a number",
            Self::Text(_) => "a text",
            Self::List(_) => "a list",
            Self::Table(_) => "a table",
            Self::Other(kind, _) => kind,
        }
    }
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bool(value) => write!(f, "{value}"),
            Self::Int(value) => write!(f, "{value}"),
            Self::Text(value) => write!(f, "{}", toml::Value::from(value.as_str())),
            Self::Other(_, text) => f.write_str(text),
            Self::List(items) => {
                f.write_str("[")?;
                for (n, item) in items.iter().enumerate() {
                    write!(f, "{}{}", if n == 0 { "" } else { ", " }, item.value)?;
                }
                f.write_str("]")
            }
            Self::Table(table) => {
                f.write_str("{")?;
                for (n, entry) in table.0.iter().enumerate() {
                    write!(f, "{} {} = {}", if n == 0 { "" } else { "," }, entry.key, entry.node.value)?;
                }
                f.write_str(if table.0.is_empty() { "}" } else { " }" })
            }
        }
    }
}

/// Keys and values in the order in which they were written.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Table(pub Vec<Entry>);

/// One key of a table.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// The key alone, without the path to it.
    pub key: String,
    /// Where the key (not the value) was written: an unknown key is shown there.
    pub key_origin: Origin,
    /// Its value.
    pub node: Node,
}

impl Table {
    /// The value of `key`.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&Node> {
        self.entry(key).map(|entry| &entry.node)
    }

    pub(crate) fn entry(&self, key: &str) -> Option<&Entry> {
        self.0.iter().find(|entry| entry.key == key)
    }

    pub(crate) fn entry_mut(&mut self, key: &str) -> Option<&mut Entry> {
        self.0.iter_mut().find(|entry| entry.key == key)
    }

    pub(crate) fn take(&mut self, key: &str) -> Option<Node> {
        let at = self.0.iter().position(|entry| entry.key == key)?;
        Some(self.0.remove(at).node)
    }

    /// Lays `over` over this table: tables merge, everything else (lists too) replaces.
    pub(crate) fn lay_over(&mut self, over: Self) {
        for entry in over.0 {
            match self.entry_mut(&entry.key) {
                None => self.0.push(entry),
                Some(below) => match (&mut below.node.value, entry.node.value) {
                    (Value::Table(table), Value::Table(over)) => {
                        table.lay_over(over);
                        below.node.origin = entry.node.origin;
                    }
                    (_, value) => {
                        below.key_origin = entry.key_origin;
                        below.node = Node { value, origin: entry.node.origin };
                    }
                },
            }
        }
    }
}

/// Makes an origin from a byte offset in the text that is being read.
type Locate<'a> = dyn Fn(usize) -> Origin + 'a;

/// Reads a recipe file's text.
pub(crate) fn parse(text: &str, file: &Arc<Path>) -> Result<Table, Problem> {
    let lines = Lines::of(text);
    let locate = |offset| {
        let (line, column) = lines.place(text, offset);
        Origin::File { file: file.clone(), line, column }
    };
    parse_with(text, &locate).map_err(|(offset, what)| {
        Problem::new(Kind::Syntax, "", format!("not TOML: {what}")).at(Place::at(file, text, offset))
    })
}

/// Reads the embedded defaults.
pub(crate) fn parse_defaults(text: &str) -> Result<Table, String> {
    let lines = Lines::of(text);
    parse_with(text, &|offset| Origin::Default { line: lines.place(text, offset).0 })
        .map_err(|(_, what)| what)
}

/// Reads the value of a `--set`: a TOML value, or else the bare text.
///
/// Floats and dates are taken as text, because no key has such values but `01:00` is a PCI address.
pub(crate) fn parse_set_value(written: &str, origin: &Origin) -> Node {
    let bare = || Node { value: Value::Text(written.to_owned()), origin: origin.clone() };
    let Ok(mut table) = parse_with(&format!("v = {written}"), &|_| origin.clone()) else { return bare() };
    match table.take("v") {
        Some(node) if table.0.is_empty() && !matches!(node.value, Value::Other(..)) => node,
        _ => bare(),
    }
}

fn parse_with(text: &str, locate: &Locate<'_>) -> Result<Table, (usize, String)> {
    match DeTable::parse(text) {
        Ok(table) => Ok(table_of(table.into_inner(), locate)),
        Err(error) => {
            let what = error.message().trim().replace('\n', ", ");
            Err((error.span().map_or(0, |span| span.start), what))
        }
    }
}

fn table_of(table: DeTable<'_>, locate: &Locate<'_>) -> Table {
    let entry = |(key, value): (toml::Spanned<_>, toml::Spanned<DeValue<'_>>)| {
        let key_origin = locate(key.span().start);
        let value_origin = locate(value.span().start);
        let key: std::borrow::Cow<'_, str> = key.into_inner();
        let node = Node { value: value_of(value.into_inner(), locate), origin: value_origin };
        Entry { key: key.into_owned(), key_origin, node }
    };
    Table(table.into_iter().map(entry).collect())
}

fn value_of(value: DeValue<'_>, locate: &Locate<'_>) -> Value {
    match value {
        DeValue::String(text) => Value::Text(text.into_owned()),
        DeValue::Boolean(value) => Value::Bool(value),
        DeValue::Integer(number) => match i64::from_str_radix(number.as_str(), number.radix()) {
            Ok(value) => Value::Int(value),
            Err(_) => Value::Other("a number past 64 bits", number.to_string()),
        },
        DeValue::Float(number) => Value::Other("a number with a point", number.to_string()),
        DeValue::Datetime(date) => Value::Other("a date", date.to_string()),
        DeValue::Array(items) => Value::List(
            items
                .into_iter()
                .map(|item| {
                    let origin = locate(item.span().start);
                    Node { value: value_of(item.into_inner(), locate), origin }
                })
                .collect(),
        ),
        DeValue::Table(table) => Value::Table(table_of(table, locate)),
    }
}

/// Where lines start, so that a long recipe is not counted again for each value.
struct Lines(Vec<usize>);

impl Lines {
    fn of(text: &str) -> Self {
        Self(std::iter::once(0).chain(text.match_indices('\n').map(|(at, _)| at + 1)).collect())
    }

    fn place(&self, text: &str, offset: usize) -> (usize, usize) {
        let line = self.0.partition_point(|start| *start <= offset);
        let start = self.0[line.saturating_sub(1)];
        let column = text.get(start..offset).map_or(0, |before| before.chars().count()) + 1;
        (line.max(1), column)
    }
}
