//! Prints what the guest agent of a running machine costs, as JSON: `agent_bench AGENT-SOCKET ROUNDS`. All in milliseconds.

use no43_machine::agent::{Agent, ExecLimits};
use serde_json::json;
use std::error::Error;
use std::time::{Duration, Instant};

const LIMIT: Duration = Duration::from_secs(60);

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [socket, rounds] = arguments.as_slice() else {
        return Err("AGENT-SOCKET ROUNDS".into());
    };
    let rounds: usize = rounds.parse()?;
    let agent = Agent::on_socket(socket);
    agent.wait_ready(LIMIT, |_| ())?;
    let timed = |work: &dyn Fn() -> Result<(), Box<dyn Error>>| -> Result<f64, Box<dyn Error>> {
        let began = Instant::now();
        work()?;
        Ok(began.elapsed().as_secs_f64() * 1000.0)
    };
    let ping = || Ok(agent.ping(LIMIT)?);
    let run = |words: &[&str]| -> Result<(), Box<dyn Error>> {
        let argv = [&["no43-guest"], words].concat();
        let output = agent.exec(&argv, &ExecLimits::within(LIMIT))?;
        if output.success() { Ok(()) } else { Err(output.stderr_text().into()) }
    };
    let report = || run(&["report", "--json"]);
    let start = || run(&["--version"]);
    let asked_all_the_time = || -> Result<(), Box<dyn Error>> {
        let pid = agent.spawn(&["no43-guest", "report", "--json"])?;
        while agent.ended(pid)?.is_none() {}
        Ok(())
    };
    // the first of each reads the program from the disk
    ping()?;
    report()?;
    start()?;
    asked_all_the_time()?;
    let (mut pings, mut reports, mut starts, mut busy) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for _ in 0..rounds {
        pings.push(timed(&ping)?);
        reports.push(timed(&report)?);
        starts.push(timed(&start)?);
        busy.push(timed(&asked_all_the_time)?);
    }
    println!("{}", json!({ "ping": pings, "report": reports, "start": starts, "busy": busy }));
    Ok(())
}
