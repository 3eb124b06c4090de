#![allow(clippy::unwrap_used)]

use cuckoo_wire::message::ReplicaId;
use proptest::prelude::*;

use super::*;

const LIMITS: BatchLimits = BatchLimits {
    sequences_max: 4,
    step_tokens_max: 64,
    step_target: Duration::MAX,
    drafts_max: 0,
    kv_blocks: 8,
    kv_kind: cuckoo_kernels::KvKind::F16,
    spill_bytes: 0,
    context_tokens: 64,
};

fn text(id: u64, tokens: u32) -> Encode {
    let blocks = Assign::blocks_for(tokens, 0, 16);
    Encode { replica: ReplicaId(1), sequence: SequenceId(id), tokens: vec![id as u32; tokens as usize], blocks }
}

/// What the fake encoder makes of a span's tokens.
fn vector(tokens: &[u32]) -> Vec<f32> {
    vec![tokens.len() as f32, tokens[0] as f32]
}

fn compute(plan: &StepPlan) -> StepOutput {
    let vectors = plan.spans.iter().map(|s| vector(&plan.tokens[s.first_row..s.first_row + s.rows])).collect();
    StepOutput { vectors, ..StepOutput::default() }
}

fn ends(batch: &mut TextBatch) -> Vec<(u64, End)> {
    batch.take_news().into_iter().map(|i| (i.sequence.0, i.end.unwrap())).collect()
}

fn step(batch: &mut TextBatch) -> Vec<usize> {
    let plan = batch.plan().unwrap();
    batch.apply(compute(&plan), Duration::from_millis(1));
    plan.spans.iter().map(|s| s.rows).collect()
}

#[test]
fn texts_share_steps_in_order_of_arrival() {
    let mut batch = TextBatch::new(LIMITS);
    for (id, tokens) in [(1, 20), (2, 3), (3, 50), (4, 1), (5, 1), (6, 1), (7, 1), (8, 1)] {
        batch.encode(text(id, tokens));
    }
    assert_eq!(step(&mut batch), [20, 3], "the third does not fit, and nobody overtakes it");
    assert_eq!(step(&mut batch), [50, 1, 1, 1], "as many as there are places");
    assert_eq!(step(&mut batch), [1, 1]);
    assert!(batch.plan().is_none());
    let ended: Vec<u64> = ends(&mut batch).iter().map(|(id, _)| *id).collect();
    assert_eq!(ended, [1, 2, 3, 4, 5, 6, 7, 8]);
    assert_eq!(batch.window().sequences, 16);
}

#[test]
fn a_text_that_cannot_be_is_refused_with_its_numbers() {
    let mut batch = TextBatch::new(LIMITS);
    batch.encode(text(1, 65));
    batch.encode(Encode { blocks: 3, ..text(2, 16) });
    batch.encode(Encode { tokens: vec![], ..text(3, 1) });
    batch.encode(text(4, 64));
    batch.encode(text(4, 1));
    let refused = ends(&mut batch);
    let whys: Vec<_> = refused.iter().map(|(_, end)| format!("{end:?}")).collect();
    assert!(whys[0].contains("65 tokens") && whys[0].contains("context of 64"), "{whys:?}");
    assert!(whys[1].contains("3 blocks") && whys[2].contains("no tokens") && whys[3].contains("already here"));
    assert_eq!(batch.window().sequences, 8 + 4, "what they took came back");
    batch.refuse(SequenceId(9), 1, "no");
    assert_eq!(ends(&mut batch), [(9, End::Failed("no".to_owned()))]);
}

#[test]
fn who_overdraws_the_window_gets_nothing_back() {
    let mut batch = TextBatch::new(LIMITS);
    (1..=9).for_each(|id| batch.encode(text(id, 1)));
    assert!(matches!(&ends(&mut batch)[..], [(9, End::Failed(why))] if why.contains("overdrawn")));
    assert_eq!(batch.window().sequences, 8);
}

#[test]
fn a_cancelled_text_ends_once_wherever_it_is() {
    let mut batch = TextBatch::new(LIMITS);
    (1..=3).for_each(|id| batch.encode(text(id, 30)));
    let plan = batch.plan().unwrap();
    batch.cancel(SequenceId(1));
    batch.cancel(SequenceId(1));
    batch.cancel(SequenceId(3));
    batch.cancel(SequenceId(77));
    assert_eq!(ends(&mut batch), [(1, End::Cancelled), (3, End::Cancelled)]);
    assert_eq!(batch.sequences(), (1, 0));
    batch.apply(compute(&plan), Duration::from_millis(1));
    assert_eq!(ends(&mut batch), [(2, End::Embedded(vec![30.0, 2.0]))]);
}

proptest! {
    /// Whatever comes and goes, every text ends once, with the vector of its own tokens or as cancelled, no step is larger
    /// than it may be, and the window returns.
    #[test]
    fn every_text_ends_once(events in prop::collection::vec((0u8..6, 1u32..64), 0..120)) {
        let mut batch = TextBatch::new(LIMITS);
        let (mut made, mut flying, mut ended) = (std::collections::BTreeMap::new(), VecDeque::new(), Vec::new());
        for (kind, n) in events {
            match kind {
                0..=2 => {
                    let window = batch.window();
                    let new = text(made.len() as u64 + 1, n);
                    let used: u64 = made.values().map(|blocks| u64::from(*blocks)).sum();
                    if (made.len() as u64) < window.sequences && used + u64::from(new.blocks) <= window.blocks {
                        made.insert(new.sequence.0, new.blocks);
                        batch.encode(new);
                    }
                }
                3 => batch.cancel(SequenceId(u64::from(n))),
                4 if flying.len() < 2 => flying.extend(batch.plan()),
                _ => if let Some(plan) = flying.pop_front() {
                    prop_assert!(plan.tokens.len() <= 64 && plan.spans.len() <= 4 && plan.blocks[0].len() <= 8);
                    batch.apply(compute(&plan), Duration::from_millis(u64::from(n)));
                },
            }
            ended.extend(ends(&mut batch));
        }
        while let Some(plan) = flying.pop_front().or_else(|| batch.plan()) {
            batch.apply(compute(&plan), Duration::from_millis(1));
            ended.extend(ends(&mut batch));
        }
        prop_assert_eq!(ended.len(), made.len());
        for (id, end) in &ended {
            let right = match end {
                End::Embedded(vector) => vector[1] == *id as f32,
                End::Cancelled => true,
                _ => false,
            };
            prop_assert!(right && made.contains_key(id), "{id}: {end:?}");
        }
        prop_assert_eq!(batch.window().sequences, 8 + made.len() as u64);
        prop_assert_eq!(batch.window().blocks, 16 + made.values().map(|b| u64::from(*b)).sum::<u64>());
    }
}
