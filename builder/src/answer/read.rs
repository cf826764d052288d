//! Reads anybody's XML into a tree that knows its lines. Everything is bounded; no entity is ever expanded.

use quick_xml::Reader;
use quick_xml::events::{BytesRef, BytesStart, Event};

use super::finding::{At, Finding, shown};
use super::xml::allowed;

/// Larger than any answer file seen (0.2 MB, with programs inside).
pub(super) const BYTES_LIMIT: usize = 8 << 20;
/// Answer files are nine deep; more would only exhaust the stack of whoever walks the tree.
const DEPTH_LIMIT: usize = 64;
/// The longest public file has 400.
const ELEMENTS_LIMIT: usize = 20_000;
/// Of one tag; quick-xml compares each attribute with all before it.
const ATTRIBUTES_LIMIT: usize = 16 << 10;

/// The namespace of answer files.
pub(super) const NAMESPACE: &str = "urn:schemas-microsoft-com:unattend";
/// The namespace of `wcm:action` and its relatives.
const WCM: &str = "http://schemas.microsoft.com/WMIConfig/2002/State";

/// All elements of a file; the first is the root.
#[derive(Debug, Default)]
pub(super) struct Document {
    elements: Vec<Node>,
}

#[derive(Debug)]
struct Node {
    name: String,
    /// Namespace; empty for none.
    space: String,
    attributes: Vec<Attribute>,
    text: String,
    at: At,
    children: Vec<usize>,
}

#[derive(Debug)]
struct Attribute {
    /// With `wcm:` in front where it is in that namespace, whatever the file's own prefix is.
    name: String,
    value: String,
}

/// One element of a document.
#[derive(Clone, Copy)]
pub(super) struct Element<'d> {
    document: &'d Document,
    node: &'d Node,
}

impl Document {
    pub(super) fn root(&self) -> Option<Element<'_>> {
        self.elements.first().map(|node| Element { document: self, node })
    }
}

impl<'d> Element<'d> {
    /// Without a prefix.
    pub(super) fn name(self) -> &'d str {
        &self.node.name
    }

    pub(super) fn space(self) -> &'d str {
        &self.node.space
    }

    pub(super) fn at(self) -> At {
        self.node.at
    }

    /// Its own text, without that of its children, and without blanks around it.
    pub(super) fn text(self) -> &'d str {
        self.node.text.trim()
    }

    /// The same with its blanks.
    pub(super) fn raw_text(self) -> &'d str {
        &self.node.text
    }

    pub(super) fn attribute(self, name: &str) -> Option<&'d str> {
        self.node.attributes.iter().find(|attribute| attribute.name == name).map(|a| a.value.as_str())
    }

    /// Children in the namespace of answer files; others' own sections (`Extensions`) are nobody's business.
    pub(super) fn children(self) -> impl Iterator<Item = Element<'d>> {
        let document = self.document;
        let all = self.node.children.iter().map(move |n| Element { document, node: &document.elements[*n] });
        all.filter(|child| child.space() == NAMESPACE || child.space().is_empty())
    }

    /// Children of that name.
    pub(super) fn all(self, name: &str) -> impl Iterator<Item = Element<'d>> {
        self.children().filter(move |child| child.name() == name)
    }

    /// The first child of that name.
    pub(super) fn child(self, name: &str) -> Option<Element<'d>> {
        self.children().find(|child| child.name() == name)
    }

    /// The element at the end of `a/b/c`, first ones taken.
    pub(super) fn path(self, path: &str) -> Option<Element<'d>> {
        path.split('/').try_fold(self, Element::child)
    }

    /// The text there.
    pub(super) fn text_at(self, path: &str) -> Option<&'d str> {
        self.path(path).map(Element::text)
    }
}

/// A file as text.
pub(super) struct Decoded {
    pub(super) text: String,
    /// It was UTF-16.
    pub(super) wide: bool,
    /// What was wrong with its encoding.
    pub(super) finding: Option<Finding>,
}

/// Bytes of a file as text, by their byte order mark.
pub(super) fn decode(bytes: &[u8]) -> Decoded {
    let start = At { line: 1, column: 1 };
    let utf16 = |body: &[u8], big: bool| {
        let pair = |pair: &[u8]| {
            if big { u16::from_be_bytes([pair[0], pair[1]]) } else { u16::from_le_bytes([pair[0], pair[1]]) }
        };
        let units: Vec<u16> = body.chunks_exact(2).map(pair).collect();
        let odd = (!body.len().is_multiple_of(2) || String::from_utf16(&units).is_err()).then(|| {
            Finding::error(start, "encoding", "the file is cut off, or no UTF-16")
                .fix("save it again, as UTF-8")
        });
        Decoded { text: String::from_utf16_lossy(&units), wide: true, finding: odd }
    };
    match bytes {
        [0xef, 0xbb, 0xbf, body @ ..] => utf8(body),
        [0xff, 0xfe, body @ ..] => utf16(body, false),
        [0xfe, 0xff, body @ ..] => utf16(body, true),
        [b'<', 0, ..] | [0, b'<', ..] => {
            let decoded = utf16(bytes, bytes[0] == 0);
            let missing = Finding::warning(start, "encoding", "UTF-16 without a byte order mark")
                .why("XML wants the mark where a file is UTF-16")
                .fix("save it as UTF-8, or with the mark");
            Decoded { finding: decoded.finding.or(Some(missing)), ..decoded }
        }
        _ => utf8(bytes),
    }
}

