//! Who is paid what for a finished request. Pure, like the rest of the books.

use super::*;

/// Legs of a settlement; the attempts' follow.
mod leg {
    pub(super) const FEE: u32 = 0;
    pub(super) const AUDIT: u32 = 1;
    pub(super) const RELIABILITY: u32 = 2;
    pub(super) const AUTHOR: u32 = 3;
    pub(super) const VOID: u32 = 4;
    pub(super) const FIRST_ATTEMPT: u32 = 5;
    /// The author of an adapter's base. Attempts are few, so theirs never come here.
    pub(super) const BASE_AUTHOR: u32 = u32::MAX;
}

pub(super) fn decide_settle(
    settlement: &Settlement,
    hold: Option<HoldRow>,
) -> Result<Result<Decision, Rejection>, Broken> {
    let request = settlement.request;
    let Some(hold) = hold else { return Ok(Err(Rejection::UnknownHold(request))) };
    match hold.state {
        HoldState::Released => return Ok(Err(Rejection::AlreadyReleased(request))),
        HoldState::Settled { split, .. } => return Ok(Ok(Decision::repeated(Outcome::Settled(split)))),
        HoldState::Open => {}
    }
    if let Err(why) = check(settlement) {
        return Ok(Err(Rejection::Invalid(why)));
    }
    check_tokens(settlement)?;

    let held = hold.amount.unsigned_abs();
    let costs = costs(settlement, held);
    let shares = Shares::of(settlement, &costs);
    let split = shares.total();
    if split.cost > held || split.miner + split.author + split.network != split.cost {
        let detail = format!("{split:?} does not divide a cost within the hold of {held}");
        return Err(Broken { invariant: "I2 (a linked set sums to zero)", detail });
    }
    let legs = shares.legs(settlement, hold.client, held - split.cost);
    let moved: i128 = legs.iter().map(|l| i128::from(l.amount)).sum();
    if moved != i128::from(hold.amount) {
        let detail = format!("{moved} of the {held} that {request} holds would move");
        return Err(Broken { invariant: "I3 (a hold resolves exactly once)", detail });
    }
    let state = HoldState::Settled {
        split,
        prompt_tokens: settlement.attempts.iter().fold(settlement.prompt_tokens, |all, a| all + a.own_prompt_tokens),
        completion_tokens: settlement.delivered_tokens,
    };
    let settled = HoldRow { state, ..hold };
    Ok(Ok(Decision { legs, hold: Some((request, settled)), outcome: Outcome::Settled(split) }))
}

fn check(settlement: &Settlement) -> Result<(), String> {
    let request = settlement.request;
    if settlement.attempts.is_empty() {
        return Err(format!("{request} names no miner to pay: release it instead"));
    }
    if settlement.royalties.len() > ROYALTIES_MAX {
        return Err(format!("{request} names {} authors: the most is {ROYALTIES_MAX}", settlement.royalties.len()));
    }
    let royalty = royalty_bps(settlement);
    if royalty > u32::from(ROYALTY_BPS_MAX) {
        return Err(format!("{request} has royalties of {royalty} basis points: the most is {ROYALTY_BPS_MAX}"));
    }
    Ok(())
}

/// All royalties together.
fn royalty_bps(settlement: &Settlement) -> u32 {
    settlement.royalties.iter().map(|royalty| u32::from(royalty.bps)).sum()
}

/// Billed is what was delivered and no more than was allowed.
fn check_tokens(settlement: &Settlement) -> Result<(), Broken> {
    let (request, delivered) = (settlement.request, settlement.delivered_tokens);
    if delivered > settlement.max_tokens {
        let detail = format!("{request} had {delivered} tokens delivered of at most {}", settlement.max_tokens);
        return Err(Broken { invariant: "I5 (billed tokens = delivered tokens <= max)", detail });
    }
    let paid: u64 = settlement.attempts.iter().map(|a| u64::from(a.tokens)).sum();
    if paid != u64::from(delivered) {
        let detail = format!("{request} would pay {paid} tokens to miners and bill {delivered}");
        return Err(Broken { invariant: "I6 (tokens paid over attempts = billed)", detail });
    }
    Ok(())
}

/// Index of the attempt that is paid for the prompt.
fn finisher(attempts: &[Attempt]) -> usize {
    attempts.iter().rposition(|a| a.tokens > 0).unwrap_or(attempts.len() - 1)
}

