//! One file for each fault, and none for what is legal; the fixtures are our own.

use proptest::prelude::*;

use super::super::tests::{PLAYER, build_only, load, media, windows10};
use super::super::{conflicts, settings_for};
use super::*;

const HEAD: &str = "processorArchitecture=\"amd64\" publicKeyToken=\"31bf3856ad364e35\" language=\"neutral\" versionScope=\"nonSxS\"";

/// An answer file of these components: pass, name without "Microsoft-Windows-", contents. Each stands in a line of its own,
/// the first in line 3.
fn file(components: &[(&str, &str, &str)]) -> String {
    let mut text = "<?xml version=\"1.0\" encoding=\"utf-8\"?>\n<unattend xmlns=\"urn:schemas-microsoft-com:unattend\" xmlns:wcm=\"http://schemas.microsoft.com/WMIConfig/2002/State\">\n".to_owned();
    for (pass, name, contents) in components {
        text += &format!(
            "<settings pass=\"{pass}\"><component name=\"Microsoft-Windows-{name}\" {HEAD}>{contents}</component></settings>\n"
        );
    }
    text + "</unattend>\n"
}

/// "line rule" of each finding of at least this severity.
fn rules(text: &str, least: Severity) -> Vec<String> {
    let findings = lint(text, None);
    let kept = findings.iter().filter(|finding| finding.severity >= least);
    kept.map(|finding| format!("{} {}", finding.line, finding.rule)).collect()
}

/// The rules that a component in line 3 breaks, notes left out.
fn broken(pass: &str, name: &str, contents: &str) -> Vec<String> {
    rules(&file(&[(pass, name, contents)]), Severity::Warning)
        .iter()
        .map(|rule| rule.strip_prefix("3 ").unwrap_or(rule).to_owned())
        .collect()
}

#[test]
fn what_we_write_ourselves_has_no_finding() {
    for sets in [&[][..], &["remote.rdp=true", "updates.windows=security", "machine.disk-bus=nvme"]] {
        let recipe = load(PLAYER, sets).unwrap_or_else(|p| panic!("{p}"));
        for media in [Some(windows10()), None] {
            let settings = settings_for(&recipe, media.as_ref(), build_only()).unwrap();
            assert_eq!(lint(&settings.render(), media.as_ref()), []);
            assert_eq!(conflicts(settings.render().as_bytes(), &settings), []);
        }
    }
}

#[test]
fn passes_components_and_attributes() {
    let international = "<UILanguage>en-US</UILanguage>";
    assert_eq!(broken("specialize", "International-Core-WinPE", international), ["component-pass"]);
    assert_eq!(broken("oobeSystem", "IE-ESC", ""), ["component-pass"]);
    assert_eq!(broken("oobesystem", "Shell-Setup", ""), ["pass"]);
    assert_eq!(broken("specialize", "Shel-Setup", ""), ["component-name"]);
    assert_eq!(broken("specialize", "Something-Completely-Different", ""), [""; 0]);
    assert_eq!(
        broken("generalize", "PnPSysprep", "<PersistAllDeviceInstalls>true</PersistAllDeviceInstalls>"),
        [""; 0]
    );
    let good = file(&[("specialize", "Shell-Setup", "")]);
    for (from, to) in [
        ("amd64", "amd46"),
        ("31bf3856ad364e35", "31bf3856ad364e34"),
        ("language=\"neutral\"", ""),
        ("nonSxS", "nonSXSS"),
        ("processorArchitecture=\"amd64\"", ""),
    ] {
        assert_eq!(rules(&good.replace(from, to), Severity::Warning), ["3 component-attribute"], "{from}");
    }
    assert_eq!(rules(&good, Severity::Note), [""; 0]);
    let twice = good.replace("</settings>", "</settings>\n").replace("</unattend>", "");
    let twice = format!("{twice}{}", good.lines().skip(2).collect::<Vec<_>>().join("\n"));
    assert_eq!(rules(&twice, Severity::Note), ["6 pass-twice", "6 component-twice"]);
}

