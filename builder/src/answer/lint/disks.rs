//! The windowsPE pass: partitions, the image, who accepts what, product keys.

use std::collections::BTreeMap;

use super::super::finding::{Finding, shown};
use super::super::read::Element;
use super::super::tables;
use super::structure::placeholder;
use super::{Component, File, truth};

/// Setup's own recommendation for the EFI system partition; a disk with 4096-byte sectors needs 260.
const ESP_LEAST_MIB: u64 = 100;
const MSR_MIB: std::ops::RangeInclusive<u64> = 16..=128;
/// What FAT holds in its label.
const FAT_LABEL: usize = 11;
const NTFS_LABEL: usize = 32;
const KEY_LETTERS: &str = "BCDFGHJKMNPQRTVWXY2346789";
/// Makes Setup ask for a key.
const ASKING_KEY: &str = "00000-00000-00000-00000-00000";

/// Disks and their partitions.
pub(super) fn disks(file: &File<'_>, findings: &mut Vec<Finding>) {
    for setup in file.of_pass("windowsPE", "Setup") {
        let Some(configuration) = setup.element.child("DiskConfiguration") else { continue };
        let mut disks: Vec<&str> = Vec::new();
        let mut letters = BTreeMap::new();
        for disk in configuration.all("Disk") {
            match disk.text_at("DiskID").filter(|id| !id.is_empty()) {
                None => findings.push(
                    Finding::error(disk.at(), "disk", "a disk without DiskID")
                        .fix("add DiskID, 0 for the first"),
                ),
                Some(id) if disks.contains(&id) => {
                    let what = format!("the disk {} is described twice", shown(id));
                    findings.push(Finding::error(disk.at(), "disk", what).fix("put both together"));
                }
                Some(id) => disks.push(id),
            }
            let made = created(disk, findings);
            modified(disk, &made, &mut letters, findings);
        }
    }
}

