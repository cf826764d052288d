//! Every table and key of a recipe, in the order in which a person would write them.
//!
//! `key` is built; `later` is known, so it is never called unknown, and refused as 'not supported by this version'.

use super::Kind::{Bool, Either, Int, List, Map, OneOf, Table, Tables, Text, WordOr};
use super::{Field, Form, Kind, Status, Word};

const fn key(name: &'static str, kind: Kind, doc: &'static str) -> Field {
    Field { name, kind, status: Status::Built, doc }
}

const fn later(name: &'static str, kind: Kind, doc: &'static str) -> Field {
    Field { name, kind, status: Status::Later, doc }
}

const fn word(name: &'static str) -> Word {
    Word { name, status: Status::Built }
}

const fn later_word(name: &'static str) -> Word {
    Word { name, status: Status::Later }
}

const TEXT: Kind = Text(Form::Any);
const TEXTS: Kind = List(&TEXT);
const HOST_PATH: Kind = Text(Form::HostPath);
const GUEST_PATH: Kind = Text(Form::GuestPath);
const DURATION: Kind = Text(Form::Duration);
const PACKAGES: Kind = List(&Text(Form::Package));
const COUNT: Kind = Int { min: 1, max: 64 };
const PORT: Kind = Int { min: 1, max: 65535 };
const SECRET: Kind = Table(&[
    key("file", HOST_PATH, "The first line of this file, which nobody else should be able to read."),
    key("env", TEXT, "This environment variable."),
    key("credential", TEXT, "This systemd credential."),
]);

/// The recipe itself.
pub(crate) static RECIPE: &[Field] = &[
    key("extends", HOST_PATH, "A recipe below this one: tables merge, lists replace."),
    key("name", Text(Form::Name), "What the recipe is called; the file's name when absent."),
    key("guest", Table(GUEST), "What runs inside."),
    key("inputs", Map(INPUT), "Files that go in, pinned by `no43 lock`."),
    key("machine", Table(MACHINE), "CPUs, memory, disk, firmware."),
    key("card", Tables(CARD), "Graphics cards that the guest owns."),
    key("display", Table(DISPLAY), "Where pictures go."),
    key("usb", Tables(USB), "USB devices of this host that the guest gets."),
    later("pci", Tables(PCI), "Further PCI devices that the guest gets."),
    key("network", Table(NETWORK), "How the guest reaches the world."),
    key("audio", Table(AUDIO), "Where sound goes."),
    key("share", Tables(SHARE), "Folders of this host that the guest sees."),
    key("disk", Tables(DISK), "Further disks."),
    key("driver", Table(DRIVER), "The card's driver."),
    key("remote", Table(REMOTE), "Ways in from other machines; everything is off unless named."),
    key("updates", Table(UPDATES), "What the guest may update by itself."),
    key("step", Tables(STEP), "Steps after the base system, each one a layer."),
    key("check", Tables(CHECK), "Checks of one's own."),
    key("checks", Table(CHECKS), "What `no43 verify` must prove."),
];

static GUEST: &[Field] = &[
    key("os", OneOf(OS), "The operating system."),
    key("init", OneOf(INIT), "Process 1 of a Linux guest: a whole Debian, or the small init of no43-guest."),
    key("edition", TEXT, "A Windows edition id, such as Professional, checked against what the ISO holds."),
    key(
        "language",
        Text(Form::Language),
        "Language and region, such as fr-FR; C for none; Windows: the ISO's own when absent.",
    ),
    key(
        "locale",
        Text(Form::Language),
        "Windows: formats of dates and numbers; those of the language when absent.",
    ),
    key(
        "timezone",
        Text(Form::TimeZone),
        "Time zone, such as Europe/Paris; Windows' own names are taken too.",
    ),
    key("keyboard", TEXT, "Keyboard layout: fr for Linux; fr-FR, 0000040c or 040c:0000040c for Windows."),
    key("hostname", TEXT, "Name on the network, given when the machine starts."),
    key(
        "product-key",
        SECRET,
        "Windows product key, given when the machine starts; the build uses a public one.",
    ),
    key("answer-file", HOST_PATH, "An answer file of one's own instead of the one that no43 makes."),
    key("user", Table(USER), "The person who works in the guest."),
    key("packages", PACKAGES, "Packages besides those that every guest gets."),
    key("backports", PACKAGES, "Packages taken from the suite's backports."),
    key("kernel", Text(Form::Package), "The kernel's package."),
    key("suite", Text(Form::Name), "The release's code name, such as bookworm."),
    key("mirror", TEXT, "Where packages come from; this host's own apt sources when absent."),
    key("variant", OneOf(VARIANT), "What mmdebstrap starts from."),
    key("files", Tables(FILE), "Files laid over the base system."),
    key("leave-out", List(&GUEST_PATH), "Trees that packages bring and this guest does without, as globs."),
    key("modules", List(&Text(Form::Module)), "Modules loaded at every boot."),
    key("kernel-options", List(&Text(Form::KernelOption)), "Added to the kernel's command line."),
    key(
        "initrd-modules",
        List(&Text(Form::Module)),
        "Modules in the initrd; Debian's own choice when empty.",
    ),
];

