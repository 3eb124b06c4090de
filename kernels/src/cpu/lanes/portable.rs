//! [`Lanes`] in plain Rust, for any processor: the arithmetic of the AVX2 version, lane by lane. Never fast.

use half::f16;

use super::{LANES, Lanes};

/// Needs nothing.
#[derive(Clone, Copy)]
pub(in crate::cpu) struct Portable;

type F = [f32; LANES];

impl Lanes for Portable {
    type F = F;
    type I = [i32; LANES];
    type W = [i16; 2 * LANES];

    #[inline(always)]
    fn splat(self, v: f32) -> F {
        [v; LANES]
    }

    #[inline(always)]
    fn load(self, v: &F) -> F {
        *v
    }

    #[inline(always)]
    fn store(self, v: F, to: &mut F) {
        *to = v;
    }

    #[inline(always)]
    fn load_f16(self, v: &[u16; LANES]) -> F {
        v.map(|bits| f16::from_bits(bits).to_f32())
    }

    #[inline(always)]
    fn load_bf16(self, v: &[u16; LANES]) -> F {
        v.map(|bits| f32::from_bits(u32::from(bits) << 16))
    }

    #[inline(always)]
    fn add(self, a: F, b: F) -> F {
        std::array::from_fn(|i| a[i] + b[i])
    }

    #[inline(always)]
    fn mul(self, a: F, b: F) -> F {
        std::array::from_fn(|i| a[i] * b[i])
    }

    #[inline(always)]
    fn div(self, a: F, b: F) -> F {
        std::array::from_fn(|i| a[i] / b[i])
    }

    #[inline(always)]
    fn fma(self, a: F, b: F, c: F) -> F {
        std::array::from_fn(|i| a[i].mul_add(b[i], c[i]))
    }

    #[inline(always)]
    fn max(self, a: F, b: F) -> F {
        std::array::from_fn(|i| if a[i] > b[i] { a[i] } else { b[i] })
    }

    #[inline(always)]
    fn min(self, a: F, b: F) -> F {
        std::array::from_fn(|i| if a[i] < b[i] { a[i] } else { b[i] })
    }

    #[inline(always)]
    fn zero_below(self, v: F, x: F, limit: f32) -> F {
        std::array::from_fn(|i| if x[i] < limit { 0.0 } else { v[i] })
    }

    #[inline(always)]
    fn round(self, a: F) -> F {
        a.map(f32::round_ties_even)
    }

    #[inline(always)]
    fn pow2(self, n: F) -> F {
        n.map(|n| f32::from_bits((n as i32).wrapping_add(127).wrapping_shl(23) as u32))
    }

    #[inline(always)]
    fn isplat(self, v: i32) -> Self::I {
        [v; LANES]
    }

    #[inline(always)]
    fn to_f32(self, v: Self::I) -> F {
        v.map(|v| v as f32)
    }

    #[inline(always)]
    fn max_magnitude(self, m: Self::I, a: F) -> Self::I {
        std::array::from_fn(|i| m[i].max(a[i].abs().to_bits() as i32))
    }

    #[inline(always)]
    fn istore(self, v: Self::I, to: &mut [i32; LANES]) {
        *to = v;
    }

    #[inline(always)]
    fn to_i32(self, a: F) -> Self::I {
        a.map(|a| a.round_ties_even() as i32)
    }

    #[inline(always)]
    fn dot(self, acc: Self::I, w: Self::W, pair: i32) -> Self::I {
        let (low, high) = (i32::from(pair as i16), pair >> 16);
        std::array::from_fn(|i| acc[i] + i32::from(w[2 * i]) * low + i32::from(w[2 * i + 1]) * high)
    }

    #[inline(always)]
    fn nibble<const N: usize>(self, packed: &[u16; 16]) -> Self::W {
        packed.map(|w| ((w >> (4 * N)) & 15) as i16)
    }

    #[inline(always)]
    fn bytes(self, packed: &[u16; 16]) -> [Self::W; 2] {
        [packed.map(|w| i16::from(w as i8)), packed.map(|w| (w as i16) >> 8)]
    }

    #[inline(always)]
    fn prefetch(self, _: *const u8) {}
}
