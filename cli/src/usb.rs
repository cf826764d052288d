//! `no43 usb`: USB devices of this host, lent to a running guest and taken back.

use clap::Subcommand;
use no43_harness::exit_codes;
use no43_harness::running::usb;
use no43_host::Roots;

use crate::context::{Context, Done, Failure};
use crate::running::{client_failure, connect, running, runs};
use crate::text::Table;

/// A device is named by its port (1-4.2) or, if there is only one of its kind, by its id (046d:c52b).
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// List the USB devices of this host
    Ls,
    /// Lend one to a running guest; whatever is plugged into that port later is the guest's too
    Add {
        /// The instance
        name: String,
        /// The device: a port or an id
        device: String,
        /// Lend this host's last keyboard or pointer, too: there is another way in
        #[arg(long)]
        yes: bool,
    },
    /// Take one back, also one that the recipe gave
    Rm {
        /// The instance
        name: String,
        /// As it was added: the same port or id
        device: String,
    },
}

pub(crate) fn run(args: &Args, context: &Context) -> Done {
    match &args.command {
        Command::Ls => ls(context),
        Command::Add { name, device, yes } => {
            let runs = runs()?;
            running(&runs, name)?;
            let found = usb::find(device, *yes, &Roots::real());
            let found = found.map_err(|error| Failure::new(error.exit_code(), error.to_string()))?;
            connect(&runs, name)?.ask(&usb::plug(&found)).map_err(|error| client_failure(&error))?;
            context.print(&serde_json::json!({"name": name, "device": found}), |_| {
                format!("{found} is {name}'s; back with: no43 usb rm {name} {}\n", found.port)
            })?;
            Ok(exit_codes::OK)
        }
        Command::Rm { name, device } => {
            let runs = runs()?;
            running(&runs, name)?;
            connect(&runs, name)?.ask(&usb::unplug(device)).map_err(|error| client_failure(&error))?;
            context.print(&serde_json::json!({"name": name, "device": device}), |_| {
                format!("{device} is this host's again\n")
            })?;
            Ok(exit_codes::OK)
        }
    }
}

fn ls(context: &Context) -> Done {
    let devices = no43_host::usb::devices(&Roots::real());
    context.print(&devices, |devices| {
        if devices.is_empty() {
            return "no USB device is plugged in\n".to_owned();
        }
        let mut table = Table::new(&["PORT", "ID", "DEVICE", "USED FOR"]);
        for one in devices {
            let used: Vec<&str> = one.inputs.iter().map(|kind| kind.word()).collect();
            table.row([one.port.clone(), one.id.clone(), one.name.clone(), used.join(", ")]);
        }
        table.to_string()
    })?;
    Ok(exit_codes::OK)
}
