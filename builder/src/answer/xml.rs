//! A tree of elements and its text: just what an answer file needs, so that nothing is ever put together from strings.

/// An element with attributes, and either children or a text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Element {
    name: &'static str,
    attributes: Vec<(&'static str, String)>,
    content: Content,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Content {
    Text(String),
    Children(Vec<Element>),
}

impl Element {
    /// An element for children.
    pub(super) fn new(name: &'static str) -> Self {
        Self { name, attributes: Vec::new(), content: Content::Children(Vec::new()) }
    }

    /// An element with a text.
    #[expect(clippy::needless_pass_by_value, reason = "texts and numbers alike")]
    pub(super) fn text(name: &'static str, text: impl ToString) -> Self {
        Self { name, attributes: Vec::new(), content: Content::Text(text.to_string()) }
    }

    /// `true` or `false`, as Windows writes them.
    pub(super) fn bool(name: &'static str, value: bool) -> Self {
        Self::text(name, value)
    }

    pub(super) fn attribute(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.attributes.push((name, value.into()));
        self
    }

    /// An item of a list, which is added to what the image has by itself.
    pub(super) fn item(name: &'static str) -> Self {
        Self::new(name).attribute("wcm:action", "add")
    }

    pub(super) fn child(self, child: Self) -> Self {
        self.children([child])
    }

    pub(super) fn children(mut self, more: impl IntoIterator<Item = Self>) -> Self {
        match &mut self.content {
            Content::Children(children) => children.extend(more),
            Content::Text(_) => unreachable!("an element with a text gets no children"),
        }
        self
    }

    /// The document, with declaration, indented by two spaces.
    pub(super) fn document(&self) -> String {
        let mut out = "<?xml version=\"1.0\" encoding=\"utf-8\"?>\n".to_owned();
        self.write(0, &mut out);
        out
    }

    fn write(&self, depth: usize, out: &mut String) {
        let indent = "  ".repeat(depth);
        out.push_str(&format!("{indent}<{}", self.name));
        for (name, value) in &self.attributes {
            out.push_str(&format!(" {name}=\"{}\"", escape(value)));
        }
        match &self.content {
            Content::Children(children) if children.is_empty() => out.push_str(" />\n"),
            Content::Children(children) => {
                out.push_str(">\n");
                children.iter().for_each(|child| child.write(depth + 1, out));
                out.push_str(&format!("{indent}</{}>\n", self.name));
            }
            Content::Text(text) => out.push_str(&format!(">{}</{}>\n", escape(text), self.name)),
        }
    }
}

/// Text and attribute values in one: the five signs, and line ends and tabs as numbers, since readers change the plain
/// ones. What XML 1.0 cannot hold at all becomes U+FFFD; the recipe's rules refuse it before.
fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&apos;"),
            '\n' | '\r' | '\t' => out.push_str(&format!("&#{};", u32::from(c))),
            c if allowed(c) => out.push(c),
            _ => out.push('\u{fffd}'),
        }
    }
    out
}

/// May this character stand in XML 1.0 at all?
pub(super) fn allowed(c: char) -> bool {
    matches!(c, '\t' | '\n' | '\r' | ' '..='\u{d7ff}' | '\u{e000}'..='\u{fffd}' | '\u{10000}'..)
}
