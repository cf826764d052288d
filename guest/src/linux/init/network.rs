//! Network by DHCP, if the guest has a card and a client; most lean guests have neither.

use std::process::{Command, Stdio};
use std::time::Duration;

use super::log::Log;
use super::processes::Processes;
use crate::linux::{Root, names};

/// DHCP clients that configure the card themselves, the first one that is installed is used. `{}` is the card.
const CLIENTS: &[(&str, &[&str])] = &[
    ("sbin/dhclient", &["-nw", "-q", "{}"]),
    ("sbin/dhcpcd", &["-q", "-b", "{}"]),
    ("sbin/udhcpc", &["-b", "-S", "-i", "{}"]),
];

/// How long setting up the loopback interface may take.
const LIMIT: Duration = Duration::from_secs(10);

/// Brings up the loopback interface and starts a DHCP client for each network card.
pub(super) fn start(root: &Root, processes: &Processes, log: &Log) {
    let mut loopback = Command::new("ip");
    loopback.args(["link", "set", "lo", "up"]).stdin(Stdio::null()).stderr(Stdio::null());
    let _ = processes.run(&mut loopback, LIMIT); // without `ip` there is no user of it either
    for card in cards(root) {
        let Some((program, arguments)) = CLIENTS.iter().find(|(client, _)| root.path(client).exists()) else {
            log.say(&format!("{card} not set up: there is no DHCP client"));
            continue;
        };
        let mut command = Command::new(root.path(program));
        command.args(arguments.iter().map(|argument| argument.replace("{}", &card)));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        match processes.spawn(&mut command) {
            Ok(_) => log.say(&format!("DHCP for {card} started")),
            Err(error) => log.say(&format!("failed to start {program}: {error}")),
        }
    }
}

/// Network interfaces that belong to a device.
fn cards(root: &Root) -> Vec<String> {
    let class = root.path("sys/class/net");
    let all = names(&class).unwrap_or_default();
    all.into_iter().filter(|name| class.join(name).join("device").exists()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::linux::report::tests::FakeGuest;

    #[test]
    fn only_interfaces_of_devices_get_an_address() {
        let guest = FakeGuest::new();
        guest.write("sys/class/net/lo/mtu", "65536\n");
        guest.write("sys/class/net/enp0s3/device/vendor", "0x1af4\n");
        assert_eq!(cards(&guest.root()), ["enp0s3"]);
    }
}
