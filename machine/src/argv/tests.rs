//! The arguments themselves, one per line and flags with their values.

use insta::assert_snapshot;

use super::*;
use crate::Accel;
use crate::spec::{DirectKernel, DiskFormat, Forward, Opened, PassedFunction, SerialPort, Smp};

/// One flag with its value a line, as a person would write it.
fn lines(spec: &MachineSpec) -> String {
    let dirs = RunDirs::at("/run/no43/a");
    spec.check(&dirs).unwrap();
    let argv = spec.argv(&dirs);
    argv.iter().enumerate().fold(String::new(), |mut text, (index, argument)| {
        let separator = if index == 0 {
            ""
        } else if argument.starts_with('-') {
            "\n"
        } else {
            " "
        };
        let _ = write!(text, "{separator}{argument}");
        text
    })
}

fn function(host: &str, present_as: Option<&str>) -> PassedFunction {
    PassedFunction { host: host.parse().unwrap(), present_as: present_as.map(|id| id.parse().unwrap()) }
}

#[test]
fn a_bare_machine() {
    assert_snapshot!(lines(&MachineSpec::new("bare", Accel::Tcg)), @"
    -name guest=bare,debug-threads=on
    -nodefaults
    -no-user-config
    -sandbox on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny
    -machine pc-q35-7.2,vmport=off,dump-guest-core=off
    -accel tcg,thread=multi
    -cpu max
    -smp 1,sockets=1,cores=1,threads=1
    -m 512M
    -rtc base=utc
    -chardev socket,id=qmp,fd=0,server=on,wait=off
    -mon chardev=qmp,mode=control
    -device virtio-serial-pci,id=ports,bus=pcie.0,addr=0x2
    -chardev socket,id=port0,path=/run/no43/a/ga.sock,server=on,wait=off
    -device virtserialport,id=port0,bus=ports.0,nr=1,chardev=port0,name=org.qemu.guest_agent.0
    -display none
    ");
}

#[test]
fn a_guest_with_a_card() {
    let spec = MachineSpec {
        smp: Smp { sockets: 1, cores: 2, threads: 2 },
        memory_mib: 8192,
        firmware: Firmware::Uefi {
            code: FlashFile { path: "/fw/code.fd".into(), format: DiskFormat::Raw },
            vars: FlashFile { path: "/run/no43/a/vars.fd".into(), format: DiskFormat::Raw },
            smm: true,
        },
        disks: vec![
            Disk { serial: Some("system".into()), boot_index: Some(1), ..Disk::qcow2("/a,b/system.qcow2") },
            Disk::cd("/iso/windows.iso"),
            Disk { bus: DiskBus::Nvme, cache: DiskCache::Unsafe, ..Disk::raw("/data.img") },
        ],
        cards: vec![
            PassedCard { functions: vec![function("01:00.0", Some("10de:2484")), function("01:00.1", None)] },
            PassedCard { functions: vec![function("0000:4d:02.3", None)] },
        ],
        serials: vec!["/run/no43/a/console.log".into()],
        network: Network::User {
            mac: Some("52:54:00:00:00:01".into()),
            restrict: false,
            forwards: vec![Forward { host: 33890, guest: 3389 }],
        },
        display: Display::Dbus,
        clock: Clock::LocalTime,
        uuid: Some("6a6f7565-7572-4000-8000-000000000001".into()),
        paused: true,
        ..MachineSpec::new("windows10-gaming", Accel::Kvm)
    };
    assert_snapshot!(lines(&spec), @"
    -name guest=windows10-gaming,debug-threads=on
    -nodefaults
    -no-user-config
    -sandbox on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny
    -machine pc-q35-7.2,vmport=off,dump-guest-core=off,smm=on,pflash0=code,pflash1=vars
    -accel kvm
    -cpu host
    -smp 4,sockets=1,cores=2,threads=2
    -m 8192M
    -rtc base=localtime,driftfix=slew
    -uuid 6a6f7565-7572-4000-8000-000000000001
    -blockdev driver=file,node-name=code-file,filename=/fw/code.fd,read-only=on
    -blockdev driver=raw,node-name=code,file=code-file,read-only=on
    -blockdev driver=file,node-name=vars-file,filename=/run/no43/a/vars.fd,read-only=off
    -blockdev driver=raw,node-name=vars,file=vars-file,read-only=off
    -global driver=cfi.pflash01,property=secure,value=on
    -chardev socket,id=qmp,fd=0,server=on,wait=off
    -mon chardev=qmp,mode=control
    -chardev file,id=serial0,path=/run/no43/a/console.log
    -serial chardev:serial0
    -device virtio-serial-pci,id=ports,bus=pcie.0,addr=0x2
    -chardev socket,id=port0,path=/run/no43/a/ga.sock,server=on,wait=off
    -device virtserialport,id=port0,bus=ports.0,nr=1,chardev=port0,name=org.qemu.guest_agent.0
    -display dbus,p2p=on
    -device VGA,id=screen,bus=pcie.0,addr=0x1
    -blockdev driver=file,node-name=disk0-file,filename=/a,,b/system.qcow2,discard=unmap,read-only=off
    -blockdev driver=qcow2,node-name=disk0,file=disk0-file,discard=unmap,read-only=off
    -device virtio-blk-pci,bus=pcie.0,addr=0x6,id=disk0,drive=disk0,serial=system,bootindex=1
    -blockdev driver=file,node-name=disk1-file,filename=/iso/windows.iso,discard=unmap,read-only=on
    -blockdev driver=raw,node-name=disk1,file=disk1-file,discard=unmap,read-only=on
    -device ide-cd,bus=ide.0,id=disk1,drive=disk1
    -blockdev driver=file,node-name=disk2-file,filename=/data.img,discard=unmap,read-only=off,cache.no-flush=on
    -blockdev driver=raw,node-name=disk2,file=disk2-file,discard=unmap,read-only=off,cache.no-flush=on
    -device nvme,bus=pcie.0,addr=0x7,id=disk2,drive=disk2,serial=disk2
    -netdev user,id=net0,restrict=off,hostfwd=tcp:127.0.0.1:33890-:3389
    -device virtio-net-pci,id=net0,bus=pcie.0,addr=0x3,netdev=net0,romfile=,mac=52:54:00:00:00:01
    -device pcie-root-port,id=card0,bus=pcie.0,addr=0x10,chassis=1
    -device vfio-pci,id=card0f0,host=0000:01:00.0,bus=card0,addr=0x0.0x0,multifunction=on,x-pci-vendor-id=0x10de,x-pci-device-id=0x2484
    -device vfio-pci,id=card0f1,host=0000:01:00.1,bus=card0,addr=0x0.0x1
    -device pcie-root-port,id=card1,bus=pcie.0,addr=0x11,chassis=2
    -device vfio-pci,id=card1f0,host=0000:4d:02.3,bus=card1,addr=0x0.0x0
    -S
    ");
}

#[test]
fn a_lab_host() {
    let share = |tag: &str, read_only, attach| Share {
        tag: tag.into(),
        path: "/s".into(),
        read_only,
        virtiofs: None,
        attach,
    };
    let spec = MachineSpec {
        machine_type: "pc-q35-10.0".into(),
        smp: Smp::cpus(2),
        memory_mib: 3000,
        kernel: Some(DirectKernel {
            kernel: "/k/vmlinuz".into(),
            initrd: Some("/k/initrd.img".into()),
            cmdline: "root=/dev/vda intel_iommu=on iommu=pt".into(),
        }),
        disks: vec![Disk::qcow2("/overlay.qcow2")],
        ports: vec![SerialPort { name: "org.no43.lab".into(), socket: None }],
        shares: vec![share("store", true, Attach::Later), share("runs", false, Attach::AtStart)],
        display: Display::Vga,
        vmgenid: Some("324e6eaf-d1d1-4bf6-bf41-b9bb6c91fb87".into()),
        on_reboot: OnReboot::Exit,
        spare_ports: 2,
        virtual_iommu: true,
        incoming: true,
        extra: ["-device", "secondary-vga,id=gpu0"].map(String::from).to_vec(),
        ..MachineSpec::new("lab", Accel::Tcg)
    };
    assert_snapshot!(lines(&spec), @"
    -name guest=lab,debug-threads=on
    -nodefaults
    -no-user-config
    -sandbox on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny
    -machine pc-q35-10.0,vmport=off,dump-guest-core=off
    -accel tcg,thread=multi
    -cpu max
    -smp 2,sockets=1,cores=2,threads=1
    -m 3000M
    -rtc base=utc
    -no-reboot
    -device vmgenid,guid=324e6eaf-d1d1-4bf6-bf41-b9bb6c91fb87
    -device intel-iommu,intremap=on,caching-mode=on
    -kernel /k/vmlinuz
    -initrd /k/initrd.img
    -append root=/dev/vda intel_iommu=on iommu=pt
    -chardev socket,id=qmp,fd=0,server=on,wait=off
    -mon chardev=qmp,mode=control
    -device virtio-serial-pci,id=ports,bus=pcie.0,addr=0x2
    -chardev socket,id=port0,path=/run/no43/a/ga.sock,server=on,wait=off
    -device virtserialport,id=port0,bus=ports.0,nr=1,chardev=port0,name=org.qemu.guest_agent.0
    -chardev socket,id=port1,path=/run/no43/a/org.no43.lab.sock,server=on,wait=off
    -device virtserialport,id=port1,bus=ports.0,nr=2,chardev=port1,name=org.no43.lab
    -display none
    -device VGA,id=screen,bus=pcie.0,addr=0x1
    -blockdev driver=file,node-name=disk0-file,filename=/overlay.qcow2,discard=unmap,read-only=off
    -blockdev driver=qcow2,node-name=disk0,file=disk0-file,discard=unmap,read-only=off
    -device virtio-blk-pci,bus=pcie.0,addr=0x6,id=disk0,drive=disk0
    -fsdev local,id=store,path=/s,security_model=none,multidevs=remap,readonly=on
    -fsdev local,id=runs,path=/s,security_model=none,multidevs=remap,readonly=off
    -device virtio-9p-pci,id=share-runs,bus=pcie.0,addr=0x7,fsdev=runs,mount_tag=runs
    -device pcie-root-port,id=spare0,bus=pcie.0,addr=0x18,chassis=101
    -device pcie-root-port,id=spare1,bus=pcie.0,addr=0x19,chassis=102
    -incoming defer
    -device secondary-vga,id=gpu0
    ");
}

#[test]
fn what_cannot_be_is_said_before_the_start() {
    let short = RunDirs::at("/r");
    let error = |spec: &MachineSpec, dirs: &RunDirs| spec.check(dirs).unwrap_err().to_string();
    let base = MachineSpec::new("a", Accel::Tcg);
    assert_snapshot!(error(&MachineSpec::new("a,b", Accel::Tcg), &short), @"machine name 'a,b' may only hold letters, digits, '-', '_' and '.', and not be empty");
    let deep = RunDirs::at(format!("/{}", "x".repeat(98)));
    assert_snapshot!(error(&base, &deep).replace(&"x".repeat(98), "xx"), @"the socket path /xx/qmp.sock has 108 bytes; the kernel takes 107: use a shorter run directory");
    let just = RunDirs::at(format!("/{}", "x".repeat(97)));
    assert!(base.check(&just).is_ok());
    let many = MachineSpec { disks: vec![Disk::cd("/x"); 7], ..base.clone() };
    assert_snapshot!(error(&many, &short), @"7 SATA disks and CDs are too many: there are places for 6");
    let twice = PassedCard { functions: vec![function("01:00.0", None), function("02:00.0", None)] };
    let spec = MachineSpec { cards: vec![twice], ..base.clone() };
    assert_snapshot!(error(&spec, &short), @"card 0: two of its functions have the same number 0; give each device as a card of its own");
    let spec = MachineSpec { cards: vec![PassedCard { functions: vec![] }], ..base };
    assert_snapshot!(error(&spec, &short), @"card 0 has no functions");
}

#[test]
fn only_cards_pin_memory() {
    let mut spec = MachineSpec { memory_mib: 1024, ..MachineSpec::new("a", Accel::Kvm) };
    assert_eq!(spec.memlock_needed(), None);
    spec.cards = vec![PassedCard { functions: vec![function("01:00.0", None)] }];
    assert!(spec.memlock_needed().is_some_and(|bytes| bytes > 1 << 30));
    assert_eq!(spec.guest_card_address(0).to_string(), "0000:01:00.0");
}

#[test]
fn a_windows_installation() {
    let spec = MachineSpec {
        disks: vec![
            Disk { boot_index: Some(1), ..Disk::qcow2("/i/disk.qcow2") },
            Disk { boot_index: Some(2), ..Disk::cd("/iso/win.iso") },
            Disk::usb_stick("/i/setup.img"),
        ],
        tpm: Some("/r/tpm.sock".into()),
        panic_device: true,
        smbios: Some(Smbios { manufacturer: "no43".into(), product: "VM".into(), serial: "a1".into() }),
        ..MachineSpec::new("install", Accel::Tcg)
    };
    let text = lines(&spec);
    for wanted in [
        "-smbios type=1,manufacturer=no43,product=VM,serial=a1",
        "-device tpm-crb,tpmdev=tpm",
        "-device pvpanic",
        "-device qemu-xhci,id=usb,bus=pcie.0,addr=0x4",
        "-device ide-cd,bus=ide.0,id=disk1,drive=disk1,bootindex=2",
        "-device usb-storage,bus=usb.0,removable=on,id=disk2,drive=disk2",
    ] {
        assert!(text.contains(wanted), "{wanted} is not in {text}");
    }
    let bad = Smbios { manufacturer: "a,b".into(), product: "VM".into(), serial: "1".into() };
    let spec = MachineSpec { smbios: Some(bad), ..spec };
    assert!(spec.check(&RunDirs::at("/r")).unwrap_err().to_string().contains("SMBIOS text"));
}

#[test]
fn a_kept_machine_with_things_that_were_opened_for_it() {
    let share = |tag: &str, virtiofs: Option<&str>| Share {
        tag: tag.into(),
        path: "/home/me/music".into(),
        read_only: true,
        virtiofs: virtiofs.map(Into::into),
        attach: Attach::AtStart,
    };
    let network = |what| Network::Opened { mac: "52:54:00:00:00:01".into(), what };
    let mut spec = MachineSpec {
        shares: vec![share("music", Some("/run/s,0.sock")), share("photos", None)],
        network: network(Opened::Tap),
        usb_controller: true,
        memory_mib: 2048,
        ..MachineSpec::new("play", Accel::Kvm)
    };
    let pages = MachineSpec { huge_pages: true, ..MachineSpec::new("play", Accel::Kvm) };
    let pages = lines(&pages);
    let pages: Vec<&str> = pages.lines().filter(|line| line.contains("ram")).collect();
    assert_snapshot!(pages.join("\n"), @"
    -object memory-backend-memfd,id=ram,size=512M,share=off,hugetlb=on,hugetlbsize=2M,prealloc=on
    -machine pc-q35-7.2,vmport=off,dump-guest-core=off,memory-backend=ram
    ");
    let interesting = |spec: &MachineSpec| {
        let words = ["-netdev", "net0", "share", "music", "photos", "ram", "xhci"];
        let all = lines(spec);
        let found: Vec<&str> =
            all.lines().filter(|line| words.iter().any(|word| line.contains(word))).collect();
        found.join("\n")
    };
    assert_snapshot!(interesting(&spec), @"
    -object memory-backend-memfd,id=ram,size=2048M,share=on
    -machine pc-q35-7.2,vmport=off,dump-guest-core=off,memory-backend=ram
    -device qemu-xhci,id=usb,bus=pcie.0,addr=0x4
    -chardev socket,id=share-music,path=/run/s,,0.sock
    -device vhost-user-fs-pci,id=share-music,bus=pcie.0,addr=0x6,chardev=share-music,tag=music
    -fsdev local,id=photos,path=/home/me/music,security_model=none,multidevs=remap,readonly=on
    -device virtio-9p-pci,id=share-photos,bus=pcie.0,addr=0x7,fsdev=photos,mount_tag=photos
    -netdev tap,id=net0,fd=1
    -device virtio-net-pci,id=net0,bus=pcie.0,addr=0x3,netdev=net0,romfile=,mac=52:54:00:00:00:01
    ");
    spec.network = network(Opened::Socket);
    spec.shares.clear();
    assert_snapshot!(interesting(&spec), @"
    -device qemu-xhci,id=usb,bus=pcie.0,addr=0x4
    -netdev stream,id=net0,server=off,addr.type=fd,addr.str=1
    -device virtio-net-pci,id=net0,bus=pcie.0,addr=0x3,netdev=net0,romfile=,mac=52:54:00:00:00:01
    ");
}