#[test]
fn a_file_that_is_none() {
    let rule = |text: &str| rules(text, Severity::Error).first().cloned().unwrap_or_default();
    assert_eq!(rule("<html></html>"), "1 root");
    assert_eq!(rule("<unattend></unattend>"), "1 root");
    assert_eq!(rule("<unattend xmlns=\"urn:other\"/>"), "1 root");
    assert_eq!(rule(""), "1 xml");
    assert_eq!(rule("\n<a>\n<b></a>"), "3 xml");
    assert_eq!(rule("<a/><b/>"), "1 xml");
    assert_eq!(rule("<a x='1' x='2'/>"), "1 xml");
    assert_eq!(rule("<a>\u{1}</a>"), "1 xml");
    assert_eq!(rule("<a>&#0;</a>"), "1 xml");
    assert_eq!(rule("<!DOCTYPE a [<!ENTITY b 'c'>]>\n<a>&b;</a>"), "1 doctype");
    assert_eq!(rule(&"<a>".repeat(100)), "1 limits");
    assert_eq!(rule(&format!("<a {}/>", "x='1' ".repeat(5000))), "1 limits");
    assert_eq!(rule(&"x".repeat(BYTES_LIMIT + 1)), "1 limits");
}

#[test]
fn encodings() {
    let good = file(&[("specialize", "Shell-Setup", "<ComputerName>PC-1</ComputerName>")]);
    let wide = |text: &str| text.encode_utf16().flat_map(u16::to_le_bytes).collect::<Vec<u8>>();
    let rules = |bytes: &[u8]| lint_bytes(bytes, None).iter().map(|finding| finding.rule).collect::<Vec<_>>();
    let utf16 = good.replace("utf-8", "utf-16");
    assert_eq!(rules(good.as_bytes()), [""; 0]);
    assert_eq!(rules(&[b"\xef\xbb\xbf", good.as_bytes()].concat()), [""; 0]);
    assert_eq!(rules(&[b"\xff\xfe", &wide(&utf16)[..]].concat()), [""; 0]);
    assert_eq!(rules(&wide(&utf16)), ["encoding"]);
    assert_eq!(rules(utf16.as_bytes()), ["encoding"]);
    let latin1: Vec<u8> = good.replace("PC-1", "PC-é").chars().map(|c| c as u8).collect();
    assert_eq!(rules(&latin1), ["computer-name", "encoding"]);
}

#[test]
fn spelling_kinds_and_places_of_settings() {
    let shell = |contents: &str| broken("oobeSystem", "Shell-Setup", contents);
    assert_eq!(shell("<OOBE><HideEulaPage>true</HideEulaPage></OOBE>"), ["spelling"]);
    assert_eq!(shell("<OOBE><SomethingElse>true</SomethingElse></OOBE>"), [""; 0]);
    assert_eq!(shell("<OOBE><HideEULAPage>yes</HideEULAPage></OOBE>"), ["value"]);
    assert_eq!(shell("<OOBE><ProtectYourPC>three</ProtectYourPC></OOBE>"), ["value"]);
    assert_eq!(shell("<OOBE><NetworkLocation>Office</NetworkLocation></OOBE>"), ["value"]);
    assert_eq!(shell("<OOBE><SkipMachineOOBE>true</SkipMachineOOBE></OOBE>"), ["deprecated"]);
    assert_eq!(shell("<TimeZone>UTC</TimeZone><TimeZone>UTC</TimeZone>"), ["setting-twice"]);
    assert_eq!(shell("<RunSynchronous></RunSynchronous>"), ["spelling"]);
    assert_eq!(broken("specialize", "Shell-Setup", "<OOBE></OOBE>"), ["setting-pass"]);
    assert_eq!(broken("oobeSystem", "Deployment", "<RunSynchronous></RunSynchronous>"), ["setting-pass"]);
    // Templates: what stands in for a value is not judged.
    assert_eq!(
        shell("<OOBE><HideEULAPage>${hide}</HideEULAPage></OOBE><TimeZone>{{ zone }}</TimeZone>"),
        [""; 0]
    );
    // Other programs' own sections are nobody's business.
    let extended = file(&[]).replace(
        "</unattend>",
        "<Extensions xmlns=\"https://example.org/\"><setings/></Extensions></unattend>",
    );
    assert_eq!(rules(&extended, Severity::Note), [""; 0]);
}

