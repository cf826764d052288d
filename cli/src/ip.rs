//! `no43 ip`: a running guest's addresses, asked of its agent.

use std::time::Duration;

use no43_harness::exit_codes;
use no43_harness::words::clean_to;
use serde_json::Value;

use crate::context::{Context, Done, OrExit as _};
use crate::running::{agent, runs};

/// Ports that the recipe forwards are printed too: they are the way in with QEMU's own network.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The instance
    name: String,
}

pub(crate) fn run(args: &Args, context: &Context) -> Done {
    let runs = runs()?;
    let agent = agent(&runs, &args.name)?;
    let answer = agent.raw("guest-network-get-interfaces", &Value::Null, Duration::from_secs(30));
    let answer = answer.or_exit(exit_codes::FAILED_GUEST)?;
    let mut rows: Vec<(String, String)> = Vec::new();
    for interface in answer.as_array().into_iter().flatten().take(64) {
        let name = clean_to(interface["name"].as_str().unwrap_or_default(), 40);
        let addresses = interface["ip-addresses"].as_array().into_iter().flatten().take(64);
        let addresses =
            addresses.filter_map(|address| address["ip-address"].as_str()?.parse::<std::net::IpAddr>().ok());
        rows.extend(
            addresses
                .filter(|address| !address.is_loopback())
                .map(|address| (name.clone(), address.to_string())),
        );
    }
    let forwards = runs.note(&args.name).map(|note| note.forwards).unwrap_or_default();
    let value = serde_json::json!({
        "addresses": rows.iter().map(|(name, address)| serde_json::json!({"interface": name, "address": address})).collect::<Vec<_>>(),
        "forwards": forwards,
    });
    context.print(&value, |_| {
        let mut text: String =
            rows.iter().map(|(name, address)| format!("  {name:<10} {address}\n")).collect();
        for forward in &forwards {
            text.push_str(&format!(
                "  forward    127.0.0.1:{} leads to port {}\n",
                forward.host, forward.guest
            ));
        }
        if text.is_empty() { "the guest has no address\n".to_owned() } else { text }
    })?;
    Ok(exit_codes::OK)
}