static OS: &[Word] = &[
    word("debian12"),
    later_word("debian13"),
    later_word("ubuntu24.04"),
    word("windows10"),
    word("windows11"),
    word("windows-server-2019"),
    word("windows-server-2022"),
    word("windows-server-2025"),
];
static INIT: &[Word] = &[word("systemd"), word("lean")];
static VARIANT: &[Word] = &[word("minbase"), word("important"), word("standard")];

static USER: &[Field] = &[
    key("name", TEXT, "Login name."),
    key("password", SECRET, "Where the password comes from; never the password itself."),
    key("sudo", Bool, "May become root without a password."),
    key("groups", List(&Text(Form::UserName)), "Further groups."),
];

static FILE: &[Field] = &[
    key("to", GUEST_PATH, "Absolute path in the guest."),
    key("from", HOST_PATH, "A file or folder on this host."),
    key("text", TEXT, "The contents."),
    key("link", TEXT, "The target of a symbolic link."),
    key(
        "mode",
        Text(Form::Mode),
        "Permission bits, such as \"0644\"; of files in a folder: their own when absent.",
    ),
    key("owner", Text(Form::Owner), "user:group in the guest."),
];

static INPUT: &[Field] = &[
    key("path", HOST_PATH, "A file on this host."),
    key("url", TEXT, "Where to fetch it once; it is kept as long as a lock names it."),
    key("sha256", Text(Form::Sha256), "What it must hash to, if the recipe itself wants to say so."),
];

static MACHINE: &[Field] = &[
    key(
        "cpus",
        Either(&[Int { min: 1, max: 512 }, OneOf(&[word("auto")])]),
        "Virtual CPUs; auto: half of this host's.",
    ),
    key(
        "memory",
        Either(&[OneOf(&[word("auto")]), Text(Form::Size)]),
        "Guest memory; auto: half of this host's.",
    ),
    key("disk", Text(Form::Size), "Size of the system disk; only what is written takes room."),
    key("firmware", OneOf(&[word("bios"), word("uefi"), word("uefi-secure")]), "What starts the guest."),
    key(
        "boot",
        OneOf(&[word("disk"), word("direct")]),
        "Bootloader and kernel from the disk, or the kernel given to QEMU.",
    ),
    key("uefi-under-lab", Bool, "The work-round for UEFI inside the lab: without its KVM, and slow."),
    key("tpm", Bool, "A virtual TPM 2.0."),
    key("disk-bus", OneOf(&[word("virtio"), word("ahci"), word("nvme")]), "How the system disk is attached."),
    key(
        "identity",
        OneOf(&[word("own"), word("fresh"), word("image")]),
        "Who an installed machine is: own UUID and serial number; fresh also has an empty TPM; image is the one that was installed.",
    ),
    key(
        "hugepages",
        Bool,
        "Guest memory in huge pages of 2 MiB, which the host sets aside for as long as the machine runs.",
    ),
];

static CARD: &[Field] = &[
    key("model", TEXT, "A part of the card's name, such as RTX 3070."),
    key("id", Text(Form::PciId), "vendor:device of its video function, such as 10de:2484."),
    key("address", Text(Form::CardAddress), "Where it sits, as lspci writes it."),
    key("any", Bool, "Any card that is ready."),
    key("count", COUNT, "How many such cards."),
    key(
        "functions",
        Either(&[OneOf(&[word("all")]), List(&OneOf(ROLES))]),
        "Which of its functions the guest gets.",
    ),
    key("present-as", Text(Form::PciId), "Ids that the guest sees instead of the real ones."),
    later("rom", HOST_PATH, "A video BIOS file."),
];
static ROLES: &[Word] = &[word("video"), word("audio"), word("usb"), word("ucsi")];

