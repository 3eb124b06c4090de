#![allow(clippy::unwrap_used)]

use std::collections::HashMap;

use cuckoo_wire::message::ReplicaId;
use proptest::prelude::*;

use super::*;

const LIMITS: BatchLimits = BatchLimits { sequences_max: 3, step_tokens_max: 8, kv_blocks: 12, context_tokens: 100 };

fn assign(id: u64, known: u32, max_new: u32) -> Assign {
    Assign {
        replica: ReplicaId(0),
        sequence: SequenceId(id),
        tokens: (0..known).collect(),
        prompt_tokens: known,
        max_new,
        sampling: Sampling::default(),
        seed: id,
        stop_tokens: vec![99],
        credit: 1_000,
        blocks: Assign::blocks_for(known, max_new, KV_BLOCK_TOKENS as u32),
    }
}

/// Runs one step in which every draw gives `token`.
fn step(batch: &mut Batch, token: u32) -> Option<Vec<(u64, usize)>> {
    let plan = batch.plan()?;
    let spans = plan.spans.iter().map(|s| (u64::from(plan.tokens[s.first_row]), s.rows)).collect();
    let drawn = vec![token; plan.draws.len()];
    batch.apply(plan, &drawn);
    Some(spans)
}

fn ends(batch: &mut Batch) -> Vec<(u64, End)> {
    batch.take_news().into_iter().filter_map(|i| Some((i.sequence.0, i.end?))).collect()
}

#[test]
fn decodes_come_first_and_prompts_share_what_is_left() {
    let mut batch = Batch::new(LIMITS);
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
    let mut batch = Batch::new(LIMITS);
    batch.assign(assign(1, 20, 4));
    let draws = |batch: &mut Batch| {
        let plan = batch.plan().unwrap();
        let draws: Vec<_> = plan.draws.iter().map(|d| (d.row, d.position)).collect();
        let drawn = vec![5; draws.len()];
        batch.apply(plan, &drawn);
        draws
    };
    assert_eq!(draws(&mut batch), []);
    assert_eq!(draws(&mut batch), []);
    assert_eq!(draws(&mut batch), [(3, 20)]);
    assert_eq!(draws(&mut batch), [(0, 21)]);
}

#[test]
fn sequences_end_at_stop_tokens_and_limits() {
    let mut batch = Batch::new(LIMITS);
    batch.assign(assign(1, 2, 3));
    batch.assign(assign(2, 2, 30));
    step(&mut batch, 5);
    step(&mut batch, 5);
    step(&mut batch, 5);
    assert_eq!(ends(&mut batch), [(1, End::Length)]);
    step(&mut batch, 99);
    assert_eq!(ends(&mut batch), [(2, End::Stop)]);
    assert_eq!((batch.sequences(), batch.blocks_used()), ((0, 0), 0));
    assert_eq!(batch.window(), Window { sequences: 3 + 4 + 2, blocks: 12 + 1 + 2 });
}

