//! Sequences with a constraint: when they may run, and what their draws tell of them.

use cuckoo_wire::message::Constraint;

use super::*;
use crate::device::choices::Choices;

fn constrained(id: u64, known: u32, max_new: u32) -> Assign {
    Assign { constraint: Some(Constraint::JsonObject), ..assign(id, known, max_new) }
}

fn untold(plan: &StepPlan) -> Vec<(u64, Option<Vec<u32>>)> {
    plan.draws.iter().map(|d| (d.sequence.0, d.untold.clone())).collect()
}

#[test]
fn who_waits_for_a_compiler_holds_nobody_up() {
    let mut batch = Batch::new(LIMITS, WEIGHTS);
    batch.assign(constrained(1, 4, 5));
    assert!(batch.is_compiling(SequenceId(1)) && batch.plan().is_none());
    batch.assign(assign(2, 4, 5));
    assert!(!batch.is_compiling(SequenceId(2)));
    let plan = batch.plan().unwrap();
    assert_eq!(untold(&plan), [(2, None)]);
    batch.constraint_is_ready(SequenceId(1));
    batch.apply(plan, StepOutput::of(&[6]), Duration::ZERO);
    let plan = batch.plan().unwrap();
    assert_eq!(untold(&plan), [(2, None), (1, Some(vec![]))], "the prompt is no part of what is constrained");
    batch.apply(plan, StepOutput::of(&[7, 8]), Duration::ZERO);
    batch.constraint_is_ready(SequenceId(1));
    assert_eq!(untold(&batch.plan().unwrap()), [(2, None), (1, Some(vec![8]))], "readiness comes once");
}

#[test]
fn a_constraint_that_fails_ends_its_sequence_and_returns_its_window() {
    let mut batch = Batch::new(LIMITS, WEIGHTS);
    let window = batch.window();
    batch.assign(constrained(1, 4, 5));
    batch.fail(SequenceId(1), &"x".repeat(500));
    let news = batch.take_news();
    assert!(matches!(&news[0].end, Some(End::Failed(why)) if why.len() == REASON_CHARS_MAX), "{news:?}");
    assert_eq!(batch.window().sequences, window.sequences + 1);
    // While it runs, too: what its step draws is nobody's.
    batch.assign(constrained(2, 4, 5));
    batch.constraint_is_ready(SequenceId(2));
    let plan = batch.plan().unwrap();
    batch.fail(SequenceId(2), "stuck");
    batch.apply(plan, StepOutput::of(&[5]), Duration::ZERO);
    assert_eq!(ends(&mut batch), [(2, End::Failed("stuck".to_owned()))]);
    assert_eq!((batch.blocks_used(), batch.stats().rows_discarded), (0, 4));
    batch.fail(SequenceId(2), "again");
    batch.constraint_is_ready(SequenceId(2));
    assert!(batch.take_news().is_empty() && batch.plan().is_none(), "nobody of that name is left");
    batch.assert_sound();
}

#[test]
fn masks_need_the_token_so_nobody_steps_ahead_of_them() {
    let mut batch = Batch::new(LIMITS, WEIGHTS);
    batch.assign(constrained(1, 2, 5));
    batch.assign(assign(2, 2, 5));
    batch.constraint_is_ready(SequenceId(1));
    let first = batch.plan().unwrap();
    assert!(batch.plan().is_none(), "the batch stays whole");
    batch.apply(first, StepOutput::of(&[5, 6]), Duration::ZERO);
    let second = batch.plan().unwrap();
    assert!(second.placeholders.is_empty());
    assert_eq!(untold(&second), [(1, Some(vec![5])), (2, None)]);
}

/// Whatever is taken away and drawn again, a matcher is told of each token once, in order.
#[test]
fn a_matcher_is_told_of_each_token_once() {
    let mut choices = Choices(3);
    for _ in 0..300 {
        let mut batch = Batch::new(LIMITS, WEIGHTS);
        let mut told: HashMap<u64, Vec<u32>> = HashMap::new();
        let mut drawn: HashMap<u64, Vec<u32>> = HashMap::new();
        for id in 0..3 {
            let known = choices.between(8, 40);
            let accepted = choices.between(0, 7);
            let prompt_tokens = known - accepted;
            batch.assign(Assign { prompt_tokens, stop_tokens: vec![], ..constrained(id, known, 50) });
            batch.constraint_is_ready(SequenceId(id));
        }
        let mut next = 100;
        while let Some(plan) = batch.plan() {
            let tokens: Vec<u32> = plan
                .draws
                .iter()
                .map(|_| {
                    next += 1;
                    next
                })
                .collect();
            for draw in &plan.draws {
                told.entry(draw.sequence.0).or_default().extend(draw.untold.iter().flatten());
                let known = drawn.get(&draw.sequence.0).cloned().unwrap_or_default();
                assert_eq!(told[&draw.sequence.0], known, "everything drawn so far, and nothing else");
            }
            batch.apply(plan, StepOutput::of(&tokens), Duration::ZERO);
            for item in batch.take_news() {
                drawn.entry(item.sequence.0).or_default().extend(item.tokens);
            }
        }
        assert!(drawn.values().all(|d| d.len() == 50));
    }
}
