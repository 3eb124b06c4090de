//! The real books of a simulated market: every request holds, and settles once.

use std::collections::HashMap;

use cuckoo_scheduler::ledger::{Attempt, Books, ClientId, Command, DepositId, Settlement};
use cuckoo_wire::PeerId;
use cuckoo_wire::message::{Price, RequestId};

use super::super::fleet::Hardware;
use super::super::workload::Job;

/// What each tenant begins with, in nano-credits.
const DEPOSIT: u64 = 1 << 53;
/// What a request may be charged at most, for a million tokens.
const LIMIT: Price = Price { input_per_mtok: 20_000_000_000, output_per_mtok: 20_000_000_000 };

pub(super) struct Accounts {
    books: Books,
    /// Who worked on what is open.
    attempts: HashMap<usize, Vec<(usize, Attempt)>>,
    /// What each miner earned, by its place.
    earned: HashMap<usize, u64>,
}

fn client(tenant: u64) -> ClientId {
    ClientId(tenant.to_le_bytes())
}

fn id(request: usize) -> RequestId {
    RequestId((request as u128).to_le_bytes())
}

impl Accounts {
    pub(super) fn new(jobs: &[Job]) -> Self {
        let mut accounts = Self { books: Books::default(), attempts: HashMap::new(), earned: HashMap::new() };
        let mut tenants: Vec<u64> = jobs.iter().map(|job| job.tenant).collect();
        tenants.sort_unstable();
        tenants.dedup();
        for tenant in tenants {
            let deposit = DepositId((u128::from(tenant) | 1 << 100).to_le_bytes());
            // Only a deposit of nothing, or of too much, is refused.
            let _ = accounts.books.apply(&Command::Deposit { id: deposit, client: client(tenant), amount: DEPOSIT });
        }
        accounts
    }

    fn apply(&mut self, command: &Command) -> Result<(), String> {
        match self.books.apply(command) {
            Ok(Ok(_)) => {}
            Ok(Err(rejection)) => return Err(format!("the books reject {command:?}: {rejection}")),
            Err(broken) => return Err(format!("the books are broken: {broken}")),
        }
        match self.books.sum() {
            0 => Ok(()),
            sum => Err(format!("the books sum up to {sum}")),
        }
    }

    pub(super) fn hold(&mut self, request: usize, job: &Job) -> Result<(), String> {
        let amount = LIMIT.ceiling(job.prompt.len() as u32, job.max_new);
        self.attempts.insert(request, Vec::new());
        self.apply(&Command::Hold { request: id(request), client: client(job.tenant), amount })
    }

    /// A miner begins to work on a request.
    pub(super) fn attempt(&mut self, request: usize, miner: usize, ask: Price) {
        let peer = PeerId(std::array::from_fn(|at| (miner as u64).to_le_bytes()[at % 8]));
        self.attempts.entry(request).or_default().push((miner, Attempt::new(peer, ask)));
    }

    /// The last of them delivered tokens.
    pub(super) fn delivered(&mut self, request: usize, tokens: u32) {
        if let Some((_, attempt)) = self.attempts.get_mut(&request).and_then(|attempts| attempts.last_mut()) {
            attempt.tokens += tokens;
        }
    }

    /// Pays for a request that has ended; what it cost, in nano-credits.
    pub(super) fn settle(&mut self, request: usize, job: &Job) -> Result<u64, String> {
        let mut attempts = self.attempts.remove(&request).ok_or("a request ended twice")?;
        attempts.retain(|(_, attempt)| attempt.tokens > 0);
        let delivered_tokens = attempts.iter().map(|(_, attempt)| attempt.tokens).sum();
        if attempts.is_empty() {
            self.apply(&Command::Release { request: id(request) })?;
            return Ok(0);
        }
        let before = self.balance(job);
        let held = LIMIT.ceiling(job.prompt.len() as u32, job.max_new);
        for (miner, attempt) in &attempts {
            *self.earned.entry(*miner).or_default() +=
                u64::from(attempt.tokens) * attempt.ask.output_per_mtok / 1_000_000;
        }
        let settlement = Settlement {
            request: id(request),
            prompt_tokens: job.prompt.len() as u32,
            delivered_tokens,
            max_tokens: job.max_new,
            attempts: attempts.into_iter().map(|(_, attempt)| attempt).collect(),
            royalties: Vec::new(),
        };
        self.apply(&Command::Settle(settlement))?;
        Ok(held - (self.balance(job) - before))
    }

    fn balance(&self, job: &Job) -> u64 {
        let account = cuckoo_scheduler::ledger::Account::Client(client(job.tenant));
        u64::try_from(self.books.balance(&account)).unwrap_or(0)
    }

    /// Whether everything that was held has been settled.
    pub(super) fn check_closed(&self) -> Result<(), String> {
        match self.attempts.len() {
            0 => Ok(()),
            open => Err(format!("{open} holds were never closed")),
        }
    }

    /// The share of what miners earned that each kind of hardware got.
    pub(super) fn income(&self, miners: &[Hardware]) -> Vec<(&'static str, f64)> {
        let all: u64 = self.earned.values().sum();
        let mut kinds: Vec<(&'static str, f64)> = Vec::new();
        for (at, hardware) in miners.iter().enumerate() {
            let earned = self.earned.get(&at).copied().unwrap_or(0) as f64 / all.max(1) as f64;
            match kinds.iter_mut().find(|(name, _)| *name == hardware.name) {
                Some((_, share)) => *share += earned,
                None => kinds.push((hardware.name, earned)),
            }
        }
        kinds
    }
}
