//! The registry, always its 64-bit view.

use std::io;
use std::ptr;

use windows_sys::Win32::Foundation::{ERROR_FILE_NOT_FOUND, ERROR_MORE_DATA};
use windows_sys::Win32::System::Registry::{
    HKEY, HKEY_LOCAL_MACHINE, HKEY_USERS, KEY_READ, KEY_WOW64_64KEY, KEY_WRITE, REG_BINARY, REG_DWORD,
    REG_EXPAND_SZ, REG_MULTI_SZ, REG_OPTION_NON_VOLATILE, REG_QWORD, REG_SZ, RegCloseKey, RegCreateKeyExW,
    RegDeleteValueW, RegOpenKeyExW, RegQueryValueExW, RegSetValueExW,
};

use super::{numbered, wide};

/// Most bytes of a value that is read.
const VALUE_LIMIT: u32 = 1 << 20;

/// A value as Windows stores it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Raw {
    kind: u32,
    pub(crate) bytes: Vec<u8>,
}

impl Raw {
    pub(crate) fn dword(value: u32) -> Self {
        Self { kind: REG_DWORD, bytes: value.to_le_bytes().to_vec() }
    }

    pub(crate) fn qword(value: u64) -> Self {
        Self { kind: REG_QWORD, bytes: value.to_le_bytes().to_vec() }
    }

    pub(crate) fn text(value: &str) -> Self {
        Self { kind: REG_SZ, bytes: utf16(&wide(value)) }
    }

    pub(crate) fn expand_text(value: &str) -> Self {
        Self { kind: REG_EXPAND_SZ, bytes: utf16(&wide(value)) }
    }

    pub(crate) fn texts(values: &[String]) -> Self {
        let units: Vec<u16> = values.iter().flat_map(|value| wide(value)).chain([0]).collect();
        Self { kind: REG_MULTI_SZ, bytes: utf16(&units) }
    }

    pub(crate) fn binary(bytes: Vec<u8>) -> Self {
        Self { kind: REG_BINARY, bytes }
    }

    /// The number, if it is one of 32 bits.
    pub(crate) fn as_dword(&self) -> Option<u32> {
        (self.kind == REG_DWORD).then(|| self.bytes.as_slice().try_into().ok().map(u32::from_le_bytes))?
    }

    /// The text, up to its first NUL, if it is one, or the first of several.
    pub(crate) fn as_text(&self) -> Option<String> {
        [REG_SZ, REG_EXPAND_SZ, REG_MULTI_SZ].contains(&self.kind).then(|| {
            let units = self.bytes.chunks_exact(2).map(|pair| u16::from_le_bytes([pair[0], pair[1]]));
            String::from_utf16_lossy(&units.take_while(|unit| *unit != 0).collect::<Vec<_>>())
        })
    }
}

fn utf16(units: &[u16]) -> Vec<u8> {
    units.iter().flat_map(|unit| unit.to_le_bytes()).collect()
}

struct Key(HKEY);

impl Drop for Key {
    fn drop(&mut self) {
        // SAFETY: opened by us, closed once.
        unsafe { RegCloseKey(self.0) };
    }
}

/// `HKLM\…` or `HKU\…` into its root and the rest.
fn split(path: &str) -> io::Result<(HKEY, Vec<u16>)> {
    let roots = [(r"HKLM\", HKEY_LOCAL_MACHINE), (r"HKU\", HKEY_USERS)];
    let found = roots.iter().find_map(|(prefix, root)| Some((*root, wide(path.strip_prefix(prefix)?))));
    found.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, format!("no known root in {path}")))
}

fn open(path: &str, access: u32) -> io::Result<Key> {
    let (root, rest) = split(path)?;
    let mut key = ptr::null_mut();
    // SAFETY: the path ends with NUL; `key` takes the handle.
    numbered(unsafe { RegOpenKeyExW(root, rest.as_ptr(), 0, access | KEY_WOW64_64KEY, &raw mut key) })?;
    Ok(Key(key))
}

fn create(path: &str) -> io::Result<Key> {
    let (root, rest) = split(path)?;
    let (mut key, access) = (ptr::null_mut(), KEY_READ | KEY_WRITE | KEY_WOW64_64KEY);
    // SAFETY: the path ends with NUL; class, attributes and disposition are not wanted; `key` takes the handle.
    numbered(unsafe {
        RegCreateKeyExW(
            root,
            rest.as_ptr(),
            0,
            ptr::null(),
            REG_OPTION_NON_VOLATILE,
            access,
            ptr::null(),
            &raw mut key,
            ptr::null_mut(),
        )
    })?;
    Ok(Key(key))
}

/// Makes the key, if it is not there.
pub(crate) fn ensure_key(path: &str) -> io::Result<()> {
    create(path).map(drop)
}

/// Sets a value, and makes the key that it is in.
pub(crate) fn set(path: &str, name: &str, value: &Raw) -> io::Result<()> {
    let (key, name) = (create(path)?, wide(name));
    let length = u32::try_from(value.bytes.len()).map_err(io::Error::other)?;
    // SAFETY: name ends with NUL, the bytes are as long as said.
    numbered(unsafe { RegSetValueExW(key.0, name.as_ptr(), 0, value.kind, value.bytes.as_ptr(), length) })
}

/// Reads a value; `None` if it or its key is not there.
pub(crate) fn get(path: &str, name: &str) -> io::Result<Option<Raw>> {
    let Some(key) = absent(open(path, KEY_READ))? else { return Ok(None) };
    let name = wide(name);
    let (mut kind, mut length) = (0, 0);
    // It can grow between the two questions, so they are asked again a few times.
    for _ in 0..4 {
        let mut bytes = vec![0_u8; length as usize];
        // SAFETY: the buffer is as long as `length` says, which the call sets to what it wrote or wants.
        let answer = unsafe {
            RegQueryValueExW(
                key.0,
                name.as_ptr(),
                ptr::null(),
                &raw mut kind,
                if bytes.is_empty() { ptr::null_mut() } else { bytes.as_mut_ptr() },
                &raw mut length,
            )
        };
        match answer {
            ERROR_FILE_NOT_FOUND => return Ok(None),
            0 if length as usize <= bytes.len() => {
                bytes.truncate(length as usize);
                return Ok(Some(Raw { kind, bytes }));
            }
            0 | ERROR_MORE_DATA if length <= VALUE_LIMIT => {}
            0 | ERROR_MORE_DATA => return Err(io::Error::other(format!("a value of {length} bytes"))),
            code => return Err(super::error(code)),
        }
    }
    Err(super::error(ERROR_MORE_DATA))
}

/// Removes a value; `false` if it was not there.
pub(crate) fn delete(path: &str, name: &str) -> io::Result<bool> {
    let Some(key) = absent(open(path, KEY_READ | KEY_WRITE))? else { return Ok(false) };
    let name = wide(name);
    // SAFETY: the name ends with NUL.
    Ok(absent(numbered(unsafe { RegDeleteValueW(key.0, name.as_ptr()) }))?.is_some())
}

fn absent<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        result => result.map(Some),
    }
}
