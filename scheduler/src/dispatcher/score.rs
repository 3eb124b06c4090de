//! Which of several replicas with room a request should go to.

use super::board::{Replica, ReplicaKey};

/// The least loaded, as a share of what it runs at once; among equals the cheapest, then the one with more free blocks,
/// then the oldest. Load comes first because a sequence in an emptier batch is faster for the developer and pays a
/// miner who would stand idle; the price was already bounded by the developer.
pub(super) fn best<'a>(candidates: impl Iterator<Item = (&'a ReplicaKey, &'a Replica)>) -> Option<ReplicaKey> {
    candidates
        .min_by(|(a_key, a), (b_key, b)| {
            // a.in_use / a.total < b.in_use / b.total, without division.
            let (a_load, b_load) = (
                u128::from(a.sequences_in_use()) * u128::from(b.sequences_total()),
                u128::from(b.sequences_in_use()) * u128::from(a.sequences_total()),
            );
            let price = |r: &Replica| r.ask().input_per_mtok.saturating_add(r.ask().output_per_mtok);
            a_load
                .cmp(&b_load)
                .then_with(|| price(a).cmp(&price(b)))
                .then_with(|| b.blocks_free().cmp(&a.blocks_free()))
                .then_with(|| a_key.cmp(b_key))
        })
        .map(|(key, _)| *key)
}
