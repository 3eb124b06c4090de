#![allow(clippy::unwrap_used)]

/// Steps planned ahead.
mod ahead;
/// Tokens that a draft model guesses.
mod asked;
/// Blocks: shared, evicted, taken away.
mod blocks;
/// Sequences with a constraint.
mod constrained;
/// Tokens guessed and computed ahead.
mod drafts;
/// A device without a model.
mod fake;
/// Blocks kept on the host.
mod spill;
/// Everything at once.
mod storm;

use std::collections::HashMap;

use cuckoo_wire::message::{ReplicaId, Sampling};

use super::*;

const WEIGHTS: WeightsHash = WeightsHash([5; 32]);
const LIMITS: BatchLimits = BatchLimits {
    sequences_max: 3,
    step_tokens_max: 8,
    step_target: Duration::MAX,
    drafts_max: 0,
    kv_blocks: 12,
    kv_kind: KvKind::F16,
    spill_bytes: 0,
    context_tokens: 100,
};

fn assign(id: u64, known: u32, max_new: u32) -> Assign {
    Assign {
        seed: id,
        stop_tokens: vec![99],
        credit: 1_000,
        ..Assign::new(ReplicaId(0), SequenceId(id), (0..known).collect(), max_new, KV_BLOCK_TOKENS as u32)
    }
}

/// Runs one step in which every draw gives `token`.
fn step(batch: &mut Batch, token: u32) -> Option<Vec<(u64, usize)>> {
    let plan = batch.plan()?;
    let spans = plan.spans.iter().map(|s| (u64::from(plan.tokens[s.first_row]), s.rows)).collect();
    let drawn = vec![token; plan.draws.len()];
    batch.apply(plan, StepOutput::of(&drawn), Duration::ZERO);
    Some(spans)
}

fn ends(batch: &mut Batch) -> Vec<(u64, End)> {
    batch.take_news().into_iter().filter_map(|i| Some((i.sequence.0, i.end?))).collect()
}

#[test]
fn decodes_come_first_and_prompts_share_what_is_left() {
    let mut batch = Batch::new(LIMITS, WEIGHTS);
    batch.assign(assign(1, 4, 20));
    assert_eq!(step(&mut batch, 5).unwrap().iter().map(|s| s.1).collect::<Vec<_>>(), [4]);
    batch.assign(assign(2, 20, 4));
    let rows = |s: Vec<(u64, usize)>| s.iter().map(|s| s.1).collect::<Vec<_>>();
    assert_eq!(rows(step(&mut batch, 5).unwrap()), [1, 7], "one decode, then a chunk of seven");
    assert_eq!(rows(step(&mut batch, 5).unwrap()), [1, 7]);
    assert_eq!(rows(step(&mut batch, 5).unwrap()), [1, 6], "the rest of the prompt");
    assert_eq!(rows(step(&mut batch, 5).unwrap()), [1, 1], "both decode");
}

#[test]
fn only_the_row_of_the_newest_token_is_drawn_from() {
    let mut batch = Batch::new(LIMITS, WEIGHTS);
    batch.assign(assign(1, 20, 4));
    let draws = |batch: &mut Batch| {
        let plan = batch.plan().unwrap();
        let draws: Vec<_> = plan.draws.iter().map(|d| (d.row, d.position)).collect();
        let drawn = vec![5; draws.len()];
        batch.apply(plan, StepOutput::of(&drawn), Duration::ZERO);
        draws
    };
    assert_eq!(draws(&mut batch), []);
    assert_eq!(draws(&mut batch), []);
    assert_eq!(draws(&mut batch), [(3, 20)]);
    assert_eq!(draws(&mut batch), [(0, 21)]);
}

#[test]
fn sequences_end_at_stop_tokens_and_limits() {
    let mut batch = Batch::new(LIMITS, WEIGHTS);
    batch.assign(assign(1, 2, 3));
    batch.assign(assign(2, 2, 30));
    step(&mut batch, 5);
    step(&mut batch, 5);
    step(&mut batch, 5);
    assert_eq!(ends(&mut batch), [(1, End::Length)]);
    step(&mut batch, 99);
    assert_eq!(ends(&mut batch), [(2, End::Stop)]);
    assert_eq!((batch.sequences(), batch.blocks_used()), ((0, 0), 0));
    assert_eq!(batch.window(), Window { sequences: 3 + 4 + 2, blocks: 24 + 1 + 2 });
}

