//! What each verb does. Results go to standard output, everything else to standard error.

mod ask;
mod bench;
mod doctor;
mod explain;
mod generate;
mod mine;
mod models;
mod schedule;
mod simulate;
mod up;
mod wallet;

use std::time::{Duration, Instant};

use cuckoo::{ClientError, RefusalCode};
use cuckoo_runtime::MineError;
use cuckoo_wire::limits::NANO_PER_CREDIT;
use tokio::signal::unix::{SignalKind, signal};

use crate::args::{Cli, Verb};

/// How long running requests may go on after Ctrl-C; a second Ctrl-C ends them.
const DRAIN_MAX: Duration = Duration::from_secs(30);

/// Does what was asked; `began` is when the process did.
pub(crate) async fn run(cli: Cli, began: Instant) -> anyhow::Result<()> {
    match cli.verb {
        Verb::Up(args) => up::run(&cli.common, args).await,
        Verb::Schedule(args) => schedule::run(&cli.common, args).await,
        Verb::Mine(args) => mine::run(&cli.common, args).await,
        Verb::Ask(args) => ask::ask(&cli.common, args).await,
        Verb::Chat(args) => ask::chat(&cli.common, args).await,
        Verb::Models(verb) => models::run(&cli.common, verb).await,
        Verb::Wallet(args) => wallet::run(&cli.common, args).await,
        Verb::Explain(args) => explain::run(&cli.common, args).await,
        Verb::Simulate(args) => simulate::run(&cli.common, &args),
        Verb::Bench(verb) => bench::run(&cli.common, verb, began).await,
        Verb::Doctor => doctor::run(&cli.common).await,
    }
}

/// 6 for a bad key, 7 for too little credit, 5 where nobody can be reached, 8 for a miner that is stuck or has lost its GPU
/// and wants to be started again, 1 for everything else.
pub(crate) fn exit_code(error: &anyhow::Error) -> u8 {
    if let Some(MineError::Stuck(_)) = error.downcast_ref::<MineError>() {
        return 8;
    }
    match error.downcast_ref::<ClientError>() {
        Some(ClientError::Refused(refusal)) => match refusal.code {
            RefusalCode::InvalidApiKey => 6,
            RefusalCode::InsufficientCredit => 7,
            _ => 1,
        },
        Some(ClientError::Connect(_)) => 5,
        _ => 1,
    }
}

/// Waits for Ctrl-C or SIGTERM.
async fn asked_to_stop() {
    let (Ok(mut interrupt), Ok(mut terminate)) = (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
    else {
        // Without signals a process can only be killed.
        return std::future::pending().await;
    };
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
}

/// Lets `stop` finish, unless somebody asks again.
async fn drain(stop: impl Future<Output = ()>) {
    eprintln!("stopping: finishing what runs, up to {} s; Ctrl-C again to stop at once", DRAIN_MAX.as_secs());
    tokio::select! {
        () = stop => {}
        () = asked_to_stop() => eprintln!("stopped at once"),
    }
}

/// Nano-credits as people read them: exact, without zeros at the end.
fn credits(nano: i64) -> String {
    let (sign, nano) = (if nano < 0 { "-" } else { "" }, nano.unsigned_abs());
    let (whole, fraction) = (nano / NANO_PER_CREDIT, nano % NANO_PER_CREDIT);
    let text = format!("{sign}{whole}.{fraction:09}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::{credits, exit_code};
    use cuckoo_runtime::MineError;

    #[test]
    fn a_stuck_miner_can_be_told_from_others() {
        assert_eq!(exit_code(&MineError::Stuck("a step".to_owned()).into()), 8);
        assert_eq!(exit_code(&MineError::Failed("a step".to_owned()).into()), 1);
    }

    #[test]
    fn credits_print_exactly() {
        for (nano, text) in [(0, "0"), (1, "0.000000001"), (-1_500_000_000, "-1.5"), (40_000_000, "0.04")] {
            assert_eq!(credits(nano), text);
        }
    }
}
