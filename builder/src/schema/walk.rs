//! Checks a tree of values against the table of keys and collects everything that is wrong.

use super::{Field, Form, Kind, Status, Word};
use crate::diagnostic::{Kind as Wrong, Problem, Problems, nearest};
use crate::recipe::tree::{Node, Origin, Table, Value};
use crate::recipe::units;

/// Checks `table`, which stands at the dotted path `path` ("" for the recipe itself).
pub(crate) fn check(table: &Table, fields: &[Field], problems: &mut Problems) {
    Walk { problems, later: false }.table(table, fields, "");
}

struct Walk<'a> {
    problems: &'a mut Problems,
    /// Inside something that is not supported: said once, not again for each key in it.
    later: bool,
}

impl Walk<'_> {
    fn table(&mut self, table: &Table, fields: &[Field], path: &str) {
        for entry in &table.0 {
            let key = join(path, &entry.key);
            let Some(field) = fields.iter().find(|field| field.name == entry.key) else {
                self.problems.push(unknown_key(&key, &entry.key, fields).at(entry.key_origin.place()));
                continue;
            };
            let outer = self.later;
            if field.status == Status::Later && !asks_for_nothing(&entry.node.value) && !self.later {
                self.not_supported(&key, "not supported by this version".to_owned(), &entry.key_origin)
                    .push_fix(format!("leave '{}' out", entry.key));
                self.later = true;
            }
            self.value(&entry.node, &field.kind, &key);
            self.later = outer;
        }
    }

    fn not_supported(&mut self, key: &str, what: String, origin: &Origin) -> Pending<'_> {
        let problem = Problem::new(Wrong::NotSupported, key, what).at(origin.place());
        Pending { problems: self.problems, problem }
    }

    fn value(&mut self, node: &Node, kind: &Kind, key: &str) {
        match (kind, &node.value) {
            (Kind::Bool, Value::Bool(_)) => {}
            (Kind::Int { min, max }, Value::Int(number)) => {
                if number < min || number > max {
                    let what = format!("{number} is not between {min} and {max}");
                    self.problems.push(Problem::new(Wrong::BadValue, key, what).at(node.origin.place()));
                }
            }
            (Kind::Text(form), Value::Text(text)) => {
                if let Err((what, fix)) = form.check(text) {
                    let problem = Problem::new(Wrong::BadValue, key, what).at(node.origin.place()).fix(fix);
                    self.problems.push(problem);
                }
            }
            (Kind::OneOf(words), Value::Text(text)) => self.word(node, text, words, key),
            (Kind::WordOr(words, before), Value::Text(text)) => match text.strip_prefix(before) {
                Some(name) => self.name_behind(node, (before, name), key),
                None => self.word(node, text, words, key),
            },
            (Kind::Either(kinds), value) => match kinds.iter().find(|kind| kind.fits(value)) {
                Some(kind) => self.value(node, kind, key),
                None => self.wrong_type(node, kind, key),
            },
            (Kind::List(kind), Value::List(items)) => {
                for (n, item) in items.iter().enumerate() {
                    self.value(item, kind, &join(key, &n.to_string()));
                }
            }
            (Kind::Table(fields), Value::Table(table)) => self.table(table, fields, key),
            (Kind::Tables(fields), Value::List(items)) => {
                for (n, item) in items.iter().enumerate() {
                    self.value(item, &Kind::Table(fields), &join(key, &n.to_string()));
                }
            }
            (Kind::Map(fields), Value::Table(table)) => {
                for entry in &table.0 {
                    if let Err((what, fix)) = Form::Name.check(&entry.key) {
                        let problem = Problem::new(Wrong::BadValue, key, what).fix(fix);
                        self.problems.push(problem.at(entry.key_origin.place()));
                    }
                    self.value(&entry.node, &Kind::Table(fields), &join(key, &entry.key));
                }
            }
            _ => self.wrong_type(node, kind, key),
        }
    }

    fn name_behind(&mut self, node: &Node, (before, name): (&str, &str), key: &str) {
        if let Err((_, fix)) = Form::Name.check(name) {
            let what = format!("'{before}{name}' cannot be used here");
            let fix = format!("behind '{before}': {fix}");
            self.problems.push(Problem::new(Wrong::BadValue, key, what).at(node.origin.place()).fix(fix));
        }
    }

    fn word(&mut self, node: &Node, text: &str, words: &[Word], key: &str) {
        let built = || words.iter().filter(|word| word.status == Status::Built).map(|word| word.name);
        let list = || built().collect::<Vec<_>>().join(", ");
        match words.iter().find(|word| word.name == text) {
            Some(word) if word.status == Status::Built || self.later => {}
            Some(_) => {
                let fix = format!("this version has: {}", list());
                self.not_supported(key, format!("'{text}' is not supported by this version"), &node.origin)
                    .push_fix(fix);
            }
            None => {
                let fix = match nearest(text, words.iter().map(|word| word.name)) {
                    Some(near) => format!("did you mean '{near}'?"),
                    None => format!("use one of: {}", list()),
                };
                let problem = Problem::new(Wrong::BadValue, key, format!("'{text}' is not known here"));
                self.problems.push(problem.at(node.origin.place()).fix(fix));
            }
        }
    }

    fn wrong_type(&mut self, node: &Node, kind: &Kind, key: &str) {
        let what = format!("{} is needed here, and this is {}", kind.describe(), node.value.kind());
        let mut problem = Problem::new(Wrong::WrongType, key, what).at(node.origin.place());
        if let (Kind::Table(fields), Value::Text(_)) = (kind, &node.value)
            && fields.iter().any(|field| field.name == "credential")
        {
            problem = problem
                .why("recipes are shared, copied and shown: they hold no secrets")
                .fix("write { file = \"~/.config/no43/password\" }, { env = \"NAME\" } or { credential = \"name\" }");
        } else if let (Kind::Tables(_), Value::Table(_)) = (kind, &node.value) {
            problem = problem.fix(format!("write [[{key}]] with two brackets"));
        } else if let (Kind::List(_), Value::Text(text)) = (kind, &node.value) {
            problem = problem.fix(format!("write [{}]", Value::Text(text.clone())));
        } else if let (true, Value::Int(number)) = (kind.takes_sizes(), &node.value) {
            problem = problem.fix(format!("write a number and a unit, as in \"{number} GiB\""));
        }
        self.problems.push(problem);
    }
}

