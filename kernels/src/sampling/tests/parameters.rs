//! Each filter, penalty and list against its definition, computed directly in f64; and all of them together against noise.

use super::*;
use crate::sampling::logits::adjusted;

/// Probabilities at a temperature, of tokens that are not forbidden.
fn softmax(logits: &[f32], temperature: f64) -> Vec<f64> {
    let weights: Vec<f64> = logits.iter().map(|&l| (f64::from(l) / temperature).exp()).collect();
    let total: f64 = weights.iter().sum();
    weights.iter().map(|w| w / total).collect()
}

/// Ids from the smallest key to the largest, lower ids first among equals.
fn by(key: impl Fn(usize) -> f64, len: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..len).collect();
    order.sort_by(|&a, &b| key(a).total_cmp(&key(b)).then(a.cmp(&b)));
    order
}

/// Locally typical sampling as its paper defines it.
fn typical_directly(p: &[f64], mass: f64) -> Vec<usize> {
    let entropy: f64 = p.iter().map(|p| -p * p.ln()).sum();
    let order = by(|i| (-p[i].ln() - entropy).abs(), p.len());
    let mut sum = 0.0;
    let enough = order.iter().position(|&i| {
        sum += p[i];
        sum >= mass
    });
    let mut set = order[..enough.map_or(p.len(), |at| at + 1)].to_vec();
    set.sort_unstable();
    set
}

/// XTC, where it acts.
fn xtc_directly(p: &[f64], threshold: f64) -> Vec<usize> {
    let choices: Vec<usize> = by(|i| -p[i], p.len()).into_iter().filter(|&i| p[i] >= threshold).collect();
    let gone = &choices[..choices.len().saturating_sub(1)];
    (0..p.len()).filter(|i| !gone.contains(i)).collect()
}

/// The smallest distance of any partial sum or value from a bound: sets are only compared where rounding cannot matter.
fn is_clear(values: impl IntoIterator<Item = f64>, bound: f64) -> bool {
    values.into_iter().all(|v| (v - bound).abs() > 1e-5)
}

/// Chi-square of many draws against probabilities that are 0 outside of `set`.
fn chi_square(logits: &[f32], params: &SamplingParams, set: &[usize]) -> f64 {
    const DRAWS: u64 = 20_000;
    let p = softmax(logits, f64::from(params.temperature));
    let total: f64 = set.iter().map(|&i| p[i]).sum();
    let mut seen = vec![0u32; logits.len()];
    (0..DRAWS).for_each(|position| seen[draw_at(logits, params, 77, position) as usize] += 1);
    assert!((0..logits.len()).all(|i| seen[i] == 0 || set.contains(&i)), "{params:?} drew what it excludes: {seen:?}");
    set.iter()
        .map(|&i| {
            let expected = p[i] / total * DRAWS as f64;
            (f64::from(seen[i]) - expected).powi(2) / expected
        })
        .sum()
}

const LOGITS: [f32; 8] = [0.3, 2.0, -1.0, 0.0, 1.1, -0.4, 0.9, 1.9];

#[test]
fn draws_follow_the_distribution_that_filters_leave() {
    // With 7 degrees of freedom at most: 29.9 is exceeded once in ten thousand seeds.
    let warm = SamplingParams { temperature: 0.8, ..Default::default() };
    let p = softmax(&LOGITS, 0.8);
    let typical = typical_directly(&p, 0.85);
    assert!(typical.len() > 2 && typical.len() < 7, "{typical:?}");
    let params = SamplingParams { typical_p: 0.85, ..warm.clone() };
    assert!(chi_square(&LOGITS, &params, &typical) < 29.9);
    let left = xtc_directly(&p, 0.1);
    assert_eq!(left.len(), 8 - 2, "three tokens are at least a tenth probable: {p:?}");
    let params = SamplingParams { xtc_probability: 1.0, xtc_threshold: 0.1, ..warm.clone() };
    assert!(chi_square(&LOGITS, &params, &left) < 29.9);
    let params = SamplingParams { allowed_tokens: vec![0, 3, 6, 900], ..warm.clone() };
    assert!(chi_square(&LOGITS, &params, &[0, 3, 6]) < 29.9);
    let params = SamplingParams { bad_words: vec![vec![1], vec![], vec![4, 7], vec![7]], ..warm };
    assert!(chi_square(&LOGITS, &params, &[0, 2, 3, 4, 5, 6]) < 29.9, "[4, 7] is not begun");
}

