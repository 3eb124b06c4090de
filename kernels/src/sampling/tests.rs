//! Draws against distributions and sets worked out by hand.
#![allow(clippy::unwrap_used)]

use super::filters::top;
use super::*;
use proptest::prelude::*;

fn draw_at(logits: &[f32], params: &SamplingParams, seed: u64, position: u64) -> u32 {
    let history = TokenHistory::default();
    draw(logits, &SampleRequest { seed, position, ..SampleRequest::new(params, &history) }).unwrap().token
}

fn ids(logits: &[f32], params: &SamplingParams) -> Vec<u32> {
    let most = highest(logits).unwrap();
    let kept = survivors(logits, most, params, Noise { seed: 0, position: 0 });
    let mut ids: Vec<u32> = kept.map_or((0..logits.len() as u32).collect(), |k| k.iter().map(|c| c.id).collect());
    ids.sort_unstable();
    ids
}

#[test]
fn draws_follow_the_softmax() {
    // Chi-square, 7 degrees of freedom: 29.9 is exceeded once in ten thousand seeds. The first logits' order is not the
    // order of ids, and the temperature matters.
    let logits = [0.3f32, 2.0, -1.0, 0.0, 1.1, -0.4, 0.9, 1.9];
    let params = SamplingParams { temperature: 0.8, ..Default::default() };
    let weights: Vec<f64> = logits.iter().map(|&l| (f64::from(l) / 0.8).exp()).collect();
    let total: f64 = weights.iter().sum();
    for seed in [1, 0xdead_beef_0000_0007] {
        let mut seen = [0u32; 8];
        for position in 0..40_000 {
            seen[draw_at(&logits, &params, seed, position) as usize] += 1;
        }
        let chi: f64 = (0..8)
            .map(|i| {
                let expected = weights[i] / total * 40_000.0;
                (f64::from(seen[i]) - expected).powi(2) / expected
            })
            .sum();
        assert!(chi < 29.9, "seed {seed}: chi-square {chi}, {seen:?}");
    }
}

#[test]
fn seed_and_position_decide() {
    let logits: Vec<f32> = (0..1000).map(|i| (i as f32 * 0.7).sin()).collect();
    let p = SamplingParams::default();
    let run = |seed| (0..50).map(|at| draw_at(&logits, &p, seed, at)).collect::<Vec<_>>();
    assert_eq!(run(5), run(5));
    assert_ne!(run(5), run(6));
    assert_ne!(run(5), run(5 | 1 << 40));
    assert!(run(5).windows(2).any(|w| w[0] != w[1]));
    assert_ne!(draw_at(&logits, &p, 5, 3), draw_at(&logits, &p, 5, 3 | 1 << 33));
}

#[test]
fn greedy_takes_the_lowest_id_among_equals() {
    let p = SamplingParams { temperature: 0.0, ..Default::default() };
    let mut logits = vec![0.5f32; 40];
    assert_eq!(draw_at(&logits, &p, 1, 1), 0);
    logits[33] = 2.0;
    logits[37] = 2.0;
    assert_eq!(draw_at(&logits, &p, 1, 1), 33);
}

#[test]
fn truncation_by_hand() {
    // Probabilities 0.4, 0.3, 0.2, 0.05, 0.05 in shuffled places.
    let probability = [0.05f32, 0.4, 0.2, 0.3, 0.05];
    let logits = probability.map(f32::ln);
    let params = |top_k, top_p, min_p| SamplingParams { top_k, top_p, min_p, ..Default::default() };
    assert_eq!(ids(&logits, &params(2, 1.0, 0.0)), [1, 3]);
    // Of two equals the lower id stays.
    assert_eq!(ids(&logits, &params(4, 1.0, 0.0)), [0, 1, 2, 3]);
    assert_eq!(ids(&logits, &params(0, 0.39, 0.0)), [1]);
    assert_eq!(ids(&logits, &params(0, 0.41, 0.0)), [1, 3]);
    assert_eq!(ids(&logits, &params(0, 0.89, 0.0)), [1, 2, 3]);
    assert_eq!(ids(&logits, &params(0, 0.0, 0.0)), [1]);
    // Top-p is taken of what top-k left: 0.4 of 0.7 is 0.571.
    assert_eq!(ids(&logits, &params(2, 0.56, 0.0)), [1]);
    assert_eq!(ids(&logits, &params(2, 0.58, 0.0)), [1, 3]);
    // 0.2 is half as probable as the best.
    assert_eq!(ids(&logits, &params(0, 1.0, 0.49)), [1, 2, 3]);
    assert_eq!(ids(&logits, &params(0, 1.0, 0.51)), [1, 3]);
    assert_eq!(ids(&logits, &params(3, 0.7, 0.6)), [1, 3]);
    assert_eq!(ids(&logits, &params(0, 1.0, 0.0)), [0, 1, 2, 3, 4]);
    assert_eq!(ids(&logits, &params(0, 1.0, 7.0)), [1]);
}

