//! Steps, decided: who takes part in the next one, who gives up its blocks for that, and what a finished one means.

use std::time::Duration;

use cuckoo_kernels::ops::KV_BLOCK_TOKENS;
use cuckoo_wire::message::{Assign, SequenceId, StepItem};

use super::guess::Guesses;
use super::plan::{StepOutput, StepPlan};
use super::sequence::{Sequence, Share, Stay, told};
use super::{Batch, BatchStats, STEPS_IN_FLIGHT_MAX};
use crate::device::kv_cache::KvGroups;

/// A step that has been planned and not applied.
#[derive(Debug)]
pub(super) struct Flight {
    number: u64,
    rows: u32,
    shares: Vec<Share>,
}

/// A step while it is planned.
#[derive(Default)]
struct Draft {
    plan: StepPlan,
    shares: Vec<Share>,
    rows_left: u32,
}

impl Draft {
    fn take(&mut self, sequence: &mut Sequence, rows: u32, guesses: Guesses) {
        self.rows_left -= rows + guesses.len() as u32;
        self.shares.push(sequence.take(rows, guesses, &mut self.plan));
    }
}

impl Batch {
    /// The next step, or `None` where nobody can take one, or where it is better planned when the step in flight has
    /// landed. Up to [`STEPS_IN_FLIGHT_MAX`] steps may be in flight; they are computed and applied in order.
    pub fn plan(&mut self) -> Option<StepPlan> {
        if self.flights.len() >= STEPS_IN_FLIGHT_MAX || self.somebody_would_be_left_out() {
            return None;
        }
        loop {
            if let Some(plan) = self.draft() {
                return Some(plan);
            }
            // A prompt may wait for blocks of a window while others hold them all and cannot go on themselves.
            let waits = self.running.iter().any(|s| s.rows_to_prefill() > 0);
            if !waits || !self.flights.is_empty() || self.running.len() < 2 {
                return None;
            }
            self.preempt(self.victim());
        }
    }

    fn draft(&mut self) -> Option<StepPlan> {
        let mut draft = Draft { rows_left: self.budget.rows(), ..Draft::default() };
        let preemptions = self.stats.preemptions;
        self.plan_decodes(&mut draft);
        self.plan_prompts(&mut draft);
        // Whoever has just lost its blocks is next in line; nobody takes them from under it.
        if self.stats.preemptions == preemptions {
            self.admit(&mut draft);
        }
        let Draft { mut plan, shares, .. } = draft;
        if plan.spans.is_empty() {
            return None;
        }
        plan.number = self.planned;
        plan.copies = self.cache.take_copies();
        self.planned += 1;
        self.flights.push_back(Flight { number: plan.number, rows: plan.tokens.len() as u32, shares });
        Some(plan)
    }

    /// A sequence with penalties or a constraint, or with drafts in flight, needs its last tokens before it can go on.
    /// Stepping without it would halve its speed and tear the batch in two, so then nothing is planned ahead.
    fn somebody_would_be_left_out(&self) -> bool {
        !self.flights.is_empty() && self.running.iter().any(Sequence::waits_for_its_token)
    }

    /// One row for each sequence that decodes, oldest first, and one for each guess that is worth it. All fit: the budget
    /// is never below the batch.
    fn plan_decodes(&mut self, draft: &mut Draft) {
        let decodes = self.make_room_for_decodes();
        let guesses = self.guesses(&decodes, draft.rows_left, &mut draft.plan);
        for (at, guesses) in decodes.into_iter().zip(guesses) {
            draft.take(&mut self.running[at], 1, guesses);
        }
    }

    /// Sees to it that whoever decodes holds blocks for a row; who that is then.
    fn make_room_for_decodes(&mut self) -> Vec<usize> {
        let mut at = 0;
        while at < self.running.len() {
            if self.running[at].can_decode() {
                let Some(here) = self.make_room(at) else { continue };
                at = here;
            }
            at += 1;
        }
        (0..self.running.len()).filter(|at| self.running[*at].can_decode()).collect()
    }

    /// Chunks of prompts, oldest first, in what the budget leaves.
    fn plan_prompts(&mut self, draft: &mut Draft) {
        for sequence in &mut self.running {
            if draft.rows_left > 0 && sequence.rows_to_prefill() > 0 {
                catch_up(sequence, &mut self.cache, &mut self.stats);
            }
            let rows = sequence.rows_to_prefill().min(draft.rows_left);
            let rows = with_blocks(sequence, rows, &mut self.cache);
            if rows > 0 {
                draft.take(sequence, rows, Guesses::NONE);
            }
        }
    }

