//! A small reader of XML, written apart from the builder's on purpose: two readers that agree are evidence.

/// An element with what is in it; names are without their prefix.
#[derive(Debug, Default, Clone)]
pub(crate) struct Element {
    pub(crate) name: String,
    pub(crate) attributes: Vec<(String, String)>,
    pub(crate) children: Vec<Element>,
    pub(crate) text: String,
}

impl Element {
    pub(crate) fn attribute(&self, name: &str) -> &str {
        self.attributes.iter().find(|(key, _)| key == name).map_or("", |(_, value)| value)
    }

    pub(crate) fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Element> {
        self.children.iter().filter(move |child| child.name == name)
    }

    /// The element at a path such as `UserData/AcceptEula`.
    pub(crate) fn at(&self, path: &str) -> Option<&Element> {
        path.split('/')
            .try_fold(self, |element, name| element.children.iter().find(|child| child.name == name))
    }

    /// The trimmed text there; empty if there is none.
    pub(crate) fn text_at(&self, path: &str) -> &str {
        self.at(path).map_or("", |element| element.text.trim())
    }
}

/// Reads one document.
pub(crate) fn parse(text: &str) -> Result<Element, String> {
    let mut rest = text.trim_start_matches('\u{feff}');
    let mut open = vec![Element::default()];
    while let Some(at) = rest.find('<') {
        let top = open.last_mut().ok_or("an end without its beginning")?;
        top.text.push_str(&decode(&rest[..at])?);
        rest = &rest[at..];
        if let Some(end) = skipped(rest)? {
            rest = &rest[end..];
            continue;
        }
        if let Some(inner) = rest.strip_prefix("<![CDATA[") {
            let end = inner.find("]]>").ok_or("CDATA without its end")?;
            top.text.push_str(&inner[..end]);
            rest = &inner[end + 3..];
            continue;
        }
        let end = tag_end(rest).ok_or("a tag without its end")?;
        let tag = &rest[1..end];
        rest = &rest[end + 1..];
        if let Some(name) = tag.strip_prefix('/') {
            let done = open.pop().ok_or("an end without its beginning")?;
            if done.name != local(name.trim()) {
                return Err(format!("</{name}> ends <{}>", done.name));
            }
            open.last_mut().ok_or("an end without its beginning")?.children.push(done);
            continue;
        }
        let element = start(tag.trim_end_matches('/'))?;
        if tag.ends_with('/') { top.children.push(element) } else { open.push(element) }
    }
    match (open.pop(), open.is_empty()) {
        (Some(mut root), true) if root.children.len() == 1 => Ok(root.children.remove(0)),
        (Some(element), false) => Err(format!("<{}> has no end", element.name)),
        _ => Err("not one element".to_owned()),
    }
}

/// The length of a comment, declaration or instruction at the start of `text`.
fn skipped(text: &str) -> Result<Option<usize>, String> {
    for (from, to) in [("<!--", "-->"), ("<?", "?>")] {
        if text.starts_with(from) {
            return text.find(to).map(|at| Some(at + to.len())).ok_or_else(|| format!("{from} without {to}"));
        }
    }
    if text.starts_with("<!DOCTYPE") {
        return Err("a document type, which no answer file has".to_owned());
    }
    Ok(None)
}

/// The `>` that ends a tag: not one inside quotes.
fn tag_end(text: &str) -> Option<usize> {
    let mut quote = None;
    text.char_indices().find_map(|(at, c)| match (quote, c) {
        (None, '"' | '\'') => {
            quote = Some(c);
            None
        }
        (Some(q), c) if q == c => {
            quote = None;
            None
        }
        (None, '>') => Some(at),
        _ => None,
    })
}

fn start(tag: &str) -> Result<Element, String> {
    let (name, mut rest) = tag.split_once(char::is_whitespace).unwrap_or((tag, ""));
    let mut element = Element { name: local(name).to_owned(), ..Element::default() };
    while let Some((key, value)) = rest.trim_start().split_once('=') {
        let value = value.trim_start();
        let quote =
            value.chars().next().filter(|c| matches!(c, '"' | '\'')).ok_or("a value without quotes")?;
        let end = value[1..].find(quote).ok_or("a value without its end")?;
        element.attributes.push((local(key.trim()).to_owned(), decode(&value[1..=end])?));
        rest = &value[end + 2..];
    }
    Ok(element)
}

fn local(name: &str) -> &str {
    name.rsplit(':').next().unwrap_or(name)
}

fn decode(text: &str) -> Result<String, String> {
    let mut parts = text.split('&');
    let mut out = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let (entity, rest) = part.split_once(';').ok_or("'&' without ';'")?;
        let number = entity.strip_prefix("#x").map(|hex| u32::from_str_radix(hex, 16));
        let number = number.or_else(|| entity.strip_prefix('#').map(str::parse));
        out.push(match (entity, number) {
            ("amp", _) => '&',
            ("lt", _) => '<',
            ("gt", _) => '>',
            ("quot", _) => '"',
            ("apos", _) => '\'',
            (_, Some(Ok(code))) => char::from_u32(code).ok_or("a character that is none")?,
            _ => return Err(format!("&{entity}; is unknown")),
        });
        out.push_str(rest);
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_file_is_read() {
        let text = "<?xml version='1.0'?><!-- > --><u:unattend xmlns:u=\"a\"><s pass=\"x &amp; y\"><N>&#xc9;lodie &lt;</N><E/></s></u:unattend>";
        let root = parse(text).unwrap();
        assert_eq!(root.name, "unattend");
        let pass = root.all("s").next().unwrap();
        assert_eq!((pass.attribute("pass"), pass.text_at("N")), ("x & y", "Élodie <"));
        assert!(pass.at("E").is_some() && pass.at("N/E").is_none());
    }

    #[test]
    fn what_is_damaged_is_refused() {
        for bad in
            ["", "<a>", "<a></b>", "</a>", "<a x=1/>", "<a>&nope;</a>", "<a/><b/>", "<!DOCTYPE a><a/>", "<a"]
        {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
