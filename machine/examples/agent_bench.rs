//! Prints what the guest agent of a running machine costs, as JSON: `agent_bench MACHINE-FOLDER ROUNDS`. All in milliseconds.

use no43_machine::RunDirs;
use no43_machine::agent::{Agent, AgentError, ExecLimits, GuestPid};
use serde_json::{Value, json};
use std::error::Error;
use std::io::Read as _;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

type Done = Result<(), Box<dyn Error>>;

const LIMIT: Duration = Duration::from_secs(60);

/// The guest program.
const PROGRAM: &str = "no43-guest";

/// It takes long, costs nothing, and tells by the machine's other port when it is about to end.
const LONG: [&str; 3] = ["sh", "-c", "sleep 1.3; printf . > /dev/virtio-ports/org.no43.shell"];
/// When questions without a pause begin, so that they do not slow the program's start down.
const NEARLY: Duration = Duration::from_millis(1250);

fn main() -> Done {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [folder, rounds] = arguments.as_slice() else {
        return Err("MACHINE-FOLDER ROUNDS".into());
    };
    let (dirs, rounds) = (RunDirs::at(folder), rounds.parse()?);
    let mut measured = questions(&dirs, rounds)?;
    measured["ends"] = ends(&dirs, rounds)?;
    println!("{measured}");
    Ok(())
}

fn timed(work: &dyn Fn() -> Done) -> Result<f64, Box<dyn Error>> {
    let began = Instant::now();
    work()?;
    Ok(began.elapsed().as_secs_f64() * 1000.0)
}

/// QEMU serves one at a time, so the one before must have been dropped.
fn agent(dirs: &RunDirs) -> Result<Agent, AgentError> {
    let agent = Agent::on_socket(dirs.agent_socket());
    agent.wait_ready(LIMIT, |_| ())?;
    Ok(agent)
}

fn run(agent: &Agent, argv: &[&str]) -> Done {
    let output = agent.exec(argv, &ExecLimits::within(LIMIT))?;
    if output.success() { Ok(()) } else { Err(output.stderr_text().into()) }
}

fn run_asking_all_the_time(agent: &Agent, argv: &[&str], after: Duration) -> Done {
    let (program, rest) = argv.split_first().ok_or("no program")?;
    let arguments = json!({ "path": program, "arg": rest, "capture-output": true });
    let answer = agent.raw("guest-exec", &arguments, LIMIT)?;
    let pid = GuestPid(answer["pid"].as_i64().ok_or("no pid")?);
    std::thread::sleep(after);
    while agent.ended(pid)?.is_none() {}
    Ok(())
}

/// A sign of life, and a report.
fn questions(dirs: &RunDirs, rounds: usize) -> Result<Value, Box<dyn Error>> {
    let agent = agent(dirs)?;
    let ping = || Ok(agent.ping(LIMIT)?);
    let report = || run(&agent, &[PROGRAM, "report", "--json"]);
    let start = || run(&agent, &[PROGRAM, "--version"]);
    let busy = || run_asking_all_the_time(&agent, &[PROGRAM, "report", "--json"], Duration::ZERO);
    // the first of each reads the program from the disk
    ping()?;
    report()?;
    start()?;
    busy()?;
    let (mut pings, mut reports, mut starts, mut busies) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for _ in 0..rounds {
        pings.push(timed(&ping)?);
        reports.push(timed(&report)?);
        starts.push(timed(&start)?);
        busies.push(timed(&busy)?);
    }
    Ok(json!({ "ping": pings, "report": reports, "start": starts, "busy": busies }))
}

/// How long after the last act of a long program its end is known: with a bell, with pauses between the questions, and asked
/// all the time. Its own end, once it has told of it, is part of that.
fn ends(dirs: &RunDirs, rounds: usize) -> Result<Value, Box<dyn Error>> {
    let told = UnixStream::connect(dirs.dir().join("shell.sock"))?;
    told.set_read_timeout(Some(LIMIT))?;
    let late = |known: &dyn Fn() -> Done| -> Result<f64, Box<dyn Error>> {
        let mut port = told.try_clone()?;
        let last_act = std::thread::spawn(move || port.read_exact(&mut [0]).map(|()| Instant::now()));
        known()?;
        let known = Instant::now();
        let last_act = last_act.join().map_err(|_| "the listener died")??;
        Ok((known - last_act).as_secs_f64() * 1000.0)
    };
    let (mut bell, mut pauses, mut busy) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..=rounds {
        let each = [
            (&mut busy, late(&|| run_asking_all_the_time(&agent(dirs)?, &LONG, NEARLY))?),
            (&mut pauses, late(&|| run(&agent(dirs)?, &LONG))?),
            (
                &mut bell,
                late(&|| {
                    let agent = agent(dirs)?;
                    agent.hang_bell(dirs.bell_socket(), PROGRAM);
                    run(&agent, &LONG)
                })?,
            ),
        ];
        // the first reads the programs from the disk
        for (list, time) in each.into_iter().filter(|_| round > 0) {
            list.push(time);
        }
    }
    told.shutdown(std::net::Shutdown::Both)?;
    Ok(json!({ "bell": bell, "pauses": pauses, "busy": busy }))
}
