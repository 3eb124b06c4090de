//! Blocks: shared, evicted, taken away and given back.

use super::fake::{FakeDevice, expected, run};
use super::*;
use crate::device::choices::Choices;

/// A sequence with tokens of its own: no two prompts begin alike.
fn own(id: u64, known: u32, max_new: u32) -> Assign {
    Assign {
        tokens: (0..known).map(|i| 1_000 * (id as u32 + 1) + i).collect(),
        stop_tokens: vec![],
        ..assign(id, known, max_new)
    }
}

fn outputs(batch: &mut Batch, into: &mut HashMap<u64, Vec<u32>>) -> Vec<(u64, End)> {
    let mut ends = Vec::new();
    for item in batch.take_news() {
        let output = into.entry(item.sequence.0).or_default();
        assert_eq!(output.len(), item.first as usize, "gapless");
        output.extend(item.tokens);
        ends.extend(item.end.map(|end| (item.sequence.0, end)));
    }
    ends
}

const WIDE: BatchLimits = BatchLimits { step_tokens_max: 64, ..LIMITS };

#[test]
fn a_prompt_that_was_computed_is_not_computed_again() {
    let (mut batch, mut device) = (Batch::new(WIDE, WEIGHTS), FakeDevice::new(WIDE));
    let first = own(1, 40, 3);
    batch.assign(first.clone());
    while run(&mut batch, &mut device) {}
    assert_eq!((batch.blocks_used(), batch.cache.cached()), (0, 2), "its two full blocks stay");
    let again = Assign { sequence: SequenceId(2), ..first.clone() };
    batch.assign(again);
    assert_eq!(batch.cached_tokens(SequenceId(2)), None, "it did not run yet");
    let plan = batch.plan().unwrap();
    assert_eq!((plan.spans[0].first_position, plan.spans[0].rows), (32, 8));
    assert_eq!(batch.cached_tokens(SequenceId(2)), Some(32));
    let drawn = device.step(&plan);
    batch.apply(plan, StepOutput::of(&drawn), Duration::ZERO);
    while run(&mut batch, &mut device) {}
    let mut all = HashMap::new();
    outputs(&mut batch, &mut all);
    assert_eq!(all[&1], expected(&first).0);
    assert_eq!(all[&1], all[&2]);
    let stats = batch.stats();
    assert_eq!((stats.prefix_lookup_tokens, stats.prefix_hit_tokens, stats.preemptions), (80, 32, 0));
}

#[test]
fn the_last_token_is_always_computed() {
    let (mut batch, mut device) = (Batch::new(WIDE, WEIGHTS), FakeDevice::new(WIDE));
    batch.assign(own(1, 32, 2));
    while run(&mut batch, &mut device) {}
    batch.assign(Assign { sequence: SequenceId(2), ..own(1, 32, 2) });
    let plan = batch.plan().unwrap();
    assert_eq!((plan.spans[0].first_position, plan.spans[0].rows), (16, 16), "the block of the last token");
    let drawn = device.step(&plan);
    batch.apply(plan, StepOutput::of(&drawn), Duration::ZERO);
    batch.assert_sound();
    assert_eq!((batch.blocks_used(), batch.cache.cached()), (2, 2), "and then the old one is used again");
}

#[test]
fn accounts_do_not_share() {
    let (mut batch, mut device) = (Batch::new(WIDE, WEIGHTS), FakeDevice::new(WIDE));
    for (id, salt) in [(1, 0), (2, 7), (3, 8), (4, 7)] {
        batch.assign(Assign { sequence: SequenceId(id), cache_salt: [salt; 16], ..own(1, 33, 2) });
        run(&mut batch, &mut device);
        let hit = if id == 4 { 32 } else { 0 };
        assert_eq!(batch.cached_tokens(SequenceId(id)), Some(hit), "sequence {id}");
        while run(&mut batch, &mut device) {}
    }
}

#[test]
fn adapters_do_not_share_and_a_plan_says_who_uses_which() {
    let adapters = [WeightsHash([7; 32]), WeightsHash([8; 32])];
    let (mut batch, mut device) = (Batch::new(WIDE, WEIGHTS).with_adapters(&adapters), FakeDevice::new(WIDE));
    for (id, number, hit) in [(1, None, 0), (2, Some(0), 0), (3, Some(1), 0), (4, Some(0), 32), (5, None, 32)] {
        let adapter = number.map(|number: usize| adapters[number]);
        batch.assign(Assign { sequence: SequenceId(id), adapter, ..own(1, 33, 2) });
        let plan = batch.plan().unwrap();
        assert_eq!((&plan.adapters, &plan.owners), (&vec![number], &vec![SequenceId(id)]));
        let drawn = device.step(&plan);
        batch.apply(plan, StepOutput::of(&drawn), Duration::ZERO);
        assert_eq!(batch.cached_tokens(SequenceId(id)), Some(hit), "sequence {id}");
        while run(&mut batch, &mut device) {}
    }
}

