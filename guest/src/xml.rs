//! XML as `nvidia-smi` and Windows' event log write it: elements with attributes and text, within bounds.
//!
//! No validation, no namespaces, no entities but the five of XML and numbers; declarations, comments and the document
//! type are passed over.

/// Deepest nesting, most elements, most characters of one text.
const DEPTH: usize = 32;
const ELEMENTS: usize = 20_000;
const LONGEST: usize = 1024;

/// An element with what is in it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Element {
    pub(crate) name: String,
    pub(crate) attributes: Vec<(String, String)>,
    /// All text in it directly, without spaces at its ends.
    pub(crate) text: String,
    pub(crate) children: Vec<Element>,
}

impl Element {
    /// The first element below this one on a path of names, as `pci/pci_bus`.
    pub(crate) fn at(&self, path: &str) -> Option<&Self> {
        path.split('/').try_fold(self, |element, name| element.children.iter().find(|c| c.name == name))
    }

    /// The text of the element at `path`.
    pub(crate) fn text_at(&self, path: &str) -> Option<&str> {
        self.at(path).map(|element| element.text.as_str())
    }

    /// An attribute.
    pub(crate) fn attribute(&self, name: &str) -> Option<&str> {
        self.attributes.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }
}

/// Reads one document.
///
/// # Errors
/// If it is not such a document, or beyond the bounds.
pub(crate) fn parse(mut text: &str) -> Result<Element, &'static str> {
    let mut open: Vec<Element> = Vec::new();
    let mut count = 0;
    loop {
        let start = text.find('<').ok_or("it ends inside of an element")?;
        if let Some(element) = open.last_mut() {
            add_text(element, &unescaped(&text[..start]));
        }
        text = &text[start..];
        if let Some(rest) = passed_over(text, open.last_mut())? {
            text = rest;
            continue;
        }
        let end = tag_end(text).ok_or("a tag has no end")?;
        let tag = &text[1..end];
        text = &text[end + 1..];
        if let Some(name) = tag.strip_prefix('/') {
            let element = open.pop().ok_or("an element ends that has not begun")?;
            if element.name != name.trim() {
                return Err("an element ends inside of another one");
            }
            match close(&mut open, element) {
                Some(root) => return Ok(root),
                None => continue,
            }
        }
        count += 1;
        if count > ELEMENTS || open.len() >= DEPTH {
            return Err("too many elements, or nested too deeply");
        }
        let (tag, empty) = tag.strip_suffix('/').map_or((tag, false), |tag| (tag, true));
        let element = begin(tag)?;
        if !empty {
            open.push(element);
        } else if let Some(root) = close(&mut open, element) {
            return Ok(root);
        }
    }
}

/// Puts an element that has ended where it belongs; back comes the outermost one.
fn close(open: &mut [Element], mut element: Element) -> Option<Element> {
    element.text.truncate(element.text.trim_end().len());
    match open.last_mut() {
        Some(parent) => {
            parent.children.push(element);
            None
        }
        None => Some(element),
    }
}

/// What is behind a declaration, comment, document type or piece of plain text; `None` before anything else.
fn passed_over<'a>(text: &'a str, element: Option<&mut Element>) -> Result<Option<&'a str>, &'static str> {
    const PLAIN: &str = "<![CDATA[";
    for (start, end) in [("<?", "?>"), ("<!--", "-->"), (PLAIN, "]]>"), ("<!", ">")] {
        let Some(rest) = text.strip_prefix(start) else { continue };
        let length = rest.find(end).ok_or("a comment or declaration has no end")?;
        if start == PLAIN
            && let Some(element) = element
        {
            add_text(element, &rest[..length]);
        }
        return Ok(Some(&rest[length + end.len()..]));
    }
    Ok(None)
}

fn add_text(element: &mut Element, text: &str) {
    let text = if element.text.is_empty() { text.trim_start() } else { text };
    let room = LONGEST.saturating_sub(element.text.chars().count());
    element.text.extend(text.chars().take(room));
}

