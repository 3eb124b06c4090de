use super::fake::{FakeDevice, expected, run};
use super::*;
use crate::device::kv_cache::KvWay;

const TIGHT: BatchLimits = BatchLimits { step_tokens_max: 64, kv_blocks: 6, ..LIMITS };

fn spilling(blocks: u32, host_blocks: u32) -> KvPlan {
    let mut plan = KvPlan::plain(blocks);
    plan.groups[0].host_blocks = host_blocks;
    plan
}

/// Runs them to their ends; what happened, and how many rows that took.
fn generate(kv: &KvPlan, assigns: &[Assign]) -> (BatchStats, usize) {
    let (mut batch, mut device) = (Batch::with_kv(TIGHT, WEIGHTS, kv), FakeDevice::with_kv(kv));
    assigns.iter().for_each(|a| batch.assign(a.clone()));
    let (mut outputs, mut rows) = (HashMap::<u64, Vec<u32>>::new(), 0);
    while let Some(plan) = batch.plan() {
        rows += plan.tokens.len();
        let drawn = device.step(&plan);
        batch.apply(plan, StepOutput::of(&drawn), Duration::ZERO);
        batch.assert_sound();
        batch.take_news().into_iter().for_each(|i| outputs.entry(i.sequence.0).or_default().extend(i.tokens));
    }
    for assign in assigns {
        assert_eq!(outputs[&assign.sequence.0], expected(assign).0);
    }
    (batch.stats(), rows)
}

#[test]
fn a_preempted_sequence_gets_its_blocks_back_instead_of_computing_them_again() {
    let other = |id| Assign { tokens: (0..30).map(|i| 1_000 * id as u32 + i).collect(), ..assign(id, 30, 40) };
    let assigns = [other(1), other(2)];
    let (forgetful, rows_forgetful) = generate(&spilling(6, 0), &assigns);
    let (spilled, rows_spilled) = generate(&spilling(6, 12), &assigns);
    assert!(forgetful.preemptions > 0 && spilled.preemptions > 0, "{forgetful:?} {spilled:?}");
    assert_eq!((forgetful.spilled, forgetful.restored), (0, 0));
    assert!(spilled.restored > 0 && spilled.spilled >= spilled.restored, "{spilled:?}");
    assert!(rows_spilled < rows_forgetful, "{rows_spilled} rows instead of {rows_forgetful}");
}

#[test]
fn a_prompt_whose_room_was_needed_is_found_again() {
    let kv = spilling(6, 6);
    let (mut batch, mut device) = (Batch::with_kv(TIGHT, WEIGHTS, &kv), FakeDevice::with_kv(&kv));
    let other = |id, first: u32| Assign { tokens: (first..first + 60).collect(), ..assign(id, 60, 1) };
    for (id, first) in [(1, 0), (2, 500)] {
        batch.assign(other(id, first));
        while run(&mut batch, &mut device) {}
    }
    assert_eq!((batch.stats().spilled, batch.stats().restored), (1, 0));
    batch.assign(other(3, 0));
    let plan = batch.plan().unwrap();
    let ways: Vec<KvWay> = plan.copies.iter().map(|c| c.way).collect();
    // Two of its blocks are here still and one comes back; the next one's room was the other prompt's.
    assert_eq!(ways, [KvWay::In, KvWay::Out], "{:?}", plan.copies);
    assert_eq!(plan.tokens.len(), 60 - 48, "all full blocks but the last token's are there");
    let drawn = device.step(&plan);
    batch.apply(plan, StepOutput::of(&drawn), Duration::ZERO);
    assert_eq!(batch.take_news().pop().unwrap().tokens, expected(&other(3, 0)).0);
    assert_eq!(batch.stats().prefix_hit_tokens, 48);
}
