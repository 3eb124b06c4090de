//! Guesses of a step, decided: whose next tokens are tried along with the newest one, and where they come from. What a
//! sequence has said before is looked at first, for it costs nothing; then the draft model is asked, where there is one and
//! its passes are worth their time.

use cuckoo_kernels::ops::KV_BLOCK_TOKENS;

use super::Batch;
use super::plan::StepPlan;
use crate::device::draft_model::{DraftModel, Guess};
use crate::device::speculation::{Wish, worth_asking};

/// Guesses of one sequence in one step.
#[derive(Clone, Debug)]
pub(super) enum Guesses {
    /// Tokens.
    Found(Vec<u32>),
    /// Tokens that the draft model will have drawn when the step is computed.
    Asked(Vec<Guess>),
}

impl Guesses {
    pub(super) const NONE: Self = Self::Found(Vec::new());

    pub(super) fn len(&self) -> usize {
        match self {
            Self::Found(tokens) => tokens.len(),
            Self::Asked(guesses) => guesses.len(),
        }
    }
}

impl Batch {
    /// Guesses for each of the sequences `decodes`, which have a row in a step of at most `rows` rows.
    pub(super) fn guesses(&mut self, decodes: &[usize], rows: u32, plan: &mut StepPlan) -> Vec<Guesses> {
        let (mut left, price) = self.drafts_affordable(rows);
        let (mut guesses, mut silent) = (Vec::with_capacity(decodes.len()), Vec::new());
        for at in decodes {
            self.make_room_for_drafts(*at, left);
            let found = self.running[*at].drafts(price, left);
            if found.is_empty() {
                silent.push(*at);
            }
            left -= found.len() as u32;
            guesses.push(Guesses::Found(found));
        }
        if left > 0
            && let Some(mut model) = self.draft_model.take()
        {
            for (at, asked) in self.ask(&mut model, decodes.len() as u32, &silent, left, plan) {
                let number = decodes.binary_search(&at).expect("those who are silent are among them");
                guesses[number] = Guesses::Asked(asked);
            }
            self.draft_model = Some(model);
        }
        guesses
    }

    /// Has the draft model guess for some of the sequences `silent`, at most `left` tokens together, in passes that are
    /// added to `plan`. Each sequence that it guesses for, with its guesses.
    fn ask(
        &mut self,
        model: &mut DraftModel,
        decodes: u32,
        silent: &[usize],
        left: u32,
        plan: &mut StepPlan,
    ) -> Vec<(usize, Vec<Guess>)> {
        let Some(prices) = model.prices(&self.budget, decodes) else { return Vec::new() };
        let mut asking: Vec<usize> = Vec::new();
        let mut wishes: Vec<Wish> = Vec::new();
        for at in silent {
            if let Some(wish) = self.running[*at].wish(model, left, prices.row + prices.draft_row) {
                asking.push(*at);
                wishes.push(wish);
            }
        }
        let granted = worth_asking(&wishes, prices, left);
        let wanted = |at: usize| asking.iter().position(|a| *a == at).map(|i| granted[i]).filter(|n| *n > 0);
        let running = self.running.iter_mut().enumerate();
        let (asked, mut followings): (Vec<usize>, Vec<_>) =
            running.filter_map(|(at, s)| Some((at, s.following(wanted(at)?)))).unzip();
        let (passes, guesses) = model.passes(&mut followings);
        plan.passes = passes;
        asked.into_iter().zip(guesses).filter(|(_, guesses)| !guesses.is_empty()).collect()
    }

    /// How many guesses a step of `rows` rows may hold, and what each costs in tokens: none where a prompt could use the
    /// rows.
    fn drafts_affordable(&self, rows: u32) -> (u32, f64) {
        let decodes = self.running.iter().filter(|s| s.can_decode()).count() as u32;
        let prompts = !self.waiting.is_empty() || self.running.iter().any(|s| s.rows_to_prefill() > 1);
        match self.budget.row_price(decodes) {
            Some(price) if !prompts => (self.limits.drafts_max.min(rows.saturating_sub(decodes)), price),
            _ => (0, f64::INFINITY),
        }
    }

    /// Another block for a sequence whose guesses may not fit the last one, if there is one that nobody holds.
    fn make_room_for_drafts(&mut self, at: usize, drafts: u32) {
        let sequence = &mut self.running[at];
        let blocks = (sequence.stay.planned + sequence.room()) / KV_BLOCK_TOKENS as u32;
        if drafts > 0 && sequence.room() <= drafts && blocks < sequence.reserved {
            self.cache.grow(&mut sequence.stay.tables, blocks + 1);
        }
    }
}
