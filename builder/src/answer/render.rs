//! From settings to the document, pass by pass.

use super::password;
use super::settings::{DriverUpdates, Image, Settings, SystemUpdates};
use super::tables::{RegistryValue, registry};
use super::xml::Element;

/// The name under which Setup looks for it, in the root of the set-up disk.
pub const FILE_NAME: &str = "Autounattend.xml";
/// The folder of the set-up disk with the guest program, by which the disk is told from all others, and its plan.
pub const FOLDER: &str = "no43";
/// [`error_handler`] on the set-up disk, from where the specialize pass copies it to where Windows looks for it.
pub const ERROR_HANDLER: &str = "no43/ErrorHandler.cmd";

/// What Windows Setup runs when it gives up: the guest program says so on every channel that it has.
#[must_use]
pub fn error_handler() -> String {
    no43_guest::setup::error_handler_cmd(FOLDER)
}

/// Letters that a disk can have in the installed system; X is WinPE's own.
const LETTERS: &str = "D E F G H I J K L M N O P Q R S T U V W Y Z";
/// The power plan "High performance", the same in every language.
const HIGH_PERFORMANCE: &str = "8c5e7fda-e8bf-4a96-9a85-a6e23a8c635c";
/// The firewall's group "Remote Desktop", by its resource, because its name is translated.
const RDP_GROUP: &str = "@FirewallAPI.dll,-28752";
const ESP_MIB: u32 = 260; // room for a disk with 4096-byte sectors
const MSR_MIB: u32 = 16;
const EFI_PARTITION: u32 = 1;
const MSR_PARTITION: u32 = 2;
const WINDOWS_PARTITION: u32 = 3;
/// What stands in for a password where the file is shown to a person.
const HIDDEN: &str = "[random password of this build]";

impl Settings {
    /// The answer file.
    #[must_use]
    pub fn render(&self) -> String {
        self.document(false)
    }

    /// The answer file as a person may see it: passwords are placeholders.
    #[must_use]
    pub fn render_shown(&self) -> String {
        self.document(true)
    }

    fn document(&self, hide: bool) -> String {
        Element::new("unattend")
            .attribute("xmlns", "urn:schemas-microsoft-com:unattend")
            .attribute("xmlns:wcm", "http://schemas.microsoft.com/WMIConfig/2002/State")
            .children([self.windows_pe(), self.specialize(), self.oobe_system(hide)])
            .document()
    }

    fn component(&self, name: &str) -> Element {
        Element::new("component")
            .attribute("name", name)
            .attribute("processorArchitecture", self.arch.name())
            .attribute("publicKeyToken", "31bf3856ad364e35")
            .attribute("language", "neutral")
            .attribute("versionScope", "nonSxS")
    }

    /// The four settings that both international components share.
    fn languages(&self) -> [Element; 4] {
        [
            Element::text("InputLocale", &self.keyboard),
            Element::text("SystemLocale", &self.locale),
            Element::text("UILanguage", &self.language),
            Element::text("UserLocale", &self.locale),
        ]
    }

    fn windows_pe(&self) -> Element {
        let international = self
            .component("Microsoft-Windows-International-Core-WinPE")
            .child(Element::new("SetupUILanguage").child(Element::text("UILanguage", &self.setup_language)))
            .children(self.languages());
        let mut setup = self
            .component("Microsoft-Windows-Setup")
            .child(self.disk_configuration())
            .child(self.image_install())
            .child(self.user_data())
            // No downloads while it installs: the same media must give the same Windows.
            .child(Element::new("DynamicUpdate").child(Element::bool("Enable", false)))
            .child(Element::new("Diagnostics").child(Element::bool("OptIn", false)));
        let mut commands = vec![Command {
            why: "tells the errors of Setup's logs outside",
            line: no43_guest::setup::watch_command(FOLDER),
        }];
        if self.skip_hardware_checks {
            commands.extend(registry("labconfig").map(|value| Command::registry(&value)));
        }
        setup = setup.child(run_synchronous(commands));
        pass("windowsPE", [international, setup])
    }

