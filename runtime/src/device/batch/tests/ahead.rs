//! Steps that are planned while the one before them is computed.

use super::fake::{FakeDevice, expected};
use super::*;

const WIDE: BatchLimits = BatchLimits { step_tokens_max: 64, ..LIMITS };

#[test]
fn a_token_in_flight_has_a_placeholder() {
    let (mut batch, mut device) = (Batch::new(WIDE, WEIGHTS), FakeDevice::new(WIDE));
    let sequences = [assign(1, 4, 3), assign(2, 5, 3)].map(|a| Assign { stop_tokens: vec![], ..a });
    sequences.iter().for_each(|a| batch.assign(a.clone()));
    let first = batch.plan().unwrap();
    let second = batch.plan().unwrap();
    assert_eq!((first.placeholders.len(), first.tokens.len()), (0, 9));
    assert_eq!(second.placeholders, [Placeholder { row: 0, draw: 0 }, Placeholder { row: 1, draw: 1 }]);
    assert_eq!(second.draws.iter().map(|d| d.position).collect::<Vec<_>>(), [5, 6]);
    assert!(batch.plan().is_none(), "two are enough");
    let (drawn_first, drawn_second) = (device.step(&first), device.step(&second));
    batch.apply(first, StepOutput::of(&drawn_first), Duration::ZERO);
    let third = batch.plan().unwrap();
    let drawn_third = device.step(&third);
    batch.apply(second, StepOutput::of(&drawn_second), Duration::ZERO);
    assert!(batch.plan().is_none(), "both have all their tokens in flight: no row is planned beyond max_new");
    batch.apply(third, StepOutput::of(&drawn_third), Duration::ZERO);
    let news = batch.take_news();
    for a in &sequences {
        let tokens = news.iter().filter(|i| i.sequence == a.sequence).flat_map(|i| i.tokens.clone());
        assert_eq!(tokens.collect::<Vec<_>>(), expected(a).0);
    }
    assert_eq!((batch.sequences(), batch.blocks_used(), batch.stats().rows_discarded), ((0, 0), 0, 0));
}

#[test]
fn the_row_after_a_stop_is_discarded_and_never_reported() {
    let mut batch = Batch::new(WIDE, WEIGHTS);
    batch.assign(assign(1, 15, 30));
    batch.assign(assign(2, 3, 30));
    let (first, second) = (batch.plan().unwrap(), batch.plan().unwrap());
    batch.apply(first, StepOutput::of(&[99, 5]), Duration::ZERO);
    assert_eq!(ends(&mut batch), [(1, End::Stop)]);
    assert_eq!(batch.blocks_used(), 1, "its blocks are free though a row of it is in flight");
    // Somebody else takes the block that the row in flight writes to; its own row comes after that one.
    batch.assign(assign(3, 10, 5));
    let third = batch.plan().unwrap();
    assert!(third.spans.len() == 2 && third.blocks[0].contains(&0));
    batch.apply(second, StepOutput::of(&[7, 6]), Duration::ZERO);
    let news = batch.take_news();
    assert_eq!(news.iter().map(|i| (i.sequence.0, i.tokens.clone())).collect::<Vec<_>>(), [(2, vec![6])]);
    assert_eq!(batch.stats().rows_discarded, 1);
    batch.apply(third, StepOutput::of(&[1, 2]), Duration::ZERO);
    batch.assert_sound();
}

#[test]
fn penalties_need_the_token_so_nobody_steps_ahead_of_them() {
    let mut batch = Batch::new(WIDE, WEIGHTS);
    let sampling = Sampling { frequency_penalty: 0.5, ..Sampling::default() };
    batch.assign(Assign { sampling, ..assign(1, 4, 10) });
    batch.assign(assign(2, 4, 10));
    let first = batch.plan().unwrap();
    assert!(batch.plan().is_none(), "the batch stays whole");
    batch.apply(first, StepOutput::of(&[5, 6]), Duration::ZERO);
    let second = batch.plan().unwrap();
    assert_eq!((second.tokens.clone(), second.placeholders.len()), (vec![5, 6], 0));
    batch.apply(second, StepOutput::of(&[5, 99]), Duration::ZERO);
    // A long prompt of it may be cut into steps that follow each other: its tokens are known.
    batch.cancel(SequenceId(1));
    let sampling = Sampling { repetition_penalty: 1.1, ..Sampling::default() };
    batch.assign(Assign { sampling, ..assign(3, 90, 5) });
    let (first, second) = (batch.plan().unwrap(), batch.plan().unwrap());
    assert_eq!((first.spans[0].rows, second.spans[0].rows), (64, 26));
}

#[test]
fn whatever_reads_earlier_tokens_needs_the_last_one() {
    let plain = Sampling::default();
    for (sampling, bad_words, waits) in [
        (Sampling { dry_multiplier: 0.5, ..plain.clone() }, vec![], true),
        (plain.clone(), vec![vec![3], vec![4, 5]], true),
        (plain.clone(), vec![vec![3], vec![4]], false),
        (Sampling { xtc_probability: 0.5, typical_p: 0.5, min_tokens: 4, ..plain }, vec![], false),
    ] {
        let mut batch = Batch::new(WIDE, WEIGHTS);
        batch.assign(Assign { sampling, bad_words, ..assign(1, 4, 10) });
        batch.plan().unwrap();
        assert_eq!(batch.plan().is_none(), waits);
    }
}

#[test]
fn credit_bounds_what_is_in_flight() {
    let mut batch = Batch::new(WIDE, WEIGHTS);
    batch.assign(Assign { credit: 2, ..assign(1, 4, 10) });
    let (first, second) = (batch.plan().unwrap(), batch.plan().unwrap());
    batch.apply(first, StepOutput::of(&[5]), Duration::ZERO);
    assert!(batch.plan().is_none());
    batch.apply(second, StepOutput::of(&[5]), Duration::ZERO);
    assert!(batch.plan().is_none());
    batch.credit(SequenceId(1), 3);
    let third = batch.plan().unwrap();
    assert_eq!((third.tokens.clone(), third.placeholders.len()), (vec![5], 0));
    assert!(batch.plan().is_none());
    batch.apply(third, StepOutput::of(&[5]), Duration::ZERO);
    assert_eq!(batch.take_news().len(), 3);
}

#[test]
fn who_is_cancelled_in_flight_is_gone_at_once_even_if_its_name_comes_back() {
    let mut batch = Batch::new(WIDE, WEIGHTS);
    batch.assign(assign(1, 4, 10));
    let (first, second) = (batch.plan().unwrap(), batch.plan().unwrap());
    batch.cancel(SequenceId(1));
    assert_eq!((ends(&mut batch), batch.blocks_used()), (vec![(1, End::Cancelled)], 0));
    batch.assign(assign(1, 4, 10));
    batch.apply(first, StepOutput::of(&[5]), Duration::ZERO);
    let third = batch.plan().unwrap();
    batch.apply(second, StepOutput::of(&[5]), Duration::ZERO);
    assert_eq!(batch.take_news(), [], "tokens of the one that is gone are not the new one's");
    batch.apply(third, StepOutput::of(&[6]), Duration::ZERO);
    assert_eq!(batch.take_news()[0].tokens, [6]);
}

#[test]
#[should_panic(expected = "applied in order")]
fn steps_are_applied_in_order() {
    let mut batch = Batch::new(WIDE, WEIGHTS);
    batch.assign(assign(1, 4, 10));
    let (_first, second) = (batch.plan().unwrap(), batch.plan().unwrap());
    batch.apply(second, StepOutput::of(&[5]), Duration::ZERO);
}
