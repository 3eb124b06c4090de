//! DRY: which tokens would lengthen a repetition, and what that costs them. Linear in the tokens looked at.

use std::collections::HashMap;

use super::Dry;

/// A higher penalty would change nothing: no two logits are so far apart. It keeps all of them finite.
const PENALTY_MAX: f64 = 10_000.0;

/// What is subtracted from the logit of each token that would lengthen a repetition in `tokens`. No token comes twice.
pub(super) fn penalties(dry: &Dry, tokens: &[u32]) -> impl Iterator<Item = (u32, f32)> {
    repetitions(dry, tokens).into_iter().map(|(token, length)| (token, penalty(dry, length) as f32))
}

/// The longest repetition that each token would lengthen, where it is long enough to cost something.
fn repetitions(dry: &Dry, tokens: &[u32]) -> HashMap<u32, u32> {
    let mut longest = HashMap::new();
    let newest: Vec<u32> = tokens.iter().rev().take(dry.last_n as usize).copied().collect();
    let broken = newest.iter().position(|token| dry.breakers.binary_search(token).is_ok());
    let limit = broken.unwrap_or(newest.len());
    if limit < dry.allowed_length as usize {
        return longest;
    }
    for (at, length) in prefixes(&newest).into_iter().enumerate().skip(1) {
        let length = length.min(limit) as u32;
        if length >= dry.allowed_length {
            // Newest first, so what came after the occurrence stands before it.
            let entry = longest.entry(newest[at - 1]).or_insert(length);
            *entry = length.max(*entry);
        }
    }
    longest
}

/// For each place in `text`, how much of the beginning of `text` stands there: the Z algorithm (Gusfield, "Algorithms on
/// Strings, Trees, and Sequences", 1.4), in linear time.
fn prefixes(text: &[u32]) -> Vec<usize> {
    let mut lengths = vec![text.len(); text.len()];
    // The stretch `from .. to` that reaches furthest and equals a beginning.
    let (mut from, mut to) = (0, 0);
    for at in 1..text.len() {
        let mut length = if at < to { lengths[at - from].min(to - at) } else { 0 };
        while at + length < text.len() && text[length] == text[at + length] {
            length += 1;
        }
        if at + length > to {
            (from, to) = (at, at + length);
        }
        lengths[at] = length;
    }
    lengths
}

/// `multiplier * base^(length - allowed_length)`, by squaring, so that it is the same on every machine.
fn penalty(dry: &Dry, length: u32) -> f64 {
    let (mut power, mut square, mut left) = (1.0f64, f64::from(dry.base), length - dry.allowed_length);
    while left > 0 {
        if left % 2 == 1 {
            power *= square;
        }
        square *= square;
        left /= 2;
    }
    (f64::from(dry.multiplier) * power.min(f64::MAX)).min(PENALTY_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn dry(allowed_length: u32, last_n: u32, breakers: &[u32]) -> Dry {
        Dry { multiplier: 0.8, base: 1.75, allowed_length, last_n, breakers: breakers.to_vec() }
    }

    fn sorted(dry: &Dry, tokens: &[u32]) -> Vec<(u32, u32)> {
        let mut found: Vec<_> = repetitions(dry, tokens).into_iter().collect();
        found.sort_unstable();
        found
    }

    #[test]
    fn repetitions_by_hand() {
        let tokens = [1, 2, 3, 4, 9, 1, 2, 3, 5, 9, 2, 3];
        // "2 3" stood before 4, and before 5; "1 2 3" is not what it ends in.
        assert_eq!(sorted(&dry(2, 100, &[]), &tokens), [(4, 2), (5, 2)]);
        assert_eq!(sorted(&dry(3, 100, &[]), &tokens), []);
        assert_eq!(sorted(&dry(2, 7, &[]), &tokens), [(5, 2)], "the first is too long ago");
        assert_eq!(sorted(&dry(2, 0, &[]), &tokens), []);
        let longer = [&tokens[..], &[4, 9, 1, 2, 3]].concat();
        // "2 3 4 9 1 2 3" stood before 5, "1 2 3" before 4 and "2 3" before 4 once more: the longest counts.
        assert_eq!(sorted(&dry(2, 100, &[]), &longer), [(4, 3), (5, 7)]);
        assert_eq!(sorted(&dry(2, 100, &[9]), &longer), [(4, 3), (5, 3)], "not over a breaker");
        assert_eq!(sorted(&dry(2, 100, &[2, 9]), &longer), [], "too short since the breaker");
        assert_eq!(sorted(&dry(1, 100, &[]), &[7, 7, 7]), [(7, 2)], "a repetition may overlap itself");
        assert_eq!(sorted(&dry(1, 100, &[]), &[]), []);
    }

    #[test]
    fn penalties_by_hand() {
        let dry = dry(2, 100, &[]);
        assert_eq!(penalty(&dry, 2), f64::from(0.8f32));
        assert!((penalty(&dry, 5) - f64::from(0.8f32) * 1.75f64.powi(3)).abs() < 1e-12);
        assert_eq!(penalty(&dry, 100_000), PENALTY_MAX);
        assert_eq!(penalty(&Dry { multiplier: 0.0, ..dry.clone() }, 100_000), 0.0);
        assert_eq!(penalty(&Dry { base: 1.0, ..dry }, 100_000), f64::from(0.8f32));
    }

    proptest! {
        /// Against the definition: for every earlier place, as many newest tokens as also stand before it.
        #[test]
        fn it_is_the_definition(
            tokens in prop::collection::vec(0u32..4, 0..60), allowed in 1u32..4, last_n in 0u32..70, breaker in 0u32..6,
        ) {
            let dry = dry(allowed, last_n, &[breaker]);
            let seen = &tokens[tokens.len().saturating_sub(last_n as usize)..];
            let mut expected = HashMap::new();
            for next in 1..seen.len() {
                let same = |n: &u32| {
                    let n = *n as usize;
                    n <= next && seen[next - n..next] == seen[seen.len() - n..] && !seen[next - n..next].contains(&breaker)
                };
                let length = (0..=seen.len() as u32).take_while(same).last().unwrap_or(0);
                if length >= allowed {
                    let entry = expected.entry(seen[next]).or_insert(0);
                    *entry = length.max(*entry);
                }
            }
            prop_assert_eq!(repetitions(&dry, &tokens), expected);
        }
    }
}