/// The partitions that a disk gets, by number.
fn created<'d>(disk: Element<'d>, findings: &mut Vec<Finding>) -> Vec<(u32, &'d str, Element<'d>)> {
    let Some(list) = disk.child("CreatePartitions") else { return Vec::new() };
    let mut made: Vec<(u32, &str, Element<'d>)> = Vec::new();
    for create in list.all("CreatePartition") {
        let kind = create.text_at("Type").unwrap_or_default();
        let extend = create.text_at("Extend").and_then(truth).unwrap_or(false);
        let size = create.text_at("Size").filter(|size| !size.is_empty());
        let mut wrong =
            |what: &str, fix: &str| findings.push(Finding::error(create.at(), "partition", what).fix(fix));
        match (extend, size) {
            (true, Some(_)) => wrong("a partition with both Size and Extend=true", "keep one of them"),
            (false, None) => wrong("a partition without a size", "add Size in MiB, or Extend = true"),
            _ => {}
        }
        if kind.is_empty() {
            wrong("a partition without Type", "add EFI, MSR or Primary");
        }
        if let Some(mib) = size.and_then(|size| size.parse::<u64>().ok()) {
            sizes(create, kind, mib, findings);
        }
        if let Some(order) = create.text_at("Order").and_then(|order| order.parse().ok()) {
            made.push((order, kind, create));
        }
    }
    let last = made.iter().map(|(order, ..)| *order).max();
    for (order, _, create) in &made {
        let extend = create.text_at("Extend").and_then(truth).unwrap_or(false);
        if extend && Some(*order) != last {
            let finding = Finding::error(
                create.at(),
                "partition",
                format!("the partition {order} takes all room, and others follow"),
            );
            findings.push(finding.fix("let only the last one extend"));
        }
    }
    let has = |wanted: &str| made.iter().find(|(_, kind, _)| kind.eq_ignore_ascii_case(wanted));
    if let (Some(_), Some((.., extended))) = (has("EFI"), has("Extended")) {
        findings.push(
            Finding::error(extended.at(), "partition", "an extended partition on a disk with an EFI one")
                .why("GPT knows none"),
        );
    }
    made
}

fn sizes(create: Element<'_>, kind: &str, mib: u64, findings: &mut Vec<Finding>) {
    let (what, fix) = match kind {
        _ if mib == 0 => ("a partition of 0 MiB".to_owned(), "write a size in MiB"),
        "EFI" if mib < ESP_LEAST_MIB => {
            (format!("an EFI partition of {mib} MiB"), "write 260: FAT32 needs that on some disks")
        }
        "MSR" if !MSR_MIB.contains(&mib) => {
            (format!("an MSR partition of {mib} MiB"), "write 16, as Windows itself makes it")
        }
        _ => return,
    };
    findings.push(Finding::warning(create.at(), "partition-size", what).fix(fix));
}

fn modified<'d>(
    disk: Element<'d>,
    made: &[(u32, &str, Element<'d>)],
    letters: &mut BTreeMap<String, ()>,
    findings: &mut Vec<Finding>,
) {
    let Some(list) = disk.child("ModifyPartitions") else { return };
    let wiped = disk.text_at("WillWipeDisk").and_then(truth).unwrap_or(false);
    let efi = made.iter().any(|(_, kind, _)| kind.eq_ignore_ascii_case("EFI"));
    for modify in list.all("ModifyPartition") {
        let id = modify.text_at("PartitionID").and_then(|id| id.parse::<u32>().ok());
        let kind = id.and_then(|id| made.iter().find(|(order, ..)| *order == id)).map(|(_, kind, _)| *kind);
        let format = modify.text_at("Format").unwrap_or_default();
        let mut wrong =
            |what: String, fix: &str| findings.push(Finding::error(modify.at(), "partition", what).fix(fix));
        match (id, kind) {
            (None, _) if modify.text_at("PartitionID").is_none_or(str::is_empty) => {
                wrong("ModifyPartition without PartitionID".to_owned(), "add PartitionID, from 1");
            }
            (Some(id), None) if wiped => wrong(
                format!("there is no partition {id} on this disk"),
                "use the Order of a CreatePartition",
            ),
            (_, Some("EFI")) if format.eq_ignore_ascii_case("NTFS") => {
                wrong("an EFI partition with NTFS".to_owned(), "write FAT32: firmware reads nothing else");
            }
            (_, Some("MSR"))
                if !format.is_empty()
                    || modify.text_at("Letter").is_some_and(|letter| !letter.is_empty()) =>
            {
                wrong("an MSR partition has no file system".to_owned(), "leave Format, Label and Letter out");
            }
            _ => {}
        }
        if efi && modify.text_at("Active").and_then(truth) == Some(true) {
            wrong(
                "an active partition on a disk with an EFI one".to_owned(),
                "leave Active out: only BIOS looks at it",
            );
        }
        label(modify, format, findings);
        letter(modify, letters, findings);
    }
}

fn label(modify: Element<'_>, format: &str, findings: &mut Vec<Finding>) {
    let Some(label) = modify.child("Label") else { return };
    let limit = if format.eq_ignore_ascii_case("FAT32") { FAT_LABEL } else { NTFS_LABEL };
    let length = label.text().chars().count();
    if length > limit {
        let what = format!("the label has {length} characters, and {format} takes {limit}");
        findings.push(Finding::error(label.at(), "length", what).fix("make it shorter"));
    }
}

fn letter(modify: Element<'_>, letters: &mut BTreeMap<String, ()>, findings: &mut Vec<Finding>) {
    let Some(element) = modify.child("Letter").filter(|letter| !letter.text().is_empty()) else { return };
    let letter = element.text().to_ascii_uppercase();
    if placeholder(element.text()) {
        return;
    }
    let mut wrong =
        |what: String, fix: &str| findings.push(Finding::error(element.at(), "drive-letter", what).fix(fix));
    if letter.len() != 1 || !letter.bytes().all(|b| b.is_ascii_uppercase()) {
        wrong(
            format!("'{}' is no drive letter", shown(element.text())),
            "write one letter, C to W, without ':'",
        );
    } else if letter == "X" {
        wrong("X is WinPE's own drive".to_owned(), "take another letter");
    } else if letters.insert(letter.clone(), ()).is_some() {
        wrong(format!("the letter {letter} is given twice"), "take another letter");
    }
}

/// Which image, and where to.
pub(super) fn image(file: &File<'_>, findings: &mut Vec<Finding>) {
    for setup in file.of_pass("windowsPE", "Setup") {
        let Some(image) = setup.element.path("ImageInstall/OSImage") else {
            findings.push(
                Finding::note(setup.element.at(), "setup-asks", "ImageInstall/OSImage is not given")
                    .why("Setup asks where to install, and waits")
                    .fix("add InstallTo with DiskID and PartitionID, if nobody is there to answer"),
            );
            continue;
        };
        target(setup, image, findings);
        for data in image.child("InstallFrom").into_iter().flat_map(|from| from.all("MetaData")) {
            metadata(data, findings);
        }
    }
}

fn target(setup: Component<'_>, image: Element<'_>, findings: &mut Vec<Finding>) {
    let to = image.child("InstallTo");
    let anywhere = image.text_at("InstallToAvailablePartition").and_then(truth).unwrap_or(false);
    match (to, anywhere) {
        (Some(to), true) => findings.push(
            Finding::error(to.at(), "install-to", "both InstallTo and InstallToAvailablePartition")
                .why("Setup stops where it is given both")
                .fix("keep InstallTo"),
        ),
        (None, false) => findings.push(
            Finding::note(image.at(), "setup-asks", "neither InstallTo nor InstallToAvailablePartition")
                .why("Setup asks where to install, and waits")
                .fix("add InstallTo with DiskID and PartitionID, if nobody is there to answer"),
        ),
        _ => {}
    }
    let Some(to) = to else { return };
    let (disk, partition) = (to.text_at("DiskID"), to.text_at("PartitionID"));
    for (name, value) in [("DiskID", disk), ("PartitionID", partition)] {
        if value.is_none_or(str::is_empty) {
            let what = format!("InstallTo without {name}");
            findings.push(Finding::error(to.at(), "install-to", what).fix(format!("add {name}")));
        }
    }
    let described = setup.element.child("DiskConfiguration").into_iter().flat_map(|disks| disks.all("Disk"));
    let Some(described) = described.filter(|described| described.text_at("DiskID") == disk).last() else {
        return;
    };
    let wiped = described.text_at("WillWipeDisk").and_then(truth).unwrap_or(false);
    let made: Vec<Element<'_>> = described
        .child("CreatePartitions")
        .into_iter()
        .flat_map(|list| list.all("CreatePartition"))
        .collect();
    let wanted = partition.and_then(|partition| partition.parse::<u32>().ok());
    let Some(wanted) = wanted.filter(|_| wiped && !made.is_empty()) else { return };
    let target = made.iter().find(|create| create.text_at("Order") == Some(&wanted.to_string()));
    let mut wrong = |what: String| {
        let finding = Finding::error(to.at(), "install-to", what);
        findings.push(finding.fix("use the Order of the Primary partition that Windows belongs on"));
    };
    match target.map(|create| create.text_at("Type").unwrap_or_default()) {
        None => wrong(format!("there is no partition {wanted} on that disk")),
        Some(kind @ ("EFI" | "MSR" | "Extended")) => wrong(format!("the partition {wanted} is {kind}")),
        Some(_) => {}
    }
}

fn metadata(data: Element<'_>, findings: &mut Vec<Finding>) {
    let (key, value) = (data.text_at("Key").unwrap_or_default(), data.text_at("Value").unwrap_or_default());
    let keys = ["/IMAGE/INDEX", "/IMAGE/NAME", "/IMAGE/DESCRIPTION"];
    // Every other element of the image's XML can be asked for too.
    if !key.starts_with('/') && !key.is_empty() && !placeholder(key) {
        let fix = super::meant(&key.to_ascii_uppercase(), keys)
            .unwrap_or_else(|| format!("write one of: {}", keys.join(", ")));
        findings.push(
            Finding::error(data.at(), "image", format!("'{}' is no key of an image", shown(key))).fix(fix),
        );
    }
    let number = value.parse::<u32>().is_ok_and(|index| index > 0);
    if key.eq_ignore_ascii_case("/IMAGE/INDEX") && !number && !placeholder(value) {
        let what = format!("'{}' is no index of an image", shown(value));
        findings.push(Finding::warning(data.at(), "image", what).fix("write a number from 1"));
    }
}

/// The licence, and whether there is a windowsPE pass that would ask for everything.
pub(super) fn user_data(file: &File<'_>, findings: &mut Vec<Finding>) {
    for setup in file.of_pass("windowsPE", "Setup") {
        let accepted = setup.element.path("UserData/AcceptEula");
        if accepted.and_then(|accept| truth(accept.text())) != Some(true) {
            let at = accepted.or(setup.element.child("UserData")).unwrap_or(setup.element).at();
            findings.push(
                Finding::note(at, "setup-asks", "UserData/AcceptEula is not true")
                    .why("Setup shows the licence terms, and waits")
                    .fix("add AcceptEula = true, if you accept them"),
            );
        }
    }
}

/// Every product key of the file.
pub(super) fn product_keys(file: &File<'_>, findings: &mut Vec<Finding>) {
    for setup in file.of_pass("windowsPE", "Setup") {
        let Some(key) = setup.element.path("UserData/ProductKey/Key") else { continue };
        product_key(key, findings);
        edition_of_key(setup, key, findings);
    }
    for key in file.of("Shell-Setup").filter_map(|shell| shell.element.child("ProductKey")) {
        product_key(key, findings);
    }
}

fn product_key(key: Element<'_>, findings: &mut Vec<Finding>) {
    let text = key.text();
    if text.is_empty() || placeholder(text) {
        return;
    }
    if text == ASKING_KEY {
        findings.push(Finding::note(key.at(), "setup-asks", "with this key Setup asks for another one"));
        return;
    }
    let parts: Vec<&str> = text.split('-').collect();
    let good =
        |part: &&str| part.len() == 5 && part.to_ascii_uppercase().chars().all(|c| KEY_LETTERS.contains(c));
    // The key itself is not repeated: it may be somebody's own.
    if parts.len() != 5 || !parts.iter().all(good) {
        let finding = Finding::error(key.at(), "product-key", "this cannot be a product key");
        findings.push(finding.fix("write five groups of five letters and digits, with '-' between"));
    } else if !is_public(text) {
        findings.push(
            Finding::note(
                key.at(),
                "product-key",
                "a product key that is not one of the public ones known here",
            )
            .why("everybody who gets this file or its medium can read it")
            .fix("install with the public key of the edition, and give your own afterwards"),
        );
    }
}

fn is_public(key: &str) -> bool {
    editions_of(key).next().is_some() || tables::is_public_key(key)
}

fn editions_of(key: &str) -> impl Iterator<Item = tables::Edition> {
    tables::editions().filter(move |edition| {
        [edition.install_key, edition.kms_key]
            .into_iter()
            .flatten()
            .any(|known| known.eq_ignore_ascii_case(key))
    })
}

/// A public key of one edition beside the name of another: Setup says that it cannot find the licence terms.
fn edition_of_key(setup: Component<'_>, key: Element<'_>, findings: &mut Vec<Finding>) {
    let Some(from) = setup.element.path("ImageInstall/OSImage/InstallFrom") else { return };
    let is_name =
        |data: &Element<'_>| data.text_at("Key").is_some_and(|key| key.eq_ignore_ascii_case("/IMAGE/NAME"));
    let Some(name) = from.all("MetaData").find(is_name).and_then(|data| data.text_at("Value")) else {
        return;
    };
    let Some(of_key) = editions_of(key.text()).next() else { return };
    // Only where the name is an English one whose ending is known can anything be said.
    let Some(of_name) = tables::edition_of_image(name) else { return };
    if !editions_of(key.text()).any(|edition| edition.id == of_name.id) {
        let what = format!("the key is one of {}, and the image is '{}'", of_key.id, shown(name));
        let finding = Finding::error(key.at(), "key-edition", what);
        let right = of_name.install_key.or(of_name.kms_key);
        findings.push(finding.why("Setup then finds no licence terms and stops").fix(match right {
            Some(right) => format!("the public key of {} is {right}", of_name.id),
            None => "leave the key out".to_owned(),
        }));
    }
}