    /// Sees to it that the running sequence `at` holds blocks for one more row, and returns where it is then; `None`
    /// if it had to give up its own. Cached blocks that nobody holds go first, then those of whoever can use them
    /// least: who cannot run for lack of credit, then who came last.
    fn make_room(&mut self, mut at: usize) -> Option<usize> {
        while with_blocks(&mut self.running[at], 1, &mut self.cache) == 0 {
            let victim = self.victim();
            self.preempt(victim);
            if victim == at {
                return None;
            }
            at -= usize::from(victim < at);
        }
        Some(at)
    }

    /// Whose blocks are taken when somebody needs some.
    fn victim(&self) -> usize {
        self.running.iter().rposition(Sequence::is_stalled).unwrap_or(self.running.len() - 1)
    }

    /// Takes a sequence's blocks away. It is the first to be admitted again, and computes anew what the cache has lost
    /// by then; a draw depends on position and logits alone, so its output is the same.
    fn preempt(&mut self, at: usize) {
        let mut sequence = self.running.remove(at);
        let stay = std::mem::take(&mut sequence.stay);
        self.release(&stay);
        self.waiting.push_front(sequence);
        self.stats.preemptions += 1;
    }

    /// Lets sequences in while there are slots, rows and blocks. In order: a large one is not overtaken for ever by
    /// small ones. Only those that may not send anything, or whose constraint is not compiled, are passed over.
    fn admit(&mut self, draft: &mut Draft) {
        while (self.running.len() as u32) < self.limits.sequences_max && draft.rows_left > 0 {
            let may_start = |s: &Sequence| s.has_credit() && !s.is_compiling();
            let Some(at) = self.waiting.iter().position(may_start) else { return };
            let Some(found) = self.fits(at) else { return };
            let mut sequence = self.waiting.remove(at).expect("found there");
            self.settle_in(&mut sequence, found);
            let rows = sequence.rows_to_prefill().min(draft.rows_left);
            let rows = with_blocks(&mut sequence, rows, &mut self.cache);
            draft.take(&mut sequence, rows, Guesses::NONE);
            self.running.push(sequence);
        }
    }

    /// Whether the known tokens of a waiting sequence fit beside what the cache has of them, and one more block if it
    /// can ever need one, so that it is not preempted at once. If so, how many blocks the cache has.
    fn fits(&mut self, at: usize) -> Option<u32> {
        let sequence = &mut self.waiting[at];
        let wanted = (blocks_for(sequence) + 1).min(sequence.reserved);
        let chain = sequence.shareable();
        let found = self.cache.find(chain);
        self.cache.fits(chain, found, wanted).then_some(found)
    }

    /// Gives a sequence that fits the blocks of its known tokens: those `found` in the cache, then fresh ones.
    fn settle_in(&mut self, sequence: &mut Sequence, found: u32) {
        self.stays += 1;
        let known = blocks_for(sequence);
        let computed = found * KV_BLOCK_TOKENS as u32;
        let tables = self.cache.settle(sequence.shareable(), found, known);
        let is_first = sequence.cached.is_none();
        sequence.stay = Stay {
            number: self.stays,
            is_first,
            tables,
            published: found,
            computed,
            planned: computed,
            ..Stay::default()
        };
        if is_first {
            sequence.cached = Some(computed);
            self.stats.prefix_lookup_tokens += u64::from(sequence.known());
            self.stats.prefix_hit_tokens += u64::from(computed);
        }
    }

    /// Takes in what the oldest step in flight gave, and how long it took. Ends who has ended. Rows of sequences that
    /// ended, were cancelled or lost their blocks since are discarded.
    pub fn apply(&mut self, plan: StepPlan, mut output: StepOutput, took: Duration) {
        let flight = self.flights.pop_front().expect("a step is in flight");
        assert_eq!(flight.number, plan.number, "steps are applied in order");
        assert_eq!(plan.draws.len(), output.drawn.len(), "one token a draw");
        assert_eq!(plan.scores.len(), output.scores.len(), "one answer a score");
        assert_eq!(plan.guesses.len(), output.guesses.len(), "one token a guess");
        self.budget.observe(flight.rows, took);
        self.passed(&plan, &output);
        // A sequence must be the only holder of its history when it adds to it, or it would copy it.
        drop(plan);
        for share in flight.shares {
            match self.running.binary_search_by_key(&share.stay, |s| s.stay.number) {
                Ok(at) => self.land(at, &share, &mut output),
                Err(_) => self.stats.rows_discarded += u64::from(share.rows) + share.guesses() as u64,
            }
        }
    }

