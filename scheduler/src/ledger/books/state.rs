//! The books as a state that commands change, with the invariants checked at every change. Pure: keeps no time and
//! writes nothing down.

use std::collections::{BTreeMap, HashMap};

use super::*;

/// Accounts and holds in memory, and the one place where they change. A store fills one with what a batch of commands
/// needs; a simulation keeps everything in one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Books {
    balances: HashMap<Account, i64>,
    holds: HashMap<RequestId, HoldRow>,
    deposits: HashMap<DepositId, (ClientId, i64)>,
}

impl Books {
    /// Applies `command` whole or not at all.
    ///
    /// # Errors
    /// As of [`decide`]; an invariant that fails on the result counts as a bug too.
    pub fn apply(&mut self, command: &Command) -> Result<Result<Decision, Rejection>, Broken> {
        let decision = match decide(command, &self.facts(command))? {
            Ok(decision) => decision,
            Err(rejection) => return Ok(Err(rejection)),
        };
        let changed = self.after(&decision)?;
        self.balances.extend(changed);
        self.holds.extend(decision.hold);
        if let Command::Deposit { id, client, .. } = command
            && let Some(leg) = decision.legs.first()
        {
            self.deposits.insert(*id, (*client, leg.amount));
        }
        Ok(Ok(decision))
    }

    /// What an account has; 0 if it was never used.
    pub fn balance(&self, account: &Account) -> i64 {
        self.balances.get(account).copied().unwrap_or(0)
    }

    /// What is known of a request.
    pub fn hold(&self, request: &RequestId) -> Option<&HoldRow> {
        self.holds.get(request)
    }

    /// Everything added up: 0, always.
    pub fn sum(&self) -> i128 {
        self.balances.values().map(|b| i128::from(*b)).sum()
    }

    /// States what an account has.
    pub(in super::super) fn set_balance(&mut self, account: Account, balance: i64) {
        self.balances.insert(account, balance);
    }

    /// States what is known of a request.
    pub(in super::super) fn set_hold(&mut self, request: RequestId, hold: HoldRow) {
        self.holds.insert(request, hold);
    }

    /// States that a deposit came.
    pub(in super::super) fn set_deposit(&mut self, id: DepositId, client: ClientId, amount: i64) {
        self.deposits.insert(id, (client, amount));
    }

    fn facts(&self, command: &Command) -> Facts {
        match command {
            Command::Deposit { id, .. } => Facts {
                deposit: self.deposits.get(id).copied(),
                deposited: self.balance(&Account::ExtDeposit).saturating_neg(),
                ..Facts::default()
            },
            Command::Hold { request, client, .. } => Facts {
                available: self.balance(&Account::Client(*client)),
                hold: self.hold(request).copied(),
                ..Facts::default()
            },
            Command::Settle(Settlement { request, .. }) | Command::Release { request } => {
                Facts { hold: self.hold(request).copied(), ..Facts::default() }
            }
        }
    }

    /// Balances after `decision`, if every invariant holds of them.
    fn after(&self, decision: &Decision) -> Result<BTreeMap<Account, i64>, Broken> {
        let broken = |invariant, detail| Err(Broken { invariant, detail });
        let mut deltas: BTreeMap<Account, i128> = BTreeMap::new();
        for leg in &decision.legs {
            if leg.amount <= 0 || leg.debit == leg.credit {
                return broken("I1 (debits = credits)", format!("a leg moves nothing: {leg:?}"));
            }
            *deltas.entry(leg.debit).or_default() -= i128::from(leg.amount);
            *deltas.entry(leg.credit).or_default() += i128::from(leg.amount);
        }
        let sum: i128 = deltas.values().sum();
        if sum != 0 {
            return broken("I2 (a linked set sums to zero)", format!("it sums to {sum}"));
        }
        let mut changed = BTreeMap::new();
        for (account, delta) in deltas {
            let balance = i128::from(self.balance(&account)) + delta;
            match i64::try_from(balance) {
                Ok(balance) if balance >= 0 || account.is_external() => changed.insert(account, balance),
                _ => return broken("I4 (no account below zero)", format!("{account} would have {balance}")),
            };
        }
        if let Some((request, hold)) = &decision.hold {
            let account = Account::Hold(*request);
            let left = changed.get(&account).copied().unwrap_or_else(|| self.balance(&account));
            let due = if hold.state == HoldState::Open { hold.amount } else { 0 };
            if left != due {
                return broken("I3 (a hold resolves exactly once)", format!("{account} keeps {left}, not {due}"));
            }
        }
        Ok(changed)
    }
}
