//! Whatever happens in whatever order: every sequence gets exactly its tokens and ends once, steps keep their bounds, the
//! window is never overdrawn and never lost, and all blocks return.

use std::collections::BTreeMap;

use super::fake::{FakePair, expected_of};
use super::*;
use crate::device::choices::Choices;
use crate::device::draft_model::DraftPlan;
use crate::device::kv_plan::{GroupPlan, window_blocks};

/// A scheduler that keeps to the window, its developers, and the batch with its device.
struct Storm {
    choices: Choices,
    limits: BatchLimits,
    kv: KvPlan,
    batch: Batch,
    device: FakePair,
    /// Plans that are not computed yet, and computed ones that are not applied.
    planned: VecDeque<StepPlan>,
    computed: VecDeque<(StepPlan, StepOutput)>,
    taken: Window,
    live: BTreeMap<u64, (Assign, Vec<u32>)>,
    next: u64,
    cancelled: u64,
    finished: u64,
}

impl Storm {
    fn new(seed: u64) -> Self {
        let mut choices = Choices(seed);
        let sequences_max = choices.between(1, 6);
        let kv_blocks = choices.between(4, 24);
        let limits = BatchLimits {
            sequences_max,
            step_tokens_max: sequences_max + choices.between(0, 40),
            step_target: Duration::from_millis(choices.below(40)),
            drafts_max: [0, choices.between(1, 12)][choices.below(2) as usize],
            kv_blocks,
            kv_kind: KvKind::F16,
            spill_bytes: 0,
            context_tokens: 160,
        };
        let kv = plan(&mut choices, &limits);
        let mut batch = Batch::with_kv(limits, WEIGHTS, &kv);
        // A draft model with as much memory as the target, or with less.
        let mut draft = kv.clone();
        draft.groups.iter_mut().for_each(|group| group.host_blocks = 0);
        if choices.below(2) == 0 {
            draft.groups.iter_mut().for_each(|group| group.blocks = choices.between(1, group.blocks));
        }
        let mut device = FakePair::new(&kv, &draft);
        device.wrong = choices.below(5);
        if limits.drafts_max > 0 {
            batch = batch.with_draft(&DraftPlan { kv: draft, context_tokens: choices.between(60, 160) });
        }
        Self {
            batch,
            device,
            kv,
            choices,
            limits,
            planned: VecDeque::new(),
            computed: VecDeque::new(),
            taken: Window::default(),
            live: BTreeMap::new(),
            next: 0,
            cancelled: 0,
            finished: 0,
        }
    }

    fn assign(&mut self) {
        // Families share beginnings; a family of its own now and then.
        let family = self.choices.below(6) as u32;
        let known = self.choices.between(1, 90.min(16 * self.limits.kv_blocks - 1));
        let common = self.choices.between(0, known);
        let most = (16 * self.limits.kv_blocks - known).min(60);
        let max_new = self.choices.between(1, most);
        let penalty = if self.choices.below(4) == 0 { 1.5 } else { 0.0 };
        let tail = self.next as u32 * 100;
        let assign = Assign {
            tokens: (0..known).map(|i| if i < common { family * 1_000 + i } else { 10_000 + tail + i }).collect(),
            sampling: Sampling { presence_penalty: penalty, ..Sampling::default() },
            stop_tokens: vec![7, 13],
            credit: self.choices.below(12) as u32,
            cache_salt: [(family % 2) as u8; 16],
            ..super::assign(self.next, known, max_new)
        };
        let window = self.batch.window();
        let blocks = self.taken.blocks + u64::from(assign.blocks);
        if self.taken.sequences >= window.sequences || blocks > window.blocks {
            return;
        }
        self.taken = Window { sequences: self.taken.sequences + 1, blocks };
        self.live.insert(self.next, (assign.clone(), Vec::new()));
        self.next += 1;
        self.batch.assign(assign);
    }

    fn anybody(&mut self) -> Option<u64> {
        let at = self.choices.below(self.live.len().max(1) as u64) as usize;
        self.live.keys().nth(at).copied()
    }

    fn plan(&mut self) {
        let Some(plan) = self.batch.plan() else { return };
        let rows: usize = plan.spans.iter().map(|s| s.rows).sum();
        assert!(rows == plan.tokens.len() && rows <= self.limits.step_tokens_max as usize);
        assert!(plan.spans.len() <= self.limits.sequences_max as usize);
        assert!(plan.draws.len() <= self.limits.draws_max() as usize);
        assert!(plan.guesses.len() <= self.limits.drafts_max as usize);
        for pass in &plan.passes {
            assert!(!pass.tokens.is_empty() && pass.tokens.len() <= self.limits.step_tokens_max as usize);
            assert!(pass.draws.len() <= self.limits.sequences_max as usize);
        }
        for placeholder in &plan.placeholders {
            let draw = plan.draws.iter().find(|d| d.row == placeholder.row).unwrap();
            assert_eq!(draw.params.presence_penalty, 0.0, "penalties need the token");
        }
        // Each block changes hands a few times between two steps, and each copy is for one that does.
        assert!(plan.copies.len() <= 4 * self.kv.groups.iter().map(|g| g.blocks as usize).sum::<usize>());
        self.planned.push_back(plan);
    }

    fn compute(&mut self) {
        if let Some(plan) = self.planned.pop_front() {
            let mut output = self.device.step(&plan);
            if !plan.passes.is_empty() && self.choices.below(1_000) == 0 {
                output.passes.pop();
                output.draft_fault = Some("a broken kernel".to_owned());
            }
            self.computed.push_back((plan, output));
        }
    }

