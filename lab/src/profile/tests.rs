use proptest::prelude::*;

use super::*;

fn parse(text: &str) -> Result<Profile, String> {
    Profile::parse("test", "test.toml", text).map_err(|error| error.to_string())
}

fn with_host(rest: &str) -> String {
    format!("[host]\ncpus = 2\nmemory = \"2 GiB\"\ndisplay = \"none\"\n{rest}")
}

fn error(rest: &str) -> String {
    parse(&with_host(rest)).expect_err("this profile is wrong")
}

#[test]
fn every_built_in_profile_is_right() {
    let profiles = Profile::built_in().unwrap();
    let shown: Vec<String> =
        profiles.iter().map(|p| format!("{p} [{} ports, {} cards]", p.ports.len(), p.cards.len())).collect();
    insta::assert_snapshot!(shown.join("\n"), @r"
    one-card: one card, and the host's own display [1 ports, 1 cards]
    three-cards: three cards, and the host's own display [3 ports, 3 cards]
    bad-groups: two cards in one IOMMU group, a third one alone [3 ports, 3 cards]
    ");
}

#[test]
fn cards_without_a_port_get_one_of_their_own_behind_the_named_ones() {
    let text = with_host(
        "[[port]]\nname = \"a\"\n[[port]]\nname = \"b\"\nbeside = \"a\"\n\
         [[card]]\nname = \"c\"\nvideo = \"bochs-display\"\naudio = \"none\"\n",
    );
    let profile = parse(&text).unwrap();
    let places: Vec<_> = profile.ports.iter().map(|p| (p.name.as_str(), p.place, p.shares_device)).collect();
    assert_eq!(places, [("a", (0, 0), true), ("b", (0, 1), true), ("c-port", (1, 0), false)]);
    assert_eq!(profile.cards[0].port, 2);
    assert_eq!(profile.host, Host { cpus: 2, memory_mib: 2048, display: HostDisplay::None });
}

#[test]
fn errors_name_file_line_and_key() {
    let card = "[[card]]\nname = \"a\"\nvideo = \"secondary-vga\"\naudio = \"intel-hda\"\n";
    insta::assert_snapshot!(error("[[card]]\nnam = \"a\"\n"), @"test.toml:6: unknown field `nam`, expected one of `name`, `port`, `video`, `audio`");
    insta::assert_snapshot!(error("[[card]]\nname = \"A\"\nvideo = \"secondary-vga\"\naudio = \"none\"\n"), @r#"test.toml:6: card.name = "A": a name has 1 to 32 small letters, digits and '-', and starts with a letter"#);
    insta::assert_snapshot!(error("[[card]]\nname = \"a\"\nvideo = \"geforce\"\naudio = \"none\"\n"), @"test.toml:7: unknown variant `geforce`, expected `secondary-vga` or `bochs-display`");
    insta::assert_snapshot!(error(&format!("{card}{card}")), @r#"test.toml:10: card.name = "a": there is another card of that name"#);
    insta::assert_snapshot!(error(&card.replace("video", "port = \"x\"\nvideo")), @r#"test.toml:7: card.port = "x": there is no such port; there are: none above this line"#);
    let two = format!(
        "[[port]]\nname = \"p\"\n{}{}",
        card.replace("video", "port = \"p\"\nvideo"),
        card.replace("\"a\"", "\"b\"").replace("video", "port = \"p\"\nvideo")
    );
    insta::assert_snapshot!(error(&two), @r#"test.toml:14: card.port = "p": a root port takes one card; a switch or a bridge takes several"#);
    insta::assert_snapshot!(error("[[port]]\nname = \"p\"\nkind = \"bridge\"\nacs = true\n"), @"test.toml:8: port.acs = true: only a root port has this switch: a lab switch always isolates, a bridge never");
    insta::assert_snapshot!(parse("[host]\ncpus = 0\nmemory = \"2 GiB\"\ndisplay = \"vga\"").unwrap_err(), @"test.toml:2: host.cpus = 0: the lab host takes 1 to 64");
    insta::assert_snapshot!(parse("[host]\ncpus = 1\nmemory = \"lots\"\ndisplay = \"vga\"").unwrap_err(), @r#"test.toml:3: host.memory = "lots": from 1 GiB to 1 TiB, written like "3000 MiB" or "3 GiB""#);
    insta::assert_snapshot!(Profile::load("four-cards").unwrap_err(), @"no lab profile 'four-cards': built in are one-card, three-cards, bad-groups; or give the path of a .toml file");
}

#[test]
fn a_ninth_device_for_ports_is_refused() {
    let text: String = (0..9).map(|n| format!("[[port]]\nname = \"p{n}\"\n")).collect();
    assert!(error(&text).contains("the lab board has 8 devices for ports"), "{}", error(&text));
}

proptest! {
    #[test]
    fn no_text_makes_the_parser_panic(text in "\\PC{0,200}") {
        let _ = parse(&text);
    }

    #[test]
    fn damaged_profiles_are_errors_or_profiles(at in 0_usize..1200, with in "\\PC{0,3}") {
        let text = BUILT_IN[2].1;
        let at = (at % text.len()..text.len()).find(|at| text.is_char_boundary(*at)).unwrap_or(0);
        let _ = parse(&format!("{}{with}{}", &text[..at], text.get(at + 1..).unwrap_or_default()));
    }

    #[test]
    fn places_are_unique(ports in proptest::collection::vec((any::<bool>(), 0_usize..6), 0..9)) {
        let mut text = with_host("");
        for (index, (beside, which)) in ports.iter().enumerate() {
            text += &format!("[[port]]\nname = \"p{index}\"\n");
            if *beside && index > 0 {
                text += &format!("beside = \"p{}\"\n", which % index);
            }
        }
        if let Ok(profile) = parse(&text) {
            let mut places: Vec<_> = profile.ports.iter().map(|port| port.place).collect();
            places.sort_unstable();
            places.dedup();
            prop_assert_eq!(places.len(), profile.ports.len());
        }
    }
}