#[test]
fn truncation_depends_on_temperature() {
    let logits = [0.4f32, 0.3, 0.2, 0.1].map(f32::ln);
    let warm = SamplingParams { temperature: 2.0, top_p: 0.5, ..Default::default() };
    // Square roots of the probabilities: 0.632 of 1.944, then 0.548 more.
    assert_eq!(ids(&logits, &warm), [0, 1]);
    let cold = SamplingParams { temperature: 0.25, top_p: 0.5, ..Default::default() };
    assert_eq!(ids(&logits, &cold), [0]);
}

#[test]
fn bias_and_penalties() {
    let greedy = SamplingParams { temperature: 0.0, ..Default::default() };
    let mut history = TokenHistory::default();
    history.push_prompt(&[0, 1]);
    history.push_output(1);
    history.push_output(1);
    let logits = [4.0f32, 4.2, 3.0, -1.0];
    let pick = |params: &SamplingParams| draw(&logits, &SampleRequest::new(params, &history)).unwrap().token;
    assert_eq!(pick(&greedy), 1);
    // Presence and frequency count the output only: 4.2 - 0.1 - 2 * 0.2 = 3.7 < 4.0.
    assert_eq!(pick(&SamplingParams { presence_penalty: 0.1, frequency_penalty: 0.2, ..greedy.clone() }), 0);
    assert_eq!(pick(&SamplingParams { presence_penalty: 0.1, ..greedy.clone() }), 1);
    // Repetition counts the prompt too: 4.0 / 1.5 and 4.2 / 1.5 are below 3.0.
    assert_eq!(pick(&SamplingParams { repetition_penalty: 1.5, ..greedy.clone() }), 2);
    // The bias comes first: (4.0 + 8.0) / 1.5 = 8.
    assert_eq!(pick(&SamplingParams { repetition_penalty: 1.5, logit_bias: vec![(0, 8.0)], ..greedy.clone() }), 0);
    let forbid = (0..3).map(|t| (t, f32::NEG_INFINITY)).collect();
    assert_eq!(pick(&SamplingParams { logit_bias: forbid, ..greedy.clone() }), 3);
    assert_eq!(pick(&SamplingParams { logit_bias: vec![(9999, 1.0)], ..greedy }), 1);
}

#[test]
fn a_negative_logit_is_pushed_down_by_repetition() {
    let mut history = TokenHistory::default();
    history.push_prompt(&[0]);
    let params = SamplingParams { temperature: 0.0, repetition_penalty: 2.0, ..Default::default() };
    let request = SampleRequest::new(&params, &history);
    assert_eq!(draw(&[-1.0, -1.5], &request).unwrap().token, 1);
}

#[test]
fn broken_logits_are_a_fault() {
    let history = TokenHistory::default();
    let params = SamplingParams::default();
    let request = SampleRequest::new(&params, &history);
    for bad in [f32::NAN, f32::INFINITY] {
        for at in [0, 15, 16, 33] {
            let mut logits = vec![0.0; 34];
            logits[at] = bad;
            assert!(matches!(draw(&logits, &request), Err(OpsError::Fault(_))));
        }
    }
    assert!(matches!(draw(&[f32::NEG_INFINITY; 20], &request), Err(OpsError::Fault(_))));
    assert!(matches!(draw(&[], &request), Err(OpsError::Fault(_))));
}

#[test]
fn forbidden_tokens_are_never_drawn() {
    let bias = (0..99).map(|t| (t, f32::NEG_INFINITY)).collect();
    let params = SamplingParams { logit_bias: bias, temperature: 1.5, ..Default::default() };
    for position in 0..200 {
        assert_eq!(draw_at(&[1.0; 100], &params, 3, position), 99);
    }
}