static DISPLAY: &[Field] = &[
    key(
        "output",
        OneOf(&[word("monitor"), word("none"), later_word("virtual"), later_word("looking-glass")]),
        "Where the card's picture goes: a monitor at the card, or nowhere.",
    ),
    key(
        "console",
        OneOf(&[word("always"), word("never"), later_word("until-ready")]),
        "The emulated screen beside the card.",
    ),
];

static USB: &[Field] = &[
    key("port", TEXT, "A port, such as 1-4: whatever is plugged in there."),
    key("id", Text(Form::PciId), "vendor:product."),
    later("controller", TEXT, "A whole controller, by PCI address."),
    key("evdev", TEXT, "A keyboard or mouse shared with this host."),
    key("toggle", TEXT, "The keys that switch an evdev device over."),
];

static PCI: &[Field] = &[
    key("address", TEXT, "As lspci writes it."),
    key("id", Text(Form::PciId), "vendor:device."),
    key("vf", COUNT, "A virtual function of that device."),
    key("mdev", TEXT, "A mediated device of this type."),
    key("count", COUNT, "How many."),
];

static NETWORK: &[Field] = &[
    key(
        "mode",
        OneOf(&[word("user"), word("none"), word("bridge"), word("macvtap")]),
        "A user network (out, but not in), none, or this host's network by a bridge or a macvtap, for kept machines.",
    ),
    key("forward", List(&Either(&[PORT, TEXT])), "Guest ports reachable on this host's loopback."),
    key("bridge", TEXT, "The bridge's name."),
    key("parent", TEXT, "The interface under a macvtap."),
    key("mac", TEXT, "The guest's MAC address."),
];

static AUDIO: &[Field] =
    &[key("to", OneOf(&[word("card"), word("pipewire"), word("pulse"), word("none")]), "Where sound goes.")];

static SHARE: &[Field] = &[
    key("name", Text(Form::Name), "What the guest calls it."),
    key("path", HOST_PATH, "A folder on this host."),
    key("to", GUEST_PATH, "Where a Linux guest sees it; it mounts the share itself without."),
    key("read-only", Bool, "The guest may not write."),
];

static DISK: &[Field] = &[
    key("name", Text(Form::Name), "What it is called."),
    key("size", Text(Form::Size), "Its size."),
    key("keep", Bool, "Outlives every rebuild of the system disk."),
    key("path", HOST_PATH, "An existing disk or image."),
];

static DRIVER: &[Field] = &[
    key("package", TEXT, "The name of an input, or a name or version of drivers.toml beside the recipe."),
    key("packages", PACKAGES, "Linux guests: the distribution's own packages, such as nvidia-driver."),
    key(
        "install",
        OneOf(&[word("staged"), word("with-card"), word("none")]),
        "Into the image before a card is there, in a build start with the card, or not at all.",
    ),
    key("version", TEXT, "Which version it must be, such as 466.11."),
    key(
        "components",
        List(&Text(Form::Name)),
        "Parts of the package beside the display driver, such as HDAudio or PhysX.",
    ),
    key("legacy", Bool, "The VM hides itself, for GeForce drivers older than branch 465."),
    key("test-signed", Bool, "Windows takes drivers that Microsoft has not signed; needs Secure Boot off."),
];

static REMOTE: &[Field] = &[
    key(
        "parsec",
        Bool,
        "Parsec for every user of the computer, with its virtual display; needs inputs.parsec.",
    ),
    key(
        "parsec-team",
        Table(PARSEC_TEAM),
        "The team that the computer registers with by itself, at an instance's first start.",
    ),
    key("sunshine", Bool, "Sunshine, for Moonlight; needs inputs.sunshine."),
    key(
        "looking-glass",
        Bool,
        "Looking Glass' virtual display, seen on this host; needs inputs.looking-glass.",
    ),
    key("rdp", Bool, "Remote Desktop."),
    key("rdp-gpu", Bool, "Sessions of Remote Desktop use the card."),
    later("ssh", Bool, "OpenSSH."),
];

