//! How answer files hide passwords: base64 of UTF-16LE of the password with the element's name behind it.
//!
//! That is no protection, only less to read over a shoulder; it also carries every character that XML could not.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

/// The value for `PlainText` = false inside the element `element` (`Password` or `AdministratorPassword`).
pub(super) fn encode(password: &str, element: &str) -> String {
    let units = password.encode_utf16().chain(element.encode_utf16());
    STANDARD.encode(units.flat_map(u16::to_le_bytes).collect::<Vec<u8>>())
}

/// Why a hidden password is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NotHidden {
    Base64,
    Utf16,
    Suffix,
}

/// The password inside, without the element's name.
pub(super) fn decode(value: &str, element: &str) -> Result<String, NotHidden> {
    let packed: String = value.chars().filter(|c| !c.is_ascii_whitespace()).collect();
    let bytes = STANDARD.decode(packed).map_err(|_| NotHidden::Base64)?;
    if !bytes.len().is_multiple_of(2) {
        return Err(NotHidden::Utf16);
    }
    let units: Vec<u16> = bytes.chunks_exact(2).map(|pair| u16::from_le_bytes([pair[0], pair[1]])).collect();
    let text = String::from_utf16(&units).map_err(|_| NotHidden::Utf16)?;
    text.strip_suffix(element).map(str::to_owned).ok_or(NotHidden::Suffix)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn as_windows_writes_it() {
        // "pw" and "Password", two bytes a letter.
        assert_eq!(encode("pw", "Password"), "cAB3AFAAYQBzAHMAdwBvAHIAZAA=");
        assert_eq!(decode("cAB3AFAAYQBzAHMAdwBvAHIAZAA=", "Password").as_deref(), Ok("pw"));
        assert_eq!(decode("cAB3AFAAYQBzAHMAdwBvAHIAZAA=", "AdministratorPassword"), Err(NotHidden::Suffix));
        assert_eq!(decode("vagrant!", "Password"), Err(NotHidden::Base64));
        assert_eq!(decode("AAA=", "Password"), Err(NotHidden::Suffix));
        assert_eq!(decode("AA==", "Password"), Err(NotHidden::Utf16));
    }

    proptest! {
        #[test]
        fn every_password_comes_out_as_it_went_in(password in "\\PC*", element in "(Administrator)?Password") {
            prop_assert_eq!(decode(&encode(&password, &element), &element), Ok(password));
        }
    }
}