#[test]
fn running_sequences_share_full_blocks_and_nothing_else() {
    let (mut batch, mut device) = (Batch::new(WIDE, WEIGHTS), FakeDevice::new(WIDE));
    // Both are computed in one step, as neither is there yet; from then on there is one copy.
    batch.assign(own(1, 40, 20));
    batch.assign(Assign { sequence: SequenceId(2), seed: 77, ..own(1, 40, 20) });
    let plan = batch.plan().unwrap();
    assert_eq!(plan.spans.iter().map(|s| s.rows).collect::<Vec<_>>(), [40, 24]);
    let drawn = device.step(&plan);
    batch.apply(plan, StepOutput::of(&drawn), Duration::ZERO);
    assert_eq!(batch.blocks_used(), 3 + 2, "the second's first block is merged with the first's");
    let plan = batch.plan().unwrap();
    assert_eq!(plan.spans.iter().map(|s| s.rows).collect::<Vec<_>>(), [1, 8], "nor computes it on");
    let drawn = device.step(&plan);
    batch.apply(plan, StepOutput::of(&drawn), Duration::ZERO);
    assert_eq!(batch.blocks_used(), 4, "two shared, and one of its own for each");
    while run(&mut batch, &mut device) {}
    let mut all = HashMap::new();
    assert_eq!(outputs(&mut batch, &mut all).len(), 2);
    assert_eq!(all[&1], expected(&own(1, 40, 20)).0);
    assert_eq!(all[&2], expected(&Assign { seed: 77, ..own(1, 40, 20) }).0);
}

#[test]
fn of_many_that_begin_alike_one_computes_the_beginning() {
    let limits = BatchLimits { kv_blocks: 30, sequences_max: 4, step_tokens_max: 100, ..LIMITS };
    let (mut batch, mut device) = (Batch::new(limits, WEIGHTS), FakeDevice::new(limits));
    let alike: Vec<Assign> = (0..4)
        .map(|id| {
            let tokens = (0..80).map(|i| if i < 70 { i } else { 1_000 * (id + 1) + i }).collect();
            Assign { tokens, ..own(u64::from(id), 80, 5) }
        })
        .collect();
    alike.iter().for_each(|a| batch.assign(a.clone()));
    let mut rows = Vec::new();
    while let Some(plan) = batch.plan() {
        rows.push(plan.tokens.len());
        let drawn = device.step(&plan);
        batch.apply(plan, StepOutput::of(&drawn), Duration::ZERO);
        batch.assert_sound();
    }
    // The second began beside the first, and goes on from the first's blocks; the others find them.
    assert_eq!(rows[..2], [80 + 20, 1 + 3 * 16]);
    assert_eq!(batch.stats().prefix_hit_tokens, (64 - 20) + 2 * 64);
    let mut all = HashMap::new();
    outputs(&mut batch, &mut all);
    alike.iter().for_each(|a| assert_eq!(all[&a.sequence.0], expected(a).0));
}

const TIGHT: BatchLimits = BatchLimits { kv_blocks: 4, ..WIDE };

#[test]
fn the_youngest_makes_room_and_its_output_is_the_same() {
    let (mut batch, mut device) = (Batch::new(TIGHT, WEIGHTS), FakeDevice::new(TIGHT));
    batch.assign(own(1, 16, 48));
    batch.assign(own(2, 16, 48));
    assert_eq!(batch.window().blocks, 8, "both may come, though the worst case of one fills the device");
    let (mut all, mut ends) = (HashMap::new(), Vec::new());
    let mut oldest_waited = 0;
    while run(&mut batch, &mut device) {
        let before = all.get(&1).map_or(0, Vec::len);
        ends.extend(outputs(&mut batch, &mut all));
        oldest_waited += u32::from(ends.is_empty() && all.get(&1).map_or(0, Vec::len) == before);
    }
    assert_eq!(ends, [(1, End::Length), (2, End::Length)]);
    assert_eq!(oldest_waited, 0, "the oldest never waits");
    assert_eq!((all[&1].clone(), all[&2].clone()), (expected(&own(1, 16, 48)).0, expected(&own(2, 16, 48)).0));
    assert!(batch.stats().preemptions >= 1 && batch.blocks_used() == 0);
    assert_eq!(batch.stats().prefix_lookup_tokens, 32, "coming back is not looked up twice");
}

#[test]
fn who_has_no_credit_makes_room_first_and_comes_back_with_it() {
    let (mut batch, mut device) = (Batch::new(TIGHT, WEIGHTS), FakeDevice::new(TIGHT));
    batch.assign(Assign { credit: 2, ..own(1, 16, 30) });
    batch.assign(own(2, 16, 48));
    let (mut all, mut ends) = (HashMap::new(), Vec::new());
    while run(&mut batch, &mut device) {
        ends.extend(outputs(&mut batch, &mut all));
    }
    assert_eq!(ends, [(2, End::Length)], "a reader that sleeps holds nobody up");
    assert_eq!((all[&1].len(), batch.sequences()), (2, (0, 1)));
    batch.credit(SequenceId(1), 3);
    run(&mut batch, &mut device);
    outputs(&mut batch, &mut all);
    assert_eq!(all[&1].len(), 3, "exactly what it was given");
    batch.credit(SequenceId(1), 30);
    while run(&mut batch, &mut device) {}
    outputs(&mut batch, &mut all);
    assert_eq!(all[&1], expected(&own(1, 16, 30)).0);
}

