//! [`Lanes`] in AVX-512 with VNNI: one register a vector, one instruction a group of products.

use std::arch::x86_64::*;

use super::{GROUP, Kernel, LANES, Lanes};

/// Proof that this processor has AVX-512 F, BW, DQ, VL and VNNI.
#[derive(Clone, Copy)]
pub(in crate::cpu) struct Avx512(());

impl Avx512 {
    /// Looks at the processor.
    pub(super) fn detect() -> Option<Self> {
        let found = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512vnni")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c");
        found.then_some(Self(()))
    }

    /// Runs `kernel` compiled for these features.
    #[inline]
    pub(super) fn run(self, kernel: impl Kernel) {
        // SAFETY: `self` exists only where `detect` found the features that `run_compiled` is compiled for.
        unsafe { self.run_compiled(kernel) }
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,fma,f16c")]
    fn run_compiled(self, kernel: impl Kernel) {
        kernel.run(self);
    }
}

/// Calls intrinsics that need no more than the features an [`Avx512`] proves.
macro_rules! proven {
    ($self:ident, $e:expr) => {{
        let Avx512(()) = $self;
        // SAFETY: `$self` exists only where `detect` found the features, and `$e` uses nothing else. Pointers in it come
        // from references to arrays at least as large as the (unaligned) access.
        unsafe { $e }
    }};
}

impl Lanes for Avx512 {
    type F = __m512;
    type I = __m512i;
    type B = __m512i;

    const TOKENS: usize = 8;
    const QUERIES: usize = 6;
    const SIGNED_BIAS: i32 = 128;

    #[inline(always)]
    fn splat(self, v: f32) -> __m512 {
        proven!(self, _mm512_set1_ps(v))
    }

    #[inline(always)]
    fn load(self, v: &[f32; LANES]) -> __m512 {
        proven!(self, _mm512_loadu_ps(v.as_ptr()))
    }

    #[inline(always)]
    fn store(self, v: __m512, to: &mut [f32; LANES]) {
        proven!(self, _mm512_storeu_ps(to.as_mut_ptr(), v));
    }

    #[inline(always)]
    fn load_f16(self, v: &[u16; LANES]) -> __m512 {
        proven!(self, _mm512_cvtph_ps(_mm256_loadu_si256(v.as_ptr().cast())))
    }

