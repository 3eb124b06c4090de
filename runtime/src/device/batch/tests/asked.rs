//! Tokens that a draft model guesses: what is drawn stays the same, only the number of steps changes.

use cuckoo_kernels::KvKind;

use super::fake::{FakePair, expected, expected_of};
use super::*;
use crate::device::draft_model::DraftPlan;
use crate::device::kv_plan::GroupPlan;

const ASKING: BatchLimits =
    BatchLimits { step_tokens_max: 64, drafts_max: 6, kv_blocks: 40, context_tokens: 400, ..LIMITS };

fn draft(blocks: u32) -> DraftPlan {
    DraftPlan { kv: KvPlan::plain(blocks), context_tokens: 400 }
}

/// A batch that has seen that a row costs a hundredth of a step, and a pass of the draft model next to nothing.
fn batch(limits: BatchLimits, draft: &DraftPlan) -> Batch {
    let mut batch = unmeasured(limits, draft);
    batch.draft_model.as_mut().unwrap().observe([(1, Duration::from_micros(1))].into_iter());
    batch
}

/// The same, with a draft model of which nothing is known.
fn unmeasured(limits: BatchLimits, draft: &DraftPlan) -> Batch {
    let mut batch = Batch::new(limits, WEIGHTS).with_draft(draft);
    for _ in 0..20 {
        batch.budget.observe(64, Duration::from_micros(1_640));
        batch.budget.observe(1, Duration::from_micros(1_010));
    }
    batch
}

/// Nothing that it says can be found in what it said.
fn unlike(id: u64, known: u32, max_new: u32) -> Assign {
    Assign { stop_tokens: vec![], ..assign(2 * id, known, max_new) }
}

fn took(plan: &StepPlan) -> Duration {
    Duration::from_micros(1_000 + 10 * plan.tokens.len() as u64)
}

/// Runs until everybody has ended: steps, and news.
fn run(batch: &mut Batch, device: &mut FakePair) -> (u32, Vec<StepItem>) {
    let (mut steps, mut news) = (0, Vec::new());
    while let Some(plan) = batch.plan() {
        let (output, took) = (device.step(&plan), took(&plan));
        batch.apply(plan, output, took);
        batch.assert_sound();
        news.extend(batch.take_news());
        steps += 1;
    }
    assert_eq!(batch.draft_model.as_ref().map_or(0, DraftModel::blocks_used), 0, "all its blocks return");
    (steps, news)
}

fn output(news: &[StepItem], assign: &Assign) -> Vec<u32> {
    news.iter().filter(|i| i.sequence == assign.sequence).flat_map(|i| i.tokens.clone()).collect()
}

#[test]
fn it_reads_what_it_missed_and_then_draws_ahead_of_the_target() {
    let mut batch = batch(ASKING, &draft(40));
    batch.assign(unlike(1, 20, 30));
    step(&mut batch, 7);
    let plan = batch.plan().unwrap();
    let rows: Vec<_> = plan.passes.iter().map(|p| (p.spans[0].first_position, p.tokens.clone())).collect();
    assert_eq!(rows[0], (0, (0..20).chain([7]).collect()), "all that is known");
    assert_eq!(rows[1..], (21..26).map(|at| (at, vec![0])).collect::<Vec<_>>(), "then each token that it drew");
    assert!(plan.passes[1..].iter().all(|p| p.placeholders == [Placeholder { row: 0, draw: 0 }]));
    let positions: Vec<_> = plan.passes.iter().map(|p| (p.draws[0].position, p.draws[0].seed)).collect();
    assert_eq!(positions, (21..27).map(|at| (at, 2)).collect::<Vec<_>>(), "with the noise that the target will have");
    assert_eq!(
        plan.guesses.iter().map(|g| (g.row, g.from.pass)).collect::<Vec<_>>(),
        (1..7).zip(0..6).collect::<Vec<_>>()
    );
    assert_eq!(plan.tokens.len(), 7);
    // Two of six are right, so it goes on after those and the one that was drawn instead.
    let output = StepOutput {
        guesses: vec![10, 11, 12, 13, 14, 15],
        passes: vec![Duration::ZERO; 6],
        ..StepOutput::of(&[10, 11, 22, 1, 2, 3, 4])
    };
    batch.apply(plan, output, Duration::from_millis(1));
    assert_eq!(batch.take_news().pop().unwrap().tokens, [10, 11, 22]);
    let plan = batch.plan().unwrap();
    assert_eq!((plan.passes[0].spans[0].first_position, plan.passes[0].tokens.clone()), (23, vec![22]));
    let stats = batch.stats();
    assert_eq!((stats.drafts_asked, stats.drafts_asked_accepted, stats.draft_model_rows), (6, 2, 26));
}