#[test]
fn a_large_prompt_waits_for_its_blocks_and_is_not_overtaken() {
    let (mut batch, mut device) = (Batch::new(TIGHT, WEIGHTS), FakeDevice::new(TIGHT));
    batch.assign(own(1, 30, 10));
    batch.assign(own(2, 40, 8));
    batch.assign(own(3, 2, 2));
    run(&mut batch, &mut device);
    assert_eq!(batch.sequences(), (1, 2), "three blocks for the second do not fit beside two");
    let mut all = HashMap::new();
    while run(&mut batch, &mut device) {}
    assert_eq!(outputs(&mut batch, &mut all).iter().map(|e| e.0).collect::<Vec<_>>(), [1, 3, 2]);
}

#[test]
fn what_could_never_fit_is_refused_with_its_numbers() {
    let limits = BatchLimits { kv_blocks: 4, ..LIMITS };
    let mut batch = Batch::new(limits, WEIGHTS);
    batch.assign(own(1, 40, 25));
    let Some((1, End::Failed(why))) = ends(&mut batch).pop() else { panic!("it was taken in") };
    assert_eq!(why, "40 tokens and 25 new ones need 5 KV blocks of 16, and there are 4");
    batch.assign(own(2, 40, 24));
    assert_eq!((ends(&mut batch), batch.sequences()), (vec![], (0, 1)));
}

/// A hundred thousand short requests: nothing that is kept grows, and nothing is lost.
#[test]
fn memory_is_flat_over_a_hundred_thousand_sequences() {
    let limits = BatchLimits { sequences_max: 16, step_tokens_max: 64, kv_blocks: 128, ..LIMITS };
    let (mut batch, mut device) = (Batch::new(limits, WEIGHTS), FakeDevice::new(limits));
    let mut choices = Choices(3);
    let (mut next, mut ended, mut warm) = (0u64, 0u64, 0);
    while ended < 100_000 {
        while batch.sequences().0 + batch.sequences().1 < 20 && next < 100_000 {
            // Few families, so that some prompts are found in the cache and others push them out.
            let family = choices.below(40);
            let known = choices.between(1, 40);
            batch.assign(Assign { sequence: SequenceId(next), ..own(family, known, choices.between(1, 6)) });
            next += 1;
        }
        let plan = batch.plan().unwrap();
        let drawn = device.step(&plan);
        batch.apply(plan, StepOutput::of(&drawn), Duration::ZERO);
        ended += batch.take_news().iter().filter(|i| i.end.is_some()).count() as u64;
        if ended <= 2_000 {
            warm = batch.footprint();
        }
    }
    batch.assert_sound();
    // What a hash table has room for wavers with what was removed from it, by a few entries.
    let grown = batch.footprint().saturating_sub(warm);
    assert!(grown <= warm / 20, "as much after a hundred thousand as after two: {warm} and {grown} more");
    let stats = batch.stats();
    assert!(stats.prefix_hit_tokens > 100_000 && stats.evictions > 10_000, "{stats:?}");
    assert_eq!((batch.blocks_used(), batch.sequences()), (0, (0, 0)));
}

/// One sequence takes nearly the whole context, which no slot limits; who asks for more, and who leaves, goes alone.
#[test]
fn who_is_too_long_or_cancelled_disturbs_nobody() {
    let (mut batch, mut device) = (Batch::new(WIDE, WEIGHTS), FakeDevice::new(WIDE));
    let (long, short) = (own(1, 80, 16), own(2, 10, 8));
    for assign in [long.clone(), short.clone(), own(3, 10, 8)] {
        batch.assign(assign);
    }
    let (mut all, mut over) = (HashMap::new(), Vec::new());
    for _ in 0..3 {
        assert!(run(&mut batch, &mut device));
    }
    over.extend(outputs(&mut batch, &mut all));
    assert_eq!((over.len(), batch.sequences().0), (0, 3), "all three run");
    batch.assign(own(4, 90, 40));
    batch.cancel(SequenceId(3));
    over.extend(outputs(&mut batch, &mut all));
    over.sort_by_key(|end| end.0);
    assert!(matches!(&over[..], [(3, End::Cancelled), (4, End::Failed(_))]), "{over:?}");
    while run(&mut batch, &mut device) {}
    assert_eq!(outputs(&mut batch, &mut all).len(), 2);
    assert_eq!((&all[&1], &all[&2]), (&expected(&long).0, &expected(&short).0));
    assert_eq!((batch.blocks_used(), batch.stats().preemptions), (0, 0));
}
