//! `recipe show --resolved`: every value with where it comes from.

use std::fmt;

use serde::Serialize;

use super::Resolved;
use super::tree::{Node, Table, Value};

/// One value of a resolved recipe.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Shown {
    /// Dotted path, such as `card.0.id`.
    pub key: String,
    /// As TOML.
    pub value: String,
    /// `file:line`, `default, line n` (of the built-in defaults), or `--set …`.
    pub origin: String,
}

impl Resolved {
    /// Every value in the order of the schema's tables, lists of plain values as one.
    #[must_use]
    pub fn shown(&self) -> Vec<Shown> {
        let mut shown = Vec::new();
        let mut entries: Vec<_> = self.tree.0.iter().collect();
        let rank = |key: &str| crate::schema::RECIPE.iter().position(|field| field.name == key);
        entries.sort_by_key(|entry| rank(&entry.key));
        for entry in entries {
            walk(&entry.node, &entry.key, &mut shown);
        }
        shown
    }
}

fn walk(node: &Node, path: &str, shown: &mut Vec<Shown>) {
    match &node.value {
        Value::Table(table) => walk_table(table, path, shown),
        Value::List(items) if items.iter().any(|item| matches!(item.value, Value::Table(_))) => {
            for (n, item) in items.iter().enumerate() {
                walk(item, &format!("{path}.{n}"), shown);
            }
        }
        value => {
            shown.push(Shown {
                key: path.to_owned(),
                value: value.to_string(),
                origin: node.origin.to_string(),
            });
        }
    }
}

fn walk_table(table: &Table, path: &str, shown: &mut Vec<Shown>) {
    for entry in &table.0 {
        walk(&entry.node, &format!("{path}.{}", entry.key), shown);
    }
}

impl fmt::Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let value = format!("{} = {}", self.key, self.value);
        write!(f, "{value:<48}  # {}", self.origin)
    }
}
