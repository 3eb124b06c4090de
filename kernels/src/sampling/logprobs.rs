//! How probable a row of logits holds a token, before anything that sampling does to them.

use super::filters::top;
use super::{Candidate, highest};
use crate::exact::fold;
use crate::ops::OpsError;

/// One question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogprobRequest {
    /// Row of the logits.
    pub row: usize,
    /// The token in question.
    pub token: u32,
    /// How many of the most probable tokens to name as well.
    pub top: u32,
}

/// One answer. Logarithms are natural ones, of the softmax of the logits as they are.
#[derive(Clone, Debug, PartialEq)]
pub struct Logprobs {
    /// Logarithm of the token's probability.
    pub logprob: f32,
    /// Its place among all tokens, from 1: the most probable first, lower ids first among equals.
    pub rank: u32,
    /// The most probable tokens and their logarithms, in that order.
    pub top: Vec<(u32, f32)>,
}

/// Sums of exponentials that are added up side by side.
const SUMS: usize = 32;

/// The answer for one row.
///
/// # Errors
/// [`OpsError::Fault`] if a logit is NaN or plus infinity, or none is finite.
pub fn logprobs(logits: &[f32], request: &LogprobRequest) -> Result<Logprobs, OpsError> {
    let max = f64::from(highest(logits)?.logit);
    let mut sums = [0.0f64; SUMS];
    for logits in logits.chunks(SUMS) {
        for (sum, logit) in sums.iter_mut().zip(logits) {
            *sum += libm::exp(f64::from(*logit) - max);
        }
    }
    let normalizer = libm::log(fold(&mut sums));
    let logprob = |logit: f32| ((f64::from(logit) - max) - normalizer) as f32;
    let own = Candidate { logit: logits[request.token as usize], id: request.token };
    let before = |c: &Candidate| Candidate::order(c, &own).is_lt();
    let rank =
        1 + (0u32..).zip(logits).filter(|(id, logit)| before(&Candidate { logit: **logit, id: *id })).count() as u32;
    let mut best = match request.top {
        0 => Vec::new(),
        k => top(logits, k as usize),
    };
    best.sort_unstable_by(Candidate::order);
    let top = best.into_iter().map(|c| (c.id, logprob(c.logit))).collect();
    Ok(Logprobs { logprob: logprob(own.logit), rank, top })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use proptest::prelude::*;

    fn ask(logits: &[f32], token: u32, top: u32) -> Logprobs {
        logprobs(logits, &LogprobRequest { row: 0, token, top }).unwrap()
    }

    #[test]
    fn by_hand() {
        let logits = [0.25f32, 0.5, 0.125, 0.125].map(f32::ln);
        let got = ask(&logits, 3, 3);
        assert_eq!((got.rank, got.top.iter().map(|t| t.0).collect::<Vec<_>>()), (4, vec![1, 0, 2]), "lower ids first");
        assert!((got.logprob - 0.125f32.ln()).abs() < 1e-6, "{got:?}");
        assert_eq!(ask(&logits, 1, 0), Logprobs { logprob: got.top[0].1, rank: 1, top: vec![] });
        assert_eq!(ask(&logits, 1, 20).top.len(), 4, "no more than there are");
        let forbidden = [f32::NEG_INFINITY, 3.0];
        assert_eq!(ask(&forbidden, 0, 2), Logprobs { logprob: f32::NEG_INFINITY, rank: 2, top: vec![(1, 0.0)] });
        for bad in [f32::NAN, f32::INFINITY] {
            assert!(logprobs(&[0.0, bad], &LogprobRequest { row: 0, token: 0, top: 1 }).is_err());
        }
    }

    proptest! {
        #[test]
        fn it_is_the_log_of_the_softmax(logits in prop::collection::vec(-80f32..80.0, 1..900), k in 0u32..30, at in any::<u32>()) {
            let max = logits.iter().copied().fold(f32::MIN, f32::max);
            let sum: f64 = logits.iter().map(|l| (f64::from(*l) - f64::from(max)).exp()).sum();
            let expected = |i: usize| f64::from(logits[i]) - f64::from(max) - sum.ln();
            let token = at % logits.len() as u32;
            let got = ask(&logits, token, k);
            let near = |got: f32, i: usize| (f64::from(got) - expected(i)).abs() <= expected(i).abs() * 6e-8 + 1e-12;
            prop_assert!(near(got.logprob, token as usize));
            let mut order: Vec<usize> = (0..logits.len()).collect();
            order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]).then(a.cmp(&b)));
            prop_assert_eq!(order[got.rank as usize - 1], token as usize);
            prop_assert_eq!(got.top.len(), (k as usize).min(logits.len()));
            for (got, &i) in got.top.iter().zip(&order) {
                prop_assert!(got.0 as usize == i && near(got.1, i));
            }
        }
    }
}
