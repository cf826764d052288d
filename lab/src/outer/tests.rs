use no43_machine::spec::DirectKernel;

use super::*;

fn host() -> LabHost {
    let kernel = DirectKernel {
        kernel: "/store/images/k/kernel".into(),
        initrd: Some("/store/images/k/initrd".into()),
        cmdline: "root=/dev/vda rw quiet".to_owned(),
    };
    LabHost { key: "k".to_owned(), disk: "/store/images/k/disk.qcow2".into(), kernel }
}

fn shown(profile: &str) -> String {
    let argv = template(&Profile::load(profile).unwrap(), &host(), Accel::Tcg);
    let mut lines = String::new();
    for word in argv {
        let end = if word.starts_with('-') { '\n' } else { ' ' };
        lines.push(end);
        lines.push_str(&word);
    }
    lines.trim().to_owned()
}

#[test]
fn the_three_card_lab_as_qemu_gets_it() {
    insta::assert_snapshot!(shown("three-cards"), @r"
    -name guest=lab,debug-threads=on
    -nodefaults
    -no-user-config
    -sandbox on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny
    -machine pc-q35-7.2,vmport=off,dump-guest-core=off
    -accel tcg,thread=multi
    -cpu max
    -smp 1,sockets=1,cores=1,threads=1
    -m 3000M
    -rtc base=utc
    -no-reboot
    -device intel-iommu,intremap=on,caching-mode=on
    -kernel K
    -initrd I
    -append root=/dev/vda rw quiet console=ttyS0 intel_iommu=on iommu=pt panic=-1 no_timer_check nohibernate
    -chardev socket,id=qmp,fd=0,server=on,wait=off
    -mon chardev=qmp,mode=control
    -chardev file,id=serial0,path=C
    -serial chardev:serial0
    -device virtio-serial-pci,id=ports,bus=pcie.0,addr=0x2
    -chardev socket,id=port0,path=R/ga.sock,server=on,wait=off
    -device virtserialport,id=port0,bus=ports.0,nr=1,chardev=port0,name=org.qemu.guest_agent.0
    -chardev socket,id=port1,path=R/org.no43.lab.sock,server=on,wait=off
    -device virtserialport,id=port1,bus=ports.0,nr=2,chardev=port1,name=org.no43.lab
    -chardev socket,id=port2,path=R/org.no43.shell.sock,server=on,wait=off
    -device virtserialport,id=port2,bus=ports.0,nr=3,chardev=port2,name=org.no43.shell
    -display none
    -device VGA,id=screen,bus=pcie.0,addr=0x1
    -device qemu-xhci,id=usb,bus=pcie.0,addr=0x4
    -blockdev driver=file,node-name=disk0-file,filename=O,discard=unmap,read-only=off,cache.no-flush=on
    -blockdev driver=qcow2,node-name=disk0,file=disk0-file,discard=unmap,read-only=off,cache.no-flush=on
    -device virtio-blk-pci,bus=pcie.0,addr=0x6,id=disk0,drive=disk0
    -fsdev local,id=store,path=S,security_model=none,multidevs=remap,readonly=on
    -device pcie-root-port,id=spare0,bus=pcie.0,addr=0x18,chassis=101
    -device pcie-root-port,id=spare1,bus=pcie.0,addr=0x19,chassis=102
    -audiodev none,id=silence
    -device pcie-root-port,id=port-left-port,bus=pcie.0,addr=0x10.0,chassis=1
    -device pcie-root-port,id=port-middle-port,bus=pcie.0,addr=0x11.0,chassis=2
    -device pcie-root-port,id=port-right-port,bus=pcie.0,addr=0x12.0,chassis=3
    -device secondary-vga,id=card-left,bus=port-left-port,addr=0x0.0,multifunction=on
    -device intel-hda,id=audio-left,bus=port-left-port,addr=0x0.1
    -device hda-duplex,bus=audio-left.0,audiodev=silence
    -device secondary-vga,id=card-middle,bus=port-middle-port,addr=0x0.0,multifunction=on
    -device intel-hda,id=audio-middle,bus=port-middle-port,addr=0x0.1
    -device hda-duplex,bus=audio-middle.0,audiodev=silence
    -device secondary-vga,id=card-right,bus=port-right-port,addr=0x0.0,multifunction=on
    -device intel-hda,id=audio-right,bus=port-right-port,addr=0x0.1
    -device hda-duplex,bus=audio-right.0,audiodev=silence
    -fsdev local,id=evidence,path=E,multidevs=remap,security_model=mapped-xattr,fmode=0644,dmode=0755
    ");
}

#[test]
fn ports_without_acs_share_a_device() {
    let ports: Vec<String> = shown("bad-groups")
        .lines()
        .filter(|line| line.contains("root-port,id=port"))
        .map(str::to_owned)
        .collect();
    insta::assert_snapshot!(ports.join("\n"), @r"
    -device pcie-root-port,id=port-slot1,bus=pcie.0,addr=0x10.0,chassis=1,multifunction=on,disable-acs=on
    -device pcie-root-port,id=port-slot2,bus=pcie.0,addr=0x10.1,chassis=2,disable-acs=on
    -device pcie-root-port,id=port-alone-port,bus=pcie.0,addr=0x11.0,chassis=3
    ");
}

#[test]
fn switches_and_bridges() {
    let text = "[host]\ncpus = 1\nmemory = \"2 GiB\"\ndisplay = \"none\"\n\
        [[port]]\nname = \"sw\"\nkind = \"switch\"\n[[port]]\nname = \"br\"\nkind = \"bridge\"\n\
        [[card]]\nname = \"a\"\nport = \"sw\"\nvideo = \"bochs-display\"\naudio = \"none\"\n\
        [[card]]\nname = \"b\"\nport = \"sw\"\nvideo = \"secondary-vga\"\naudio = \"none\"\n\
        [[card]]\nname = \"c\"\nport = \"br\"\nvideo = \"secondary-vga\"\naudio = \"ich9-intel-hda\"\n";
    let mut spec = MachineSpec::new("x", Accel::Tcg);
    devices::install(&Profile::parse("p", "p.toml", text).unwrap(), &mut spec);
    let values: Vec<&str> = spec.extra.iter().skip(1).step_by(2).map(String::as_str).collect();
    insta::assert_snapshot!(values.join("\n"), @r"
    none,id=silence
    pcie-root-port,id=port-sw,bus=pcie.0,addr=0x10.0,chassis=1
    x3130-upstream,id=switch-sw,bus=port-sw
    pcie-root-port,id=port-br,bus=pcie.0,addr=0x11.0,chassis=2
    pcie-pci-bridge,id=bridge-br,bus=port-br
    xio3130-downstream,id=down-a,bus=switch-sw,addr=0x0.0,chassis=31,slot=1
    bochs-display,id=card-a,bus=down-a,addr=0x0.0
    xio3130-downstream,id=down-b,bus=switch-sw,addr=0x1.0,chassis=31,slot=2
    secondary-vga,id=card-b,bus=down-b,addr=0x0.0
    secondary-vga,id=card-c,bus=bridge-br,addr=0x1.0,multifunction=on
    ich9-intel-hda,id=audio-c,bus=bridge-br,addr=0x1.1
    hda-duplex,bus=audio-c.0,audiodev=silence
    ");
}

#[test]
fn paths_and_names_do_not_change_the_key_and_hardware_does() {
    let three = template(&Profile::load("three-cards").unwrap(), &host(), Accel::Tcg);
    let elsewhere = LabHost {
        disk: "/other/disk.qcow2".into(),
        kernel: DirectKernel { kernel: "/other/kernel".into(), ..host().kernel },
        ..host()
    };
    assert_eq!(three, template(&Profile::load("three-cards").unwrap(), &elsewhere, Accel::Tcg));
    assert_ne!(three, template(&Profile::load("one-card").unwrap(), &host(), Accel::Tcg));
}
