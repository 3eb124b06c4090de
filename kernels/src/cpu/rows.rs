//! Operations that treat every row by itself: norms, activations, biases and scales. Never looks across rows.

use super::lanes::{Kernel, LANES, Lanes, Level};
use crate::ops::{Activation, LENGTH_MIN};

/// Values that make a chunk worth handing to a thread.
pub(super) const VALUES_EACH: usize = 8192;

/// Sums of the columns equal modulo 32.
const SUMS: usize = 2;

/// `out = x * weight / sqrt(mean(x^2) + epsilon)` for one row.
pub(super) fn norm(level: Level, x: &[f32], weight: &[f32], epsilon: f32, out: &mut [f32]) {
    level.run(Norm { x, weight, epsilon, out });
}

struct Norm<'a> {
    x: &'a [f32],
    weight: &'a [f32],
    epsilon: f32,
    out: &'a mut [f32],
}

impl Kernel for Norm<'_> {
    #[inline(always)]
    fn run<L: Lanes>(self, l: L) {
        let (x, weight) = (self.x.as_chunks::<LANES>().0, self.weight.as_chunks::<LANES>().0);
        let inverse = l.splat(inverse_rms(l, x, self.epsilon));
        for ((x, weight), out) in x.iter().zip(weight).zip(self.out.as_chunks_mut::<LANES>().0) {
            l.store(l.mul(l.mul(l.load(x), inverse), l.load(weight)), out);
        }
    }
}

/// `1 / sqrt(mean(x^2) + epsilon)`.
#[inline(always)]
fn inverse_rms<L: Lanes>(l: L, x: &[[f32; LANES]], epsilon: f32) -> f32 {
    1.0 / (sum_of_squares(l, x) / (x.len() * LANES) as f32 + epsilon).sqrt()
}

#[inline(always)]
fn sum_of_squares<L: Lanes>(l: L, x: &[[f32; LANES]]) -> f32 {
    let mut squares = [l.splat(0.0); SUMS];
    for (i, x) in x.iter().enumerate() {
        let x = l.load(x);
        squares[i % SUMS] = l.fma(x, x, squares[i % SUMS]);
    }
    l.sum(l.add(squares[0], squares[1]))
}

/// [`norm`] in place, of every head of a row.
pub(super) fn norm_heads(level: Level, row: &mut [f32], weight: &[f32], epsilon: f32) {
    level.run(NormHeads { row, weight, epsilon });
}

struct NormHeads<'a> {
    row: &'a mut [f32],
    weight: &'a [f32],
    epsilon: f32,
}

impl Kernel for NormHeads<'_> {
    #[inline(always)]
    fn run<L: Lanes>(self, l: L) {
        let weight = self.weight.as_chunks::<LANES>().0;
        for head in self.row.as_chunks_mut::<LANES>().0.chunks_exact_mut(weight.len()) {
            let inverse = l.splat(inverse_rms(l, head, self.epsilon));
            for (x, weight) in head.iter_mut().zip(weight) {
                l.store(l.mul(l.mul(l.load(x), inverse), l.load(weight)), x);
            }
        }
    }
}

/// `out = (x - mean) / sqrt(variance + epsilon) * weight + bias` for one row.
pub(super) fn layer_norm(level: Level, x: &[f32], (weight, bias): (&[f32], &[f32]), epsilon: f32, out: &mut [f32]) {
    level.run(LayerNorm { x, weight, bias, epsilon, out });
}

struct LayerNorm<'a> {
    x: &'a [f32],
    weight: &'a [f32],
    bias: &'a [f32],
    epsilon: f32,
    out: &'a mut [f32],
}

impl Kernel for LayerNorm<'_> {
    #[inline(always)]
    fn run<L: Lanes>(self, l: L) {
        let (x, weight) = (self.x.as_chunks::<LANES>().0, self.weight.as_chunks::<LANES>().0);
        let (bias, out) = (self.bias.as_chunks::<LANES>().0, self.out.as_chunks_mut::<LANES>().0);
        let mut sums = [l.splat(0.0); SUMS];
        for (i, x) in x.iter().enumerate() {
            sums[i % SUMS] = l.add(sums[i % SUMS], l.load(x));
        }
        let less = l.splat(-(l.sum(l.add(sums[0], sums[1])) / self.x.len() as f32));
        let mut squares = [l.splat(0.0); SUMS];
        for (i, (x, out)) in x.iter().zip(&mut *out).enumerate() {
            let x = l.add(l.load(x), less);
            squares[i % SUMS] = l.fma(x, x, squares[i % SUMS]);
            l.store(x, out);
        }
        let squares = l.sum(l.add(squares[0], squares[1]));
        let inverse = l.splat(1.0 / (squares / self.x.len() as f32 + self.epsilon).sqrt());
        for ((out, weight), bias) in out.iter_mut().zip(weight).zip(bias) {
            l.store(l.fma(l.mul(l.load(out), inverse), l.load(weight), l.load(bias)), out);
        }
    }
}

/// `out` is the mean of some rows, which are added in their order.
pub(super) fn mean(level: Level, rows: &[f32], out: &mut [f32]) {
    level.run(Mean { rows, out });
}

struct Mean<'a> {
    rows: &'a [f32],
    out: &'a mut [f32],
}

impl Kernel for Mean<'_> {
    #[inline(always)]
    fn run<L: Lanes>(self, l: L) {
        let (cols, rows) = (self.out.len(), self.rows.len() / self.out.len());
        self.out.fill(0.0);
        for row in self.rows.chunks_exact(cols) {
            for (x, out) in row.as_chunks::<LANES>().0.iter().zip(self.out.as_chunks_mut::<LANES>().0) {
                l.store(l.add(l.load(out), l.load(x)), out);
            }
        }
        for out in self.out.as_chunks_mut::<LANES>().0 {
            l.store(l.div(l.load(out), l.splat(rows as f32)), out);
        }
    }
}

