//! What the operating system says about this process, under the names that every Prometheus client uses.

use std::fs;

use rustix::param::page_size;
use rustix::process::{Resource, getrlimit};
use rustix::time::{ClockId, clock_gettime};

use crate::exposition::{Exposition, Kind};

/// What a process uses. What a system does not tell is left out.
#[derive(Debug, Clone, Copy)]
pub struct Process {
    cpu_seconds: f64,
    virtual_bytes: Option<f64>,
    resident_bytes: Option<f64>,
    open_fds: Option<f64>,
    max_fds: Option<f64>,
    threads: Option<f64>,
}

impl Process {
    /// Asks. Open files are counted one by one, so with many connections this takes a while: not to be done all the time.
    #[expect(
        clippy::cast_precision_loss,
        reason = "who reads this reads floating point numbers anyway"
    )]
    pub fn look() -> Self {
        let spent = clock_gettime(ClockId::ProcessCPUTime);
        // Where there is no /proc, nothing of this is known.
        let pages = fs::read_to_string("/proc/self/statm").unwrap_or_default();
        let mut bytes = pages
            .split(' ')
            .map(|pages| Some(pages.parse::<f64>().ok()? * page_size() as f64));
        let entries = |folder: &str| Some(fs::read_dir(folder).ok()?.count() as f64);
        Self {
            cpu_seconds: spent.tv_sec as f64 + spent.tv_nsec as f64 / 1e9,
            virtual_bytes: bytes.next().flatten(),
            resident_bytes: bytes.next().flatten(),
            // One of them is the folder that is being looked into.
            open_fds: entries("/proc/self/fd").map(|entries| entries - 1.0),
            max_fds: getrlimit(Resource::Nofile).current.map(|max| max as f64),
            threads: entries("/proc/self/task"),
        }
    }

    /// Writes it.
    pub fn write(&self, text: &mut Exposition) {
        let mut one = |name: &str, kind, help: &str, value: Option<f64>| {
            if let Some(value) = value {
                text.family(name, kind, help);
                text.sample(name, &[], value);
            }
        };
        let gauge = Kind::Gauge;
        one(
            "process_cpu_seconds_total",
            Kind::Counter,
            "Processor time spent.",
            Some(self.cpu_seconds),
        );
        one(
            "process_resident_memory_bytes",
            gauge,
            "Memory in use.",
            self.resident_bytes,
        );
        one(
            "process_virtual_memory_bytes",
            gauge,
            "Memory asked for.",
            self.virtual_bytes,
        );
        one(
            "process_open_fds",
            gauge,
            "Open files and connections.",
            self.open_fds,
        );
        one("process_max_fds", gauge, "How many may be open.", self.max_fds);
        one("process_threads", gauge, "Threads.", self.threads);
    }
}
