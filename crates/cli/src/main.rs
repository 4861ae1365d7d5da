//! The binary `evergrant`.
//!
//! It knows the HTTP API and how to show it: every command that has a route is written against [`api::Api`] once and works
//! on a service as well as on the configured store. What it knows of engine and service is how to start them.
//!
//! Start reading at [`run`]; `args` says what can be said, `commands` does it, `failure` holds the exit codes, `demo` is a
//! world of its own.

mod api;
mod args;
mod browser;
mod commands;
mod demo;
mod failure;
mod local;
mod log;
mod network;
mod otlp;
mod output;
mod signals;

use std::process::ExitCode;
use std::time::Duration;

use clap::Parser as _;

use crate::api::Api;
use crate::args::{Cli, Command, Local, Routed};
use crate::failure::Failure;
use crate::output::Output;

/// A call takes a few dozen small pieces of memory and gives them back, most of them on the thread that took them.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// How long what still runs beside may take once everything is done.
const LAST_WORK: Duration = Duration::from_secs(1);

fn main() -> ExitCode {
    let cli = Cli::parse();
    keep_memory_private();
    if rustls::crypto::aws_lc_rs::default_provider()
        .install_default()
        .is_err()
    {
        return Failure::failed("another TLS provider is installed").report();
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return Failure::failed(format!("the runtime does not start: {error}")).report(),
    };
    let outcome = runtime.block_on(run(cli));
    // What had to be saved is. A name that is still being looked up, or a disk that hangs, is not waited for.
    runtime.shutdown_timeout(LAST_WORK);
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}

async fn run(Cli { globals, command }: Cli) -> Result<(), Failure> {
    let output = Output::new(globals.json);
    match command {
        Command::Local(_) if globals.server.is_some() => Err(Failure::usage(
            "this command works on this machine: leave --server out",
        )),
        Command::Local(local) => match local {
            Local::Demo(demo) => demo::run(demo, output).await,
            Local::Init(init) => commands::init::run(init, output).await,
            Local::Serve => commands::serve::run(&globals).await,
            Local::Migrate(migrate) => commands::migrate::run(&migrate, &globals, output).await,
            Local::Explain(explain) => commands::explain::run(&explain, output),
            Local::Sim(sim) => commands::sim::run(sim, output).await,
        },
        Command::Routed(routed) => {
            let _log = log::start(None, None)?;
            Api::with(&globals, |api| on_the_api(api, routed, output)).await
        }
    }
}

async fn on_the_api(api: Api, command: Routed, output: Output) -> Result<(), Failure> {
    match command {
        Routed::Apps(apps) => commands::apps::run(api, apps, output).await,
        Routed::Connect(connect) => commands::connect::run(api, connect, output).await,
        Routed::Connections(connections) => commands::connections::run(api, connections, output).await,
        Routed::Token(token) => commands::token::token(api, token, output).await,
        Routed::Call(call) => commands::call::run(api, call, output).await,
        Routed::Refresh(refresh) => commands::token::refresh(api, refresh, output).await,
        Routed::Reconnect(reconnect) => commands::token::reconnect(api, reconnect, output).await,
        Routed::Doctor(doctor) => commands::doctor::run(api, doctor, output).await,
        Routed::Events(events) => commands::events::run(api, events, output).await,
        Routed::Keys(keys) => commands::keys::run(api, keys, output).await,
        Routed::Webhooks(webhooks) => commands::webhooks::run(api, webhooks, output).await,
    }
}

/// A crash must not write tokens into a core file, and another process of the same user must not read them.
#[cfg(unix)]
fn keep_memory_private() {
    use rustix::process::{Resource, Rlimit, setrlimit};
    // Where the system does not allow even less, its own limit stays.
    let _ = setrlimit(
        Resource::Core,
        Rlimit {
            current: Some(0),
            maximum: Some(0),
        },
    );
    // The limit does not hold for a core that is piped to a handler, and a debugger needs none. This covers both, and the
    // environment, which may hold the vault key.
    #[cfg(target_os = "linux")]
    {
        use rustix::process::{DumpableBehavior, set_dumpable_behavior};
        let _ = set_dumpable_behavior(DumpableBehavior::NotDumpable);
    }
}

/// Elsewhere there is no such limit.
#[cfg(not(unix))]
fn keep_memory_private() {}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use rustix::process::{DumpableBehavior, Resource, dumpable_behavior, getrlimit};

    use super::*;

    #[test]
    fn nobody_can_trace_the_process_or_make_it_leave_a_core_file() {
        keep_memory_private();
        assert_eq!(dumpable_behavior(), Ok(DumpableBehavior::NotDumpable));
        assert_eq!(getrlimit(Resource::Core).maximum, Some(0));
    }
}
