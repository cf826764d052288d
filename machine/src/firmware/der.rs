//! Just enough DER to find names in certificates and signatures; lengths are checked, nothing is verified.

/// One element: its tag and its contents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Element<'a> {
    pub(super) tag: u8,
    pub(super) body: &'a [u8],
}

pub(super) const INTEGER: u8 = 0x02;
pub(super) const OID: u8 = 0x06;
pub(super) const SEQUENCE: u8 = 0x30;
pub(super) const SET: u8 = 0x31;
pub(super) const EXPLICIT_0: u8 = 0xa0;

/// `2.5.4.3`, an X.500 common name.
const COMMON_NAME: &[u8] = &[0x55, 0x04, 0x03];

/// The elements in `bytes`, one after the other; ends at the first that is not whole.
pub(super) fn elements(mut bytes: &[u8]) -> impl Iterator<Item = Element<'_>> {
    std::iter::from_fn(move || {
        let (element, rest) = element(bytes)?;
        bytes = rest;
        Some(element)
    })
}

/// The contents of the first element, if it has this tag.
pub(super) fn inside(bytes: &[u8], tag: u8) -> Option<&[u8]> {
    element(bytes).filter(|(element, _)| element.tag == tag).map(|(element, _)| element.body)
}

fn element(bytes: &[u8]) -> Option<(Element<'_>, &[u8])> {
    let (&tag, rest) = bytes.split_first()?;
    let (&first, mut rest) = rest.split_first()?;
    let mut length = usize::from(first);
    if first & 0x80 != 0 {
        let (digits, behind) = rest.split_at_checked(usize::from(first & 0x7f))?;
        // Four digits are 4 GiB; the indefinite form (no digits) is not DER.
        if digits.is_empty() || digits.len() > 4 {
            return None;
        }
        length = digits.iter().fold(0, |length, digit| length << 8 | usize::from(*digit));
        rest = behind;
    }
    let (body, rest) = rest.split_at_checked(length)?;
    Some((Element { tag, body }, rest))
}

/// The common name in the contents of an X.500 name; the last one where there are several.
pub(super) fn common_name(name: &[u8]) -> Option<String> {
    let attributes = elements(name).flat_map(|set| elements(set.body));
    let names = attributes.filter_map(|attribute| {
        let mut parts = elements(attribute.body);
        let oid = parts.next().filter(|oid| oid.tag == OID)?;
        let value = parts.next()?;
        (oid.body == COMMON_NAME).then(|| text(value))
    });
    names.last()
}

/// The subject's common name of a certificate.
pub(super) fn subject(certificate: &[u8]) -> Option<String> {
    let to_be_signed = inside(inside(certificate, SEQUENCE)?, SEQUENCE)?;
    // version (optional), serial number, algorithm, issuer, validity, subject
    let mut fields = elements(to_be_signed).skip_while(|field| field.tag == EXPLICIT_0);
    fields.next().filter(|serial| serial.tag == INTEGER)?;
    common_name(fields.nth(3).filter(|subject| subject.tag == SEQUENCE)?.body)
}

/// `BMPString` has two bytes a character; the other kinds of text are read as UTF-8, of which ASCII is a part.
fn text(value: Element<'_>) -> String {
    const BMP_STRING: u8 = 0x1e;
    if value.tag == BMP_STRING {
        let units: Vec<u16> =
            value.body.chunks_exact(2).map(|pair| u16::from_be_bytes([pair[0], pair[1]])).collect();
        return String::from_utf16_lossy(&units);
    }
    String::from_utf8_lossy(value.body).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_beyond_the_end_are_no_elements() {
        assert_eq!(inside(&[SEQUENCE, 1, 7], SEQUENCE), Some(&[7][..]));
        assert_eq!(inside(&[SEQUENCE, 2, 7], SEQUENCE), None);
        assert_eq!(inside(&[SEQUENCE, 0x81, 1, 7], SEQUENCE), Some(&[7][..]));
        assert_eq!(inside(&[SEQUENCE, 0x80, 7, 0, 0], SEQUENCE), None);
        assert_eq!(inside(&[SEQUENCE, 0x88, 255, 255, 255, 255, 255, 255, 255, 255], SEQUENCE), None);
        assert_eq!(elements(&[OID, 0, SET, 0, 9]).count(), 2);
    }

    proptest::proptest! {
        #[test]
        fn nothing_panics(bytes: Vec<u8>) {
            let _ = (subject(&bytes), common_name(&bytes));
        }
    }
}
