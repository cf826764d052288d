//! Users, groups by SID, and the password that autologon takes.

use std::io;
use std::ptr;

use windows_sys::Win32::Foundation::{ERROR_INSUFFICIENT_BUFFER, ERROR_MEMBER_IN_ALIAS, LocalFree};
use windows_sys::Win32::NetworkManagement::NetManagement::{
    LOCALGROUP_MEMBERS_INFO_0, NetLocalGroupAddMembers, NetUserSetInfo, USER_INFO_1003,
};
use windows_sys::Win32::Security::Authentication::Identity::{
    LSA_HANDLE, LSA_OBJECT_ATTRIBUTES, LSA_UNICODE_STRING, LsaClose, LsaNtStatusToWinError, LsaOpenPolicy,
    LsaStorePrivateData, POLICY_CREATE_SECRET,
};
use windows_sys::Win32::Security::Authorization::ConvertStringSidToSidW;
use windows_sys::Win32::Security::{LookupAccountNameW, LookupAccountSidW, PSID};

use super::{checked, error, numbered, wide};

/// Gives a local user a password.
pub(crate) fn set_password(user: &str, password: &str) -> io::Result<()> {
    let (user, mut password) = (wide(user), wide(password));
    let info = USER_INFO_1003 { usri1003_password: password.as_mut_ptr() };
    // SAFETY: texts end with NUL; level 1003 takes this structure.
    let answer = unsafe {
        NetUserSetInfo(ptr::null(), user.as_ptr(), 1003, (&raw const info).cast(), ptr::null_mut())
    };
    password.fill(0);
    numbered(answer)
}

/// Puts a user into the group with this SID; `false` if it was in it.
pub(crate) fn join_group(user: &str, sid: &str) -> io::Result<bool> {
    let group = wide(&group_name(sid)?);
    let mut member = user_sid(user)?;
    let info = LOCALGROUP_MEMBERS_INFO_0 { lgrmi0_sid: member.as_mut_ptr().cast() };
    // SAFETY: the group ends with NUL; level 0 takes one such structure.
    let answer =
        unsafe { NetLocalGroupAddMembers(ptr::null(), group.as_ptr(), 0, (&raw const info).cast(), 1) };
    match answer {
        ERROR_MEMBER_IN_ALIAS => Ok(false),
        code => numbered(code).map(|()| true),
    }
}

/// What the group is called in this Windows' language.
fn group_name(sid: &str) -> io::Result<String> {
    let text = wide(sid);
    let mut psid: PSID = ptr::null_mut();
    // SAFETY: the text ends with NUL; `psid` takes memory that we free below.
    checked(unsafe { ConvertStringSidToSidW(text.as_ptr(), &raw mut psid) })?;
    let (mut name, mut domain) = ([0_u16; 260], [0_u16; 260]);
    let (mut length, mut domain_length, mut kind) = (260, 260, 0);
    // SAFETY: buffers are as long as said.
    let found = checked(unsafe {
        LookupAccountSidW(
            ptr::null(),
            psid,
            name.as_mut_ptr(),
            &raw mut length,
            domain.as_mut_ptr(),
            &raw mut domain_length,
            &raw mut kind,
        )
    });
    // SAFETY: allocated by ConvertStringSidToSidW.
    unsafe { LocalFree(psid) };
    found?;
    Ok(String::from_utf16_lossy(&name[..(length as usize).min(260)]))
}

/// The SID of a user, in words so that it lies as Windows wants it.
fn user_sid(user: &str) -> io::Result<[u64; 16]> {
    let user = wide(user);
    let (mut sid, mut domain) = ([0_u64; 16], [0_u16; 260]); // a SID has at most 68 bytes
    let (mut length, mut domain_length, mut kind) = (128, 260, 0);
    // SAFETY: buffers are as long as said, the name ends with NUL.
    checked(unsafe {
        LookupAccountNameW(
            ptr::null(),
            user.as_ptr(),
            sid.as_mut_ptr().cast(),
            &raw mut length,
            domain.as_mut_ptr(),
            &raw mut domain_length,
            &raw mut kind,
        )
    })?;
    if length > 128 { Err(error(ERROR_INSUFFICIENT_BUFFER)) } else { Ok(sid) }
}

/// Stores, or with `None` removes, the password that autologon takes, as a secret of the system and not in the
/// registry for all to read.
pub(crate) fn set_autologon_secret(password: Option<&str>) -> io::Result<()> {
    let mut name: Vec<u16> = "DefaultPassword".encode_utf16().collect();
    let mut secret: Option<Vec<u16>> = password.map(|text| text.encode_utf16().collect());
    let name = lsa_string(&mut name)?;
    let value = secret.as_mut().map(|units| lsa_string(units)).transpose()?;
    let attributes = LSA_OBJECT_ATTRIBUTES {
        Length: size_of::<LSA_OBJECT_ATTRIBUTES>() as u32,
        ..LSA_OBJECT_ATTRIBUTES::default()
    };
    let mut policy: LSA_HANDLE = LSA_HANDLE::default();
    // SAFETY: the structures and the texts they point to live until the calls return; the handle is closed once.
    let answer = unsafe {
        let opened =
            LsaOpenPolicy(ptr::null(), &raw const attributes, POLICY_CREATE_SECRET as u32, &raw mut policy);
        if opened == 0 {
            let pointer = value.as_ref().map_or(ptr::null(), |value| &raw const *value);
            let stored = LsaStorePrivateData(policy, &raw const name, pointer);
            LsaClose(policy);
            stored
        } else {
            opened
        }
    };
    if let Some(units) = &mut secret {
        units.fill(0);
    }
    const NOT_FOUND: u32 = 0xC000_0034; // STATUS_OBJECT_NAME_NOT_FOUND: there was none to remove
    if answer == 0 || (password.is_none() && answer.cast_unsigned() == NOT_FOUND) {
        return Ok(());
    }
    // SAFETY: a number into a number.
    Err(error(unsafe { LsaNtStatusToWinError(answer) }))
}

/// Counted texts of the LSA have no NUL, and at most 32766 units.
fn lsa_string(units: &mut [u16]) -> io::Result<LSA_UNICODE_STRING> {
    let bytes = u16::try_from(units.len() * 2).map_err(io::Error::other)?;
    Ok(LSA_UNICODE_STRING { Length: bytes, MaximumLength: bytes, Buffer: units.as_mut_ptr() })
}