#[test]
fn order_numbers_and_actions_of_lists() {
    let command = |order: &str, action: &str| {
        format!("<RunSynchronousCommand {action}>{order}<Path>x.exe</Path></RunSynchronousCommand>")
    };
    let of = |orders: &[&str]| {
        let items: String = orders
            .iter()
            .map(|order| command(&format!("<Order>{order}</Order>"), "wcm:action=\"add\""))
            .collect();
        let text =
            file(&[("specialize", "Deployment", &format!("<RunSynchronous>{items}</RunSynchronous>"))]);
        rules(&text, Severity::Note)
    };
    assert_eq!(of(&["1", "2", "3"]), [""; 0]);
    assert_eq!(of(&["3", "1", "2"]), [""; 0]);
    assert_eq!(of(&["1", "1"]), ["3 order"]);
    assert_eq!(of(&["0", "1"]), ["3 order"]);
    assert_eq!(of(&["1", "3"]), ["3 order-gap"]);
    assert_eq!(of(&["one"]), ["3 value"]);
    let one = |item: String| {
        broken("specialize", "Deployment", &format!("<RunSynchronous>{item}</RunSynchronous>"))
    };
    assert_eq!(one(command("", "wcm:action=\"add\"")), ["order"]);
    assert_eq!(one(command("<Order>1</Order>", "")), ["wcm-action"]);
    assert_eq!(one(command("<Order>1</Order>", "action=\"add\"")), ["wcm-action"]);
    assert_eq!(one(command("<Order>1</Order>", "wcm:action=\"ad\"")), ["wcm-action"]);
    assert_eq!(
        one("<RunSynchronousCommand wcm:action=\"add\"><Order>1</Order></RunSynchronousCommand>".to_owned()),
        ["command"]
    );
    let long = format!(
        "<RunSynchronousCommand wcm:action=\"add\"><Order>1</Order><Path>{}</Path></RunSynchronousCommand>",
        "x".repeat(260)
    );
    assert_eq!(one(long), ["length"]);
}

