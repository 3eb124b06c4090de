//! [`Lanes`] in plain Rust, for any processor: the same arithmetic, lane by lane. Never fast.

use half::f16;

use super::{GROUP, LANES, Lanes};

/// Needs nothing.
#[derive(Clone, Copy)]
pub(in crate::cpu) struct Portable;

type F = [f32; LANES];
type B = [u8; GROUP * LANES];

impl Lanes for Portable {
    type F = F;
    type I = [i32; LANES];
    type B = B;

    const TOKENS: usize = 2;
    const QUERIES: usize = 2;
    const SIGNED_BIAS: i32 = 0;

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
    fn load_u8(self, v: &[u8; LANES]) -> F {
        v.map(f32::from)
    }

    #[inline(always)]
    fn load_i8(self, v: &[i8; LANES]) -> F {
        v.map(f32::from)
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
    fn isum(self, v: Self::I) -> i32 {
        v.iter().sum()
    }

    #[inline(always)]
    fn ilargest(self, v: Self::I) -> i32 {
        v.into_iter().fold(i32::MIN, i32::max)
    }

    #[inline(always)]
    fn store_i8(self, v: Self::I, to: &mut [i8; LANES]) {
        *to = v.map(|v| v as i8);
    }

    #[inline(always)]
    fn to_i32(self, a: F) -> Self::I {
        a.map(|a| a.round_ties_even() as i32)
    }

    #[inline(always)]
    fn bytes(self, v: &B) -> B {
        *v
    }

    #[inline(always)]
    fn low(self, v: B) -> B {
        v.map(|b| b & 15)
    }

    #[inline(always)]
    fn high(self, v: B) -> B {
        v.map(|b| b >> 4)
    }

    #[inline(always)]
    fn join<const FROM: u32, const COUNT: u32, const TO: u32>(self, with: B, v: B) -> B {
        std::array::from_fn(|i| with[i] | ((v[i] >> FROM) & ((1 << COUNT) - 1)) << TO)
    }

    #[inline(always)]
    fn lookup(self, v: B, table: &[i8; 16]) -> B {
        v.map(|b| table[usize::from(b & 15)] as u8)
    }

    #[inline(always)]
    fn dot<const N: usize, const T: usize>(self, w: [B; N], x: [&[i32; N]; T], to: &mut [Self::I; T]) {
        for (x, to) in x.into_iter().zip(to) {
            for (w, x) in w.iter().zip(x) {
                let x = x.to_le_bytes().map(|x| i32::from(x as i8));
                for (to, w) in to.iter_mut().zip(w.as_chunks::<GROUP>().0) {
                    *to += (0..GROUP).map(|c| i32::from(w[c]) * x[c]).sum::<i32>();
                }
            }
        }
    }

    #[inline(always)]
    fn dot_signed<const N: usize, const T: usize>(self, w: [B; N], x: [&[i32; N]; T], to: &mut [Self::I; T]) {
        for (x, to) in x.into_iter().zip(to) {
            for (w, x) in w.iter().zip(x) {
                let x = x.to_le_bytes().map(|x| i32::from(x as i8));
                for (to, w) in to.iter_mut().zip(w.as_chunks::<GROUP>().0) {
                    *to += (0..GROUP).map(|c| i32::from(w[c] as i8) * x[c]).sum::<i32>();
                }
            }
        }
    }

    #[inline(always)]
    fn sum(self, mut v: F) -> f32 {
        let mut half = LANES / 2;
        while half > 0 {
            for i in 0..half {
                v[i] += v[i + half];
            }
            half /= 2;
        }
        v[0]
    }

    #[inline(always)]
    fn largest(self, v: F) -> f32 {
        v.into_iter().fold(f32::NEG_INFINITY, |m, x| if x > m { x } else { m })
    }

    #[inline(always)]
    fn prefetch(self, _: *const u8) {}
}