#[test]
fn a_mask_holds_for_every_way_to_draw() {
    let logits: Vec<f32> = (0..100).map(|i| (i as f32 * 0.7).sin() * 9.0).collect();
    let history = TokenHistory::default();
    let ways = [
        SamplingParams { temperature: 0.0, ..Default::default() },
        SamplingParams::default(),
        SamplingParams { top_k: 5, ..Default::default() },
        SamplingParams { top_p: 0.5, ..Default::default() },
        SamplingParams { min_p: 0.2, top_p: 0.9, top_k: 50, ..Default::default() },
        // A bias is no way around it, and what it forbids stays so.
        SamplingParams { logit_bias: vec![(0, 100.0), (64, f32::NEG_INFINITY)], ..Default::default() },
    ];
    // The last has no bit in the words that follow it; none reaches the end of the logits.
    for tokens in [vec![3, 31, 32, 64, 97], vec![31], vec![99], (0..64).collect(), vec![70]] {
        let mask = TokenMask::from_iter(tokens.clone());
        for params in &ways {
            for position in 0..50 {
                let plain = SampleRequest::new(params, &history);
                let request = SampleRequest { seed: 1, position, allowed: Some(&mask), ..plain };
                assert!(tokens.contains(&draw(&logits, &request).unwrap().token), "{tokens:?} {params:?}");
            }
        }
    }
    let none = TokenMask::default();
    let params = SamplingParams::default();
    let request = SampleRequest { allowed: Some(&none), ..SampleRequest::new(&params, &history) };
    assert!(matches!(draw(&logits, &request), Err(OpsError::Fault(_))));
}

proptest! {
    /// A masked draw is the draw among logits that are minus infinity elsewhere, bit for bit.
    #[test]
    fn a_mask_is_minus_infinity_elsewhere(
        logits in prop::collection::vec(-30f32..10.0, 1..300), words in prop::collection::vec(any::<u32>(), 0..12),
        temperature in 0f32..2.0, top_k in 0u32..50, top_p in 0.1f32..1.0, position in any::<u64>(),
    ) {
        let mask = TokenMask::from_words(words);
        let allowed = |token: usize| mask.allows(token as u32);
        let left: Vec<f32> = (0..logits.len()).map(|i| if allowed(i) { logits[i] } else { f32::NEG_INFINITY }).collect();
        let (params, history) = (SamplingParams { temperature, top_k, top_p, ..Default::default() }, TokenHistory::default());
        let plain = SampleRequest { seed: 4, position, ..SampleRequest::new(&params, &history) };
        let request = SampleRequest { allowed: Some(&mask), ..plain };
        match (draw(&logits, &request), draw(&left, &plain)) {
            (Ok(masked), Ok(plain)) => prop_assert_eq!(masked, plain),
            (masked, plain) => prop_assert!(masked.is_err() && plain.is_err()),
        }
    }

    /// The bounds that spare work never change the winner.
    #[test]
    fn shortcuts_agree_with_the_definition(
        logits in prop::collection::vec(-30f32..10.0, 1..300), spread in 0.01f32..3.0, temperature in 0.05f32..3.0,
        seed in any::<u64>(), position in any::<u64>(),
    ) {
        let logits: Vec<f32> = logits.iter().map(|l| l * spread).collect();
        let noise = Noise { seed, position };
        let score = |id: usize| f64::from(logits[id]) / f64::from(temperature)
            + gumbel(noise.words(id as u32 / 4)[id % 4]);
        let mut best = 0;
        for id in 1..logits.len() {
            if score(id) > score(best) {
                best = id;
            }
        }
        let params = SamplingParams { temperature, ..Default::default() };
        prop_assert_eq!(draw_at(&logits, &params, seed, position), best as u32);
        let vacuous = SamplingParams { min_p: 1e-30, top_p: 0.999_999_9, ..params };
        let kept = ids(&logits, &vacuous);
        if kept.contains(&(best as u32)) {
            prop_assert_eq!(draw_at(&logits, &vacuous, seed, position), best as u32);
        }
    }

    #[test]
    fn top_k_is_the_sorted_prefix(steps in prop::collection::vec(0i8..20, 1..3000), k in 1usize..200) {
        let logits: Vec<f32> = steps.iter().map(|&s| f32::from(s)).collect();
        let mut sorted: Vec<Candidate> =
            (0u32..).zip(&logits).map(|(id, &logit)| Candidate { logit, id }).collect();
        sorted.sort_by(Candidate::order);
        sorted.truncate(k);
        let mut got = top(&logits, k);
        got.sort_by(Candidate::order);
        prop_assert_eq!(got, sorted);
    }
}

mod parameters;