#[test]
fn names_accounts_and_passwords() {
    let computer =
        |name: &str| broken("specialize", "Shell-Setup", &format!("<ComputerName>{name}</ComputerName>"));
    for good in ["*", "SALON", "%COMPUTERNAME%", ""] {
        assert_eq!(computer(good), [""; 0], "{good}");
    }
    for bad in ["sixteen-letters-", "12345", "a b", "PC_1"] {
        assert_eq!(computer(bad), ["computer-name"], "{bad}");
    }
    let account = |name: &str, password: &str| {
        format!(
            "<LocalAccount wcm:action=\"add\"><Name>{name}</Name><Group>Administrators</Group><Password>{password}</Password></LocalAccount>"
        )
    };
    let accounts = |all: &str, more: &str| {
        broken(
            "oobeSystem",
            "Shell-Setup",
            &format!("<UserAccounts><LocalAccounts>{all}</LocalAccounts></UserAccounts>{more}"),
        )
    };
    let hidden = |text: &str, name: &str| {
        format!("<Value>{}</Value><PlainText>false</PlainText>", super::super::password::encode(text, name))
    };
    let joe = account("joe", &hidden("secret", "Password"));
    assert_eq!(accounts(&joe, ""), [""; 0]);
    assert_eq!(accounts(&format!("{joe}{}", account("JOE", "")), ""), ["account-twice"]);
    assert_eq!(accounts(&account("a/b", ""), ""), ["account-name"]);
    assert_eq!(
        accounts(&account("joe", &hidden("secret", "AdministratorPassword")), ""),
        [""; 0],
        "it ends the same"
    );
    assert_eq!(accounts(&account("joe", &hidden("secret", "")), ""), ["password-hidden"]);
    assert_eq!(
        accounts(&account("joe", "<Value>hunter2</Value><PlainText>false</PlainText>"), ""),
        ["password-hidden"]
    );
    let logon = |user: &str, password: &str| {
        format!(
            "<AutoLogon><Enabled>true</Enabled><Username>{user}</Username><Password>{password}</Password></AutoLogon>"
        )
    };
    assert_eq!(accounts(&joe, &logon("joe", "<Value>secret</Value><PlainText>true</PlainText>")), [""; 0]);
    assert_eq!(
        accounts(&joe, &logon("joe", "<Value>other</Value><PlainText>true</PlainText>")),
        ["autologon"]
    );
    assert_eq!(accounts(&joe, &logon("jane", "")), ["autologon"]);
    assert_eq!(accounts(&joe, &logon("Administrator", "")), [""; 0]);
    let said: String =
        lint(&file(&[("oobeSystem", "Shell-Setup", &logon("joe", "<Value>hunter2</Value>"))]), None)
            .iter()
            .map(ToString::to_string)
            .collect();
    assert!(said.contains("password-readable") && !said.contains("hunter2"), "{said}");
}

/// A windowsPE pass with this in Microsoft-Windows-Setup.
fn setup(contents: &str) -> Vec<String> {
    broken("windowsPE", "Setup", &format!("<UserData><AcceptEula>true</AcceptEula></UserData>{contents}"))
}

fn disk(create: &str, modify: &str) -> Vec<String> {
    setup(&format!(
        "<DiskConfiguration><Disk wcm:action=\"add\"><DiskID>0</DiskID><WillWipeDisk>true</WillWipeDisk><CreatePartitions>{create}</CreatePartitions><ModifyPartitions>{modify}</ModifyPartitions></Disk></DiskConfiguration>"
    ))
}

#[test]
fn disks_and_partitions() {
    let create = |order: u32, kind: &str, size: &str| {
        format!(
            "<CreatePartition wcm:action=\"add\"><Order>{order}</Order><Type>{kind}</Type>{size}</CreatePartition>"
        )
    };
    let modify = |id: u32, more: &str| {
        format!(
            "<ModifyPartition wcm:action=\"add\"><Order>{id}</Order><PartitionID>{id}</PartitionID>{more}</ModifyPartition>"
        )
    };
    let three = create(1, "EFI", "<Size>260</Size>")
        + &create(2, "MSR", "<Size>16</Size>")
        + &create(3, "Primary", "<Extend>true</Extend>");
    let of = |id, more: &str| {
        let others: String = (1..id).map(|id| modify(id, "")).collect();
        disk(&three, &(others + &modify(id, more)))
    };
    assert_eq!(of(1, "<Format>FAT32</Format><Label>System</Label>"), [""; 0]);
    assert_eq!(of(1, "<Format>NTFS</Format>"), ["partition"]);
    assert_eq!(of(1, "<Format>FAT32</Format><Label>System Reserved</Label>"), ["length"]);
    assert_eq!(of(2, "<Format>NTFS</Format>"), ["partition"]);
    assert_eq!(of(3, "<Format>NTFS</Format><Letter>C</Letter>"), [""; 0]);
    assert_eq!(of(3, "<Format>NTSF</Format>"), ["value"]);
    assert_eq!(of(3, "<Letter>C:</Letter>"), ["drive-letter"]);
    assert_eq!(of(3, "<Letter>X</Letter>"), ["drive-letter"]);
    assert_eq!(of(3, "<Active>true</Active>"), ["partition"]);
    assert_eq!(of(4, ""), ["partition"]);
    assert_eq!(disk(&create(1, "Primary", ""), ""), ["partition"]);
    assert_eq!(disk(&create(1, "Primary", "<Size>1</Size><Extend>true</Extend>"), ""), ["partition"]);
    assert_eq!(disk(&create(1, "EFI", "<Size>50</Size>"), ""), ["partition-size"]);
    let early = create(1, "Primary", "<Extend>true</Extend>") + &create(2, "Primary", "<Size>10</Size>");
    assert_eq!(disk(&early, ""), ["partition"]);
}