/// Where a tag's `>` is: not inside of an attribute's value.
fn tag_end(text: &str) -> Option<usize> {
    let mut quote = None;
    text.char_indices().find_map(|(at, c)| {
        match (quote, c) {
            (None, '>') => return Some(at),
            (None, '"' | '\'') => quote = Some(c),
            (Some(open), c) if open == c => quote = None,
            _ => {}
        }
        None
    })
}

/// An element from what is between the brackets of its first tag.
fn begin(tag: &str) -> Result<Element, &'static str> {
    let (name, mut rest) = tag.split_once(char::is_whitespace).unwrap_or((tag, ""));
    if name.is_empty() {
        return Err("an element has no name");
    }
    let mut element = Element { name: name.chars().take(LONGEST).collect(), ..Element::default() };
    while let Some((name, value)) = rest.split_once('=') {
        let value = value.trim_start();
        let quote =
            value.chars().next().filter(|c| ['"', '\''].contains(c)).ok_or("a value without quotes")?;
        let (value, more) = value[1..].split_once(quote).ok_or("a value has no end")?;
        let value = unescaped(value).chars().take(LONGEST).collect();
        element.attributes.push((name.trim().to_owned(), value));
        rest = more;
    }
    Ok(element)
}

/// Text with its entities resolved; one that is not known stays as it is.
fn unescaped(text: &str) -> String {
    const NAMED: &[(&str, char)] = &[("lt", '<'), ("gt", '>'), ("amp", '&'), ("quot", '"'), ("apos", '\'')];
    let mut parts = text.split('&');
    let mut out = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let known = part.split_once(';').and_then(|(name, rest)| {
            let named = NAMED.iter().find(|(known, _)| *known == name).map(|(_, c)| *c);
            let number = || match name.strip_prefix("#x") {
                Some(hex) => u32::from_str_radix(hex, 16).ok(),
                None => name.strip_prefix('#')?.parse().ok(),
            };
            Some((named.or_else(|| number().and_then(char::from_u32))?, rest))
        });
        match known {
            Some((c, rest)) => {
                out.push(c);
                out.push_str(rest);
            }
            None => {
                out.push('&');
                out.push_str(part);
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_document_is_read() {
        let text = "<?xml version=\"1.0\"?>\n<!DOCTYPE a SYSTEM \"a.dtd\">\n<!-- <b> -->\n<a id='1 > 0' x=\"&lt;&#65;&#x42;\">\n \
            <b/> one &amp; two &unknown; <c d=\"\"><![CDATA[<raw>]]></c>\n</a>";
        let a = parse(text).unwrap();
        assert_eq!((a.name.as_str(), a.attribute("id"), a.attribute("x")), ("a", Some("1 > 0"), Some("<AB")));
        assert_eq!((a.text.as_str(), a.text_at("c")), ("one & two &unknown;", Some("<raw>")));
        assert_eq!((a.children.len(), a.at("c/d")), (2, None));
    }

    #[test]
    fn what_is_no_document_is_refused() {
        for text in [
            "",
            "x",
            "<a>",
            "<a",
            "<a></b>",
            "</a>",
            "<a><b></a></b>",
            "<a x=1/>",
            "<a x='1/>",
            "<>",
            "<!-- ",
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
        assert!(parse(&"<a>".repeat(100_000)).is_err());
        assert!(parse(&format!("<a>{}</a>", "<b/>".repeat(ELEMENTS))).is_err());
        let long = parse(&format!("<a>{}</a>", "é".repeat(5000))).unwrap();
        assert_eq!(long.text.chars().count(), LONGEST);
    }

    proptest! {
        #[test]
        fn anything_is_read_without_panic(text in "\\PC{0,60}|([<>/=\"'&;#a-c \\n!\\[\\]?-]|é|&#x1F600;|<a>|</a>|<!--|-->){0,60}") {
            let _ = parse(&text);
        }
    }
}