#[test]
fn output_is_the_same_in_far_fewer_steps() {
    for (wrong, at_most) in [(0, 40), (4, 60), (1, 110)] {
        let kv = KvPlan::plain(40);
        let (mut batch, mut device) = (batch(ASKING, &draft(40)), FakePair::new(&kv, &kv));
        device.wrong = wrong;
        let assigns = [1, 2, 3].map(|id| unlike(id, 20 + id as u32, 100));
        assigns.iter().for_each(|a| batch.assign(a.clone()));
        let (steps, news) = run(&mut batch, &mut device);
        assigns.iter().for_each(|a| assert_eq!(output(&news, a), expected(a).0));
        let stats = batch.stats();
        println!("wrong {wrong}: {steps} steps, {stats:?}");
        assert!(steps <= at_most, "{steps} steps: {stats:?}");
        match wrong {
            0 => assert_eq!(stats.drafts_asked, stats.drafts_asked_accepted),
            1 => assert!(stats.drafts_asked < 40 && stats.drafts_asked_accepted == 0, "it is hardly asked: {stats:?}"),
            _ => assert!(stats.drafts_asked > stats.drafts_asked_accepted),
        }
    }
}

#[test]
fn what_is_found_in_the_text_is_not_asked_for() {
    let mut batch = batch(ASKING, &draft(40));
    batch.assign(Assign { tokens: vec![1, 2, 3, 4, 5, 6, 1], ..unlike(1, 7, 20) });
    step(&mut batch, 2);
    let plan = batch.plan().unwrap();
    assert_eq!((plan.tokens.len() > 1, plan.passes.len(), plan.guesses.len()), (true, 0, 0));
}

#[test]
fn it_is_not_asked_where_that_does_not_pay_or_cannot_be() {
    let asked = |mut batch: Batch, assign: Assign| {
        batch.assign(assign);
        step(&mut batch, 7);
        !batch.plan().unwrap().passes.is_empty()
    };
    assert!(asked(batch(ASKING, &draft(40)), unlike(1, 20, 30)));
    let unknown = Batch::new(ASKING, WEIGHTS).with_draft(&draft(40));
    assert!(!asked(unknown, unlike(1, 5, 30)), "nothing is known of costs yet");
    let mut dear = Batch::new(ASKING, WEIGHTS).with_draft(&draft(40));
    dear.budget.observe(64, Duration::from_millis(64));
    dear.budget.observe(1, Duration::from_millis(1));
    assert!(!asked(dear, unlike(1, 20, 30)), "a row costs a token");
    let mut first = unmeasured(ASKING, &draft(40));
    first.assign(unlike(1, 20, 30));
    step(&mut first, 7);
    assert_eq!(first.plan().unwrap().guesses.len(), 1, "a first guess shows what it costs");
    let mut slow = unmeasured(ASKING, &draft(40));
    slow.draft_model.as_mut().unwrap().observe([(1, Duration::from_millis(1))].into_iter());
    assert!(!asked(slow, unlike(1, 20, 30)), "it is as slow as the target");
    let sampling = Sampling { presence_penalty: 1.0, ..Sampling::default() };
    assert!(!asked(batch(ASKING, &draft(40)), Assign { sampling, ..unlike(1, 20, 30) }), "penalties need each token");
    assert!(!asked(batch(ASKING, &draft(40)), unlike(1, 20, 2)), "one token is left: none is guessed");
    assert!(!asked(batch(ASKING, &draft(40)), Assign { credit: 2, ..unlike(1, 20, 30) }), "one may be sent");
    let short = DraftPlan { context_tokens: 20, ..draft(40) };
    assert!(!asked(batch(ASKING, &short), unlike(1, 20, 30)), "its context is shorter");
    assert!(asked(batch(ASKING, &short), unlike(1, 19, 30)));
    assert!(!asked(batch(BatchLimits { drafts_max: 0, ..ASKING }, &draft(40)), unlike(1, 20, 30)));

    let mut busy = batch(ASKING, &draft(40));
    busy.assign(unlike(1, 20, 30));
    step(&mut busy, 7);
    busy.assign(unlike(2, 90, 5));
    assert!(busy.plan().unwrap().passes.is_empty(), "a prompt wants the rows");
}