    fn disk_configuration(&self) -> Element {
        let create = |order: u32, kind: &str, size: Option<u32>| {
            let size = match size {
                Some(mib) => Element::text("Size", mib),
                None => Element::bool("Extend", true),
            };
            Element::item("CreatePartition").children([
                Element::text("Order", order),
                Element::text("Type", kind),
                size,
            ])
        };
        let modify = |id: u32, more: Vec<Element>| {
            Element::item("ModifyPartition")
                .children([Element::text("Order", id), Element::text("PartitionID", id)])
                .children(more)
        };
        let format =
            |format: &str, label: &str| vec![Element::text("Format", format), Element::text("Label", label)];
        let mut windows = format("NTFS", "Windows");
        windows.push(Element::text("Letter", "C"));
        let disk = Element::item("Disk")
            .child(Element::text("DiskID", self.target_disk))
            .child(Element::bool("WillWipeDisk", true))
            .child(Element::new("CreatePartitions").children([
                create(EFI_PARTITION, "EFI", Some(ESP_MIB)),
                create(MSR_PARTITION, "MSR", Some(MSR_MIB)),
                create(WINDOWS_PARTITION, "Primary", None),
            ]))
            .child(Element::new("ModifyPartitions").children([
                modify(EFI_PARTITION, format("FAT32", "System")),
                modify(MSR_PARTITION, Vec::new()),
                modify(WINDOWS_PARTITION, windows),
            ]));
        Element::new("DiskConfiguration").child(Element::text("WillShowUI", "OnError")).child(disk)
    }

    fn image_install(&self) -> Element {
        let (key, value) = match &self.image {
            Image::Index(index) => ("/IMAGE/INDEX", index.to_string()),
            Image::Name(name) => ("/IMAGE/NAME", name.clone()),
        };
        let from =
            Element::item("MetaData").children([Element::text("Key", key), Element::text("Value", value)]);
        let to = [Element::text("DiskID", self.target_disk), Element::text("PartitionID", WINDOWS_PARTITION)];
        Element::new("ImageInstall").child(
            Element::new("OSImage")
                .child(Element::new("InstallFrom").child(from))
                .child(Element::new("InstallTo").children(to))
                .child(Element::text("WillShowUI", "OnError")),
        )
    }

    fn user_data(&self) -> Element {
        let data = Element::new("UserData").child(Element::bool("AcceptEula", true));
        match &self.product_key {
            None => data,
            Some(key) => data.child(
                Element::new("ProductKey")
                    .children([Element::text("Key", key), Element::text("WillShowUI", "OnError")]),
            ),
        }
    }

    fn specialize(&self) -> Element {
        let mut components = vec![
            self.component("Microsoft-Windows-Shell-Setup").children([
                Element::text("ComputerName", &self.computer_name),
                Element::text("TimeZone", &self.timezone),
            ]),
            self.component("Microsoft-Windows-Deployment").child(run_synchronous(self.specialize_commands())),
            self.component("Microsoft-Windows-SQMAPI").child(Element::text("CEIPEnabled", 0)),
            self.component("Microsoft-Windows-Security-SPP-UX")
                .child(Element::bool("SkipAutoActivation", true)),
        ];
        if self.rdp {
            let group = Element::item("FirewallGroup").attribute("wcm:keyValue", "RemoteDesktop").children([
                Element::bool("Active", true),
                Element::text("Group", RDP_GROUP),
                Element::text("Profile", "all"),
            ]);
            components.push(
                self.component("Microsoft-Windows-TerminalServices-LocalSessionManager")
                    .child(Element::bool("fDenyTSConnections", false)),
            );
            components.push(
                self.component("Networking-MPSSVC-Svc").child(Element::new("FirewallGroups").child(group)),
            );
        }
        pass("specialize", components)
    }