fn utf8(bytes: &[u8]) -> Decoded {
    match std::str::from_utf8(bytes) {
        Ok(text) => Decoded { text: text.to_owned(), wide: false, finding: None },
        Err(error) => {
            let before = String::from_utf8_lossy(&bytes[..error.valid_up_to()]);
            let mut cursor = Cursor::new(&before);
            cursor.advance(before.len());
            let what = format!("the byte 0x{:02x} is not UTF-8", bytes[error.valid_up_to()]);
            let finding = Finding::error(cursor.at, "encoding", what).fix("save the file as UTF-8");
            // Latin-1 gives a character for every byte, so that the rest can be looked at.
            let text = bytes.iter().map(|byte| char::from(*byte)).collect();
            Decoded { text, wide: false, finding: Some(finding) }
        }
    }
}

/// Where the reader is; goes forward only, so that a file of one long line is counted once.
struct Cursor<'t> {
    text: &'t str,
    offset: usize,
    at: At,
}

impl<'t> Cursor<'t> {
    fn new(text: &'t str) -> Self {
        Self { text, offset: 0, at: At { line: 1, column: 1 } }
    }

    fn advance(&mut self, to: usize) {
        let to = to.min(self.text.len());
        for c in self.text.get(self.offset..to).unwrap_or_default().chars() {
            if c == '\n' {
                self.at = At { line: self.at.line + 1, column: 1 };
            } else {
                self.at.column += 1;
            }
        }
        self.offset = self.offset.max(to);
    }
}

/// The tree of `text`, as far as it goes, and what is wrong with it as XML. After an error nothing behind it was read.
/// `wide`: the file was UTF-16, where that is known.
pub(super) fn read(text: &str, wide: Option<bool>) -> (Document, Vec<Finding>) {
    let mut builder = Builder {
        document: Document::default(),
        open: Vec::new(),
        spaces: Vec::new(),
        cursor: Cursor::new(text),
        findings: Vec::new(),
        entities: 0,
        wide,
    };
    let fatal = builder.run(text).err();
    builder.findings.extend(fatal);
    (builder.document, builder.findings)
}

struct Builder<'t> {
    document: Document,
    /// From the root to the innermost open element.
    open: Vec<usize>,
    /// Declared prefixes: depth, prefix, namespace.
    spaces: Vec<(usize, String, String)>,
    cursor: Cursor<'t>,
    findings: Vec<Finding>,
    /// References that stand for nothing; said once.
    entities: usize,
    wide: Option<bool>,
}