/// What each attempt costs at its own ask; together never above `held`.
fn costs(settlement: &Settlement, held: u64) -> Vec<u64> {
    let attempts = &settlement.attempts;
    let finisher = finisher(attempts);
    let prompt = |i| if i == finisher { settlement.prompt_tokens } else { 0 };
    let cost = |(i, a): (usize, &Attempt)| a.ask.cost(prompt(i) + a.own_prompt_tokens, a.tokens);
    let mut costs: Vec<u64> = attempts.iter().enumerate().map(cost).collect();
    let asked: u128 = costs.iter().map(|c| u128::from(*c)).sum();
    if asked > u128::from(held) {
        // Somebody asked more than the request was held for: all give way in proportion.
        for cost in &mut costs {
            *cost = u64::try_from(u128::from(*cost) * u128::from(held) / asked).unwrap_or(u64::MAX);
        }
        let others: u64 = costs.iter().enumerate().filter(|(i, _)| *i != finisher).map(|(_, c)| *c).sum();
        costs[finisher] = held - others;
    }
    costs
}

/// A cost, divided.
struct Shares {
    fee: u64,
    audit: u64,
    reliability: u64,
    /// By royalty.
    authors: Vec<u64>,
    /// By attempt.
    miners: Vec<u64>,
}

impl Shares {
    /// Every share is rounded down and what that leaves goes to the miner that finished.
    fn of(settlement: &Settlement, costs: &[u64]) -> Self {
        let share = |cost: u64, bps: u16| {
            let exact = u128::from(cost) * u128::from(bps) / u128::from(BPS);
            u64::try_from(exact).unwrap_or(cost)
        };
        let cost: u64 = costs.iter().sum();
        let (fee, audit, reliability) = (share(cost, FEE_BPS), share(cost, AUDIT_BPS), share(cost, RELIABILITY_BPS));
        let authors: Vec<u64> = settlement.royalties.iter().map(|royalty| share(cost, royalty.bps)).collect();
        let royalties: u16 = settlement.royalties.iter().map(|royalty| royalty.bps).sum();
        let miner_bps = BPS - FEE_BPS - AUDIT_BPS - RELIABILITY_BPS - royalties;
        let finisher = finisher(&settlement.attempts);
        let mut miners: Vec<u64> = costs.iter().map(|c| share(*c, miner_bps)).collect();
        miners[finisher] = 0;
        let others = fee + audit + reliability + authors.iter().sum::<u64>() + miners.iter().sum::<u64>();
        miners[finisher] = cost - others;
        Self { fee, audit, reliability, authors, miners }
    }

    fn total(&self) -> Settled {
        let network = self.fee + self.audit + self.reliability;
        let (miner, author) = (self.miners.iter().sum(), self.authors.iter().sum());
        Settled { cost: miner + author + network, miner, author, network }
    }

    fn legs(&self, settlement: &Settlement, client: ClientId, rest: u64) -> Vec<Transfer> {
        let request = settlement.request;
        let leg = |kind, leg, to, amount| {
            let amount = i64::try_from(amount).expect("no share is above the hold, which is an i64");
            Transfer::of_request(request, kind, leg, Account::Hold(request), to, amount)
        };
        let fixed = [
            leg(Kind::Settle, leg::FEE, Account::NetFee, self.fee),
            leg(Kind::Settle, leg::AUDIT, Account::NetAudit, self.audit),
            leg(Kind::Settle, leg::RELIABILITY, Account::NetReliability, self.reliability),
            leg(Kind::Void, leg::VOID, Account::Client(client), rest),
        ];
        let numbered = (leg::FIRST_ATTEMPT..).zip(settlement.attempts.iter().zip(&self.miners));
        let attempts = numbered.map(|(n, (a, pay))| leg(Kind::Settle, n, Account::MinerPending(a.miner), *pay));
        let paid = [leg::AUTHOR, leg::BASE_AUTHOR].into_iter().zip(settlement.royalties.iter().zip(&self.authors));
        let authors = paid.map(|(n, (r, pay))| leg(Kind::Settle, n, Account::AuthorPending(r.author), *pay));
        fixed.into_iter().chain(authors).chain(attempts).flatten().collect()
    }
}