    /// Run as SYSTEM at the first start from the disk, in this order.
    fn specialize_commands(&self) -> Vec<Command> {
        let mut commands = vec![
            Command {
                why: "what Windows runs when its set-up fails",
                line: format!(
                    "cmd.exe /d /c for %d in ({LETTERS}) do @if exist %d:{} xcopy.exe /y %d:{} %windir%\\Setup\\Scripts\\",
                    windows_path(ERROR_HANDLER),
                    windows_path(ERROR_HANDLER),
                ),
            },
            Command {
                why: "no sleep and no hibernation file",
                line: "powercfg.exe /hibernate off".to_owned(),
            },
            Command {
                why: "the clock is never throttled",
                line: format!("powercfg.exe /setactive {HIGH_PERFORMANCE}"),
            },
            Command {
                why: "a screen that stays on can be looked at",
                line: "powercfg.exe /change monitor-timeout-ac 0".to_owned(),
            },
            Command {
                why: "a machine that sleeps answers nobody",
                line: "powercfg.exe /change standby-timeout-ac 0".to_owned(),
            },
        ];
        let mut groups = vec!["always", "telemetry"];
        groups.extend((self.updates.driver != DriverUpdates::Windows).then_some("driver-updates-off"));
        groups.extend(match self.updates.system {
            SystemUpdates::None => &["updates-none"][..],
            SystemUpdates::Security => &["updates-security", "updates-any"],
            SystemUpdates::All => &["updates-any"],
        });
        for group in groups {
            commands.extend(registry(group).map(|value| Command::registry(&value)));
        }
        commands
    }

    fn oobe_system(&self, hide: bool) -> Element {
        let international = self.component("Microsoft-Windows-International-Core").children(self.languages());
        let oobe = Element::new("OOBE").children([
            Element::bool("HideEULAPage", true),
            Element::bool("HideOEMRegistrationScreen", true),
            Element::bool("HideOnlineAccountScreens", true),
            Element::bool("HideWirelessSetupInOOBE", true),
            Element::text("ProtectYourPC", 3),
        ]);
        let account = Element::item("LocalAccount").children([
            Element::text("Name", &self.user),
            Element::text("Group", "Administrators"),
            self.password(hide),
        ]);
        let autologon = Element::new("AutoLogon").children([
            Element::bool("Enabled", true),
            Element::text("Username", &self.user),
            self.password(hide),
            Element::text("LogonCount", self.autologons),
        ]);
        let first_logon = Element::item("SynchronousCommand").children([
            Element::text("Order", 1),
            Element::text("Description", "no43-guest sets this Windows up"),
            // The one entry: since Windows 10 1511 a second one may start before the first has ended.
            Element::text("CommandLine", no43_guest::setup::first_logon_command(FOLDER)),
        ]);
        let shell = self.component("Microsoft-Windows-Shell-Setup").children([
            oobe,
            Element::new("UserAccounts").child(Element::new("LocalAccounts").child(account)),
            autologon,
            Element::new("FirstLogonCommands").child(first_logon),
        ]);
        let encryption = self
            .component("Microsoft-Windows-SecureStartup-FilterDriver")
            .child(Element::bool("PreventDeviceEncryption", true));
        pass("oobeSystem", [international, shell, encryption])
    }

    fn password(&self, hide: bool) -> Element {
        let value =
            if hide { HIDDEN.to_owned() } else { password::encode(self.password.reveal(), "Password") };
        Element::new("Password").children([Element::text("Value", value), Element::bool("PlainText", hide)])
    }
}

fn pass(name: &str, components: impl IntoIterator<Item = Element>) -> Element {
    Element::new("settings").attribute("pass", name).children(components)
}

/// One line that Setup runs.
struct Command {
    why: &'static str,
    line: String,
}

impl Command {
    fn registry(value: &RegistryValue) -> Self {
        let RegistryValue { key, value, kind, data, why } = value;
        Self { why, line: format!("reg.exe add \"{key}\" /v {value} /t {kind} /d {data} /f") }
    }
}

fn run_synchronous(commands: Vec<Command>) -> Element {
    let command = |(order, command): (u32, Command)| {
        Element::item("RunSynchronousCommand").children([
            Element::text("Order", order),
            Element::text("Description", command.why),
            Element::text("Path", command.line),
        ])
    };
    Element::new("RunSynchronous").children((1..).zip(commands).map(command))
}

fn windows_path(path: &str) -> String {
    format!("\\{}", path.replace('/', "\\"))
}