#[test]
fn xtc_throws_a_coin_of_its_own() {
    let set = |params: &SamplingParams, position| {
        let most = highest(&LOGITS).unwrap();
        survivors(&LOGITS, most, params, Noise { seed: 5, position }).map_or(8, |kept| kept.len())
    };
    let params = SamplingParams { xtc_probability: 0.3, ..Default::default() };
    let acted = (0..20_000).filter(|&position| set(&params, position) < 8).count();
    // Six standard deviations of a binomial are 389.
    assert!(acted.abs_diff(6_000) < 389, "{acted} of 20000");
    let noise = |seed, position| Noise { seed, position };
    let coins = |seed| (0..200).map(|position| noise(seed, position).coin(0.5)).collect::<Vec<_>>();
    assert_eq!(coins(1), coins(1));
    assert_ne!(coins(1), coins(2));
    // The words that make Gumbel noise stand under another counter.
    assert!((0..50).any(|at| noise(3, at).coin(0.5) != (f64::from(noise(3, at).words(0)[0]) < f64::from(1u32 << 31))));
    assert_eq!((0..500).filter(|&at| noise(4, at).coin(1.0)).count(), 500);
}

#[test]
fn xtc_by_hand() {
    let probability = [0.05f32, 0.3, 0.25, 0.25, 0.15];
    let logits = probability.map(f32::ln);
    let params = |xtc_threshold| SamplingParams { xtc_probability: 1.0, xtc_threshold, ..Default::default() };
    assert_eq!(ids(&logits, &params(0.1)), [0, 4]);
    assert_eq!(ids(&logits, &params(0.2)), [0, 3, 4], "of two equals the one with the lower id goes");
    assert_eq!(ids(&logits, &params(0.28)), [0, 1, 2, 3, 4], "one choice stays");
    assert_eq!(ids(&logits, &params(0.5)), [0, 1, 2, 3, 4]);
    assert_eq!(ids(&logits, &params(0.0)), [0]);
    // Of what top-k leaves, all three are probable.
    assert_eq!(ids(&logits, &SamplingParams { top_k: 3, ..params(0.2) }), [3]);
    let greedy = SamplingParams { temperature: 0.0, ..params(0.1) };
    assert_eq!(draw_at(&logits, &greedy, 1, 1), 1, "the highest logit is taken, and that is all");
}

#[test]
fn typical_tokens_need_not_hold_the_most_probable() {
    // One token of probability 0.4 and 64 that share the rest: the entropy is nearest the information of the many.
    let mut logits = [(0.6f32 / 64.0).ln(); 65];
    logits[3] = 0.4f32.ln();
    let params = SamplingParams { typical_p: 0.4, ..Default::default() };
    let kept = ids(&logits, &params);
    assert_eq!(kept, typical_directly(&softmax(&logits, 1.0), 0.4).iter().map(|&i| i as u32).collect::<Vec<_>>());
    assert!(!kept.contains(&3) && kept.len() == 43, "{kept:?}");
    // What comes after measures by the most probable that is left.
    assert_eq!(ids(&logits, &SamplingParams { min_p: 0.9, ..params.clone() }), kept);
    assert_eq!(ids(&logits, &SamplingParams { top_p: 0.5, ..params }).len(), 22);
}

fn with_history(tokens: &[u32]) -> TokenHistory {
    let mut history = TokenHistory::default();
    history.push_prompt(&tokens[..tokens.len() / 2]);
    tokens[tokens.len() / 2..].iter().for_each(|t| history.push_output(*t));
    history
}

fn changed(logits: &[f32], params: &SamplingParams, history: &TokenHistory, forbidden: &[u32]) -> Vec<f32> {
    adjusted(logits, &SampleRequest { forbidden, ..SampleRequest::new(params, history) }).into_owned()
}