/// `x = x / max(|x|, LENGTH_MIN)` for one row.
pub(super) fn normalize(level: Level, x: &mut [f32]) {
    level.run(Normalize { x });
}

struct Normalize<'a> {
    x: &'a mut [f32],
}

impl Kernel for Normalize<'_> {
    #[inline(always)]
    fn run<L: Lanes>(self, l: L) {
        let x = self.x.as_chunks_mut::<LANES>().0;
        let inverse = l.splat(1.0 / sum_of_squares(l, x).sqrt().max(LENGTH_MIN));
        for x in x {
            l.store(l.mul(l.load(x), inverse), x);
        }
    }
}

/// `x = x + bias` for one row.
pub(super) fn add_bias(x: &mut [f32], bias: &[f32]) {
    x.iter_mut().zip(bias).for_each(|(x, bias)| *x += bias);
}

/// `out = fma(scale, x, out)` for one row.
pub(super) fn add_scaled(level: Level, x: &[f32], scale: f32, out: &mut [f32]) {
    level.run(AddScaled { x, scale, out });
}

struct AddScaled<'a> {
    x: &'a [f32],
    scale: f32,
    out: &'a mut [f32],
}

impl Kernel for AddScaled<'_> {
    #[inline(always)]
    fn run<L: Lanes>(self, l: L) {
        let scale = l.splat(self.scale);
        for (x, out) in self.x.as_chunks::<LANES>().0.iter().zip(self.out.as_chunks_mut::<LANES>().0) {
            l.store(l.fma(scale, l.load(x), l.load(out)), out);
        }
    }
}

/// `x = factor * x`, then soft-capped, for some values.
pub(super) fn scale(level: Level, factor: f32, softcap: Option<f32>, x: &mut [f32]) {
    level.run(Scale { factor, softcap, x });
}

struct Scale<'a> {
    factor: f32,
    softcap: Option<f32>,
    x: &'a mut [f32],
}

impl Kernel for Scale<'_> {
    #[inline(always)]
    fn run<L: Lanes>(self, l: L) {
        // The last values go through a vector of their own: a vocabulary is no multiple of anything.
        let (whole, rest) = self.x.as_chunks_mut::<LANES>();
        for x in whole {
            let v = l.mul(l.load(x), l.splat(self.factor));
            l.store(capped(l, v, self.softcap), x);
        }
        let mut last = [0.0; LANES];
        last[..rest.len()].copy_from_slice(rest);
        let v = l.mul(l.load(&last), l.splat(self.factor));
        l.store(capped(l, v, self.softcap), &mut last);
        rest.copy_from_slice(&last[..rest.len()]);
    }
}

/// `c * tanh(v / c)`, if there is a cap.
#[inline(always)]
pub(super) fn capped<L: Lanes>(l: L, v: L::F, softcap: Option<f32>) -> L::F {
    match softcap {
        Some(cap) => l.mul(l.splat(cap), l.tanh(l.div(v, l.splat(cap)))),
        None => v,
    }
}

/// `out = activation(gate) * up` for one row `[gate | up]`.
pub(super) fn gate(level: Level, activation: Activation, gate_up: &[f32], out: &mut [f32]) {
    let (gate, up) = gate_up.split_at(out.len());
    level.run(Gate { activation, gate, up, out });
}

struct Gate<'a> {
    activation: Activation,
    gate: &'a [f32],
    up: &'a [f32],
    out: &'a mut [f32],
}

impl Kernel for Gate<'_> {
    #[inline(always)]
    fn run<L: Lanes>(self, l: L) {
        let (gate, up) = (self.gate.as_chunks::<LANES>().0, self.up.as_chunks::<LANES>().0);
        for ((gate, up), out) in gate.iter().zip(up).zip(self.out.as_chunks_mut::<LANES>().0) {
            let mut up = l.load(up);
            if let Activation::ClampedSwiglu { limit, .. } = self.activation {
                up = l.add(l.min(l.splat(limit), l.max(l.splat(-limit), up)), l.splat(1.0));
            }
            l.store(l.mul(activated(l, self.activation, l.load(gate)), up), out);
        }
    }
}

/// `x = activation(x)` for one row.
pub(super) fn activate(level: Level, activation: Activation, x: &mut [f32]) {
    level.run(Activate { activation, x });
}

struct Activate<'a> {
    activation: Activation,
    x: &'a mut [f32],
}

impl Kernel for Activate<'_> {
    #[inline(always)]
    fn run<L: Lanes>(self, l: L) {
        for x in self.x.as_chunks_mut::<LANES>().0 {
            l.store(activated(l, self.activation, l.load(x)), x);
        }
    }
}

#[inline(always)]
fn activated<L: Lanes>(l: L, activation: Activation, x: L::F) -> L::F {
    match activation {
        Activation::Silu => l.times_sigmoid(x, l.mul(x, l.splat(-1.0))),
        Activation::GeluTanh => {
            let cubed = l.mul(l.mul(x, x), x);
            l.times_sigmoid(x, l.mul(l.fma(l.splat(0.044_715), cubed, x), l.splat(-1.595_769)))
        }
        Activation::GeluErf => l.gelu_erf(x),
        Activation::ClampedSwiglu { alpha, limit } => {
            let x = l.min(l.splat(limit), x);
            l.times_sigmoid(x, l.mul(x, l.splat(-alpha)))
        }
    }
}