#[test]
fn without_credit_a_sequence_sits_out_and_holds_nobody_up() {
    let mut batch = Batch::new(LIMITS);
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
fn a_cancelled_sequence_frees_its_blocks_within_a_step() {
    let mut batch = Batch::new(LIMITS);
    batch.assign(assign(1, 2, 10));
    let plan = batch.plan().unwrap();
    batch.cancel(SequenceId(1));
    assert_eq!(batch.blocks_used(), 1, "the step in flight still writes there");
    batch.apply(plan, &[5]);
    assert_eq!((ends(&mut batch), batch.blocks_used()), (vec![(1, End::Cancelled)], 0));
    batch.assign(assign(2, 2, 10));
    step(&mut batch, 5);
    batch.take_news();
    batch.cancel(SequenceId(2));
    assert_eq!((ends(&mut batch), batch.blocks_used()), (vec![(2, End::Cancelled)], 0));
    batch.cancel(SequenceId(77));
}

#[test]
fn what_cannot_run_is_answered() {
    let mut batch = Batch::new(LIMITS);
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
    batch.assign(assign(1, 2, 10));
    assert!(refused(&mut batch, assign(1, 2, 10)).contains("already"));
    (2..=7).for_each(|i| batch.assign(assign(i, 2, 10)));
    assert!(refused(&mut batch, assign(8, 2, 10)).contains("overdrawn"));
}

#[derive(Clone, Debug)]
enum Event {
    Assign(u32, u32, u32),
    Cancel(u64),
    Credit(u64, u32),
    Plan,
    Apply(u32),
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        3 => (1u32..60, 1u32..40, 0u32..6).prop_map(|(k, n, c)| Event::Assign(k, n, c)),
        1 => (0u64..20).prop_map(Event::Cancel),
        2 => (0u64..20, 0u32..40).prop_map(|(s, c)| Event::Credit(s, c)),
        6 => Just(Event::Plan),
        6 => (90u32..101).prop_map(Event::Apply),
    ]
}

proptest! {
    /// Whatever happens in whatever order: steps stay within their budget, streams are gapless, every sequence ends
    /// exactly once, and then all blocks are back and the window has grown by what was taken.
    #[test]
    fn sequences_end_once_and_everything_returns(events in prop::collection::vec(event(), 1..300)) {
        let mut batch = Batch::new(LIMITS);
        let first = batch.window();
        let (mut flight, mut next) = (None::<StepPlan>, 0u64);
        let mut sent: HashMap<u64, u32> = HashMap::new();
        let mut ended: HashMap<u64, u32> = HashMap::new();
        let tail = (0..20).flat_map(|s| [Event::Apply(99), Event::Credit(s, 1_000)]);
        let rest = (0..2_000).flat_map(|_| [Event::Plan, Event::Apply(5)]);
        for event in events.into_iter().chain(tail).chain(rest) {
            match event {
                Event::Assign(known, max_new, credit) => {
                    batch.assign(Assign { credit, ..assign(next, known, max_new) });
                    next += 1;
                }
                Event::Cancel(id) => batch.cancel(SequenceId(id)),
                Event::Credit(id, tokens) => batch.credit(SequenceId(id), tokens),
                Event::Plan if flight.is_none() => {
                    flight = batch.plan();
                    if let Some(plan) = &flight {
                        prop_assert!(plan.tokens.len() <= LIMITS.step_tokens_max as usize);
                        prop_assert!(plan.spans.len() <= LIMITS.sequences_max as usize);
                        let rows: usize = plan.spans.iter().map(|s| s.rows).sum();
                        prop_assert_eq!(rows, plan.tokens.len());
                    }
                }
                Event::Apply(token) => if let Some(plan) = flight.take() {
                    let drawn = vec![token; plan.draws.len()];
                    batch.apply(plan, &drawn);
                },
                Event::Plan => {}
            }
            for item in batch.take_news() {
                let id = item.sequence.0;
                prop_assert!(!ended.contains_key(&id), "news after the end");
                let sent = sent.entry(id).or_default();
                prop_assert_eq!(*sent, item.first, "gapless");
                *sent += item.tokens.len() as u32;
                if item.end.is_some() {
                    ended.insert(id, *sent);
                }
            }
        }
        // Those beyond the twenty that were given credit may still wait for it.
        (0..next).for_each(|id| batch.cancel(SequenceId(id)));
        for item in batch.take_news() {
            prop_assert!(ended.insert(item.sequence.0, item.first).is_none());
        }
        prop_assert_eq!(ended.len() as u64, next);
        prop_assert_eq!((batch.blocks_used(), batch.sequences()), (0, (0, 0)));
        let window = batch.window();
        prop_assert_eq!(window.sequences - first.sequences, batch.taken.sequences);
        prop_assert_eq!(window.blocks - first.blocks, batch.taken.blocks);
    }
}