    #[inline(always)]
    fn load_bf16(self, v: &[u16; LANES]) -> __m512 {
        proven!(self, {
            let wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(v.as_ptr().cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide))
        })
    }

    #[inline(always)]
    fn load_u8(self, v: &[u8; LANES]) -> __m512 {
        proven!(self, _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(v.as_ptr().cast()))))
    }

    #[inline(always)]
    fn load_i8(self, v: &[i8; LANES]) -> __m512 {
        proven!(self, _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(v.as_ptr().cast()))))
    }

    #[inline(always)]
    fn add(self, a: __m512, b: __m512) -> __m512 {
        proven!(self, _mm512_add_ps(a, b))
    }

    #[inline(always)]
    fn mul(self, a: __m512, b: __m512) -> __m512 {
        proven!(self, _mm512_mul_ps(a, b))
    }

    #[inline(always)]
    fn div(self, a: __m512, b: __m512) -> __m512 {
        proven!(self, _mm512_div_ps(a, b))
    }

    #[inline(always)]
    fn fma(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        proven!(self, _mm512_fmadd_ps(a, b, c))
    }

    #[inline(always)]
    fn max(self, a: __m512, b: __m512) -> __m512 {
        proven!(self, _mm512_max_ps(a, b))
    }

    #[inline(always)]
    fn min(self, a: __m512, b: __m512) -> __m512 {
        proven!(self, _mm512_min_ps(a, b))
    }

    #[inline(always)]
    fn zero_below(self, v: __m512, x: __m512, limit: f32) -> __m512 {
        proven!(self, {
            let keep = _mm512_cmp_ps_mask::<_CMP_NLT_UQ>(x, _mm512_set1_ps(limit));
            _mm512_maskz_mov_ps(keep, v)
        })
    }

    #[inline(always)]
    fn round(self, a: __m512) -> __m512 {
        proven!(self, _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(a))
    }

    #[inline(always)]
    fn pow2(self, n: __m512) -> __m512 {
        proven!(self, {
            let biased = _mm512_add_epi32(_mm512_cvtps_epi32(n), _mm512_set1_epi32(127));
            _mm512_castsi512_ps(_mm512_slli_epi32::<23>(biased))
        })
    }

    #[inline(always)]
    fn isplat(self, v: i32) -> __m512i {
        proven!(self, _mm512_set1_epi32(v))
    }

    #[inline(always)]
    fn to_f32(self, v: __m512i) -> __m512 {
        proven!(self, _mm512_cvtepi32_ps(v))
    }

    #[inline(always)]
    fn max_magnitude(self, m: __m512i, a: __m512) -> __m512i {
        proven!(self, {
            let magnitude = _mm512_and_si512(_mm512_castps_si512(a), _mm512_set1_epi32(i32::MAX));
            _mm512_max_epi32(m, magnitude)
        })
    }

    #[inline(always)]
    fn isum(self, v: __m512i) -> i32 {
        proven!(self, _mm512_reduce_add_epi32(v))
    }

    #[inline(always)]
    fn ilargest(self, v: __m512i) -> i32 {
        proven!(self, _mm512_reduce_max_epi32(v))
    }

    #[inline(always)]
    fn store_i8(self, v: __m512i, to: &mut [i8; LANES]) {
        proven!(self, _mm_storeu_si128(to.as_mut_ptr().cast(), _mm512_cvtepi32_epi8(v)));
    }

    #[inline(always)]
    fn to_i32(self, a: __m512) -> __m512i {
        proven!(self, _mm512_cvtps_epi32(a))
    }

    #[inline(always)]
    fn bytes(self, v: &[u8; GROUP * LANES]) -> __m512i {
        proven!(self, _mm512_loadu_si512(v.as_ptr().cast()))
    }

    #[inline(always)]
    fn low(self, v: __m512i) -> __m512i {
        proven!(self, _mm512_and_si512(v, _mm512_set1_epi8(15)))
    }

    #[inline(always)]
    fn high(self, v: __m512i) -> __m512i {
        proven!(self, _mm512_and_si512(_mm512_srli_epi16::<4>(v), _mm512_set1_epi8(15)))
    }

    #[inline(always)]
    fn join<const FROM: u32, const COUNT: u32, const TO: u32>(self, with: __m512i, v: __m512i) -> __m512i {
        proven!(self, {
            // Shifts by variable counts of the 16-bit lanes; bits that cross a byte are masked away.
            let moved = match FROM > TO {
                true => _mm512_srl_epi16(v, _mm_cvtsi32_si128((FROM - TO) as i32)),
                false => _mm512_sll_epi16(v, _mm_cvtsi32_si128((TO - FROM) as i32)),
            };
            let mask = _mm512_set1_epi8((((1u32 << COUNT) - 1) << TO) as i8);
            _mm512_or_si512(with, _mm512_and_si512(moved, mask))
        })
    }

    #[inline(always)]
    fn lookup(self, v: __m512i, table: &[i8; 16]) -> __m512i {
        proven!(self, {
            let table = _mm512_broadcast_i32x4(_mm_loadu_si128(table.as_ptr().cast()));
            _mm512_shuffle_epi8(table, v)
        })
    }

    #[inline(always)]
    fn dot<const N: usize, const T: usize>(self, w: [__m512i; N], x: [&[i32; N]; T], to: &mut [__m512i; T]) {
        for t in 0..T {
            for n in 0..N {
                to[t] = proven!(self, _mm512_dpbusd_epi32(to[t], w[n], _mm512_set1_epi32(x[t][n])));
            }
        }
    }

    #[inline(always)]
    fn dot_signed<const N: usize, const T: usize>(self, mut w: [__m512i; N], x: [&[i32; N]; T], to: &mut [__m512i; T]) {
        for w in &mut w {
            // 128 more than it was, as an unsigned byte.
            *w = proven!(self, _mm512_xor_si512(*w, _mm512_set1_epi8(-128)));
        }
        self.dot(w, x, to);
    }

    #[inline(always)]
    fn sum(self, v: __m512) -> f32 {
        proven!(self, {
            let sum = _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps::<1>(v));
            let sum = _mm_add_ps(_mm256_castps256_ps128(sum), _mm256_extractf128_ps::<1>(sum));
            let sum = _mm_add_ps(sum, _mm_movehl_ps(sum, sum));
            _mm_cvtss_f32(_mm_add_ss(sum, _mm_movehdup_ps(sum)))
        })
    }

    #[inline(always)]
    fn largest(self, v: __m512) -> f32 {
        proven!(self, {
            let max = _mm256_max_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps::<1>(v));
            let max = _mm_max_ps(_mm256_castps256_ps128(max), _mm256_extractf128_ps::<1>(max));
            let max = _mm_max_ps(max, _mm_movehl_ps(max, max));
            _mm_cvtss_f32(_mm_max_ss(max, _mm_movehdup_ps(max)))
        })
    }

    #[inline(always)]
    fn prefetch(self, address: *const u8) {
        // A hint: it does not fault and reads nothing into the program, whatever the address.
        proven!(self, _mm_prefetch::<_MM_HINT_T0>(address.cast()));
    }
}