static PARSEC_TEAM: &[Field] = &[
    key("id", TEXT, "The team's id."),
    key("key", SECRET, "The computer key, given when the machine starts."),
];

static UPDATES: &[Field] = &[
    key("windows", OneOf(&[word("none"), word("security"), word("all")]), "Updates of Windows by itself."),
    key(
        "driver",
        OneOf(&[word("free"), word("ours"), word("windows")]),
        "Who may change the card's driver: you (free), nobody (ours), Windows Update too (windows).",
    ),
];

static STEP: &[Field] = &[
    key("name", TEXT, "What it is called; may change without building again."),
    key("run", TEXTS, "Program and arguments, without a shell; must end with 0."),
    key("copy", Table(COPY), "Copy a file or folder in."),
    key("install", PACKAGES, "Install packages by the guest's own package manager."),
    key("reboot", Bool, "Restart the guest."),
    key("wait-for", Table(WAIT_FOR), "Wait until something holds."),
    key("limit", DURATION, "How long it may take."),
];

static COPY: &[Field] = &[
    key("from", HOST_PATH, "A file or folder on this host."),
    key("input", Text(Form::Name), "One of this recipe's inputs."),
    key("to", GUEST_PATH, "Absolute path in the guest."),
    key("mode", Text(Form::Mode), "Permission bits, such as \"0644\"; the file's own when absent."),
    key("owner", Text(Form::Owner), "user:group in the guest."),
];

static WAIT_FOR: &[Field] = &[
    key("file", GUEST_PATH, "A file exists."),
    key("unit", TEXT, "A systemd unit is active."),
    key("run", TEXTS, "A program ends with 0."),
];

static CHECK: &[Field] = &[
    key("name", Text(Form::Name), "What it is called."),
    key("copy", List(&HOST_PATH), "Files and folders that it needs."),
    key("run", TEXTS, "Program and arguments; 0 means passed."),
    key("session", OneOf(&[word("user"), word("service")]), "Who runs it."),
    key("limit", DURATION, "How long it may take."),
    key("exit", Int { min: 0, max: 255 }, "The exit code that it must end with; 0 when absent."),
    key("says", TEXT, "A text that must be in its output."),
    key("metrics", GUEST_PATH, "A JSON file that it leaves in the guest; its numbers are kept."),
    key("pictures", List(&GUEST_PATH), "PNG files that it leaves in the guest."),
    key("each", OneOf(&[word("card")]), "Once for each card."),
];

static CHECKS: &[Field] = &[
    key("ready", DURATION, "How long the guest may take until its agent answers."),
    key("card", Bool, "Every function is there, with the presented ids and this host's BAR sizes."),
    key("driver", Bool, "A driver is bound to the video function."),
    key("connector", Bool, "The driver offers a connector."),
    key("picture", Bool, "A pattern painted in the guest is on the card's own output."),
    key("quiet", Bool, "Neither kernel complains about the card."),
    key(
        "work",
        List(&OneOf(WORK)),
        "Work that the card must do; what is usual for guest and card when absent.",
    ),
    key(
        "lifecycle",
        List(&WordOr(LIFECYCLE, DRIVER_STEP)),
        "After each of these, all of it still holds; driver:NAME means another driver package.",
    ),
    key("skip", Table(SKIP), "Checks that are left out, each with its reason."),
];

/// What stands before the package's name.
pub(crate) const DRIVER_STEP: &str = "driver:";

static LIFECYCLE: &[Word] = &[
    word("reboot"),
    word("cold-start"),
    word("replug"),
    word("driver-reload"),
    word("driver-reinstall"),
    word("driver-rollback"),
];

static WORK: &[Word] = &[
    word("cuda"),
    word("vulkan"),
    word("d3d11"),
    word("d3d12"),
    word("nvenc"),
    word("optix"),
    word("desktop"),
];

static SKIP: &[Field] = &[
    key("present", TEXT, "Why."),
    key("no-code", TEXT, "Why."),
    key("driver", TEXT, "Why."),
    key("version", TEXT, "Why."),
    key("audio", TEXT, "Why."),
    key("link", TEXT, "Why."),
    key("connector", TEXT, "Why."),
    key("picture", TEXT, "Why."),
    key("work", TEXT, "Why."),
    key("quiet", TEXT, "Why."),
];
