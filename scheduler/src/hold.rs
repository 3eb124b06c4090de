//! The money that a request holds while it runs, and what becomes of it.

use cuckoo_wire::message::{FinishReason, Price, Refusal, RequestId, Usage};

use crate::catalog::Model;
use crate::journal::Ending;
use crate::ledger::{Attempt, ClientId, End, Settlement};
use crate::market::Market;

/// Money held for a request; returned if the request is dropped before it settles.
pub(crate) struct Hold {
    market: Market,
    request: RequestId,
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
    /// How often the request moved.
    pub(crate) migrations: u32,
}

impl Hold {
    /// Sets the worst case aside: nothing is owed before it, and nothing runs without it.
    pub(crate) async fn open(
        market: &Market,
        client: &ClientId,
        limit: Price,
        (input_tokens, output_tokens): (u32, u32),
    ) -> Result<Self, Refusal> {
        let request = RequestId::random();
        market.ledger().hold(request, client, limit.ceiling(input_tokens, output_tokens)).await?;
        Ok(Self { market: market.clone(), request, open: true })
    }

    pub(crate) fn request(&self) -> RequestId {
        self.request
    }

    pub(crate) fn market(&self) -> &Market {
        &self.market
    }

    /// Pays for what was delivered and returns the rest.
    pub(crate) async fn settle(&mut self, model: &Model, delivered: Delivered) -> Result<Usage, Refusal> {
        let Delivered { prompt_tokens, tokens, max_tokens, attempts, migrations } = delivered;
        self.open = false;
        let ledger = self.market.ledger();
        // Nobody can ask again for what was opened as a mere hold, so it does not matter how it ended.
        let end = End::first(Ending::Finished(FinishReason::Stop));
        if attempts.is_empty() {
            ledger.release(self.request, end).await?;
            return Ok(Usage::default());
        }
        let own: u32 = attempts.iter().map(|a| a.own_prompt_tokens).sum();
        let settlement = Settlement {
            request: self.request,
            prompt_tokens,
            delivered_tokens: tokens,
            max_tokens,
            attempts,
            royalties: model.royalties(),
        };
        let settled = ledger.settle(settlement, end).await?;
        let usage = Usage {
            prompt_tokens: prompt_tokens + own,
            completion_tokens: tokens,
            cost: settled.cost,
            miner: settled.miner,
            author: settled.author,
            network: settled.network,
            migrations,
        };
        self.market.metrics().settled(&usage);
        Ok(usage)
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        if self.open {
            self.market.ledger().release_later(self.request, End::first(Ending::Gone));
        }
    }
}
