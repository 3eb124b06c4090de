//! The `cuckoo` command: verbs only. What they do lies in `command`.

#![forbid(unsafe_code)]

mod args;
mod command;
mod home;
mod provision;

use std::process::ExitCode;
use std::thread::available_parallelism;
use std::time::Instant;

use clap::Parser;
use mimalloc::MiMalloc;

/// A token on its way through a scheduler takes a dozen allocations, which were a seventh of what it costs and, beside 2,000 others, a
/// third (`benches/RESULTS.md`).
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

/// Threads for I/O: half of the processors. All that takes long is done on threads of its own, which has the other half; and a
/// token that passes from thread to thread is later for it.
fn io_threads() -> usize {
    available_parallelism().map_or(1, |processors| processors.get().div_ceil(2))
}

fn main() -> ExitCode {
    let began = Instant::now();
    let cli = args::Cli::parse();
    let filter = tracing_subscriber::EnvFilter::try_new(&cli.common.log);
    let Ok(filter) = filter else {
        eprintln!("error: --log {:?} is not a filter: try info, or cuckoo_scheduler=debug", cli.common.log);
        return ExitCode::from(2);
    };
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_target(true).init();
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(io_threads()).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("error: no threads for I/O: {error}");
            return ExitCode::FAILURE;
        }
    };
    // Spawned, because calls to actors from the thread that blocks here are an order of magnitude slower.
    let outcome = runtime.block_on(async { tokio::spawn(command::run(cli, began)).await });
    // What still blocks (a terminal's input, a download) must not hold the end up.
    runtime.shutdown_background();
    match outcome {
        Ok(Ok(())) => ExitCode::SUCCESS,
        Ok(Err(error)) => {
            eprintln!("error: {error:#}");
            ExitCode::from(command::exit_code(&error))
        }
        Err(panic) => {
            eprintln!("error: this is a bug: {panic}");
            ExitCode::FAILURE
        }
    }
}
