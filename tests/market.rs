//! A scheduler and miners as processes of their own, for the modules that break them.

use std::collections::HashMap;
use std::path::Path;
use std::sync::mpsc::Sender;

use cuckoo::{Address, Client, Identity, Request};
use serde_json::Value;
use tempfile::TempDir;

use crate::support::{MODEL, Process, author_home, eventually, metric};

/// A scheduler and miners on their own.
pub(crate) struct Market {
    scheduler: Process,
    /// Of the scheduler, beside its doors.
    args: Vec<String>,
    pub(crate) miners: Vec<Process>,
    ready: Value,
}

impl Market {
    pub(crate) fn start(miners: usize, options: &[&str]) -> Self {
        Self::start_with(&[], miners, options)
    }

    /// With these arguments for the scheduler.
    pub(crate) fn start_with(args: &[&str], miners: usize, options: &[&str]) -> Self {
        let doors = ["schedule", "--quic", "127.0.0.1:0", "--http", "127.0.0.1:0"];
        let mut market = Self::of(Process::start(&[&doors, args].concat()), args);
        (0..miners).for_each(|_| market.add_miner(options));
        eventually("all miners offer", || metric(market.http(), "cuckoo_replicas") as usize == miners);
        market
    }

    /// Without miners; what its scheduler logs goes to `log`.
    pub(crate) fn logged(log: Sender<String>) -> Self {
        let args = ["schedule", "--quic", "127.0.0.1:0", "--http", "127.0.0.1:0", "--log", "cuckoo_scheduler=info"];
        Self::of(Process::start_logged(&args, log), &[])
    }

    /// A scheduler that was started with these arguments beside its doors.
    pub(crate) fn of(scheduler: Process, args: &[&str]) -> Self {
        let ready = scheduler.ready();
        Self { scheduler, args: args.iter().map(|&arg| arg.to_owned()).collect(), miners: Vec::new(), ready }
    }

    /// With the key of another scheduler that has the same store.
    pub(crate) fn with_key_of(mut self, other: &Self) -> Self {
        self.ready["api_key"] = other.ready["api_key"].clone();
        self
    }

    /// The scheduler's data directory.
    pub(crate) fn home(&self) -> &Path {
        self.scheduler.home.path()
    }

    /// SIGKILL to the scheduler.
    pub(crate) fn kill(&mut self) {
        self.scheduler.kill();
    }

    /// SIGKILL, then the same scheduler again: same keys, books and ports.
    pub(crate) fn restart_scheduler(self) -> Self {
        let Self { mut scheduler, args, miners, ready } = self;
        scheduler.kill();
        let home = scheduler.into_home();
        let quic = format!("127.0.0.1:{}", ready["join"].as_str().unwrap().rsplit(':').next().unwrap());
        let http = ready["http"].as_str().unwrap().strip_prefix("http://").unwrap().to_owned();
        let doors = ["schedule", "--quic", &quic, "--http", &http];
        let options: Vec<&str> = args.iter().map(String::as_str).collect();
        let scheduler = Process::start_in(home, &[&doors, options.as_slice()].concat());
        let again = scheduler.ready();
        assert_eq!((&again["api_key"], &again["join"]), (&ready["api_key"], &ready["join"]));
        Self { scheduler, args, miners, ready }
    }

    pub(crate) fn add_miner(&mut self, options: &[&str]) {
        let miner = self.start_miner(&self.join(), tempfile::tempdir().unwrap(), options);
        miner.ready();
        self.miners.push(miner);
    }

    /// A miner in `home` that looks for the scheduler at `join`; it is not waited for.
    pub(crate) fn start_miner(&self, join: &Address, home: TempDir, options: &[&str]) -> Process {
        let join = join.to_string();
        Process::start_in(home, &[&["mine", "--join", &join, "--threads", "1"], options].concat())
    }

    pub(crate) fn http(&self) -> &str {
        self.ready["http"].as_str().unwrap()
    }

    pub(crate) fn join(&self) -> Address {
        self.ready["join"].as_str().unwrap().parse().unwrap()
    }

    pub(crate) fn key(&self) -> &str {
        self.ready["api_key"].as_str().unwrap()
    }

    pub(crate) async fn client(&self) -> Client {
        Client::connect(&self.join(), &Identity::generate()).await.unwrap()
    }

    pub(crate) fn request(&self, question: &str, max_tokens: u32) -> Request {
        let mut request = Request::chat(self.key(), MODEL, question).max_tokens(max_tokens);
        request.0.ignore_eos = true;
        request
    }

    /// All balances, by account, as the owner of each data directory sees them.
    pub(crate) fn balances(&self) -> HashMap<String, i64> {
        self.balances_with(self.miners.iter().map(|miner| miner.home.path()))
    }

    /// With those of miners whose data directories these are.
    pub(crate) fn balances_with<'a>(&self, miners: impl Iterator<Item = &'a Path>) -> HashMap<String, i64> {
        let mut balances = HashMap::new();
        let (join, key) = (self.join().to_string(), self.key());
        for home in miners.chain([author_home()]) {
            let mut wallet = crate::support::cuckoo();
            wallet.args(["wallet", "--json", "--scheduler", &join, "--api-key", key, "--home"]).arg(home);
            let printed = wallet.output().unwrap();
            assert!(printed.status.success(), "{}", String::from_utf8_lossy(&printed.stderr));
            let wallet: Value = serde_json::from_slice(&printed.stdout).unwrap();
            for row in wallet["balances"].as_array().unwrap() {
                balances.insert(row["account"].as_str().unwrap().to_owned(), row["nano"].as_i64().unwrap());
            }
        }
        balances
    }
}

/// All that is on accounts of one kind.
pub(crate) fn sum(balances: &HashMap<String, i64>, prefix: &str) -> i64 {
    balances.iter().filter(|(account, _)| account.starts_with(prefix)).map(|(_, nano)| nano).sum()
}
