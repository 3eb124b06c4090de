//! Eight lanes of `f32`: the arithmetic that every CPU kernel is written in, once. An instruction set implements
//! [`Lanes`]; each operation rounds in exactly one way, so all implementations agree bit for bit. Never allocates.
//!
//! No operation of [`Lanes`] stands inside a closure: the compiler may leave a closure out of line, where it is compiled
//! for no instruction set in particular and every operation becomes a call. Such kernels are right and 30 times slower.

#[cfg(target_arch = "x86_64")]
mod avx2;
mod portable;

use super::Isa;

/// Lanes of a vector.
pub(super) const LANES: usize = 8;

/// An instruction set: a token whose existence proves that the processor has it.
///
/// `F` is 8 `f32`, `I` is 8 `i32`, `W` is 16 `i16`: two for each lane, the earlier column in the lower half.
pub(super) trait Lanes: Copy {
    type F: Copy;
    type I: Copy;
    type W: Copy;

    fn splat(self, v: f32) -> Self::F;
    fn load(self, v: &[f32; LANES]) -> Self::F;
    fn store(self, v: Self::F, to: &mut [f32; LANES]);
    /// From IEEE half precision, exact.
    fn load_f16(self, v: &[u16; LANES]) -> Self::F;
    /// From the upper halves of singles, exact.
    fn load_bf16(self, v: &[u16; LANES]) -> Self::F;
    fn add(self, a: Self::F, b: Self::F) -> Self::F;
    fn mul(self, a: Self::F, b: Self::F) -> Self::F;
    fn div(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a * b + c`, rounded once.
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// `if a > b { a } else { b }`: a NaN in `b` stays.
    fn max(self, a: Self::F, b: Self::F) -> Self::F;
    /// `if a < b { a } else { b }`: a NaN in `b` stays.
    fn min(self, a: Self::F, b: Self::F) -> Self::F;
    /// `v`, or 0 where `x < limit`.
    fn zero_below(self, v: Self::F, x: Self::F, limit: f32) -> Self::F;
    /// To the nearest integer, ties to even.
    fn round(self, a: Self::F) -> Self::F;
    /// `2^n` for whole `n` in `-126 ..= 127`.
    fn pow2(self, n: Self::F) -> Self::F;

    fn isplat(self, v: i32) -> Self::I;
    fn to_f32(self, v: Self::I) -> Self::F;
    /// The larger of two vectors of non-negative integers, where integers are the bits of `|a|`.
    fn max_magnitude(self, m: Self::I, a: Self::F) -> Self::I;
    fn istore(self, v: Self::I, to: &mut [i32; LANES]);
    /// To the nearest integer, ties to even; lanes are within `i32`.
    fn to_i32(self, a: Self::F) -> Self::I;
    /// `acc + w[2i] * low(pair) + w[2i + 1] * high(pair)` in every lane `i`, where `pair` holds two `i16`.
    fn dot(self, acc: Self::I, w: Self::W, pair: i32) -> Self::I;
    /// Nibble `N` of each of 16 words, counted from the lowest.
    fn nibble<const N: usize>(self, packed: &[u16; 16]) -> Self::W;
    /// Splits each of 16 words into its two signed bytes, lower first.
    fn bytes(self, packed: &[u16; 16]) -> [Self::W; 2];

    /// Asks for a line of memory that will be read soon. Any address will do.
    fn prefetch(self, address: *const u8);

    /// Adds the lanes up, always in the same order.
    #[inline(always)]
    fn sum(self, a: Self::F) -> f32 {
        let mut v = [0.0; LANES];
        self.store(a, &mut v);
        ((v[0] + v[4]) + (v[2] + v[6])) + ((v[1] + v[5]) + (v[3] + v[7]))
    }

    /// The largest lane.
    #[inline(always)]
    fn largest(self, a: Self::F) -> f32 {
        let mut v = [0.0; LANES];
        self.store(a, &mut v);
        v.into_iter().fold(f32::NEG_INFINITY, |m, x| if x > m { x } else { m })
    }

    /// `e^x` within 2 units in the last place; 0 below -87.3, at most `e^88` above. The polynomial is `expf` of Cephes.
    #[inline(always)]
    fn exp(self, x: Self::F) -> Self::F {
        let clamped = self.min(self.splat(88.0), self.max(self.splat(EXP_LEAST), x));
        let n = self.round(self.mul(clamped, self.splat(std::f32::consts::LOG2_E)));
        // ln 2 in two parts, the first exact in few bits, so that the reduced argument keeps all of its own.
        let r = self.fma(n, self.splat(-355.0 / 512.0), clamped);
        let r = self.fma(n, self.splat(2.121_944_4e-4), r);
        let mut p = self.splat(1.987_569_1e-4);
        for c in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
            p = self.fma(p, r, self.splat(c));
        }
        let p = self.add(self.fma(p, self.mul(r, r), r), self.splat(1.0));
        self.zero_below(self.mul(p, self.pow2(n)), x, EXP_LEAST)
    }
}

/// Below this `e^x` counts as 0: about where it would become subnormal.
const EXP_LEAST: f32 = -87.3;

/// Work that can be done with any instruction set.
pub(super) trait Kernel {
    /// Does it. Implementations are `#[inline(always)]`, so that they are compiled for the instruction set of `lanes`.
    fn run<L: Lanes>(self, lanes: L);
}

/// The instruction set in use.
#[derive(Clone, Copy)]
pub(super) enum Level {
    #[cfg(target_arch = "x86_64")]
    Avx2(avx2::Avx2),
    Portable(portable::Portable),
}

impl Level {
    /// The set asked for, or `None` where the processor lacks it.
    pub(super) fn new(isa: Isa) -> Option<Self> {
        match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => avx2::Avx2::detect().map(Self::Avx2),
            #[cfg(not(target_arch = "x86_64"))]
            Isa::Avx2 => None,
            Isa::Portable => Some(Self::Portable(portable::Portable)),
        }
    }

    /// Runs `kernel` compiled for this instruction set.
    #[inline]
    pub(super) fn run(self, kernel: impl Kernel) {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx2(lanes) => lanes.run(kernel),
            Self::Portable(lanes) => kernel.run(lanes),
        }
    }
}

#[cfg(test)]
mod tests;