#[test]
fn the_image_the_key_and_where_it_goes() {
    let image =
        |contents: &str| setup(&format!("<ImageInstall><OSImage>{contents}</OSImage></ImageInstall>"));
    let to = "<InstallTo><DiskID>0</DiskID><PartitionID>3</PartitionID></InstallTo>";
    assert_eq!(image(to), [""; 0]);
    assert_eq!(
        image(&format!("{to}<InstallToAvailablePartition>true</InstallToAvailablePartition>")),
        ["install-to"]
    );
    assert_eq!(image("<InstallTo><DiskID>0</DiskID></InstallTo>"), ["install-to"]);
    let from = |key: &str, value: &str| {
        format!(
            "<InstallFrom><MetaData wcm:action=\"add\"><Key>{key}</Key><Value>{value}</Value></MetaData></InstallFrom>{to}"
        )
    };
    assert_eq!(image(&from("IMAGE/NAME", "Windows 10 Pro")), ["image"]);
    assert_eq!(image(&from("/IMAGE/INDEX", "0")), ["image"]);
    let key = |key: &str, name: &str| {
        broken(
            "windowsPE",
            "Setup",
            &format!(
                "<UserData><AcceptEula>true</AcceptEula><ProductKey><Key>{key}</Key></ProductKey></UserData><ImageInstall><OSImage>{}</OSImage></ImageInstall>",
                from("/IMAGE/NAME", name)
            ),
        )
    };
    assert_eq!(key("VK7JG-NPHTM-C97JM-9MPGT-3V66T", "Windows 10 Pro"), [""; 0]);
    assert_eq!(key("VK7JG-NPHTM-C97JM-9MPGT-3V66T", "Windows 11 Home"), ["key-edition"]);
    assert_eq!(key("VK7JG-NPHTM-C97JM-9MPGT-3V66T", "Windows 10 Professionnel"), [""; 0]);
    assert_eq!(key("VK7JG-NPHTM-C97JM", "Windows 10 Pro"), ["product-key"]);
    assert_eq!(key("N69G4-B89J2-4G8F4-WWYCC-J464C", "Windows Server 2019 SERVERSTANDARDCORE"), [""; 0]);
}

#[test]
fn languages_keyboards_and_zones() {
    let winpe = |contents: &str| broken("windowsPE", "International-Core-WinPE", contents);
    assert_eq!(
        winpe("<InputLocale>0409:00000409;fr-FR</InputLocale><UserLocale>zh-CN</UserLocale>"),
        [""; 0]
    );
    assert_eq!(winpe("<UILanguage>en-USA</UILanguage>"), ["language"]);
    assert_eq!(winpe("<UserLocale>fr_FR</UserLocale>"), ["locale"]);
    assert_eq!(winpe("<InputLocale>french</InputLocale>"), ["keyboard"]);
    let zone = |zone: &str| broken("specialize", "Shell-Setup", &format!("<TimeZone>{zone}</TimeZone>"));
    assert_eq!(zone("Pacific Standard Time_dstoff"), [""; 0]);
    assert_eq!(zone("Europe/Paris"), ["time-zone"]);
    let said = lint(&file(&[("specialize", "Shell-Setup", "<TimeZone>Europe/Paris</TimeZone>")]), None);
    assert_eq!(said[0].fix.as_deref(), Some("write Romance Standard Time"));
}

