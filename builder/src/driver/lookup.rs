//! NVIDIA's download service: which packages it offers for a card. Only `no43 driver find` asks; no build ever needs it.
//!
//! The service has no documentation. Addresses and answers are those that public programs use (ZenitH-AT/nvidia-update,
//! fyr77/EnvyUpdate): a list of products as XML, then a list of drivers as JSON. It was not asked by this project; tests
//! take answers put together in that shape.

use quick_xml::Reader;
use quick_xml::events::Event;
use serde::Serialize;
use serde_json::Value;

use super::Version;
use crate::diagnostic::nearest;

/// All products, with their series as parent.
const PRODUCTS: &str = "https://www.nvidia.com/Download/API/lookupValueSearch.aspx?TypeID=3";
/// The drivers of one product.
const DRIVERS: &str =
    "https://gfwsl.geforce.com/services_toolkit/services/com/nvidia/services/AjaxDriverService.php";
/// The service's numbers of systems.
const SYSTEMS: &[(&str, u32)] = &[("windows10", 57), ("windows11", 135)];
/// An answer is read up to here.
const LIMIT: usize = 8 << 20;

/// A package that is offered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Found {
    /// Its version.
    pub version: Version,
    /// When it was released, in the service's words.
    pub date: String,
    /// Where it is.
    pub url: String,
    /// Its size, roughly: the service says it in words.
    pub bytes: Option<u64>,
}

/// Asks for the newest packages of a card as it is sold (`GeForce RTX 3070`); `get` fetches an address.
///
/// # Errors
/// A sentence: an unknown card or system, an answer of another shape.
pub fn find(
    card: &str,
    os: &str,
    most: u8,
    get: &mut dyn FnMut(&str) -> Result<Vec<u8>, String>,
) -> Result<Vec<Found>, String> {
    let system = SYSTEMS.iter().find(|(name, _)| *name == os).map(|(_, id)| *id).ok_or_else(|| {
        let names: Vec<&str> = SYSTEMS.iter().map(|(name, _)| *name).collect();
        format!("'{os}' is no system that the service is asked about here; there are {}", names.join(", "))
    })?;
    let products = products(&bounded(get(PRODUCTS)?)?)?;
    let same =
        |name: &str| name.eq_ignore_ascii_case(card) || name.eq_ignore_ascii_case(&format!("NVIDIA {card}"));
    let Some(product) = products.iter().find(|product| same(&product.name)) else {
        let near = nearest(card, products.iter().map(|product| product.name.as_str()));
        let near = near.map(|near| format!("; did you mean '{near}'?")).unwrap_or_default();
        return Err(format!("NVIDIA's service knows no '{card}'{near}"));
    };
    let url = format!(
        "{DRIVERS}?func=DriverManualLookup&psid={}&pfid={}&osID={system}&languageCode=1033&isWHQL=1&dch=1&sort1=0&numberOfResults={most}",
        product.series, product.id
    );
    drivers(&bounded(get(&url)?)?)
}

fn bounded(answer: Vec<u8>) -> Result<Vec<u8>, String> {
    if answer.len() > LIMIT {
        return Err(format!("NVIDIA's service answered with {} bytes", answer.len()));
    }
    Ok(answer)
}

/// A card as the service lists it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Product {
    name: String,
    id: u32,
    series: u32,
}

fn products(answer: &[u8]) -> Result<Vec<Product>, String> {
    let wrong = |what: String| format!("NVIDIA's list of products cannot be read: {what}");
    let text = std::str::from_utf8(answer).map_err(|error| wrong(error.to_string()))?;
    let mut reader = Reader::from_str(text);
    let (mut products, mut open, mut element) = (Vec::new(), None::<Product>, String::new());
    loop {
        match reader.read_event().map_err(|error| wrong(error.to_string()))? {
            Event::Start(start) => {
                element = start.local_name().as_ref().to_owned();
                if element == "LookupValue" {
                    let parent = start.attributes().flatten().find(|one| one.key.as_ref() == "ParentID");
                    let series = parent.and_then(|one| one.value.parse().ok());
                    open = Some(Product { series: series.unwrap_or_default(), ..Product::default() });
                }
            }
            Event::Text(text) => {
                let text = text.trim().to_owned();
                match (&mut open, element.as_str()) {
                    (Some(open), "Name") => open.name.push_str(&text),
                    (Some(open), "Value") => open.id = text.parse().unwrap_or(open.id),
                    _ => {}
                }
            }
            Event::End(end) => {
                element.clear();
                if end.local_name().as_ref() == "LookupValue" {
                    products.extend(open.take().filter(|open| open.id > 0 && !open.name.is_empty()));
                }
            }
            Event::Eof => break,
            _ => {}
        }
    }
    if products.is_empty() {
        return Err(wrong("it lists none".to_owned()));
    }
    Ok(products)
}