impl Builder<'_> {
    fn run(&mut self, text: &str) -> Result<(), Finding> {
        let mut reader = Reader::from_str(text);
        loop {
            let begin = usize::try_from(reader.buffer_position()).unwrap_or(usize::MAX);
            self.cursor.advance(begin);
            let event = reader.read_event().map_err(|error| {
                self.cursor.advance(usize::try_from(reader.error_position()).unwrap_or(usize::MAX));
                self.broken(&shown(&error.to_string()))
            })?;
            match event {
                Event::Start(tag) => self.start(&tag, true)?,
                Event::Empty(tag) => self.start(&tag, false)?,
                Event::End(_) => self.end(),
                Event::Text(part) => self.text(&part.xml10_content())?,
                Event::CData(part) => self.text(&part.xml10_content())?,
                Event::GeneralRef(reference) => self.reference(&reference)?,
                Event::DocType(_) => self.findings.push(
                    Finding::error(self.cursor.at, "doctype", "an answer file has no DOCTYPE")
                        .why("it is the way to make a small file a large one; Setup needs none")
                        .fix("remove it"),
                ),
                Event::Decl(declaration) => self.declaration(declaration.encoding()),
                Event::Comment(_) | Event::PI(_) => {}
                Event::Eof => break,
            }
        }
        match self.open.last() {
            Some(open) => {
                let node = &self.document.elements[*open];
                let what = format!("<{}> of line {} is never closed", shown(&node.name), node.at.line);
                Err(self.broken(&what))
            }
            None if self.document.elements.is_empty() => Err(self.broken("there is no element in it")),
            None => Ok(()),
        }
    }

    fn broken(&self, what: &str) -> Finding {
        Finding::error(self.cursor.at, "xml", format!("not well-formed: {what}"))
            .why("Setup reads nothing of a file that is not well-formed")
    }

    fn start(&mut self, tag: &BytesStart<'_>, stays_open: bool) -> Result<(), Finding> {
        if self.open.is_empty() && !self.document.elements.is_empty() {
            return Err(self.broken("a second root element"));
        }
        if self.open.len() >= DEPTH_LIMIT || self.document.elements.len() >= ELEMENTS_LIMIT {
            let what = format!("more than {DEPTH_LIMIT} levels or {ELEMENTS_LIMIT} elements");
            return Err(Finding::error(self.cursor.at, "limits", what)
                .why("no answer file needs that many; nothing behind it was read"));
        }
        if tag.attributes_raw().len() > ATTRIBUTES_LIMIT {
            let what = format!("the attributes of one element are longer than {ATTRIBUTES_LIMIT} bytes");
            return Err(Finding::error(self.cursor.at, "limits", what).why("nothing behind it was read"));
        }
        let depth = self.open.len();
        let attributes = self.attributes(tag, depth)?;
        let name = tag.name().as_ref().to_owned();
        let (prefix, local) = name.split_once(':').unwrap_or(("", &name));
        let node = Node {
            name: local.to_owned(),
            space: self.space(prefix).unwrap_or_default().to_owned(),
            attributes,
            text: String::new(),
            at: self.cursor.at,
            children: Vec::new(),
        };
        let index = self.document.elements.len();
        self.document.elements.push(node);
        if let Some(parent) = self.open.last() {
            self.document.elements[*parent].children.push(index);
        }
        if stays_open {
            self.open.push(index);
        } else {
            self.spaces.retain(|(declared, ..)| *declared < depth);
        }
        Ok(())
    }

    /// The attributes of a tag; declarations of namespaces are taken out and remembered.
    fn attributes(&mut self, tag: &BytesStart<'_>, depth: usize) -> Result<Vec<Attribute>, Finding> {
        let mut found = Vec::new();
        for attribute in tag.attributes() {
            let attribute = attribute.map_err(|error| self.broken(&shown(&error.to_string())))?;
            let value = attribute
                .normalized_value(quick_xml::XmlVersion::Implicit1_0)
                .map_err(|error| self.broken(&shown(&error.to_string())))?;
            self.characters(&value)?;
            let name: &str = attribute.key.as_ref();
            match name.split_once(':') {
                Some(("xmlns", prefix)) => self.spaces.push((depth, prefix.to_owned(), value.into_owned())),
                None if name == "xmlns" => self.spaces.push((depth, String::new(), value.into_owned())),
                _ => found.push(Attribute { name: name.to_owned(), value: value.into_owned() }),
            }
        }
        for attribute in &mut found {
            if let Some((prefix, local)) = attribute.name.split_once(':')
                && self.space(prefix) == Some(WCM)
            {
                attribute.name = format!("wcm:{local}");
            }
        }
        Ok(found)
    }

    fn space(&self, prefix: &str) -> Option<&str> {
        self.spaces.iter().rev().find(|(_, known, _)| known == prefix).map(|(.., space)| space.as_str())
    }

    fn end(&mut self) {
        self.open.pop();
        let depth = self.open.len();
        self.spaces.retain(|(declared, ..)| *declared < depth);
    }

    fn text(&mut self, text: &str) -> Result<(), Finding> {
        self.characters(text)?;
        match self.open.last() {
            Some(open) => self.document.elements[*open].text.push_str(text),
            None if text.trim().is_empty() => {}
            None => return Err(self.broken("text outside of the root element")),
        }
        Ok(())
    }

    fn characters(&self, text: &str) -> Result<(), Finding> {
        match text.chars().find(|c| !allowed(*c)) {
            Some(bad) => {
                Err(self.broken(&format!("the character {} cannot be in XML", bad.escape_unicode())))
            }
            None => Ok(()),
        }
    }

    fn reference(&mut self, reference: &BytesRef<'_>) -> Result<(), Finding> {
        let name = reference.xml10_content();
        if reference.is_char_ref() {
            let c = reference.resolve_char_ref().ok().flatten().filter(|c| allowed(*c));
            let c = c.ok_or_else(|| self.broken(&format!("&{}; is no character", shown(&name))))?;
            return self.text(c.encode_utf8(&mut [0; 4]));
        }
        if let Some(text) = quick_xml::escape::resolve_predefined_entity(&name) {
            return self.text(text);
        }
        self.entities += 1;
        if self.entities == 1 {
            let what = format!("&{}; stands for nothing", shown(&name));
            self.findings.push(
                Finding::error(self.cursor.at, "entity", what).fix("write &amp; for the sign '&' itself"),
            );
        }
        Ok(())
    }

    /// A file that says of itself to be what it is not is refused by Windows' reader.
    fn declaration<E>(&mut self, encoding: Option<Result<std::borrow::Cow<'_, str>, E>>) {
        let Some(Ok(encoding)) = encoding else { return };
        let lower = encoding.to_ascii_lowercase();
        let wide = lower.starts_with("utf-16") || lower.starts_with("ucs-2") || lower == "unicode";
        if self.wide.is_some_and(|is_wide| is_wide != wide) {
            let what = format!("the file says that it is {}, and it is not", shown(&encoding));
            let right = if wide { "utf-8" } else { "utf-16" };
            let finding = Finding::error(self.cursor.at, "encoding", what);
            self.findings
                .push(finding.fix(format!("write encoding=\"{right}\", or save the file as it says")));
        }
    }
}
