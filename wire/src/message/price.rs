//! What tokens cost: integer arithmetic on nano-credits.

use super::Price;
use crate::limits;

impl Price {
    /// What tokens cost, in nano-credits, rounded down.
    pub fn cost(&self, input_tokens: u32, output_tokens: u32) -> u64 {
        let exact = u128::from(self.input_per_mtok) * u128::from(input_tokens)
            + u128::from(self.output_per_mtok) * u128::from(output_tokens);
        u64::try_from(exact / 1_000_000).unwrap_or(u64::MAX)
    }

    /// What tokens cost at most, in nano-credits: rounded up, so that parts paid for one by one never exceed it.
    pub fn ceiling(&self, input_tokens: u32, output_tokens: u32) -> u64 {
        let exact = u128::from(self.input_per_mtok) * u128::from(input_tokens)
            + u128::from(self.output_per_mtok) * u128::from(output_tokens);
        u64::try_from(exact.div_ceil(1_000_000)).unwrap_or(u64::MAX)
    }

    /// Whether this asks no more than `limit` in either part.
    pub fn within(&self, limit: &Price) -> bool {
        self.input_per_mtok <= limit.input_per_mtok && self.output_per_mtok <= limit.output_per_mtok
    }

    /// Whether both parts are within what the protocol allows.
    pub fn is_sane(&self) -> bool {
        self.input_per_mtok <= limits::PRICE_PER_MTOK_MAX && self.output_per_mtok <= limits::PRICE_PER_MTOK_MAX
    }
}
