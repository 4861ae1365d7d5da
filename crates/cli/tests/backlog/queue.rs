//! The queue that the workers take jobs from: a line of JSON each way, over TCP on this machine.
//!
//! It does what any queue does with what a worker says: done, again after a while, parked. It is the judge's book, too.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Instant;

/// A job that comes back more often than this is lost on the way: nothing in a run takes that long.
const RUNS_MAX: u32 = 100;
/// How long a worker waits that finds nothing to do now.
const IDLE: Duration = Duration::from_millis(100);

/// A job: which connection it is about, never a token.
#[derive(Debug, Clone)]
pub(crate) struct Job {
    pub(crate) connection: String,
    pub(crate) work: &'static str,
    /// What an update changes.
    pub(crate) company: Option<String>,
}

/// What became of the jobs.
#[derive(Debug, Default, Clone)]
pub(crate) struct Outcomes {
    pub(crate) done: usize,
    pub(crate) parked: BTreeMap<String, usize>,
    /// By status and code, those that went back to the queue.
    pub(crate) again: BTreeMap<String, usize>,
    /// By status and code, those that a worker could not place.
    pub(crate) failed: BTreeMap<String, usize>,
    /// How often jobs of each kind were done.
    pub(crate) works: BTreeMap<&'static str, usize>,
    /// How long the calls that were answered took, waiting for budget included.
    pub(crate) took_ms: Vec<u64>,
}

pub(crate) struct Queue {
    jobs: Vec<Job>,
    enqueued_at: String,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    ready: VecDeque<usize>,
    later: BinaryHeap<Reverse<(Instant, usize)>>,
    runs: Vec<u32>,
    open: usize,
    outcomes: Outcomes,
}

impl Queue {
    pub(crate) fn new(jobs: Vec<Job>, enqueued_at: String) -> Arc<Self> {
        let state = State {
            ready: (0..jobs.len()).collect(),
            runs: vec![0; jobs.len()],
            open: jobs.len(),
            ..State::default()
        };
        Arc::new(Self {
            jobs,
            enqueued_at,
            state: Mutex::new(state),
        })
    }

    /// Serves workers until the test ends; returns where.
    pub(crate) async fn listen(self: Arc<Self>) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        tokio::spawn(async move {
            while let Ok((worker, _)) = listener.accept().await {
                tokio::spawn(self.clone().serve(worker));
            }
        });
        address
    }

    pub(crate) fn outcomes(&self) -> Outcomes {
        self.state.lock().unwrap().outcomes.clone()
    }

    /// Jobs that are neither done nor parked nor given up.
    pub(crate) fn open(&self) -> usize {
        self.state.lock().unwrap().open
    }

    async fn serve(self: Arc<Self>, worker: TcpStream) {
        let (lines, mut answers) = worker.into_split();
        let mut lines = BufReader::new(lines).lines();
        while let Ok(Some(line)) = lines.next_line().await {
            let said: Value = serde_json::from_str(&line).unwrap();
            let next = self.next(&said);
            if answers.write_all(format!("{next}\n").as_bytes()).await.is_err() {
                return;
            }
        }
    }

    /// Books what a worker says and hands it the next job.
    fn next(&self, said: &Value) -> Value {
        let now = Instant::now();
        let mut state = self.state.lock().unwrap();
        if let Some(job) = said["job"].as_u64() {
            let job = usize::try_from(job).unwrap();
            state.book(job, said, &self.jobs[job], now);
        }
        while let Some(Reverse((at, job))) = state.later.peek().copied()
            && at <= now
        {
            state.later.pop();
            state.ready.push_front(job);
        }
        match state.ready.pop_front() {
            Some(index) => {
                let Job {
                    connection,
                    work,
                    company,
                } = &self.jobs[index];
                json!({
                    "job": index, "connection": connection, "work": work, "company": company,
                    "enqueued_at": self.enqueued_at,
                })
            }
            None if state.open > 0 => json!({"wait": IDLE.as_secs_f64()}),
            None => json!({}),
        }
    }
}

impl State {
    fn book(&mut self, index: usize, said: &Value, job: &Job, now: Instant) {
        let told = format!(
            "{} {}",
            said["status"],
            said["error"].as_str().unwrap_or("the provider's")
        );
        self.outcomes.took_ms.extend(said["ms"].as_u64());
        self.runs[index] += 1;
        if let Some(seconds) = said["again_in"].as_f64()
            && self.runs[index] < RUNS_MAX
        {
            *self.outcomes.again.entry(told).or_default() += 1;
            let at = now + Duration::from_secs_f64(seconds);
            self.later.push(Reverse((at, index)));
            return;
        }
        self.open -= 1;
        if said["done"] == true {
            self.outcomes.done += 1;
            *self.outcomes.works.entry(job.work).or_default() += 1;
        } else if said["parked"] == true {
            *self.outcomes.parked.entry(told).or_default() += 1;
        } else {
            *self.outcomes.failed.entry(told).or_default() += 1;
        }
    }
}
