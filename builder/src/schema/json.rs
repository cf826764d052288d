//! The table of keys as JSON Schema, for editors.

use serde_json::{Map, Value, json};

use super::{Field, Form, Kind, RECIPE, Status, Word};
use crate::recipe::defaults;

/// A JSON Schema (draft 2020-12) of recipes, with descriptions and defaults.
#[must_use]
pub fn json() -> Value {
    let mut schema = table(RECIPE, &defaults::as_json());
    let head = [
        ("$schema", "https://json-schema.org/draft/2020-12/schema"),
        ("title", "no43 recipe"),
        ("description", "What is asked for: a guest, a machine, cards, and what must be proved."),
    ];
    let mut all = Map::new();
    all.extend(head.map(|(key, text)| (key.to_owned(), Value::from(text))));
    all.append(&mut schema);
    all.into()
}

fn table(fields: &[Field], defaults: &Value) -> Map<String, Value> {
    let mut properties = Map::new();
    for field in fields {
        let default = defaults.get(field.name).unwrap_or(&Value::Null);
        let mut schema = kind(&field.kind, default);
        let later = if field.status == Status::Later { "Not supported by this version. " } else { "" };
        schema.insert("description".to_owned(), format!("{later}{}", field.doc).into());
        if !default.is_null() && !default.is_object() {
            schema.insert("default".to_owned(), default.clone());
        }
        properties.insert(field.name.to_owned(), schema.into());
    }
    object(json!({"type": "object", "additionalProperties": false, "properties": properties}))
}

fn kind(kind: &Kind, defaults: &Value) -> Map<String, Value> {
    let items = |schema: Map<String, Value>| object(json!({"type": "array", "items": schema}));
    match kind {
        Kind::Bool => object(json!({"type": "boolean"})),
        Kind::Int { min, max } => object(json!({"type": "integer", "minimum": min, "maximum": max})),
        Kind::Text(form) => text(*form),
        Kind::OneOf(words) => object(json!({"enum": words.iter().map(Word::name).collect::<Vec<_>>()})),
        Kind::WordOr(words, before) => {
            let words = words.iter().map(Word::name).collect::<Vec<_>>();
            object(json!({"anyOf": [{"enum": words}, {"type": "string", "pattern": format!("^{before}.")}]}))
        }
        Kind::Either(kinds) => object(
            json!({"anyOf": kinds.iter().map(|one| self::kind(one, &Value::Null)).collect::<Vec<_>>()}),
        ),
        Kind::List(one) => items(self::kind(one, &Value::Null)),
        Kind::Table(fields) => table(fields, defaults),
        Kind::Tables(fields) => items(table(fields, &Value::Null)),
        Kind::Map(fields) => {
            object(json!({"type": "object", "additionalProperties": table(fields, &Value::Null)}))
        }
    }
}

impl Word {
    fn name(&self) -> &'static str {
        self.name
    }
}

fn text(form: Form) -> Map<String, Value> {
    let mut schema = object(json!({"type": "string"}));
    let pattern = match form {
        Form::Size => "^[0-9]+ ?(KiB|MiB|GiB|TiB)$",
        Form::Duration => "^[0-9]+ ?(s|min|h)$",
        Form::PciId => "^[0-9a-fA-F]{4}:[0-9a-fA-F]{4}$",
        Form::CardAddress => "^([0-9a-fA-F]{4}:)?[0-9a-fA-F]{2}:[01][0-9a-fA-F](\\.0)?$",
        Form::GuestPath => "^(/|[A-Za-z]:\\\\)",
        Form::Mode => "^[0-7]{3,4}$",
        Form::Sha256 => "^[0-9a-fA-F]{64}$",
        _ => return schema,
    };
    schema.insert("pattern".to_owned(), pattern.into());
    schema
}

fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(map) => map,
        _ => Map::new(),
    }
}
