//! Vectors of 16 lanes: what kernels are written over. An instruction set implements [`Lanes`]; each operation rounds in
//! exactly one way, so all implementations agree bit for bit. Never allocates.
//!
//! No operation of [`Lanes`] stands inside a closure: the compiler may leave a closure out of line, where it is compiled
//! for no instruction set in particular and every operation becomes a call. Such kernels are right and 30 times slower.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod portable;

use super::Isa;

/// Lanes of a vector.
pub(super) const LANES: usize = 16;

/// Columns that one instruction multiplies and adds up in each lane.
pub(super) const GROUP: usize = 4;

/// An instruction set: a token whose existence proves that the processor has it.
///
/// `F` is 16 `f32`, `I` is 16 `i32`, `B` is 64 bytes: [`GROUP`] for each lane, the earlier column in the lower byte.
pub(super) trait Lanes: Copy {
    type F: Copy;
    type I: Copy;
    type B: Copy;

    /// Rows of activations that can share a load of weights without running out of registers: 8, 4 or 2.
    const TOKENS: usize;
    /// Queries that can share the loads of an attention block: 6, 3 or 2.
    const QUERIES: usize;
    /// What [`Lanes::dot_signed`] adds to every weight; callers take it off again through the sum of the activations.
    const SIGNED_BIAS: i32;

    fn splat(self, v: f32) -> Self::F;
    fn load(self, v: &[f32; LANES]) -> Self::F;
    fn store(self, v: Self::F, to: &mut [f32; LANES]);
    /// From IEEE half precision, exact.
    fn load_f16(self, v: &[u16; LANES]) -> Self::F;
    /// From the upper halves of singles, exact.
    fn load_bf16(self, v: &[u16; LANES]) -> Self::F;
    /// From bytes of E4M3 as [`crate::Quant::FP8`] reads them, exact: moved into the bits of halves, 256 times smaller.
    #[inline(always)]
    fn load_e4m3(self, v: &[u8; LANES]) -> Self::F {
        let halves = v.map(|code| (u16::from(code) & 0x80) << 8 | (u16::from(code) & 0x7f) << 7);
        self.mul(self.load_f16(&halves), self.splat(256.0))
    }
    /// From unsigned bytes, exact.
    fn load_u8(self, v: &[u8; LANES]) -> Self::F;
    /// From signed bytes, exact.
    fn load_i8(self, v: &[i8; LANES]) -> Self::F;
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
    /// The sum of the lanes.
    fn isum(self, v: Self::I) -> i32;
    /// The largest lane.
    fn ilargest(self, v: Self::I) -> i32;
    /// Every lane as a byte; lanes are within `i8`.
    fn store_i8(self, v: Self::I, to: &mut [i8; LANES]);
    /// To the nearest integer, ties to even; lanes are within `i32`.
    fn to_i32(self, a: Self::F) -> Self::I;

    fn bytes(self, v: &[u8; GROUP * LANES]) -> Self::B;
    /// The lower four bits of every byte.
    fn low(self, v: Self::B) -> Self::B;
    /// The upper four bits of every byte, moved down.
    fn high(self, v: Self::B) -> Self::B;
    /// Bits `FROM .. FROM + COUNT` of every byte of `v`, moved to bit `TO`, joined to what `with` has.
    fn join<const FROM: u32, const COUNT: u32, const TO: u32>(self, with: Self::B, v: Self::B) -> Self::B;
    /// `table[b]` for every byte, which is below 16.
    fn lookup(self, v: Self::B, table: &[i8; 16]) -> Self::B;

    /// Adds to each of the first `tokens` of `to` the products of `N` groups of unsigned weights and signed activations,
    /// exactly. `N` products of the largest weight and 127, twice, fit 16 bits.
    fn dot<const N: usize, const T: usize>(self, w: [Self::B; N], x: [&[i32; N]; T], to: &mut [Self::I; T]);
    /// The same for signed weights, each taken as [`Lanes::SIGNED_BIAS`] more than it is; activations are not -128.
    fn dot_signed<const N: usize, const T: usize>(self, w: [Self::B; N], x: [&[i32; N]; T], to: &mut [Self::I; T]);

    /// Asks for a line of memory that will be read soon. Any address will do.
    fn prefetch(self, address: *const u8);

    /// Adds the lanes up: those 8 apart, then 4, 2, 1, as the shuffles of a warp do.
    fn sum(self, a: Self::F) -> f32;
    /// The largest lane; anything where one is NaN.
    fn largest(self, a: Self::F) -> f32;

