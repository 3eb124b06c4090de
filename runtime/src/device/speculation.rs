//! Speculation: tokens that probably come next are computed along with the newest one, and those that are then drawn are
//! kept (Leviathan et al., arXiv 2211.17192). A draw depends on seed, position and logits alone, so the output is the same,
//! bit for bit, at any temperature; only the time differs.
//!
//! Pure. Drafts are looked up in what the sequence holds already (Saxena, *Prompt lookup decoding*, 2023): code that is
//! edited, facts that are quoted and formats that repeat are found there, and no second model is needed. How many are
//! worth a row each is decided from how often they were right before, and from what a row costs.

/// Longest run of tokens that is looked for.
const MATCH_MAX: usize = 4;
/// Shortest run that says anything about what follows.
const MATCH_MIN: usize = 2;
/// Tokens that are searched, from the newest back: some microseconds.
const LOOKBACK_MAX: usize = 1 << 15;
/// What is left of earlier observations after one more.
const MEMORY: f64 = 0.9;
/// What is left of them after a step without drafts: what was useless once may help later.
const MEMORY_IDLE: f64 = 0.99;

/// What followed the last tokens of `tokens` where they stood before: at most `most` tokens, none where they did not. The
/// longest run of up to [`MATCH_MAX`] counts, of equally long ones the newest.
pub(super) fn look_up(tokens: &[u32], most: usize) -> &[u32] {
    let searched = &tokens[tokens.len().saturating_sub(LOOKBACK_MAX)..];
    let Some((newest, earlier)) = searched.split_last() else { return &[] };
    let (mut longest, mut found): (usize, &[u32]) = (MATCH_MIN - 1, &[]);
    for end in (0..earlier.len()).rev().filter(|end| earlier[*end] == *newest) {
        let pairs = earlier[..end].iter().rev().zip(earlier.iter().rev());
        let length = 1 + pairs.take(MATCH_MAX - 1).take_while(|(a, b)| a == b).count();
        if length > longest {
            (longest, found) = (length, &searched[end + 1..searched.len().min(end + 1 + most)]);
            if length == MATCH_MAX {
                break;
            }
        }
    }
    found
}

/// How often the drafts of a sequence are right, older ones counting less and less.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Acceptance {
    right: f64,
    tried: f64,
}

impl Acceptance {
    /// Of `drafts` tokens the first `accepted` were drawn; those after the first wrong one say nothing.
    pub(super) fn observe(&mut self, drafts: usize, accepted: usize) {
        let memory = if drafts == 0 { MEMORY_IDLE } else { MEMORY };
        self.right = self.right * memory + accepted as f64;
        self.tried = self.tried * memory + drafts.min(accepted + 1) as f64;
    }

    /// The chance that a draft whose predecessors were right is right: one half before anything is known.
    fn chance(self) -> f64 {
        (self.right + 1.0) / (self.tried + 2.0)
    }

    /// How many drafts are worth their rows, where a row costs as much as `price` tokens: the last one is right with at
    /// least that chance.
    pub(super) fn worth(self, price: f64, most: usize) -> usize {
        let mut chance = 1.0;
        (0..most)
            .take_while(|_| {
                chance *= self.chance();
                chance > price
            })
            .count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_followed_before_is_proposed() {
        assert!(look_up(&[], 4).is_empty());
        assert!(look_up(&[1], 4).is_empty());
        assert!(look_up(&[5, 5], 4).is_empty(), "one token says nothing");
        assert_eq!(look_up(&[1, 2, 3, 4, 9, 1, 2], 3), [3, 4, 9]);
        assert_eq!(look_up(&[1, 2, 3, 4, 9, 1, 2], 2), [3, 4]);
        assert_eq!(look_up(&[1, 2, 7, 1, 2, 8, 1, 2], 1), [8], "the newest of equals");
        assert_eq!(look_up(&[0, 1, 2, 7, 5, 1, 2, 8, 0, 1, 2], 1), [7], "the longest before the newest");
        assert_eq!(look_up(&[4, 4, 4], 5), [4], "a run may overlap what it is found in");
    }

    #[test]
    fn few_are_tried_where_few_are_right() {
        let mut acceptance = Acceptance::default();
        assert_eq!(acceptance.worth(0.2, 8), 2);
        (0..20).for_each(|_| acceptance.observe(4, 4));
        assert_eq!(acceptance.worth(0.2, 8), 8);
        assert_eq!(acceptance.worth(1.0, 8), 0, "a row that costs a token is never worth it");
        (0..40).for_each(|_| acceptance.observe(4, 0));
        assert_eq!(acceptance.worth(0.2, 8), 0);
        (0..400).for_each(|_| acceptance.observe(0, 0));
        assert_eq!(acceptance.worth(0.2, 8), 2, "it is tried again some day");
        assert_eq!(acceptance.worth(0.0, 8), 8, "rows for nothing are all used");
    }

    proptest! {
        #[test]
        fn a_proposal_stands_in_the_text(tokens in prop::collection::vec(0u32..4, 0..60), most in 0usize..9) {
            let found = look_up(&tokens, most);
            prop_assert!(found.len() <= most);
            if !found.is_empty() {
                let run = [&tokens[tokens.len() - 2..], found].concat();
                prop_assert!(tokens.windows(run.len()).any(|w| w == run));
            }
        }
    }
}
