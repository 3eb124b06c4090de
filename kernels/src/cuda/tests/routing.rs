//! The choice of experts of the kernel against that of the host.

use super::sampling::{Random, orders, upload};
use crate::ops::Ops;
use crate::routing::{Gating, Routing, route};

#[test]
fn experts_are_those_of_the_host() {
    let mut random = Random(5);
    for cols in [1, 3, 31, 33, 128, 257] {
        // Of every kind, ties, minus infinities and zeros of both signs among them; and a broken one.
        let mut rows: Vec<Vec<f32>> = (0..11).map(|kind| random.row(kind % 6, cols)).collect();
        rows[10][cols / 3] = f32::NAN;
        for gating in [Gating::Softmax, Gating::Sigmoid, Gating::SoftmaxOfChosen] {
            for (used, normalize) in [(0, false), (1, true), (cols.min(8), true), (cols.min(8), false), (cols, true)] {
                let routing = Routing { used, gating, normalize, scale: random.pick(&[1.0, 2.5]) };
                let key = |chosen: &[crate::routing::Routed]| -> Vec<(usize, u32)> {
                    // Which NaN it is, is nobody's to say.
                    let bits = |w: f32| if w.is_nan() { f32::NAN.to_bits() } else { w.to_bits() };
                    chosen.iter().map(|c| (c.expert, bits(c.weight))).collect()
                };
                let expected: Vec<_> = rows.iter().map(|row| key(&route(row, &routing))).collect();
                for mut ops in orders() {
                    let logits = upload(&mut ops, &rows);
                    let chosen = ops.route(&logits, &routing).unwrap();
                    let got: Vec<_> = chosen.iter().map(|c| key(c)).collect();
                    assert_eq!(got, expected, "{} {cols} {routing:?}", ops.describe());
                }
            }
        }
    }
}