/// A problem that still gets its fix.
struct Pending<'a> {
    problems: &'a mut Problems,
    problem: Problem,
}

impl Pending<'_> {
    fn push_fix(self, fix: String) {
        self.problems.push(self.problem.fix(fix));
    }
}

impl Kind {
    /// The type fits; the value may still be wrong.
    fn fits(&self, value: &Value) -> bool {
        match (self, value) {
            (Self::Bool, Value::Bool(_))
            | (Self::Int { .. }, Value::Int(_))
            | (Self::Text(_) | Self::WordOr(..), Value::Text(_))
            | (Self::List(_) | Self::Tables(_), Value::List(_))
            | (Self::Table(_) | Self::Map(_), Value::Table(_)) => true,
            // Beside other kinds a word only stands for itself: memory = "auto" or a size.
            (Self::OneOf(words), Value::Text(text)) => {
                words.len() > 1 || words.iter().any(|word| word.name == text)
            }
            (Self::Either(kinds), value) => kinds.iter().any(|kind| kind.fits(value)),
            _ => false,
        }
    }

    fn takes_sizes(&self) -> bool {
        match self {
            Self::Text(Form::Size) => true,
            Self::Either(kinds) => kinds.iter().any(Self::takes_sizes),
            _ => false,
        }
    }

    pub(super) fn describe(&self) -> String {
        match self {
            Self::Bool => "true or false".to_owned(),
            Self::Int { .. } => "a number".to_owned(),
            Self::Text(form) => form.describe().to_owned(),
            Self::OneOf([only]) => format!("\"{}\"", only.name),
            Self::OneOf(_) | Self::WordOr(..) => "a word".to_owned(),
            Self::Either(kinds) => kinds.iter().map(Self::describe).collect::<Vec<_>>().join(" or "),
            Self::List(_) => "a list".to_owned(),
            Self::Tables(_) => "a list of tables".to_owned(),
            Self::Table(_) | Self::Map(_) => "a table".to_owned(),
        }
    }
}