fn drivers(answer: &[u8]) -> Result<Vec<Found>, String> {
    let wrong = |what: String| format!("NVIDIA's list of drivers cannot be read: {what}");
    let value: Value = serde_json::from_slice(answer).map_err(|error| wrong(error.to_string()))?;
    let ids =
        value.get("IDS").and_then(Value::as_array).ok_or_else(|| wrong("it has no 'IDS'".to_owned()))?;
    let found = ids.iter().filter_map(|one| {
        let info = one.get("downloadInfo")?;
        let text = |key: &str| info.get(key).and_then(Value::as_str).unwrap_or_default();
        let url = text("DownloadURL");
        let https = url.starts_with("https://") && !url.contains(char::is_whitespace);
        Some(Found {
            version: text("Version").parse().ok()?,
            date: text("ReleaseDateTime").chars().take(40).collect(),
            url: https.then(|| url.to_owned())?,
            bytes: size(text("DownloadURLFileSize")),
        })
    });
    Ok(found.collect())
}

/// "659.41 MB"
fn size(text: &str) -> Option<u64> {
    let (number, unit) = text.split_once(' ')?;
    let unit = match unit {
        "MB" => 1 << 20,
        "GB" => 1 << 30,
        _ => return None,
    };
    let (whole, part) = number.split_once('.').unwrap_or((number, "0"));
    let (whole, hundredths): (u64, u64) =
        (whole.parse().ok()?, format!("{part:0<2}").get(..2)?.parse().ok()?);
    whole.checked_mul(unit)?.checked_add(hundredths * unit / 100)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const XML: &str = r#"<?xml version="1.0" encoding="utf-8"?><LookupValueSearch><LookupValues>
        <LookupValue RequiresProduct="True" ParentID="120"><Name>GeForce RTX 3070</Name><Value>929</Value></LookupValue>
        <LookupValue RequiresProduct="True" ParentID="120"><Name>GeForce RTX 3080</Name><Value>933</Value></LookupValue>
        </LookupValues></LookupValueSearch>"#;
    const JSON: &str = r#"{"Success":"1","IDS":[
        {"downloadInfo":{"Success":"1","Version":"581.42","ReleaseDateTime":"Tue Sep 30, 2025","DownloadURL":"https://us.download.nvidia.com/Windows/581.42/581.42-desktop-win10-win11-64bit-international-dch-whql.exe","DownloadURLFileSize":"878.94 MB"}},
        {"downloadInfo":{"Version":"new","DownloadURL":"https://x/"}},
        {"downloadInfo":{"Version":"580.97","DownloadURL":"file:/etc/passwd"}}]}"#;

    fn ask(card: &str, os: &str, json: &str) -> (Result<Vec<Found>, String>, Vec<String>) {
        let mut asked = Vec::new();
        let found = find(card, os, 3, &mut |url| {
            asked.push(url.to_owned());
            Ok(if url.contains("lookupValueSearch") { XML } else { json }.as_bytes().to_vec())
        });
        (found, asked)
    }

    #[test]
    fn a_card_is_found_and_its_packages_are_listed() {
        let (found, asked) = ask("geforce rtx 3070", "windows10", JSON);
        let found = found.unwrap();
        assert_eq!(found.len(), 1, "what is no version or no address is left out");
        assert_eq!((found[0].version.to_string().as_str(), found[0].bytes), ("581.42", Some(921_635_389)));
        insta::assert_snapshot!(asked[1], @"https://gfwsl.geforce.com/services_toolkit/services/com/nvidia/services/AjaxDriverService.php?func=DriverManualLookup&psid=120&pfid=929&osID=57&languageCode=1033&isWHQL=1&dch=1&sort1=0&numberOfResults=3");
    }

    #[test]
    fn what_is_unknown_or_of_another_shape_is_said() {
        let error = |card: &str, os: &str, json: &str| ask(card, os, json).0.unwrap_err();
        insta::assert_snapshot!(error("GeForce RTX 3071", "windows10", JSON), @"NVIDIA's service knows no 'GeForce RTX 3071'; did you mean 'GeForce RTX 3070'?");
        insta::assert_snapshot!(error("GeForce RTX 3070", "debian12", JSON), @"'debian12' is no system that the service is asked about here; there are windows10, windows11");
        insta::assert_snapshot!(error("GeForce RTX 3070", "windows11", "<html>"), @"NVIDIA's list of drivers cannot be read: expected value at line 1 column 1");
        assert!(error("GeForce RTX 3070", "windows11", "{}").contains("no 'IDS'"));
        assert!(products(b"<html></html>").unwrap_err().contains("lists none"));
    }

    proptest! {
        #[test]
        fn any_answer_is_read(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = (products(&bytes), drivers(&bytes));
        }
    }
}
