//! What the stand-in takes out of an answer file, and where it looks for one.

use crate::xml::{self, Element};

/// What the windowsPE pass says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct WinPe {
    pub(crate) setup_language: String,
    pub(crate) disk: u32,
    pub(crate) wipe: bool,
    /// In their order: kind and size in MiB (`None`: all that is left).
    pub(crate) partitions: Vec<(String, Option<u64>)>,
    /// Which partition is Windows', from 1.
    pub(crate) install_to: u32,
    /// `/IMAGE/INDEX` or `/IMAGE/NAME`, and its value.
    pub(crate) image: (String, String),
    /// Commands that Setup runs first.
    pub(crate) commands: Vec<String>,
}

/// What the later passes say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Later {
    pub(crate) computer_name: String,
    pub(crate) language: String,
    pub(crate) user: String,
    /// The commands of the first logon, in order.
    pub(crate) first_logon: Vec<String>,
}

/// All settings of one component in one pass, whatever blocks they are written in.
fn component<'a>(root: &'a Element, pass: &'a str, name: &'a str) -> impl Iterator<Item = &'a Element> {
    root.all("settings")
        .filter(move |settings| settings.attribute("pass") == pass)
        .flat_map(|settings| settings.all("component"))
        .filter(move |component| component.attribute("name").eq_ignore_ascii_case(name))
        .filter(|component| component.attribute("processorArchitecture") == "amd64")
}

fn first<'a>(root: &'a Element, pass: &'a str, name: &'a str, path: &str) -> Option<&'a Element> {
    component(root, pass, name).find_map(|component| component.at(path))
}

fn must<'a>(root: &'a Element, pass: &'a str, name: &'a str, path: &str) -> Result<&'a str, String> {
    match first(root, pass, name, path).map(|element| element.text.trim()) {
        Some(text) if !text.is_empty() => Ok(text),
        _ => Err(format!("unattend file is invalid: no {name}/{path} in pass {pass}")),
    }
}

fn number(text: &str, what: &str) -> Result<u32, String> {
    text.parse().map_err(|_| format!("unattend file is invalid: {what} '{text}' is no number"))
}

/// The document; the error is a line for the log.
pub(crate) fn read(text: &str) -> Result<Element, String> {
    let root = xml::parse(text).map_err(|why| format!("unattend file could not be parsed: {why}"))?;
    if root.name == "unattend" {
        Ok(root)
    } else {
        Err("unattend file could not be parsed: no <unattend>".to_owned())
    }
}

pub(crate) fn windows_pe(root: &Element) -> Result<WinPe, String> {
    const PASS: &str = "windowsPE";
    const SETUP: &str = "Microsoft-Windows-Setup";
    let international = "Microsoft-Windows-International-Core-WinPE";
    if must(root, PASS, SETUP, "UserData/AcceptEula")? != "true" {
        return Err("unattend file is invalid: AcceptEula is not true".to_owned());
    }
    let disk = first(root, PASS, SETUP, "DiskConfiguration/Disk")
        .ok_or("unattend file is invalid: no DiskConfiguration/Disk")?;
    let mut partitions = Vec::new();
    for create in disk.at("CreatePartitions").into_iter().flat_map(|all| all.all("CreatePartition")) {
        let order = number(create.text_at("Order"), "Order")?;
        let size = match create.text_at("Size") {
            "" if create.text_at("Extend") == "true" => None,
            size => Some(u64::from(number(size, "Size")?)),
        };
        partitions.push((order, (create.text_at("Type").to_owned(), size)));
    }
    partitions.sort_by_key(|(order, _)| *order);
    if partitions.iter().enumerate().any(|(n, (order, _))| *order as usize != n + 1) || partitions.is_empty()
    {
        return Err("unattend file is invalid: CreatePartition's Order does not count from 1".to_owned());
    }
    let from = first(root, PASS, SETUP, "ImageInstall/OSImage/InstallFrom/MetaData");
    let from = from.ok_or("unattend file is invalid: no InstallFrom/MetaData")?;
    let to = must(root, PASS, SETUP, "ImageInstall/OSImage/InstallTo/DiskID")?;
    if to != disk.text_at("DiskID") {
        return Err(
            "unattend file is invalid: InstallTo names another disk than DiskConfiguration".to_owned()
        );
    }
    Ok(WinPe {
        setup_language: must(root, PASS, international, "SetupUILanguage/UILanguage")?.to_owned(),
        disk: number(disk.text_at("DiskID"), "DiskID")?,
        wipe: disk.text_at("WillWipeDisk") == "true",
        partitions: partitions.into_iter().map(|(_, partition)| partition).collect(),
        install_to: number(
            must(root, PASS, SETUP, "ImageInstall/OSImage/InstallTo/PartitionID")?,
            "PartitionID",
        )?,
        image: (from.text_at("Key").to_owned(), from.text_at("Value").to_owned()),
        commands: first(root, PASS, SETUP, "RunSynchronous")
            .into_iter()
            .flat_map(|all| all.all("RunSynchronousCommand"))
            .map(|command| command.text_at("Path").to_owned())
            .collect(),
    })
}

pub(crate) fn later(root: &Element) -> Result<Later, String> {
    const SHELL: &str = "Microsoft-Windows-Shell-Setup";
    let commands = first(root, "oobeSystem", SHELL, "FirstLogonCommands");
    let mut first_logon: Vec<(u32, String)> = Vec::new();
    for command in commands.into_iter().flat_map(|all| all.all("SynchronousCommand")) {
        first_logon
            .push((number(command.text_at("Order"), "Order")?, command.text_at("CommandLine").to_owned()));
    }
    first_logon.sort();
    let user = must(root, "oobeSystem", SHELL, "UserAccounts/LocalAccounts/LocalAccount/Name")?;
    if must(root, "oobeSystem", SHELL, "AutoLogon/Username")? != user {
        return Err("unattend file is invalid: AutoLogon names nobody of LocalAccounts".to_owned());
    }
    Ok(Later {
        computer_name: must(root, "specialize", SHELL, "ComputerName")?.to_owned(),
        language: must(root, "oobeSystem", "Microsoft-Windows-International-Core", "UILanguage")?.to_owned(),
        user: user.to_owned(),
        first_logon: first_logon.into_iter().map(|(_, line)| line).collect(),
    })
}