    /// Passes of the draft model were made for a step. One that failed is asked no more.
    fn passed(&mut self, plan: &StepPlan, output: &StepOutput) {
        if output.draft_fault.is_some() {
            self.draft_model = None;
        }
        let rows = plan.passes.iter().map(|pass| pass.tokens.len() as u32);
        self.stats.draft_model_rows += u64::from(rows.clone().sum::<u32>());
        if let Some(model) = &mut self.draft_model {
            model.observe(rows.zip(output.passes.iter().copied()));
        }
    }

    /// Rows of a running sequence are computed: blocks that they filled get names, and it goes on or ends.
    fn land(&mut self, at: usize, share: &Share, output: &mut StepOutput) {
        let sequence = &mut self.running[at];
        let (id, first) = (sequence.id, sequence.drawn());
        let asked = &output.guesses[share.asked.clone()];
        let drafts = if asked.is_empty() { &share.drafts } else { asked };
        let (tokens, end) = sequence.land(share, drafts, &output.drawn[share.draws.clone()]);
        let accepted = tokens.len().saturating_sub(1) as u32;
        self.stats.drafts += drafts.len() as u64;
        self.stats.drafts_accepted += u64::from(accepted);
        if let Some(model) = &mut self.draft_model {
            self.stats.drafts_asked += asked.len() as u64;
            self.stats.drafts_asked_accepted += u64::from(accepted.min(asked.len() as u32));
            let blocks = model.landed(&mut sequence.stay.followed, asked.len() as u32, accepted);
            let names = sequence.names(blocks.end)[blocks.start as usize..].to_vec();
            model.publish(&mut sequence.stay.followed, &names);
        }
        let full = sequence.stay.computed / KV_BLOCK_TOKENS as u32;
        for i in sequence.stay.published..full {
            let name = sequence.names(full)[i as usize];
            self.cache.publish(&mut sequence.stay.tables, i, name);
        }
        sequence.stay.published = full;
        self.cache.advance(&mut sequence.stay.tables, sequence.stay.computed);
        let scored = sequence.scored(&output.scores[share.scores.clone()]);
        let item = |prompt_logprobs| StepItem { prompt_logprobs, ..StepItem::new(id, first, Vec::new(), None) };
        self.news.extend(scored.into_iter().map(item));
        let wanted = output.logprobs.get_mut(share.draws.clone()).into_iter().flatten().take(tokens.len());
        let logprobs: Vec<_> = wanted.filter_map(Option::take).map(told).collect();
        if let Some(end) = end {
            let sequence = self.running.remove(at);
            self.retire(sequence, tokens, logprobs, end);
        } else if !tokens.is_empty() {
            self.news.push(StepItem { logprobs, ..StepItem::new(id, first, tokens, None) });
        }
    }

    /// Tokens of a sequence that were found in the cache before its first draw; `None` if it did not run yet or has ended.
    pub fn cached_tokens(&self, id: SequenceId) -> Option<u32> {
        self.sequences_all().find(|s| s.id == id)?.cached
    }
}

/// Exchanges blocks that a sequence has yet to compute for such as others have computed since it was admitted: of many
/// that come at once with the same beginning, one computes it.
fn catch_up(sequence: &mut Sequence, cache: &mut KvGroups, stats: &mut BatchStats) {
    if sequence.stay.computed < sequence.stay.planned {
        return;
    }
    let (chain, stay) = sequence.chain_and_stay();
    let found = cache.find_on(chain, stay.published);
    if found == stay.published {
        return;
    }
    cache.catch_up(&mut stay.tables, chain, (stay.published, found));
    let end = found * KV_BLOCK_TOKENS as u32;
    let spared = end - stay.computed;
    (stay.published, stay.computed, stay.planned) = (found, end, end);
    if stay.is_first {
        sequence.cached = sequence.cached.map(|c| c + spared);
        stats.prefix_hit_tokens += u64::from(spared);
    }
}

/// How many of `rows` more rows a sequence has blocks for in every group, once it has taken what there is.
fn with_blocks(sequence: &mut Sequence, rows: u32, cache: &mut KvGroups) -> u32 {
    let stay = &mut sequence.stay;
    let blocks = cache.grow(&mut stay.tables, (stay.planned + rows).div_ceil(KV_BLOCK_TOKENS as u32));
    rows.min(blocks * KV_BLOCK_TOKENS as u32 - stay.planned)
}

/// Blocks of the known tokens.
fn blocks_for(sequence: &Sequence) -> u32 {
    Assign::blocks_for(sequence.known(), 0, KV_BLOCK_TOKENS as u32)
}