impl Form {
    /// What a person calls it; the second half of the sentence "… is needed here".
    pub(super) fn describe(self) -> &'static str {
        match self {
            Self::Size => "a size",
            Self::Duration => "a duration",
            _ => "a text",
        }
    }

    /// What is wrong with `text` and what to write instead.
    pub(crate) fn check(self, text: &str) -> Result<(), (String, String)> {
        if let Some(bad) =
            text.chars().find(|c| c.is_control() && !(self == Self::Any && matches!(c, '\n' | '\t')))
        {
            let what = format!("the character {} cannot be here", bad.escape_unicode());
            return Err((what, "leave it out".to_owned()));
        }
        let example = match self {
            Self::Size => return units::size(text).map(drop),
            Self::Duration => return units::duration(text).map(drop),
            Self::Any | Self::HostPath if text.is_empty() => "write something, or leave the key out",
            Self::Any | Self::HostPath => return Ok(()),
            Self::Name => "use letters, digits, '-', '_' and '.', starting with a letter or digit",
            Self::UserName => "use small letters, digits, '-' and '_', starting with a letter",
            Self::Package => "use a Debian package's name, such as pciutils",
            Self::Module => "use a kernel module's name, such as virtio_blk",
            Self::KernelOption => "write one option without spaces or quotes, such as mitigations=off",
            Self::CardAddress => "write it as lspci does: 01:00, or 0000:01:00 with the domain",
            Self::PciId => "write vendor and device in hexadecimal, such as 10de:2484",
            Self::GuestPath => "write an absolute path without '..', such as /etc/motd or C:\\Games",
            Self::Mode => "write permission bits in octal, such as \"0644\"",
            Self::Owner => "write user:group, such as root:root",
            Self::Sha256 => "write 64 hexadecimal digits",
            Self::Language => "write language and region, such as fr-FR, or C",
            Self::TimeZone => "write a zone's name, such as Europe/Paris or Etc/UTC",
        };
        if self.matches(text) {
            Ok(())
        } else {
            Err((format!("'{text}' cannot be used here"), example.to_owned()))
        }
    }

    fn matches(self, text: &str) -> bool {
        let bytes = text.as_bytes();
        let all = |ok: fn(u8) -> bool| bytes.iter().all(|b| ok(*b));
        let starts = |ok: fn(&u8) -> bool| bytes.first().is_some_and(ok);
        match self {
            Self::Any | Self::HostPath => !text.is_empty(),
            Self::Size => units::size(text).is_ok(),
            Self::Duration => units::duration(text).is_ok(),
            Self::Name => {
                starts(u8::is_ascii_alphanumeric)
                    && text.len() <= 64
                    && all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
            }
            Self::UserName => {
                starts(u8::is_ascii_lowercase)
                    && text.len() <= 32
                    && all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-_".contains(&b))
            }
            Self::Package => {
                starts(u8::is_ascii_alphanumeric)
                    && text.len() >= 2
                    && all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"+-.".contains(&b))
            }
            Self::Module => {
                starts(u8::is_ascii_alphanumeric) && all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b))
            }
            Self::KernelOption => {
                !text.is_empty() && all(|b| b.is_ascii_graphic() && !b"\"'\\$`".contains(&b))
            }
            Self::CardAddress => is_card_address(text),
            Self::PciId => {
                text.split_once(':').is_some_and(|(vendor, device)| is_hex(vendor, 4) && is_hex(device, 4))
            }
            Self::GuestPath => {
                (text.starts_with('/') || is_windows_path(text))
                    && !text.split(['/', '\\']).any(|part| part == "..")
            }
            Self::Mode => (3..=4).contains(&text.len()) && all(|b| (b'0'..=b'7').contains(&b)),
            Self::Owner => text
                .split_once(':')
                .is_some_and(|(user, group)| Self::UserName.matches(user) && Self::UserName.matches(group)),
            Self::Sha256 => is_hex(text, 64),
            Self::Language => text == "C" || is_language(text),
            Self::TimeZone => {
                starts(u8::is_ascii_alphabetic)
                    && !text.contains("//")
                    && all(|b| b.is_ascii_alphanumeric() || b"/_+-. ()".contains(&b))
            }
        }
    }
}

/// `C:\\Games`
fn is_windows_path(text: &str) -> bool {
    let bytes = text.as_bytes();
    bytes.len() >= 3 && bytes[0].is_ascii_alphabetic() && bytes[1] == b':' && bytes[2] == b'\\'
}

/// `fr-FR`, `es-419`, `sr-Latn-RS`.
fn is_language(text: &str) -> bool {
    let parts: Vec<&str> = text.split('-').collect();
    let lower = |part: &str| part.bytes().all(|b| b.is_ascii_lowercase());
    let region = |part: &str| match part.len() {
        2 => part.bytes().all(|b| b.is_ascii_uppercase()),
        3 => part.bytes().all(|b| b.is_ascii_digit()),
        _ => false,
    };
    let script = |part: &str| part.len() == 4 && part.as_bytes()[0].is_ascii_uppercase() && lower(&part[1..]);
    match parts[..] {
        [language, last] => (2..=3).contains(&language.len()) && lower(language) && region(last),
        [language, middle, last] => lower(language) && script(middle) && region(last),
        _ => false,
    }
}

fn is_hex(text: &str, len: usize) -> bool {
    text.len() == len && text.bytes().all(|b| b.is_ascii_hexdigit())
}

/// `01:00`, `0000:01:00`, and both with `.0` behind, because that is what people copy out of lspci.
fn is_card_address(text: &str) -> bool {
    let slot = text.strip_suffix(".0").unwrap_or(text);
    let parts: Vec<&str> = slot.split(':').collect();
    let (domain, rest) = if parts.len() == 3 { (parts[0], &parts[1..]) } else { ("0000", &parts[..]) };
    is_hex(domain, 4)
        && matches!(rest, [bus, device] if is_hex(bus, 2) && is_hex(device, 2) && *device <= "1f")
}

/// `false`, `"none"`, nothing in it: a key that is not supported does no harm then.
fn asks_for_nothing(value: &Value) -> bool {
    match value {
        Value::Bool(value) => !value,
        Value::Text(text) => text == "none",
        Value::List(items) => items.is_empty(),
        Value::Table(table) => table.0.iter().all(|entry| asks_for_nothing(&entry.node.value)),
        Value::Int(_) | Value::Other(..) => false,
    }
}

fn unknown_key(path: &str, key: &str, fields: &[Field]) -> Problem {
    let problem = Problem::new(Wrong::UnknownKey, path, "unknown key");
    match nearest(key, fields.iter().map(|field| field.name)) {
        Some(near) => problem.fix(format!("did you mean '{near}'?")),
        None => {
            let known: Vec<&str> = fields.iter().map(|field| field.name).collect();
            problem.fix(format!("known here: {}", known.join(", ")))
        }
    }
}

fn join(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
}