#[test]
fn stop_tokens_are_forbidden_until_the_output_is_long_enough() {
    let mut batch = Batch::new(LIMITS, WEIGHTS);
    let sampling = Sampling { min_tokens: 3, ..Sampling::default() };
    // One token of output came from another miner.
    batch.assign(Assign { sampling, prompt_tokens: 4, ..assign(1, 5, 10) });
    let forbidden = |batch: &mut Batch| {
        let plan = batch.plan().unwrap();
        let forbidden = plan.draws[0].forbidden.to_vec();
        batch.apply(plan, StepOutput::of(&[7]), Duration::ZERO);
        forbidden
    };
    assert_eq!([forbidden(&mut batch), forbidden(&mut batch), forbidden(&mut batch)], [vec![99], vec![99], vec![]]);
}

/// An answer that tells which token was asked about.
fn answer(plan: &StepPlan) -> StepOutput {
    let scores = plan.scores.iter().map(|s| cuckoo_kernels::sampling::Logprobs {
        logprob: -(s.token as f32),
        rank: s.row as u32 + 1,
        top: vec![(0, 0.0); s.top as usize],
    });
    StepOutput { scores: scores.collect(), ..StepOutput::of(&vec![7; plan.draws.len()]) }
}

#[test]
fn scores_of_a_prompt_come_in_order_and_in_whole_portions() {
    use cuckoo_wire::message::PromptLogprobs;
    for (step_tokens_max, in_flight, from) in [(100, 1, 1), (33, 2, 1), (8, 1, 300), (600, 1, 600), (7, 2, 599)] {
        let limits = BatchLimits { step_tokens_max, kv_blocks: 64, context_tokens: 1_000, ..LIMITS };
        let mut batch = Batch::new(limits, WEIGHTS);
        let prompt_logprobs = Some(PromptLogprobs { top: 2, from });
        batch.assign(Assign { prompt_logprobs, ..assign(1, 600, 2) });
        let (mut plans, mut news) = (VecDeque::new(), Vec::new());
        loop {
            while plans.len() < in_flight
                && let Some(plan) = batch.plan()
            {
                plans.push_back(plan);
            }
            let Some(plan) = plans.pop_front() else { break };
            let output = answer(&plan);
            batch.apply(plan, output, Duration::ZERO);
            news.extend(batch.take_news());
        }
        let portions: Vec<usize> = news.iter().map(|i| i.prompt_logprobs.len()).filter(|n| *n > 0).collect();
        let expected = match 600 - from as usize {
            0 => vec![],
            1 => vec![1],
            300 => vec![256, 44],
            _ => vec![256, 256, 87],
        };
        assert_eq!(portions, expected, "{step_tokens_max} rows a step, {in_flight} in flight, from {from}");
        let scored: Vec<f32> = news.iter().flat_map(|i| &i.prompt_logprobs).map(|l| -l.logprob).collect();
        assert_eq!(scored, (from..600).map(|token| token as f32).collect::<Vec<_>>());
        let last = news.iter().rposition(|i| !i.prompt_logprobs.is_empty());
        let first = news.iter().position(|i| !i.tokens.is_empty());
        assert!(last < first, "all of the prompt before the first token");
    }
}

#[test]
fn without_credit_a_sequence_sits_out_and_holds_nobody_up() {
    let mut batch = Batch::new(LIMITS, WEIGHTS);
    batch.assign(Assign { credit: 2, ..assign(1, 2, 10) });
    batch.assign(assign(2, 2, 10));
    for _ in 0..5 {
        step(&mut batch, 5);
    }
    let sent = |batch: &mut Batch| {
        let mut sent: HashMap<u64, usize> = HashMap::new();
        batch.take_news().iter().for_each(|i| *sent.entry(i.sequence.0).or_default() += i.tokens.len());
        sent
    };
    assert_eq!(sent(&mut batch), HashMap::from([(1, 2), (2, 5)]));
    batch.credit(SequenceId(1), 1);
    assert_eq!(step(&mut batch, 5).unwrap().len(), 1, "an older credit changes nothing");
    batch.credit(SequenceId(1), 3);
    assert_eq!(step(&mut batch, 5).unwrap().len(), 2);
}

