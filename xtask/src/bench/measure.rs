//! What running processes cost: CPU time by the kernel's own count, system calls by strace, memory by what is resident.

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};

use crate::shell::{output, program};

/// Requests of one kind, and who answers them.
pub(crate) struct Load {
    /// The processes whose CPU counts.
    pub(crate) server: Vec<u32>,
    pub(crate) url: String,
    pub(crate) connections: u32,
    /// What wrk does.
    pub(crate) script: PathBuf,
}

impl Load {
    /// Runs it in a closed loop. Returns how many requests were answered.
    pub(crate) fn run(&self, seconds: u32) -> Result<u64> {
        let printed = output(&mut self.wrk(2, seconds))?;
        for trouble in ["Non-2xx", "Socket errors"] {
            if printed.contains(trouble) {
                bail!("{}: {printed}", self.url);
            }
        }
        let requests = printed
            .lines()
            .find_map(|line| line.trim().split_once(" requests in "))
            .and_then(|(number, _)| number.parse().ok());
        requests.with_context(|| format!("wrk printed {printed}"))
    }

    /// Microseconds of CPU that a request costs its server.
    pub(crate) fn cost(&self, seconds: u32) -> Result<f64> {
        let before = cpu(&self.server)?;
        let requests = self.run(seconds)?;
        let spent = cpu(&self.server)? - before;
        Ok(spent as f64 / 1000.0 / requests.max(1) as f64)
    }

    fn wrk(&self, threads: u32, seconds: u32) -> Command {
        let mut wrk = program("wrk");
        wrk.args(["--timeout", "20s", "--threads", &threads.to_string()])
            .args(["--connections", &self.connections.to_string()])
            .args(["--duration", &format!("{seconds}s"), "--script"])
            .args([&self.script])
            .arg(&self.url);
        wrk
    }
}

/// Nanoseconds that all threads of these processes have run.
fn cpu(processes: &[u32]) -> Result<u64> {
    let mut sum = 0;
    for process in processes {
        for thread in fs::read_dir(format!("/proc/{process}/task"))? {
            let file = thread?.path().join("schedstat");
            // A thread may end while we look.
            let Ok(text) = fs::read_to_string(file) else {
                continue;
            };
            sum += text
                .split_whitespace()
                .next()
                .and_then(|number| number.parse::<u64>().ok())
                .unwrap_or(0);
        }
    }
    Ok(sum)
}

/// System calls per request, and which. A request takes `writes` of them to send something; that is how requests are counted.
pub(crate) fn calls_per_request(server: &[u32], load: &Load, writes: u64) -> Result<(f64, String)> {
    let report = std::env::temp_dir().join(format!("evergrant-bench-{}.strace", std::process::id()));
    // The clients first, so that their connecting is outside the count.
    let mut clients = load.wrk(1, 5).stdout(Stdio::null()).spawn()?;
    sleep(Duration::from_secs(1));
    let mut strace = program("strace");
    strace.args(["-f", "-c", "-o"]).arg(&report).stderr(Stdio::null());
    for process in server {
        strace.args(["-p", &process.to_string()]);
    }
    let counting = strace.spawn();
    sleep(Duration::from_secs(2));
    let counted = counting.context("strace").and_then(|mut strace| {
        interrupt(&strace)?;
        strace.wait()?;
        Ok(fs::read_to_string(&report)?)
    });
    clients.wait()?;
    let _ = fs::remove_file(&report);
    let counted = counted?;
    let (mut all, mut sent) = (0, 0);
    for (name, calls) in counted.lines().filter_map(counted_call) {
        all += calls;
        if matches!(name, "write" | "writev" | "sendto" | "sendmsg") {
            sent += calls;
        }
    }
    if sent == 0 {
        return Err(anyhow!(
            "strace counted nothing: it may not be allowed to trace the service"
        ));
    }
    let requests = sent as f64 / writes as f64;
    let each = counted
        .lines()
        .filter_map(counted_call)
        .map(|(name, calls)| (name, calls as f64 / requests))
        .filter(|(_, each)| *each >= 0.01)
        .map(|(name, each)| format!("{name} {each:.2}"));
    Ok((all as f64 / requests, each.collect::<Vec<_>>().join(", ")))
}

/// `% time  seconds  usecs/call  calls  [errors]  syscall`.
fn counted_call(line: &str) -> Option<(&str, u64)> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let (name, calls) = (words.last()?, words.get(3)?.parse().ok()?);
    (*name != "total").then_some((*name, calls))
}

pub(crate) fn interrupt(child: &Child) -> Result<()> {
    crate::shell::run_quietly(program("kill").args(["-INT", &child.id().to_string()]))
}

/// MiB that are resident.
pub(crate) fn resident(process: u32) -> Result<f64> {
    let status = fs::read_to_string(format!("/proc/{process}/status"))?;
    let kib = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .and_then(|rest| rest.trim().strip_suffix(" kB"))
        .and_then(|number| number.trim().parse::<f64>().ok());
    Ok(kib.context("VmRSS")? / 1024.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_strace_is_read_with_and_without_errors() {
        let check = |line, expected| assert_eq!(counted_call(line), expected, "{line}");
        check(
            " 48.10    0.612345           3    170000           writev",
            Some(("writev", 170_000)),
        );
        check(
            "  5.00    0.100000           2     50000     40000 recvfrom",
            Some(("recvfrom", 50_000)),
        );
        check("100.00    1.273456           3    340000     40000 total", None);
        check("% time     seconds  usecs/call     calls    errors syscall", None);
        check(
            "------ ----------- ----------- --------- --------- ----------------",
            None,
        );
    }
}
