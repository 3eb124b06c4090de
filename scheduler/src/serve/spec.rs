//! What is written down of a request when it begins: enough for any scheduler to go on with it, to show its output again,
//! and to pay for it.

use cuckoo_wire::PeerId;
use cuckoo_wire::message::{ApiKey, Generate, Price, Prompt, WeightsHash};
use serde::{Deserialize, Serialize};

use super::Plan;
use crate::dispatcher::Computes;
use crate::hold::Delivered;
use crate::journal::{Made, SPEC_BYTES_MAX};
use crate::ledger::{Attempt, Reopened, Royalty};

/// The byte before a spec, so that a later program knows what it reads.
const VERSION: u8 = 1;

/// See the file's head.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Spec {
    /// Without its key, and with its prompt as token ids.
    pub(super) request: Generate,
    weights: WeightsHash,
    adapter: Option<WeightsHash>,
    pub(super) max_new: u32,
    pub(super) limit: Price,
    pub(super) seed: u64,
    royalties: Vec<(PeerId, u16)>,
}

impl Spec {
    /// Bytes of a plan; none where nobody could go on with it: what miners say besides tokens, and the prompt that is
    /// sent back, are not kept.
    pub(super) fn bytes_of(plan: &Plan) -> Vec<u8> {
        let Plan { request, model, tokens, max_new, limit, seed, .. } = plan;
        if request.logprobs.is_some() || request.prompt_logprobs.is_some() || request.echo {
            return Vec::new();
        }
        let computes = model.computes();
        let spec = Self {
            request: Generate {
                api_key: ApiKey(String::new()),
                prompt: Prompt::Tokens(tokens.clone()),
                ..request.clone()
            },
            weights: computes.weights,
            adapter: computes.adapter,
            max_new: *max_new,
            limit: *limit,
            seed: *seed,
            royalties: model.royalties().into_iter().map(|r| (r.author, r.bps)).collect(),
        };
        let bytes = postcard::to_extend(&spec, vec![VERSION]).expect("plain values can be written");
        if bytes.len() > SPEC_BYTES_MAX { Vec::new() } else { bytes }
    }

    /// Reads [`Self::bytes_of`] back; `None` if it is something else.
    pub(super) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (&VERSION, bytes) = bytes.split_first()? else { return None };
        postcard::from_bytes(bytes).ok()
    }

    /// What it is to be computed with.
    pub(super) fn computes(&self) -> Computes {
        Computes { weights: self.weights, adapter: self.adapter }
    }

    /// The prompt.
    pub(super) fn prompt(&self) -> &[u32] {
        match &self.request.prompt {
            Prompt::Tokens(tokens) => tokens,
            Prompt::Chat(_) | Prompt::Text(_) => &[],
        }
    }
}

/// What is to be paid for a request that nobody goes on with; `None` where its spec cannot be read.
pub(crate) fn delivered(reopened: &Reopened) -> Option<Delivered> {
    let spec = Spec::from_bytes(&reopened.spec)?;
    let attempts = attempts(&reopened.makers, reopened.tokens.len() as u32);
    Some(Delivered {
        prompt_tokens: spec.prompt().len() as u32,
        tokens: attempts.iter().map(|a| a.tokens).sum(),
        max_tokens: spec.max_new,
        migrations: (attempts.len() as u32).saturating_sub(1),
        attempts,
        royalties: spec.royalties.iter().map(|&(author, bps)| Royalty { author, bps }).collect(),
    })
}

/// Everybody's part of an output of so many tokens.
pub(super) fn attempts(makers: &[Made], tokens: u32) -> Vec<Attempt> {
    let ends = makers.iter().skip(1).map(|made| made.first).chain([tokens]);
    let part = |(made, end): (&Made, u32)| Attempt {
        tokens: end.saturating_sub(made.first),
        ..Attempt::new(made.by.miner, made.by.ask)
    };
    makers.iter().zip(ends).map(part).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;

    use super::*;
    use crate::journal::Maker;

    fn spec() -> Spec {
        let prompt = Prompt::Tokens(vec![1, 70_000]);
        Spec {
            request: Generate::new(ApiKey(String::new()), "m".to_owned(), prompt),
            weights: WeightsHash([1; 32]),
            adapter: None,
            max_new: 9,
            limit: Price { input_per_mtok: 1, output_per_mtok: 2 },
            seed: 7,
            royalties: vec![(PeerId([5; 32]), 300)],
        }
    }

    #[test]
    fn a_spec_is_read_back_and_another_versions_is_not() {
        let bytes = postcard::to_extend(&spec(), vec![VERSION]).unwrap();
        assert_eq!(Spec::from_bytes(&bytes), Some(spec()));
        assert_eq!(spec().prompt(), [1, 70_000]);
        assert_eq!(Spec::from_bytes(&[&[VERSION + 1], &bytes[1..]].concat()), None);
        assert_eq!(Spec::from_bytes(&[]), None);
    }

    #[test]
    fn everybody_has_the_tokens_up_to_the_next_ones_first() {
        let maker = |n: u8| Maker { miner: PeerId([n; 32]), ask: Price::default(), numerics: None };
        let made = |first, n| Made { first, by: maker(n) };
        let parts = |makers: &[Made], tokens| -> Vec<(u8, u32)> {
            attempts(makers, tokens).iter().map(|a| (a.miner.0[0], a.tokens)).collect()
        };
        assert_eq!(parts(&[made(0, 1), made(3, 2), made(4, 1)], 9), [(1, 3), (2, 1), (1, 5)]);
        assert_eq!(parts(&[made(0, 1)], 2), [(1, 2)]);
        assert_eq!(parts(&[], 0), []);
    }

    proptest! {
        #[test]
        fn damage_is_no_spec_and_no_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), at in 0..60_usize) {
            let _ = Spec::from_bytes(&bytes);
            let mut damaged = postcard::to_extend(&spec(), vec![VERSION]).unwrap();
            damaged.truncate(at);
            prop_assert_eq!(Spec::from_bytes(&damaged), None);
        }
    }
}
