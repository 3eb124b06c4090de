//! Operations that treat every row by itself: norm, SwiGLU. Never looks across rows.

use super::lanes::{Kernel, LANES, Lanes, Level};

/// Values that make a chunk worth handing to a thread.
pub(super) const VALUES_EACH: usize = 8192;

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
        // 32 sums, of the columns equal modulo 32; the order depends on the number of columns alone.
        let mut squares = [l.splat(0.0); 2];
        for (i, x) in x.iter().enumerate() {
            let x = l.load(x);
            squares[i % 2] = l.fma(x, x, squares[i % 2]);
        }
        let squares = l.add(squares[0], squares[1]);
        let inverse = l.splat(1.0 / (l.sum(squares) / self.x.len() as f32 + self.epsilon).sqrt());
        for ((x, weight), out) in x.iter().zip(weight).zip(self.out.as_chunks_mut::<LANES>().0) {
            l.store(l.mul(l.mul(l.load(x), inverse), l.load(weight)), out);
        }
    }
}

/// `out = silu(gate) * up` for one row `[gate | up]`.
pub(super) fn swiglu(level: Level, gate_up: &[f32], out: &mut [f32]) {
    let (gate, up) = gate_up.split_at(out.len());
    level.run(Swiglu { gate, up, out });
}

struct Swiglu<'a> {
    gate: &'a [f32],
    up: &'a [f32],
    out: &'a mut [f32],
}

impl Kernel for Swiglu<'_> {
    #[inline(always)]
    fn run<L: Lanes>(self, l: L) {
        let (gate, up) = (self.gate.as_chunks::<LANES>().0, self.up.as_chunks::<LANES>().0);
        for ((gate, up), out) in gate.iter().zip(up).zip(self.out.as_chunks_mut::<LANES>().0) {
            let gate = l.load(gate);
            let below = l.add(l.splat(1.0), l.exp(l.mul(gate, l.splat(-1.0))));
            l.store(l.mul(l.div(gate, below), l.load(up)), out);
        }
    }
}