#[test]
fn a_long_text_is_caught_up_with_in_pieces_if_it_will_pay() {
    let kv = KvPlan::plain(40);
    let (mut batch, mut device) = (batch(ASKING, &draft(40)), FakePair::new(&kv, &kv));
    let a = unlike(1, 200, 60);
    batch.assign(a.clone());
    let (mut rows, mut plans) = (Vec::new(), 0);
    let mut news = Vec::new();
    while let Some(plan) = batch.plan() {
        rows.push(plan.passes.first().map_or(0, |p| p.tokens.len()));
        assert!(rows.iter().all(|r| *r <= 64));
        let (output, took) = (device.step(&plan), took(&plan));
        batch.apply(plan, output, took);
        batch.assert_sound();
        news.extend(batch.take_news());
        plans += 1;
    }
    assert_eq!(output(&news, &a), expected(&a).0);
    let first = rows.iter().position(|r| *r > 0).unwrap();
    assert_eq!(rows[first..first + 3], [64, 64, 64], "{rows:?}");
    assert!(plans < 40, "{plans} plans: {rows:?}");
}

#[test]
fn beginnings_are_shared_and_blocks_may_lack() {
    let kv = KvPlan::plain(40);
    let (mut batch, mut device) = (batch(ASKING, &draft(40)), FakePair::new(&kv, &kv));
    batch.assign(unlike(1, 80, 30));
    run(&mut batch, &mut device);
    let rows = batch.stats().draft_model_rows;
    batch.assign(Assign { seed: 8, ..unlike(2, 80, 30) });
    run(&mut batch, &mut device);
    assert!(batch.stats().draft_model_rows < 2 * rows - 60, "the prompt is read once");

    // Room for one and a half.
    let little = KvPlan::plain(9);
    let (mut batch, mut device) = (super::asked::batch(ASKING, &draft(9)), FakePair::new(&kv, &little));
    let assigns = [1, 2, 3].map(|id| Assign { tokens: vec![id as u32; 60], ..unlike(id, 60, 60) });
    assigns.iter().for_each(|a| batch.assign(a.clone()));
    let (_, news) = run(&mut batch, &mut device);
    assigns.iter().for_each(|a| assert_eq!(output(&news, a), expected(a).0));
    assert!(batch.stats().drafts_asked > 0);
}

#[test]
fn windows_of_its_layers_are_its_own() {
    let group = |window, blocks| GroupPlan { window, block_bytes: 0, blocks, host_blocks: 0 };
    let kv = KvPlan { kind: KvKind::F16, groups: vec![group(Some(20), 30), group(None, 40)] };
    let mut batch = Batch::with_kv(ASKING, WEIGHTS, &kv).with_draft(&DraftPlan { kv: kv.clone(), context_tokens: 400 });
    batch.budget.observe(64, Duration::from_micros(1_640));
    batch.budget.observe(1, Duration::from_micros(1_010));
    let mut device = FakePair::new(&kv, &kv);
    let assigns = [1, 2].map(|id| unlike(id, 100, 100));
    assigns.iter().for_each(|a| batch.assign(a.clone()));
    let (_, news) = run(&mut batch, &mut device);
    assigns.iter().for_each(|a| assert_eq!(output(&news, a), expected_of(&[Some(20), None], a).0));
    let stats = batch.stats();
    assert!(stats.drafts_asked > 60 && stats.drafts_asked == stats.drafts_asked_accepted, "{stats:?}");
}

#[test]
fn one_that_fails_is_asked_no_more_and_stops_nobody() {
    let kv = KvPlan::plain(40);
    let (mut batch, mut device) = (batch(ASKING, &draft(40)), FakePair::new(&kv, &kv));
    let a = unlike(1, 20, 60);
    batch.assign(a.clone());
    let (mut news, mut asked) = (Vec::new(), 0);
    while let Some(plan) = batch.plan() {
        asked += usize::from(!plan.passes.is_empty());
        let mut output = device.step(&plan);
        if asked == 3 {
            // It broke down in the middle: what it did not guess is any token.
            output.passes.truncate(1);
            output.guesses.iter_mut().skip(1).for_each(|guess| *guess = 0);
            output.drawn = device.target.step_guessed(&plan, &output.guesses);
            output.draft_fault = Some("a broken kernel".to_owned());
        }
        batch.apply(plan, output, Duration::from_millis(1));
        batch.assert_sound();
        news.extend(batch.take_news());
    }
    assert_eq!((asked, output(&news, &a)), (3, expected(&a).0));
}

#[test]
fn one_that_was_not_worth_it_is_tried_again_some_day() {
    let kv = KvPlan::plain(40);
    let (mut batch, mut device) = (unmeasured(ASKING, &draft(40)), FakePair::new(&kv, &kv));
    // Measured in a busy moment.
    batch.draft_model.as_mut().unwrap().observe([(1, Duration::from_millis(4))].into_iter());
    batch.assign(unlike(1, 20, 350));
    let (steps, _) = run(&mut batch, &mut device);
    let stats = batch.stats();
    assert!((220..310).contains(&steps) && stats.drafts_asked > 40, "{steps} steps, {stats:?}");
}
