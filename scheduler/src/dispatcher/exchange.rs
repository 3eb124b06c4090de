//! Fairness between tenants across schedulers that share a store: once a second others are told what was charged here, and the
//! board what they charged. A task of its own, so that the dispatcher never waits for the store.
//!
//! ```text
//! Board ─charges▶ Outbox ─note▶ store ─notes of others▶ sums ─▶ Board
//! ```
//!
//! A charge is taken from the board once, and is in one note, which is told until the store has said that it has it; the store
//! has each note once and gives it to each run of a scheduler once. So no charge counts twice, however answers are lost, and
//! none is lost while the store is away. A scheduler that is killed loses what it had not told, about a second's service; one
//! that starts anew counts from then on.

use std::collections::BTreeMap;
use std::time::Duration;

use cuckoo_wire::message::{ServiceClass, WeightsHash};

use super::{Charge, DispatcherHandle, DispatcherMsg, Tenant};
use crate::ledger::{LedgerHandle, NOTE_BYTES_MAX, Note};

/// How often. What is served elsewhere is known here after twice this at most, and tenants may get so much further apart as is
/// served meanwhile.
const EXCHANGE_EVERY: Duration = Duration::from_secs(1);
/// Charges of a note; more wait for the next one.
pub(super) const CHARGES_MAX: usize = 4_096;
/// Charges that the board is given at a time: placements wait for no more than these.
const PORTION: usize = 1_024;
/// Bytes that a charge is written in at most: a hash, a class, and two numbers of at most ten bytes.
const CHARGE_BYTES_MAX: usize = 32 + 1 + 2 * 10;
/// Notes begin with this; others are of schedulers of another version, and not understood.
const NOTE_VERSION: u8 = 1;

const _: () = assert!(CHARGES_MAX * CHARGE_BYTES_MAX + 16 <= NOTE_BYTES_MAX);

/// Exchanges charges until it is dropped.
pub(crate) async fn for_ever(dispatcher: DispatcherHandle, ledger: LedgerHandle) {
    let mut outbox = Outbox::default();
    loop {
        tokio::time::sleep(EXCHANGE_EVERY).await;
        if outbox.note().is_none() {
            outbox.put(&dispatcher.charges().await);
        }
        match ledger.exchange(outbox.note()).await {
            Ok(notes) => {
                outbox.told();
                for portion in sums(&notes).chunks(PORTION) {
                    dispatcher.charged_elsewhere(portion.to_vec()).await;
                }
            }
            // A store that is away is tended, and complained about, elsewhere.
            Err(error) => tracing::debug!(%error, "charges could not be exchanged with other schedulers"),
        }
    }
}

/// What is to be told: one note at a time.
#[derive(Debug, Default)]
struct Outbox {
    told: i64,
    note: Option<Note>,
}

impl Outbox {
    /// The note that is to be told, perhaps again.
    fn note(&self) -> Option<&Note> {
        self.note.as_ref()
    }

    /// Makes a note of charges, if there are any.
    fn put(&mut self, charges: &[Charge]) {
        if !charges.is_empty() {
            let body = postcard::to_stdvec(&(NOTE_VERSION, charges)).expect("plain values can be written");
            self.note = Some(Note { number: self.told + 1, body });
        }
    }

    /// The store has it.
    fn told(&mut self) {
        self.told += i64::from(self.note.take().is_some());
    }
}

/// What notes of others say, added up.
fn sums(notes: &[Vec<u8>]) -> Vec<Charge> {
    let mut sums: BTreeMap<(WeightsHash, ServiceClass, Tenant), i64> = BTreeMap::new();
    for note in notes {
        let Some((&NOTE_VERSION, body)) = note.split_first() else { continue };
        match postcard::from_bytes::<Vec<Charge>>(body) {
            Ok(charges) => charges.into_iter().for_each(|Charge { weights, class, tenant, tokens }| {
                let sum = sums.entry((weights, class, tenant)).or_default();
                *sum = sum.saturating_add(tokens);
            }),
            Err(error) => {
                tracing::warn!(%error, "what another scheduler charged cannot be read and is left out: run the same version on all")
            }
        }
    }
    let charge = |((weights, class, tenant), tokens)| Charge { weights, class, tenant, tokens };
    sums.into_iter().map(charge).collect()
}

impl DispatcherHandle {
    /// What was charged since this was asked last.
    async fn charges(&self) -> Vec<Charge> {
        match self.0.call(DispatcherMsg::Charges, None).await {
            Ok(ractor::rpc::CallResult::Success(charges)) => charges,
            _ => Vec::new(),
        }
    }

    /// Others have charged so much. Returns when the board has it, so that no two such messages wait at once.
    async fn charged_elsewhere(&self, charges: Vec<Charge>) {
        let _ = self.0.call(|reply| DispatcherMsg::ChargedElsewhere(charges, reply), None).await;
    }
}

#[cfg(test)]
mod tests;
