//! The built-in defaults: one commented TOML file, laid under what a person wrote.

use super::tree::{Entry, Node, Origin, Table, Value, parse_defaults};

/// The file itself, with its comments.
pub const TEXT: &str = include_str!("defaults.toml");

/// What the defaults say, split by what it is for.
pub(crate) struct Defaults {
    /// Laid under the recipe.
    recipe: Table,
    /// Laid under each item of a list.
    each: Table,
    /// Facts of operating systems.
    os: Table,
}

impl Defaults {
    pub(crate) fn read() -> Self {
        let mut recipe = parse_defaults(TEXT).expect("a test reads the embedded defaults");
        let mut table = |key| match recipe.take(key).map(|node| node.value) {
            Some(Value::Table(table)) => table,
            _ => Table::default(),
        };
        let (each, os) = (table("each"), table("os"));
        Self { recipe, each, os }
    }

    /// `asked` with everything that it left out.
    pub(crate) fn under(&self, mut asked: Table) -> Table {
        each_item(&mut asked, &self.each);
        let mut all = self.recipe.clone();
        let os = self.os_facts(&asked);
        let init = text_at(&asked, "init").or_else(|| text_at(&all, "init")).unwrap_or("").to_owned();
        if let Some(os) = os {
            let mut guest = os.clone();
            guest.take("needs");
            let by_init = guest.take("init");
            let machine = guest.take("machine");
            lay(&mut all, "guest", guest);
            if let Some(Node { value: Value::Table(machine), .. }) = machine {
                lay(&mut all, "machine", machine);
            }
            if let Some(Node { value: Value::Table(mut by_init), .. }) = by_init
                && let Some(Node { value: Value::Table(more), .. }) = by_init.take(&init)
            {
                lay(&mut all, "guest", more);
            }
        }
        all.lay_over(asked);
        all
    }

    /// Packages that every guest of this kind gets; `for_what` are keys of `[os.….needs]`.
    pub(crate) fn needs(&self, os: &str, for_what: &[&str]) -> Vec<String> {
        let needs = self.os.get(os).and_then(|node| match &node.value {
            Value::Table(os) => os.get("needs"),
            _ => None,
        });
        let Some(Node { value: Value::Table(needs), .. }) = needs else { return Vec::new() };
        let lists = for_what.iter().filter_map(|key| match &needs.get(key)?.value {
            Value::List(items) => Some(items),
            _ => None,
        });
        let text = |node: &Node| match &node.value {
            Value::Text(text) => Some(text.clone()),
            _ => None,
        };
        lists.flatten().filter_map(text).collect()
    }

    fn os_facts(&self, asked: &Table) -> Option<&Table> {
        match &self.os.get(text_at(asked, "os")?)?.value {
            Value::Table(facts) => Some(facts),
            _ => None,
        }
    }
}

/// `guest.<key>`, if it is a text.
fn text_at<'a>(recipe: &'a Table, key: &str) -> Option<&'a str> {
    let Value::Table(guest) = &recipe.get("guest")?.value else { return None };
    match &guest.get(key)?.value {
        Value::Text(text) => Some(text),
        _ => None,
    }
}

/// Lays `table` over what `all` has under `key`.
fn lay(all: &mut Table, key: &str, table: Table) {
    let origin = Origin::Default { line: 1 };
    let node = Node { value: Value::Table(table), origin: origin.clone() };
    all.lay_over(Table(vec![Entry { key: key.to_owned(), key_origin: origin, node }]));
}

/// Lays the defaults of list items under each item that is there.
fn each_item(asked: &mut Table, each: &Table) {
    for default in &each.0 {
        let Value::Table(default_table) = &default.node.value else { continue };
        let Some(entry) = asked.entry_mut(&default.key) else { continue };
        match &mut entry.node.value {
            Value::List(items) => {
                for item in items {
                    if let Value::Table(item) = &mut item.value {
                        under_item(item, default_table);
                    }
                }
            }
            Value::Table(table) => each_item(table, default_table),
            _ => {}
        }
    }
}

/// A sub-table of an item gets its defaults only if the item has that sub-table.
fn under_item(item: &mut Table, defaults: &Table) {
    for default in &defaults.0 {
        match (&default.node.value, item.entry_mut(&default.key)) {
            (Value::Table(below), Some(Entry { node: Node { value: Value::Table(over), .. }, .. })) => {
                under_item(over, below);
            }
            (Value::Table(_), _) | (_, Some(_)) => {}
            (_, None) => item.0.push(default.clone()),
        }
    }
}

/// The defaults of tables that are always there, for the JSON Schema.
pub(crate) fn as_json() -> serde_json::Value {
    fn json(value: &Value) -> serde_json::Value {
        match value {
            Value::Bool(value) => (*value).into(),
            Value::Int(value) => (*value).into(),
            Value::Text(text) | Value::Other(_, text) => text.as_str().into(),
            Value::List(items) => items.iter().map(|item| json(&item.value)).collect(),
            Value::Table(table) => {
                table.0.iter().map(|entry| (entry.key.clone(), json(&entry.node.value))).collect()
            }
        }
    }
    json(&Value::Table(Defaults::read().recipe))
}