    /// `e^x` within 2 units in the last place; 0 below -87.3, at most `e^88` above. The polynomial is `expf` of Cephes.
    #[inline(always)]
    fn exp(self, x: Self::F) -> Self::F {
        let clamped = self.min(self.splat(EXP_MOST), self.max(self.splat(EXP_LEAST), x));
        let n = self.round(self.mul(clamped, self.splat(std::f32::consts::LOG2_E)));
        let r = self.fma(n, self.splat(EXP_LN2[0]), clamped);
        let r = self.fma(n, self.splat(EXP_LN2[1]), r);
        let mut p = self.splat(EXP_TERMS[0]);
        for c in &EXP_TERMS[1..] {
            p = self.fma(p, r, self.splat(*c));
        }
        let p = self.add(self.fma(p, self.mul(r, r), r), self.splat(1.0));
        self.zero_below(self.mul(p, self.pow2(n)), x, EXP_LEAST)
    }

    /// `x / (1 + e^less)`.
    #[inline(always)]
    fn times_sigmoid(self, x: Self::F, less: Self::F) -> Self::F {
        self.div(x, self.add(self.splat(1.0), self.exp(less)))
    }

    /// `1 - 2 / (e^(2x) + 1)`.
    #[inline(always)]
    fn tanh(self, x: Self::F) -> Self::F {
        let above = self.add(self.exp(self.mul(x, self.splat(2.0))), self.splat(1.0));
        self.add(self.splat(1.0), self.div(self.splat(-2.0), above))
    }

    /// `x` times the normal distribution up to `x`: `max(x, 0) - |x| * tail(|x|)`.
    #[inline(always)]
    fn gelu_erf(self, x: Self::F) -> Self::F {
        let magnitude = self.max(self.mul(x, self.splat(-1.0)), x);
        let z = self.mul(magnitude, self.splat(std::f32::consts::FRAC_1_SQRT_2));
        let t = self.div(self.splat(1.0), self.fma(self.splat(ERF_P), z, self.splat(1.0)));
        let mut p = self.splat(ERF_TERMS[0]);
        for c in &ERF_TERMS[1..] {
            p = self.fma(p, t, self.splat(*c));
        }
        let tail = self.mul(self.mul(p, t), self.exp(self.mul(self.mul(z, z), self.splat(-1.0))));
        let tail = self.mul(tail, self.splat(-0.5));
        self.fma(magnitude, tail, self.max(self.splat(0.0), x))
    }
}

/// Coefficients of 7.1.26 of Abramowitz and Stegun, highest power first, and its `p`.
const ERF_TERMS: [f32; 5] = [1.061_405_4, -1.453_152, 1.421_413_8, -0.284_496_72, 0.254_829_6];
const ERF_P: f32 = 0.327_591_1;

/// Below this `e^x` counts as 0: about where it would become subnormal.
const EXP_LEAST: f32 = -87.3;
/// Above this `e^x` does not grow.
const EXP_MOST: f32 = 88.0;
/// `-ln 2` in two parts, the first exact in few bits, so that the reduced argument keeps all of its own.
const EXP_LN2: [f32; 2] = [-355.0 / 512.0, 2.121_944_4e-4];
/// The polynomial's coefficients, highest power first.
const EXP_TERMS: [f32; 6] = [1.987_569_1e-4, 1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5];

/// Work that can be done with any instruction set.
pub(super) trait Kernel {
    /// Does it. Implementations are `#[inline(always)]`, so that they are compiled for the instruction set of `lanes`.
    fn run<L: Lanes>(self, lanes: L);
}

/// The instruction set in use.
#[derive(Clone, Copy)]
pub(super) enum Level {
    #[cfg(target_arch = "x86_64")]
    Avx512(avx512::Avx512),
    #[cfg(target_arch = "x86_64")]
    Avx2(avx2::Avx2),
    Portable(portable::Portable),
}

impl Level {
    /// The set asked for, or `None` where the processor lacks it.
    pub(super) fn new(isa: Isa) -> Option<Self> {
        match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => avx512::Avx512::detect().map(Self::Avx512),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => avx2::Avx2::detect().map(Self::Avx2),
            #[cfg(not(target_arch = "x86_64"))]
            Isa::Avx512 | Isa::Avx2 => None,
            Isa::Portable => Some(Self::Portable(portable::Portable)),
        }
    }

    /// Runs `kernel` compiled for this instruction set.
    #[inline]
    pub(super) fn run(self, kernel: impl Kernel) {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx512(lanes) => lanes.run(kernel),
            #[cfg(target_arch = "x86_64")]
            Self::Avx2(lanes) => lanes.run(kernel),
            Self::Portable(lanes) => kernel.run(lanes),
        }
    }
}

#[cfg(test)]
mod tests;