#[test]
fn what_setup_would_ask_is_a_note() {
    let notes = rules(&file(&[("windowsPE", "Setup", "")]), Severity::Note);
    assert_eq!(notes, ["3 setup-asks", "3 setup-asks", "3 setup-asks"]);
}

#[test]
fn against_a_medium() {
    let recipe = load(PLAYER, &[]).unwrap();
    let settings = settings_for(&recipe, Some(&windows10()), build_only()).unwrap();
    let rules = |text: &str, media: &Media| {
        let findings = lint(text, Some(media));
        findings.iter().map(|finding| finding.rule).collect::<Vec<_>>()
    };
    let text = settings.render();
    let german = media(
        "Windows 10",
        19045,
        "de-DE",
        &[("Core", "Home"), ("CoreN", "Home N"), ("Professional", "Pro")],
    );
    assert_eq!(rules(&text, &german), ["media-language", "media-language", "media-language"]);
    let home =
        media("Windows 10", 19045, "fr-FR", &[("CoreN", "N"), ("CoreSingleLanguage", "S"), ("Core", "Home")]);
    assert_eq!(rules(&text, &home), ["key-edition"]);
    let one = media("Windows 10", 19045, "fr-FR", &[("Professional", "Pro")]);
    assert_eq!(rules(&text, &one), ["media-image"]);
    let evaluation = Media { channel: crate::media::Channel::Evaluation, ..windows10() };
    assert_eq!(rules(&text, &evaluation), ["media-key"]);
    let arm = Media { architecture: "arm64".to_owned(), ..windows10() };
    assert_eq!(rules(&text, &arm), ["media-architecture", "media-architecture"]);
}

#[test]
fn a_file_of_ones_own_that_contradicts_the_recipe() {
    let recipe = load(PLAYER, &[]).unwrap();
    let settings = settings_for(&recipe, Some(&windows10()), build_only()).unwrap();
    let own = settings
        .render()
        .replace("fr-FR", "de-DE")
        .replace("Romance Standard Time", "UTC")
        .replace("<DiskID>1<", "<DiskID>0<")
        .replace("<Value>3<", "<Value>1<")
        .replace("<Name>Élodie<", "<Name>Hans<")
        .replace("no43-guest", "other-program");
    let said: Vec<String> = conflicts(own.as_bytes(), &settings)
        .iter()
        .map(|finding| format!("{}: {}", finding.rule, finding.what))
        .collect();
    insta::assert_snapshot!(said.join("\n"));

    // Planning refuses it, at its lines; notes and warnings refuse nothing.
    let path = Path::new("own.xml");
    let problems = super::super::own_file(path, own.as_bytes(), &settings, &windows10());
    assert!(problems.len() > said.len() && problems.iter().all(|p| p.to_string().starts_with("own.xml:")));
    assert_eq!(super::super::own_file(path, settings.render().as_bytes(), &settings, &windows10()), []);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]
    #[test]
    fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        let _ = lint_bytes(&bytes, Some(&windows10()));
    }

    /// A good file with a piece cut out, doubled, or replaced.
    #[test]
    fn no_damage_panics(at in 0_usize..12_000, length in 0_usize..300, with in "[ -~é&<>\"/]{0,20}", what in 0..3) {
        let settings = settings_for(&load(PLAYER, &[]).unwrap(), Some(&windows10()), build_only()).unwrap();
        let text = settings.render().into_bytes();
        let at = at.min(text.len());
        let end = (at + length).min(text.len());
        let middle: &[u8] = match what {
            0 => &[],
            1 => &[&text[at..end], &text[at..end]].concat(),
            _ => with.as_bytes(),
        };
        let damaged = [&text[..at], middle, &text[end..]].concat();
        let findings = lint_bytes(&damaged, Some(&windows10()));
        let _ = conflicts(&damaged, &settings);
        for finding in findings {
            prop_assert!(finding.line > 0 && !finding.to_string().contains("N-test"));
        }
    }
}
