//! Which experts of a mixture a token uses, and with what weight: the same arithmetic on every backend.

use crate::exact::{exp, fold};

/// How a router's logits become weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gating {
    /// Softmax over all experts, then choose.
    Softmax,
    /// A sigmoid for each expert, then choose.
    Sigmoid,
    /// Choose, then softmax over the chosen.
    SoftmaxOfChosen,
}

/// The choice of experts (Shazeer et al., arXiv 1701.06538).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Routing {
    /// How many a token uses.
    pub used: usize,
    /// How logits become weights.
    pub gating: Gating,
    /// Whether the weights of the chosen are divided by their sum.
    pub normalize: bool,
    /// What weights are multiplied by in the end.
    pub scale: f32,
}

/// One expert that a token uses.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Routed {
    /// Its number.
    pub expert: usize,
    /// What its result is multiplied by.
    pub weight: f32,
}

/// The experts with the largest logits, the lower number first among equals, and their weights.
///
/// Sums over all experts are those of the numbers equal modulo 32, folded; sums over the chosen are in order of choice.
///
/// # Panics
/// If fewer experts than are to be used have logits.
pub fn route(logits: &[f32], routing: &Routing) -> Vec<Routed> {
    assert!(routing.used <= logits.len(), "{} of {} experts are to be used", routing.used, logits.len());
    let mut order: Vec<usize> = (0..logits.len()).collect();
    order.sort_by(|a, b| logits[*b].total_cmp(&logits[*a]).then(a.cmp(b)));
    order.truncate(routing.used);
    let Some(&first) = order.first() else { return Vec::new() };
    let raised = |expert: &usize| exp(logits[*expert] - logits[first]);
    let mut weights: Vec<f32> = match routing.gating {
        Gating::Softmax => {
            let mut sums = [0.0f32; 32];
            (0..logits.len()).for_each(|expert| sums[expert % 32] += raised(&expert));
            let total = fold(&mut sums);
            order.iter().map(|expert| raised(expert) / total).collect()
        }
        Gating::Sigmoid => order.iter().map(|expert| 1.0 / (1.0 + exp(-logits[*expert]))).collect(),
        Gating::SoftmaxOfChosen => {
            let raised: Vec<f32> = order.iter().map(raised).collect();
            let total = raised.iter().fold(0.0f32, |sum, w| sum + w);
            raised.iter().map(|w| w / total).collect()
        }
    };
    if routing.normalize {
        let total = weights.iter().fold(0.0f32, |sum, w| sum + w);
        weights.iter_mut().for_each(|w| *w /= total);
    }
    order.into_iter().zip(weights).map(|(expert, w)| Routed { expert, weight: w * routing.scale }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn routed(gating: Gating, normalize: bool) -> Vec<(usize, f32)> {
        let routing = Routing { used: 2, gating, normalize, scale: 2.0 };
        let routed = route(&[0.0, 2f32.ln(), -1.0, 2f32.ln()], &routing);
        routed.into_iter().map(|r| (r.expert, r.weight)).collect()
    }

    /// Raised: 1, 2, 1/e, 2.
    #[test]
    fn weights_by_hand() {
        let near = |got: Vec<(usize, f32)>, weight: f64| {
            assert_eq!((got[0].0, got[1].0), (1, 3), "the lower number first");
            assert!(got.iter().all(|(_, w)| (f64::from(*w) - 2.0 * weight).abs() < 1e-6), "{got:?}");
        };
        near(routed(Gating::Softmax, false), 2.0 / (5.0 + (-1f64).exp()));
        near(routed(Gating::Softmax, true), 0.5);
        near(routed(Gating::SoftmaxOfChosen, false), 0.5);
        near(routed(Gating::Sigmoid, false), 2.0 / 3.0);
    }
}