#[test]
fn lists_forbid_and_yield_where_nothing_would_be_left() {
    const NO: f32 = f32::NEG_INFINITY;
    let logits = [1.0f32, 2.0, 3.0, 4.0];
    let history = with_history(&[0, 1, 2, 1]);
    let plain = SamplingParams::default();
    assert_eq!(changed(&logits, &plain, &history, &[]), logits);
    assert_eq!(changed(&logits, &plain, &history, &[3, 9]), [1.0, 2.0, 3.0, NO]);
    assert_eq!(changed(&logits, &plain, &history, &[0, 1, 2, 3]), logits, "one of them must be drawn");
    // "2 1 3" and "1 0" would be completed by 3 and 0; "0 2" would not be by 2; the first word crosses the prompt's end.
    let words = vec![vec![0, 1, 2, 1, 3], vec![1, 0], vec![0, 2]];
    let bad = SamplingParams { bad_words: words, ..plain.clone() };
    assert_eq!(changed(&logits, &bad, &history, &[]), [NO, 2.0, 3.0, NO]);
    assert_eq!(changed(&logits, &bad, &TokenHistory::default(), &[]), logits);
    let allowed = SamplingParams { allowed_tokens: vec![0, 3], ..bad.clone() };
    assert_eq!(changed(&logits, &allowed, &history, &[]), [1.0, NO, NO, 4.0], "bad words yield to what is allowed");
    let allowed = SamplingParams { allowed_tokens: vec![0, 2], ..bad };
    assert_eq!(changed(&logits, &allowed, &history, &[2]), [NO, NO, 3.0, NO], "and who may not end yields to both");
    let nobody = SamplingParams { allowed_tokens: vec![99], ..plain };
    assert_eq!(changed(&logits, &nobody, &history, &[]), logits);
}

#[test]
fn lists_yield_to_a_mask() {
    let (history, mask) = (TokenHistory::default(), TokenMask::from_iter([1, 2]));
    let draw = |params: &SamplingParams, forbidden: &[u32]| {
        let request = SampleRequest { forbidden, allowed: Some(&mask), ..SampleRequest::new(params, &history) };
        draw(&[9.0, 1.0, 2.0, 9.0], &request).unwrap().token
    };
    let greedy = SamplingParams { temperature: 0.0, ..Default::default() };
    assert_eq!(draw(&greedy, &[]), 2);
    assert_eq!(draw(&SamplingParams { allowed_tokens: vec![1, 3], ..greedy.clone() }, &[]), 1);
    assert_eq!(
        draw(&SamplingParams { allowed_tokens: vec![0, 3], ..greedy.clone() }, &[]),
        2,
        "none of these may come"
    );
    assert_eq!(draw(&greedy, &[2]), 1);
    assert_eq!(draw(&SamplingParams { bad_words: vec![vec![1]], ..greedy }, &[2]), 2, "one of them must");
}

#[test]
fn dry_is_subtracted_from_what_would_lengthen_a_repetition() {
    let dry = Dry { multiplier: 0.5, base: 2.0, allowed_length: 2, last_n: 100, breakers: vec![9] };
    let params = SamplingParams { dry: Some(dry), ..Default::default() };
    assert!(params.reads_history());
    let history = with_history(&[4, 1, 2, 3, 7, 5, 1, 2, 3]);
    assert_eq!(changed(&[1.0; 10], &params, &history, &[]), [1., 1., 1., 1., 1., 1., 1., 0., 1., 1.]);
    let cut = with_history(&[4, 1, 2, 3, 7, 5, 1, 9, 3]);
    assert_eq!(changed(&[1.0; 10], &params, &cut, &[]), [1.0; 10]);
}

#[test]
fn a_penalty_near_zero_makes_no_infinity() {
    let params = SamplingParams { repetition_penalty: f32::MIN_POSITIVE, temperature: 0.0, ..Default::default() };
    assert_eq!(changed(&[8.0, 9.0], &params, &with_history(&[0, 0]), &[]), [f32::MAX, 9.0]);
    assert_eq!(changed(&[f32::INFINITY, 9.0], &params, &with_history(&[0, 0]), &[]), [f32::INFINITY, 9.0]);
}

