//! The money that a request holds while it runs, the tokens that are accepted for it, and what becomes of both.

use std::time::{Duration, Instant};

use cuckoo_wire::message::{Price, Refusal, RequestId, Usage};

use crate::catalog::Model;
use crate::journal::{Append, Ending, Epoch, Maker};
use crate::ledger::{Attempt, ClientId, End, LedgerError, LedgerHandle, Royalty, Settled, Settlement};
use crate::market::Market;

/// A store that is away for so long ends the requests that wait for it.
const STORE_AWAY_MAX: Duration = Duration::from_secs(60);
/// How often it is tried meanwhile.
const STORE_RETRY: Duration = Duration::from_millis(250);

/// A request's place in books and journal, and the right to write there; given back if the request is dropped before it
/// settles.
pub(crate) struct Hold {
    market: Market,
    request: RequestId,
    epoch: Epoch,
    open: bool,
}

/// What was delivered, and by whom.
pub(crate) struct Delivered {
    /// Tokens of a prompt that all attempts share.
    pub(crate) prompt_tokens: u32,
    /// Tokens of output.
    pub(crate) tokens: u32,
    /// The most that the developer allowed.
    pub(crate) max_tokens: u32,
    /// Who did it; none where nothing was delivered.
    pub(crate) attempts: Vec<Attempt>,
    /// What authors get.
    pub(crate) royalties: Vec<Royalty>,
    /// How often the request moved.
    pub(crate) migrations: u32,
}

impl Hold {
    /// Sets the worst case aside and writes down what another process needs to go on (`spec`; empty where none could):
    /// nothing is owed before it, and nothing runs without it.
    pub(crate) async fn open(
        market: &Market,
        client: &ClientId,
        limit: Price,
        (input_tokens, output_tokens): (u32, u32),
        spec: Vec<u8>,
    ) -> Result<Self, Refusal> {
        let request = RequestId::random();
        let ceiling = limit.ceiling(input_tokens, output_tokens);
        market.ledger().open_request(request, client, ceiling, spec).await?;
        Ok(Self::taken_over(market, request, Epoch::FIRST))
    }

    /// That of a request that was opened before.
    pub(crate) fn taken_over(market: &Market, request: RequestId, epoch: Epoch) -> Self {
        Self { market: market.clone(), request, epoch, open: true }
    }

    /// That of a request that has ended.
    pub(crate) fn ended(market: &Market, request: RequestId, epoch: Epoch) -> Self {
        Self { market: market.clone(), request, epoch, open: false }
    }

    pub(crate) fn request(&self) -> RequestId {
        self.request
    }

    pub(crate) fn market(&self) -> &Market {
        &self.market
    }

    /// Accepts tokens. Replies that speak of them are handed out when they are written down: see [`crate::serve::Replies`].
    pub(crate) async fn append(&self, first: u32, tokens: &[u32], by: Option<Maker>) -> Result<(), Refusal> {
        let (ledger, request, epoch) = (self.market.ledger(), self.request, self.epoch);
        Ok(patiently(|| ledger.append(Append { request, epoch, first, tokens, by })).await?)
    }

    /// [`Self::append`], where that need not wait; `None` where it must.
    pub(crate) fn append_now(&self, first: u32, tokens: &[u32], by: Option<Maker>) -> Option<Result<(), Refusal>> {
        let (request, epoch) = (self.request, self.epoch);
        let accepted = self.market.ledger().accept(Append { request, epoch, first, tokens, by })?;
        Some(accepted.map_err(Refusal::from))
    }

    /// Pays for what was delivered, returns the rest, and writes down how it ended.
    pub(crate) async fn settle(&mut self, delivered: Delivered, ending: Ending) -> Result<Usage, Refusal> {
        let migrations = delivered.migrations;
        let end = End { epoch: self.epoch, ending };
        self.open = false;
        let (ledger, request) = (self.market.ledger(), self.request);
        let settlement = delivered.settlement(request);
        let ended = match &settlement {
            Some(settlement) => patiently(|| ledger.settle(settlement.clone(), end.clone())).await.map(Some),
            None => patiently(|| ledger.release(request, end.clone())).await.map(|_| None),
        };
        if let Err(LedgerError::Store(_)) = ended {
            // It is over all the same, and must not stay open until this process ends.
            end_later(ledger, request, settlement.clone(), end);
        }
        let (Some(settled), Some(settlement)) = (ended?, settlement) else { return Ok(Usage::default()) };
        let own: u32 = settlement.attempts.iter().map(|a| a.own_prompt_tokens).sum();
        let (prompt_tokens, tokens) = (settlement.prompt_tokens + own, settlement.delivered_tokens);
        let usage = usage(settled, prompt_tokens, tokens, migrations);
        self.market.metrics().settled(&usage);
        Ok(usage)
    }
}

/// Ends a request, for a caller that cannot wait: pays for what is to be settled, or gives everything back.
pub(crate) fn end_later(ledger: &LedgerHandle, request: RequestId, settlement: Option<Settlement>, end: End) {
    match settlement {
        Some(settlement) => ledger.settle_later(settlement, end),
        None => ledger.release_later(request, end),
    }
}

/// Tries until a store that is away is back, for [`STORE_AWAY_MAX`]: to write the same again counts once.
pub(crate) async fn patiently<T, F: Future<Output = Result<T, LedgerError>>>(
    mut attempt: impl FnMut() -> F,
) -> Result<T, LedgerError> {
    let began = Instant::now();
    loop {
        match attempt().await {
            Err(LedgerError::Store(_)) if began.elapsed() < STORE_AWAY_MAX => tokio::time::sleep(STORE_RETRY).await,
            done => return done,
        }
    }
}

/// What a developer is told of a settlement.
pub(crate) fn usage(settled: Settled, prompt_tokens: u32, completion_tokens: u32, migrations: u32) -> Usage {
    let Settled { cost, miner, author, network } = settled;
    Usage { prompt_tokens, completion_tokens, cost, miner, author, network, migrations }
}

impl Delivered {
    /// Nothing of which anybody made anything.
    pub(crate) fn nothing(model: &Model) -> Self {
        let royalties = model.royalties();
        Self { prompt_tokens: 0, tokens: 0, max_tokens: 0, attempts: Vec::new(), royalties, migrations: 0 }
    }

    /// What is to be paid; `None` where nobody did anything.
    pub(crate) fn settlement(self, request: RequestId) -> Option<Settlement> {
        let Self { prompt_tokens, tokens, max_tokens, attempts, royalties, .. } = self;
        let settlement =
            Settlement { request, prompt_tokens, delivered_tokens: tokens, max_tokens, attempts, royalties };
        (!settlement.attempts.is_empty()).then_some(settlement)
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        if self.open {
            let end = End { epoch: self.epoch, ending: Ending::Gone };
            self.market.ledger().release_later(self.request, end);
        }
    }
}