#[test]
fn a_cancelled_sequence_frees_its_blocks_at_once() {
    let mut batch = Batch::new(LIMITS, WEIGHTS);
    batch.assign(assign(1, 2, 10));
    let plan = batch.plan().unwrap();
    batch.cancel(SequenceId(1));
    assert_eq!((ends(&mut batch), batch.blocks_used()), (vec![(1, End::Cancelled)], 0));
    batch.apply(plan, StepOutput::of(&[5]), Duration::ZERO);
    assert_eq!((batch.take_news(), batch.stats().rows_discarded), (vec![], 2), "what it drew is nobody's");
    batch.assign(assign(2, 2, 10));
    step(&mut batch, 5);
    batch.take_news();
    batch.cancel(SequenceId(2));
    assert_eq!((ends(&mut batch), batch.blocks_used()), (vec![(2, End::Cancelled)], 0));
    batch.cancel(SequenceId(77));
}

#[test]
fn what_cannot_run_is_answered() {
    let mut batch = Batch::new(LIMITS, WEIGHTS);
    let refused = |batch: &mut Batch, assign: Assign| {
        batch.assign(assign);
        match ends(batch).pop() {
            Some((_, End::Failed(why))) => why,
            other => panic!("{other:?}"),
        }
    };
    assert!(refused(&mut batch, assign(1, 90, 11)).contains("context"));
    assert!(refused(&mut batch, Assign { blocks: 1, ..assign(1, 20, 20) }).contains("blocks"));
    assert!(refused(&mut batch, Assign { max_new: 0, ..assign(1, 2, 1) }).contains("new tokens"));
    let nan = Sampling { temperature: f32::NAN, ..Sampling::default() };
    assert!(refused(&mut batch, Assign { sampling: nan, ..assign(1, 2, 1) }).contains("temperature"));
    let adapter = Some(WeightsHash([7; 32]));
    assert!(refused(&mut batch, Assign { adapter, ..assign(1, 2, 1) }).contains("adapter is not loaded"));
    batch.assign(assign(1, 2, 10));
    assert!(refused(&mut batch, assign(1, 2, 10)).contains("already"));
    (2..=7).for_each(|i| batch.assign(assign(i, 2, 10)));
    let window = batch.window();
    assert_eq!(window.sequences, 3 + 4 + 6, "what was refused is granted again");
    assert!(refused(&mut batch, assign(8, 2, 10)).contains("overdrawn"));
    assert_eq!(batch.window(), window, "but not what was never granted");
}

#[test]
fn prompts_are_cut_to_the_time_that_a_step_may_take() {
    let target = Duration::from_millis(60);
    let limits = BatchLimits {
        sequences_max: 4,
        step_tokens_max: 64,
        step_target: target,
        drafts_max: 0,
        kv_blocks: 1_000,
        kv_kind: KvKind::F16,
        spill_bytes: 0,
        context_tokens: 8_000,
    };
    let mut batch = Batch::new(limits, WEIGHTS);
    (1..=3).for_each(|i| batch.assign(assign(i, 2_000, 50)));
    let mut longest = Duration::ZERO;
    for at in 0..200 {
        let Some(plan) = batch.plan() else { break };
        let took = Duration::from_millis(20) + Duration::from_millis(2) * plan.tokens.len() as u32;
        let drawn = vec![5; plan.draws.len()];
        batch.apply(plan, StepOutput::of(&drawn), took);
        longest = if at > 20 { longest.max(took) } else { longest };
    }
    assert!(longest > target * 3 / 4 && longest < target * 5 / 4, "{longest:?}");
}
