//! Speculation: tokens that probably come next are computed along with the newest one, and those that are then drawn are
//! kept (Leviathan et al., arXiv 2211.17192). A draw depends on seed, position and logits alone, so the output is the same,
//! bit for bit, at any temperature; only the time differs.
//!
//! Pure. Drafts are looked up in what the sequence holds already (Saxena, *Prompt lookup decoding*, 2023): code that is
//! edited, facts that are quoted and formats that repeat are found there, and no second model is needed. Where nothing is
//! found a small model may be asked (`draft_model`): it draws with the same noise at the same positions, so that it agrees
//! as often as two models can. How many are worth their cost is decided from how often they were right before, and from
//! what a row of either model costs.

/// Longest run of tokens that is looked for.
const MATCH_MAX: usize = 4;
/// Shortest run that says anything about what follows.
const MATCH_MIN: usize = 2;
/// Tokens that are searched, from the newest back: some microseconds.
const LOOKBACK_MAX: usize = 1 << 15;
/// How often what is found is taken to be right before anything is known.
const CHANCE_UNKNOWN: f64 = 0.5;
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

    /// The chance that a draft whose predecessors were right is right: `prior` before anything is known.
    pub(super) fn chance(self, prior: f64) -> f64 {
        (self.right + 2.0 * prior) / (self.tried + 2.0)
    }

    /// How many drafts are worth their rows, where a row costs as much as `price` tokens: the last one is right with at
    /// least that chance.
    pub(super) fn worth(self, price: f64, most: usize) -> usize {
        let mut chance = 1.0;
        (0..most)
            .take_while(|_| {
                chance *= self.chance(CHANCE_UNKNOWN);
                chance > price
            })
            .count()
    }
}

/// What drafts of a model cost, in tokens: the time that it takes, in which the step draws so many.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Prices {
    /// A row of the step that tries the draft.
    pub(super) row: f64,
    /// A pass of the draft model, beside its rows.
    pub(super) pass: f64,
    /// A row of the draft model.
    pub(super) draft_row: f64,
}

/// What a sequence could have of the draft model.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Wish {
    /// The chance that a draft whose predecessors were right is right.
    pub(super) chance: f64,
    /// Drafts at most.
    pub(super) most: u32,
    /// Rows that the draft model has to compute before it can draw the first: at least the newest token's.
    pub(super) backlog: u32,
    /// How many tokens are likely to come: what it costs to catch up must be worth it within so many.
    pub(super) horizon: u32,
}

impl Wish {
    /// What draft number `number`, from 1, is worth to the sequence alone, in tokens; a pass is shared with others.
    fn gain(&self, number: u32, prices: Prices) -> f64 {
        let behind = if number == 1 { f64::from(self.backlog.saturating_sub(1)) } else { 0.0 };
        let rows = 1.0 + behind / f64::from(self.horizon.max(1));
        self.chance.powi(number.min(1 << 16) as i32) - prices.row - prices.draft_row * rows
    }
}

/// How many drafts each wish is granted, at most `most` together. The draft model makes them in passes, one draft for each
/// sequence that takes part: a pass is made while what it is likely to give is more than what it costs.
pub(super) fn worth_asking(wishes: &[Wish], prices: Prices, most: u32) -> Vec<u32> {
    let (mut granted, mut left) = (vec![0; wishes.len()], most as usize);
    for number in 1.. {
        let takes_part = |(at, wish): (usize, &Wish)| {
            let gain = wish.gain(number, prices);
            (granted[at] + 1 == number && number <= wish.most && gain > 0.0).then_some((at, gain))
        };
        let mut pass: Vec<(usize, f64)> = wishes.iter().enumerate().filter_map(takes_part).collect();
        pass.sort_by(|a, b| b.1.total_cmp(&a.1));
        pass.truncate(left);
        if pass.iter().map(|(_, gain)| gain).sum::<f64>() <= prices.pass {
            break;
        }
        left -= pass.len();
        pass.into_iter().for_each(|(at, _)| granted[at] = number);
    }
    granted
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

    const CHEAP: Prices = Prices { row: 0.05, pass: 0.2, draft_row: 0.02 };
    const WISH: Wish = Wish { chance: 0.9, most: 8, backlog: 1, horizon: 100 };

    #[test]
    fn a_pass_is_made_while_it_pays_for_itself() {
        assert!(worth_asking(&[], CHEAP, 8).is_empty());
        // 0.9^12 is the last power above 0.27.
        assert_eq!(worth_asking(&[Wish { most: 99, ..WISH }], CHEAP, 99), [12]);
        assert_eq!(worth_asking(&[WISH], CHEAP, 99), [8]);
        assert_eq!(worth_asking(&[Wish { chance: 0.2, ..WISH }], CHEAP, 8), [0], "one alone does not pay for the pass");
        assert_eq!(worth_asking(&[Wish { chance: 0.2, ..WISH }; 3], CHEAP, 8), [1, 1, 1], "three do");
        let uneven = [WISH, Wish { chance: 0.05, ..WISH }, Wish { most: 2, ..WISH }];
        assert_eq!(worth_asking(&uneven, CHEAP, 8), [6, 0, 2]);
        assert_eq!(worth_asking(&[WISH], Prices { row: 1.0, ..CHEAP }, 8), [0], "a full step has no row to spare");
        assert_eq!(worth_asking(&[WISH], Prices { pass: 1.0, ..CHEAP }, 8), [0], "as slow as what it guesses for");
    }

    #[test]
    fn catching_up_must_be_worth_it_in_time() {
        let late = Wish { backlog: 1_000, ..WISH };
        assert_eq!(worth_asking(&[late], CHEAP, 8), [8]);
        assert_eq!(worth_asking(&[Wish { horizon: 17, ..late }], CHEAP, 8), [0]);
    }

    proptest! {
        #[test]
        fn what_is_granted_is_wished_for_and_pays(
            wishes in prop::collection::vec((0.0f64..1.0, 0u32..9, 1u32..500, 0u32..300), 0..20),
            (row, pass, draft_row) in (0.0f64..0.5, 0.0f64..2.0, 0.0f64..0.2),
            most in 0u32..40,
        ) {
            let wish = |(chance, most, backlog, horizon)| Wish { chance, most, backlog, horizon };
            let wishes: Vec<Wish> = wishes.into_iter().map(wish).collect();
            let prices = Prices { row, pass, draft_row };
            let granted = worth_asking(&wishes, prices, most);
            prop_assert!(granted.iter().sum::<u32>() <= most);
            prop_assert!(granted.iter().zip(&wishes).all(|(n, w)| *n <= w.most));
            for number in 1..=granted.iter().copied().max().unwrap_or(0) {
                let pass = granted.iter().zip(&wishes).filter(|(n, _)| **n >= number);
                let gains: Vec<f64> = pass.map(|(_, w)| w.gain(number, prices)).collect();
                prop_assert!(gains.iter().all(|g| *g > 0.0) && gains.iter().sum::<f64>() > prices.pass);
            }
            let dearer = worth_asking(&wishes, Prices { pass: pass + 0.5, ..prices }, most);
            prop_assert!(dearer.iter().sum::<u32>() <= granted.iter().sum::<u32>());
        }

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
