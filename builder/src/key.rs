//! A layer's key: SHA-256 over the parent's key and everything that goes into the layer, as canonical JSON.
//!
//! The hash is over values, never over text that a person wrote: spaces, comments and the order of keys in a recipe do
//! not count. Canonical means: object keys sorted by their bytes, no white space, and no floating-point numbers
//! (nothing that we hash has any).

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};

/// The format of what is hashed. A new number makes every existing layer a stranger: raise it when the same inputs
/// begin to mean another result.
const FORMAT: u32 = 2;

/// Names one layer: 64 lower-case hexadecimal digits.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Key(String);

/// A text that is not a key.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("'{0}' is not a key: 64 lower-case hexadecimal digits were expected")]
pub struct NotAKey(String);

impl Key {
    /// The key of a layer with these `inputs` on top of `parent` (`None` for the first layer).
    #[must_use]
    pub fn of(parent: Option<&Self>, inputs: &Value) -> Self {
        let mut text = format!("no43 layer {FORMAT}\n{}\n", parent.map_or("-", Self::as_str));
        write_canonical(inputs, &mut text);
        Self(hex(&Sha256::digest(text.as_bytes())))
    }

    /// All 64 digits.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The first 12 digits, for people.
    #[must_use]
    pub fn short(&self) -> &str {
        &self.0[..12]
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for Key {
    type Err = NotAKey;

    fn from_str(text: &str) -> Result<Self, NotAKey> {
        if is_sha256_hex(text) { Ok(Self(text.to_owned())) } else { Err(NotAKey(text.to_owned())) }
    }
}

impl TryFrom<String> for Key {
    type Error = NotAKey;

    fn try_from(text: String) -> Result<Self, NotAKey> {
        text.parse()
    }
}

impl From<Key> for String {
    fn from(key: Key) -> Self {
        key.0
    }
}

/// `value` as JSON with sorted keys and no white space, so that equal values give equal bytes.
#[must_use]
pub fn canonical_json(value: &Value) -> String {
    let mut text = String::new();
    write_canonical(value, &mut text);
    text
}

/// True for 64 lower-case hexadecimal digits.
#[must_use]
pub fn is_sha256_hex(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

/// Lower-case hexadecimal digits of `bytes`.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    use fmt::Write;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn write_canonical(value: &Value, out: &mut String) {
    match value {
        Value::Object(map) => {
            let mut entries: Vec<_> = map.iter().collect();
            entries.sort_by(|a, b| a.0.as_bytes().cmp(b.0.as_bytes()));
            write_list('{', '}', out, entries, |(key, value), out| {
                out.push_str(&Value::from(key.as_str()).to_string());
                out.push(':');
                write_canonical(value, out);
            });
        }
        Value::Array(items) => write_list('[', ']', out, items, write_canonical),
        leaf => out.push_str(&leaf.to_string()),
    }
}

fn write_list<T>(
    open: char,
    close: char,
    out: &mut String,
    items: impl IntoIterator<Item = T>,
    each: impl Fn(T, &mut String),
) {
    out.push(open);
    for (n, item) in items.into_iter().enumerate() {
        if n > 0 {
            out.push(',');
        }
        each(item, out);
    }
    out.push(close);
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_order_of_keys_does_not_count() {
        assert_eq!(
            canonical_json(&json!({"b": [1, {"y": null, "x": "é\n"}], "a": true})),
            r#"{"a":true,"b":[1,{"x":"é\n","y":null}]}"#
        );
        assert_eq!(Key::of(None, &json!({"a": 1, "b": 2})), Key::of(None, &json!({"b": 2, "a": 1})));
    }

    #[test]
    fn the_parent_counts() {
        let base = Key::of(None, &json!({"a": 1}));
        assert_ne!(Key::of(Some(&base), &json!({"b": 1})), Key::of(None, &json!({"b": 1})));
        assert_eq!(base.as_str().len(), 64);
        assert_eq!(base.short().len(), 12);
    }

    #[test]
    fn a_key_is_read_back_and_nothing_else_is() {
        let key = Key::of(None, &json!(1));
        assert_eq!(key.to_string().parse::<Key>().unwrap(), key);
        assert!("../../etc/passwd".parse::<Key>().is_err());
        assert!(key.as_str().to_uppercase().parse::<Key>().is_err());
        assert!(serde_json::from_str::<Key>("\"00\"").is_err());
    }
}
