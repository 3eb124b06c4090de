//! Tokens that are guessed: what is drawn stays the same, only the number of steps changes.

use super::fake::{FakeDevice, expected, run};
use super::*;

const GUESSING: BatchLimits = BatchLimits { step_tokens_max: 64, drafts_max: 4, ..LIMITS };

/// A batch that has seen that rows cost nothing.
fn batch(limits: BatchLimits) -> Batch {
    let mut batch = Batch::new(limits, WEIGHTS);
    batch.budget.observe(64, Duration::ZERO);
    batch.budget.observe(1, Duration::ZERO);
    batch
}

/// A sequence that has read `1 2 3 4` and stands after `1 2` again.
fn repeating(id: u64, max_new: u32) -> Assign {
    Assign { tokens: vec![1, 2, 3, 4, 5, 6, 1], stop_tokens: vec![], ..assign(id, 7, max_new) }
}

#[test]
fn right_guesses_are_several_tokens_of_one_step() {
    let mut batch = batch(GUESSING);
    batch.assign(repeating(1, 20));
    step(&mut batch, 2);
    let plan = batch.plan().unwrap();
    assert_eq!(plan.tokens, [2, 3, 4, 5, 6], "the newest token and what followed it before");
    assert_eq!(
        plan.draws.iter().map(|d| (d.row, d.position)).collect::<Vec<_>>(),
        [(0, 8), (1, 9), (2, 10), (3, 11), (4, 12)]
    );
    batch.apply(plan, StepOutput::of(&[3, 4, 9, 6, 1]), Duration::ZERO);
    let news: Vec<_> = batch.take_news().into_iter().map(|i| (i.first, i.tokens)).collect();
    assert_eq!(news, [(0, vec![2]), (1, vec![3, 4, 9])], "up to the first that was guessed wrong");
    assert_eq!((batch.stats().drafts, batch.stats().drafts_accepted), (4, 2));
    let plan = batch.plan().unwrap();
    assert_eq!((plan.tokens.clone(), plan.spans[0].first_position), (vec![9], 10), "it goes on after those");
    batch.apply(plan, StepOutput::of(&[1]), Duration::ZERO);
    batch.assert_sound();
}

#[test]
fn every_token_that_counts_has_its_log_probabilities() {
    let found = |token: u32| {
        Some(cuckoo_kernels::sampling::Logprobs { logprob: -(token as f32), rank: token, top: vec![(token, -0.5)] })
    };
    let mut batch = batch(GUESSING);
    batch.assign(Assign { logprobs: Some(1), stop_tokens: vec![6], ..repeating(1, 20) });
    let mut step = |drawn: &[u32]| {
        let plan = batch.plan().unwrap();
        assert!(plan.draws.len() == drawn.len() && plan.draws.iter().all(|d| d.logprobs == Some(1)));
        let logprobs = drawn.iter().map(|token| found(*token)).collect();
        batch.apply(plan, StepOutput { logprobs, ..StepOutput::of(drawn) }, Duration::ZERO);
        let item = batch.take_news().remove(0);
        assert_eq!(item.logprobs.iter().map(|l| l.rank).collect::<Vec<_>>(), item.tokens, "one for each token");
        (item.tokens, item.end)
    };
    assert_eq!(step(&[2]), (vec![2], None));
    assert_eq!(step(&[3, 4, 5, 6, 1]), (vec![3, 4, 5, 6], Some(End::Stop)));
}

#[test]
fn guesses_end_where_the_sequence_ends() {
    let mut short = batch(GUESSING);
    short.assign(repeating(1, 3));
    step(&mut short, 2);
    let plan = short.plan().unwrap();
    assert_eq!(plan.tokens, [2, 3], "two tokens are left: one is guessed");
    short.apply(plan, StepOutput::of(&[3, 4]), Duration::ZERO);
    assert_eq!(ends(&mut short), [(1, End::Length)]);

    let mut stopped = batch(GUESSING);
    stopped.assign(Assign { stop_tokens: vec![4], ..repeating(2, 20) });
    step(&mut stopped, 2);
    let plan = stopped.plan().unwrap();
    stopped.apply(plan, StepOutput::of(&[3, 4, 5, 6, 1]), Duration::ZERO);
    let last = stopped.take_news().pop().unwrap();
    assert_eq!((last.tokens, last.end), (vec![3, 4], Some(End::Stop)), "nothing after a stop");

    let mut unread = batch(GUESSING);
    unread.assign(Assign { credit: 3, ..repeating(3, 20) });
    step(&mut unread, 2);
    assert_eq!(unread.plan().unwrap().tokens, [2, 3], "no more than may be sent");
}

#[test]
fn nothing_is_guessed_where_rows_are_dear_or_wanted_by_a_prompt() {
    let mut dear = Batch::new(GUESSING, WEIGHTS);
    dear.assign(repeating(1, 20));
    step(&mut dear, 2);
    assert_eq!(dear.plan().unwrap().tokens, [2], "nothing is known of costs yet");
    let mut dear = Batch::new(GUESSING, WEIGHTS);
    dear.budget.observe(64, Duration::from_millis(640));
    dear.budget.observe(1, Duration::from_millis(10));
    dear.assign(repeating(1, 20));
    step(&mut dear, 2);
    assert_eq!(dear.plan().unwrap().tokens, [2], "a row costs a token");

    let mut busy = batch(GUESSING);
    busy.assign(repeating(1, 20));
    step(&mut busy, 2);
    busy.assign(assign(2, 90, 5));
    assert_eq!(busy.plan().unwrap().spans[0].rows, 1);

    let mut penalized = batch(GUESSING);
    let sampling = Sampling { presence_penalty: 1.0, ..Sampling::default() };
    penalized.assign(Assign { sampling, ..repeating(1, 20) });
    step(&mut penalized, 2);
    assert_eq!(penalized.plan().unwrap().tokens, [2], "penalties need each token");
}

#[test]
fn nothing_is_planned_behind_a_guess() {
    let mut batch = batch(GUESSING);
    batch.assign(repeating(1, 20));
    batch.assign(assign(2, 5, 20));
    step(&mut batch, 2);
    let plan = batch.plan().unwrap();
    assert_eq!(plan.spans.iter().map(|s| s.rows).collect::<Vec<_>>(), [5, 1]);
    assert!(batch.plan().is_none(), "how far it gets is not known");
    batch.cancel(SequenceId(1));
    batch.apply(plan, StepOutput::of(&[3, 4, 5, 6, 1, 7]), Duration::ZERO);
    assert_eq!(batch.stats().rows_discarded, 5);
    batch.assert_sound();
}

#[test]
fn output_is_the_same_in_fewer_steps() {
    let steps = |drafts_max| {
        let limits = BatchLimits { drafts_max, kv_blocks: 40, context_tokens: 400, ..GUESSING };
        let (mut batch, mut device) = (batch(limits), FakeDevice::new(limits));
        // Seeds that draw from two tokens.
        let assigns = [3, 7].map(|id| Assign { stop_tokens: vec![], ..assign(id, 20, 200) });
        assigns.iter().for_each(|a| batch.assign(a.clone()));
        let mut steps = 0;
        while run(&mut batch, &mut device) {
            steps += 1;
        }
        let news = batch.take_news();
        for a in &assigns {
            let tokens = news.iter().filter(|i| i.sequence == a.sequence).flat_map(|i| i.tokens.clone());
            assert_eq!(tokens.collect::<Vec<_>>(), expected(a).0);
        }
        steps
    };
    let (plain, guessed) = (steps(0), steps(4));
    assert!(guessed * 5 < plain * 4, "{guessed} steps against {plain}");
}