    fn apply(&mut self) {
        if let Some((plan, output)) = self.computed.pop_front() {
            // Where tokens are guessed rows are cheap, or nothing would be.
            let row_us = if self.limits.drafts_max > 0 { 10 } else { self.choices.between(100, 900) };
            let took = Duration::from_micros(500 + plan.tokens.len() as u64 * u64::from(row_us));
            self.batch.apply(plan, output, took);
        }
    }

    fn hear(&mut self) {
        for item in self.batch.take_news() {
            let id = item.sequence.0;
            let (assign, output) = self.live.get_mut(&id).expect("no news after the end");
            assert_eq!(output.len(), item.first as usize, "gapless");
            output.extend(item.tokens);
            assert!(output.len() as u32 <= assign.credit, "no more than was allowed");
            let Some(end) = item.end else { continue };
            let (assign, output) = self.live.remove(&id).unwrap();
            let windows: Vec<_> = self.kv.groups.iter().map(|g| g.window).collect();
            let (tokens, natural) = expected_of(&windows, &assign);
            match end {
                End::Cancelled => {
                    self.cancelled += 1;
                    assert_eq!(output, tokens[..output.len()]);
                }
                end => {
                    self.finished += 1;
                    assert_eq!((output, end), (tokens, natural), "sequence {id}");
                }
            }
        }
    }

    fn credit(&mut self, id: u64, more: u32) {
        if let Some((assign, output)) = self.live.get_mut(&id) {
            assign.credit = assign.credit.max(output.len() as u32 + more);
            self.batch.credit(SequenceId(id), assign.credit);
        }
    }

    fn event(&mut self) {
        match self.choices.below(24) {
            0..3 => self.assign(),
            3..6 => {
                let more = self.choices.between(0, 20);
                if let Some(id) = self.anybody() {
                    self.credit(id, more);
                }
            }
            6 if self.choices.below(6) == 0 => {
                if let Some(id) = self.anybody() {
                    self.batch.cancel(SequenceId(id));
                }
            }
            6..12 => self.plan(),
            12..18 => self.compute(),
            _ => self.apply(),
        }
        self.hear();
    }

    /// Everybody reads, and nobody comes any more.
    fn calm(&mut self) {
        for _ in 0..20_000 {
            if self.live.is_empty() {
                break;
            }
            (0..self.next).for_each(|id| self.credit(id, 100));
            self.plan();
            self.compute();
            self.apply();
            self.hear();
        }
        assert!(self.live.is_empty(), "they all end");
        while !self.planned.is_empty() || !self.computed.is_empty() {
            self.compute();
            self.apply();
        }
        self.batch.assert_sound();
        assert_eq!(self.batch.draft_model.as_ref().map_or(0, DraftModel::blocks_used), 0);
        assert_eq!((self.batch.blocks_used(), self.batch.sequences()), (0, (0, 0)));
        let (window, full) = (self.batch.window(), Batch::with_kv(self.limits, WEIGHTS, &self.kv).window());
        assert_eq!(window.sequences - self.taken.sequences, full.sequences, "what was taken is granted again");
        assert_eq!(window.blocks - self.taken.blocks, full.blocks);
        assert_eq!(self.batch.taken, self.taken);
    }
}

/// One to three groups of layers, some with little more than one sequence needs.
fn plan(choices: &mut Choices, limits: &BatchLimits) -> KvPlan {
    let mut windows: Vec<Option<u32>> = (0..choices.below(3)).map(|_| Some(choices.between(1, 90))).collect();
    if windows.is_empty() || choices.below(3) > 0 {
        windows.insert(0, None);
    }
    let mut plan = KvPlan::plain(limits.kv_blocks);
    let full = plan.groups[0];
    let rows = limits.step_tokens_max * STEPS_IN_FLIGHT_MAX as u32;
    plan.groups = windows
        .into_iter()
        .map(|window| {
            let least = window.map_or(u32::MAX, |w| window_blocks(w) + rows.div_ceil(16));
            let blocks = limits.kv_blocks.min(least.saturating_add(choices.below(6) as u32));
            let host_blocks = [0, choices.between(1, 30)][choices.below(2) as usize];
            GroupPlan { window, blocks, host_blocks, ..full }
        })
        .collect();
    plan
}

#[test]
fn storms_change_no_token_and_lose_nothing() {
    let mut total = BatchStats::default();
    let (mut finished, mut cancelled) = (0, 0);
    for seed in 0..400 {
        let mut storm = Storm::new(seed);
        for _ in 0..5_000 {
            storm.event();
            storm.batch.assert_sound();
        }
        storm.calm();
        let stats = storm.batch.stats();
        total.preemptions += stats.preemptions;
        total.prefix_hit_tokens += stats.prefix_hit_tokens;
        total.rows_discarded += stats.rows_discarded;
        total.evictions += stats.evictions;
        total.spilled += stats.spilled;
        total.restored += stats.restored;
        total.drafts += stats.drafts;
        total.drafts_accepted += stats.drafts_accepted;
        total.drafts_asked += stats.drafts_asked;
        total.drafts_asked_accepted += stats.drafts_asked_accepted;
        finished += storm.finished;
        cancelled += storm.cancelled;
    }
    println!("{finished} finished, {cancelled} cancelled, {total:?}");
    assert!(finished > 20_000 && cancelled > 2_000, "it was a real test");
    assert!(total.preemptions > 500 && total.prefix_hit_tokens > 30_000);
    assert!(total.drafts_accepted > 1_000 && total.drafts - total.drafts_accepted > 1_000);
    assert!(total.spilled > 5_000 && total.restored > 1_000);
    assert!(total.drafts_asked_accepted > 500 && total.drafts_asked - total.drafts_asked_accepted > 500);
    assert!(total.rows_discarded > 5_000 && total.evictions > 20_000);
}
