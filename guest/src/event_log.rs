//! Windows' event log: what is asked for, and an entry from the XML that Windows renders of it.
//!
//! Elements and attributes are those of the documented schema (Microsoft, "Event Schema"), which Windows never translates; the
//! sentence that people see is, and is not asked for. The computer's and the user's names in an entry are passed over.

use no43_guest::protocol::SystemEvent;

use crate::xml;

/// Who writes about displays and their drivers in the log "System".
pub(crate) const PROVIDERS: &[&str] = &["nvlddmkm", "Display"];
/// Entries that are kept, the newest ones.
#[cfg(windows)]
pub(crate) const MOST: usize = 64;
/// Texts of one entry, and characters of each.
const MOST_DATA: usize = 16;
const LONGEST: usize = 400;

/// The question to the log: entries of [`PROVIDERS`] not older than `since_ms` milliseconds.
pub(crate) fn query(since_ms: u64) -> String {
    let names: Vec<String> = PROVIDERS.iter().map(|name| format!("@Name='{name}'")).collect();
    format!(
        "*[System[Provider[{}] and TimeCreated[timediff(@SystemTime) <= {since_ms}]]]",
        names.join(" or ")
    )
}

/// One entry.
///
/// # Errors
/// If it is no such document, or names no provider.
pub(crate) fn entry(text: &str) -> Result<SystemEvent, &'static str> {
    let event = xml::parse(text)?;
    let system = event.at("System").ok_or("an entry without System")?;
    let provider = system.at("Provider").and_then(|provider| provider.attribute("Name"));
    let provider = provider.ok_or("an entry without a provider")?;
    let data = event.at("EventData").map(|data| data.children.as_slice()).unwrap_or_default();
    let said = |data: &xml::Element| {
        let value = cut(&data.text);
        data.attribute("Name").map_or(value.clone(), |name| cut(&format!("{name}={value}")))
    };
    let data = data.iter().filter(|data| data.name == "Data" && !data.text.is_empty());
    Ok(SystemEvent {
        provider: cut(provider),
        id: number(system.text_at("EventID")),
        level: number(system.text_at("Level")),
        time: system.at("TimeCreated").and_then(|time| time.attribute("SystemTime")).map(cut),
        record: number(system.text_at("EventRecordID")),
        data: data.take(MOST_DATA).map(said).collect(),
    })
}

fn number<T: std::str::FromStr>(text: Option<&str>) -> Option<T> {
    text?.parse().ok()
}

fn cut(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(LONGEST).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Written by hand after the documented schema, in the layout that Windows renders; not recorded.
    const XID: &str = "<Event xmlns='http://schemas.microsoft.com/win/2004/08/events/event'><System><Provider Name='nvlddmkm'/>\
        <EventID Qualifiers='49322'>14</EventID><Version>0</Version><Level>2</Level><Task>0</Task><Opcode>0</Opcode>\
        <Keywords>0x80000000000000</Keywords><TimeCreated SystemTime='2026-11-22T23:59:01.1234567Z'/><EventRecordID>4711</EventRecordID>\
        <Correlation/><Execution ProcessID='4' ThreadID='412'/><Channel>System</Channel><Computer>ELODIE-PC</Computer><Security/></System>\
        <EventData><Data>\\Device\\Video3</Data><Data>0ac4(31cc) 00000000 00000000</Data><Binary>00000000020030</Binary></EventData></Event>";
    const TDR: &str = "<Event xmlns=\"http://schemas.microsoft.com/win/2004/08/events/event\">\n  <System>\n    \
        <Provider Name=\"Display\" />\n    <EventID Qualifiers=\"0\">4101</EventID>\n    <Level>3</Level>\n    \
        <TimeCreated SystemTime=\"2026-11-22T23:58:00.5Z\" />\n    <EventRecordID>4700</EventRecordID>\n  </System>\n  \
        <EventData>\n    <Data Name=\"param1\">nvlddmkm</Data>\n    <Data></Data>\n  </EventData>\n</Event>";

    #[test]
    fn an_entry_has_its_number_its_time_and_what_it_carries() {
        let xid = entry(XID).unwrap();
        assert_eq!(
            (xid.provider.as_str(), xid.id, xid.level, xid.record),
            ("nvlddmkm", Some(14), Some(2), Some(4711))
        );
        assert_eq!(xid.time.as_deref(), Some("2026-11-22T23:59:01.1234567Z"));
        assert_eq!(xid.data, [r"\Device\Video3", "0ac4(31cc) 00000000 00000000"]);
        assert!(!format!("{xid:?}").contains("ELODIE"));
        let tdr = entry(TDR).unwrap();
        assert_eq!(
            (tdr.provider.as_str(), tdr.id, tdr.data),
            ("Display", Some(4101), vec!["param1=nvlddmkm".into()])
        );
    }

    #[test]
    fn what_is_no_entry_is_refused_and_what_is_missing_is_unknown() {
        for text in
            ["", "<Event/>", "<Event><System/></Event>", "<Event><System><Provider/></System></Event>"]
        {
            assert!(entry(text).is_err(), "{text}");
        }
        let bare =
            entry("<Event><System><Provider Name='Display'/><EventID>x</EventID></System></Event>").unwrap();
        assert_eq!((bare.id, bare.level, bare.time, bare.data.len()), (None, None, None, 0));
        let many = format!(
            "<Event><System><Provider Name='x'/></System><EventData>{}</EventData></Event>",
            "<Data>é</Data>".repeat(1000)
        );
        assert_eq!(entry(&many).unwrap().data.len(), MOST_DATA);
    }

    #[test]
    fn the_question_names_the_providers_and_the_time() {
        insta::assert_snapshot!(query(90_000), @"*[System[Provider[@Name='nvlddmkm' or @Name='Display'] and TimeCreated[timediff(@SystemTime) <= 90000]]]");
    }

    proptest! {
        #[test]
        fn any_mutation_is_read(at in proptest::collection::vec((any::<usize>(), any::<u8>()), 0..20)) {
            let mut bytes = XID.as_bytes().to_vec();
            for (at, value) in at {
                let at = at % bytes.len();
                bytes[at] = value;
            }
            if let Ok(event) = entry(&String::from_utf8_lossy(&bytes)) {
                prop_assert!(event.data.len() <= MOST_DATA && event.provider.chars().count() <= LONGEST);
            }
        }
    }
}