fn any_params() -> impl Strategy<Value = SamplingParams> {
    let unit = || prop_oneof![Just(0.0f32), Just(1.0f32), 0f32..=1.0];
    let above = || prop_oneof![Just(f32::MIN_POSITIVE), Just(1.0f32), 0.001f32..=1.0];
    let token = || 0u32..40;
    let dry = (0f32..=100.0, 1f32..=8.0, 1u32..5, any::<u32>(), prop::collection::btree_set(token(), 0..4)).prop_map(
        |(multiplier, base, allowed_length, last_n, breakers)| Dry {
            multiplier,
            base,
            allowed_length,
            last_n,
            breakers: breakers.into_iter().collect(),
        },
    );
    let filters =
        (prop_oneof![Just(f32::MIN_POSITIVE), 0f32..=2.0], 0u32..50, above(), above(), unit(), unit(), unit());
    let penalties = (above(), -2f32..=2.0, -2f32..=2.0, prop::option::of(dry));
    let lists = (
        prop::collection::vec((token(), -100f32..=100.0), 0..4),
        prop::collection::vec(token(), 0..4),
        prop::collection::vec(prop::collection::vec(token(), 0..4), 0..40),
    );
    (filters, penalties, lists).prop_map(|(f, p, l)| SamplingParams {
        temperature: f.0,
        top_k: f.1,
        typical_p: f.2,
        top_p: f.3,
        min_p: f.4,
        xtc_probability: f.5,
        xtc_threshold: f.6,
        repetition_penalty: 2.0 * p.0,
        presence_penalty: p.1,
        frequency_penalty: p.2,
        dry: p.3,
        logit_bias: l.0,
        allowed_tokens: l.1,
        bad_words: l.2,
    })
}

proptest! {
    #[test]
    fn typical_is_the_papers_set(
        logits in prop::collection::vec(-12f32..4.0, 1..400), mass in 0.02f32..0.98, temperature in 0.3f32..3.0,
    ) {
        let p = softmax(&logits, f64::from(temperature));
        let expected = typical_directly(&p, f64::from(mass));
        let entropy: f64 = p.iter().map(|p| -p * p.ln()).sum();
        let order = by(|i| (-p[i].ln() - entropy).abs(), p.len());
        let sums = order.iter().scan(0.0, |sum, &i| { *sum += p[i]; Some(*sum) });
        prop_assume!(is_clear(sums, f64::from(mass)));
        // Two whose order rounding decides may only both be in or both be out.
        let key = |i: usize| (-p[i].ln() - entropy).abs();
        let border = expected.len();
        prop_assume!(border == p.len() || key(order[border]) - key(order[border - 1]) > 1e-5);
        let params = SamplingParams { temperature, typical_p: mass, ..Default::default() };
        prop_assert_eq!(ids(&logits, &params), expected.iter().map(|&i| i as u32).collect::<Vec<_>>());
    }

    #[test]
    fn xtc_is_its_definition(
        logits in prop::collection::vec(-6f32..3.0, 1..60), threshold in 0.01f32..0.5, temperature in 0.3f32..3.0,
    ) {
        let p = softmax(&logits, f64::from(temperature));
        prop_assume!(is_clear(p.iter().copied(), f64::from(threshold)));
        let params = SamplingParams { temperature, xtc_probability: 1.0, xtc_threshold: threshold, ..Default::default() };
        let expected: Vec<u32> = xtc_directly(&p, f64::from(threshold)).iter().map(|&i| i as u32).collect();
        prop_assert_eq!(ids(&logits, &params), expected);
    }

    /// Whatever is asked for within the ranges, a token of the vocabulary comes, one that may come, and the same again.
    #[test]
    fn there_is_always_a_token(
        logits in prop::collection::vec(prop_oneof![4 => -30f32..30.0, 1 => -3e38f32..3e38, 1 => Just(0f32)], 1..60),
        params in any_params(), tokens in prop::collection::vec(0u32..40, 0..80), forbidden in prop::collection::vec(0u32..40, 0..8),
        seed in any::<u64>(), position in any::<u64>(),
    ) {
        let history = with_history(&tokens);
        let request = SampleRequest { seed, position, forbidden: &forbidden, ..SampleRequest::new(&params, &history) };
        let token = draw(&logits, &request).unwrap().token;
        prop_assert!((token as usize) < logits.len());
        prop_assert_eq!(draw(&logits, &request).unwrap().token, token);
        let left = adjusted(&logits, &request);
        prop_assert!(left[token as usize] != f32::NEG_INFINITY);
        let most = highest(&left).unwrap();
        if params.temperature > 0.0 && let Some(kept) = survivors(&left, most, &params, Noise { seed, position }) {
            prop_assert!(kept.iter().any(|c| c.id == token));
        }
    }
}
