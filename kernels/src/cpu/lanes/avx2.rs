//! [`Lanes`] in AVX2, FMA and F16C. Nothing here can run before [`Avx2::detect`] has found all three.

use std::arch::x86_64::*;

use super::{Kernel, LANES, Lanes};

/// Proof that this processor has AVX2, FMA and F16C.
#[derive(Clone, Copy)]
pub(in crate::cpu) struct Avx2(());

impl Avx2 {
    /// Looks at the processor.
    pub(super) fn detect() -> Option<Self> {
        let found =
            is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c");
        found.then_some(Self(()))
    }

    /// Runs `kernel` compiled for these features.
    #[inline]
    pub(super) fn run(self, kernel: impl Kernel) {
        // SAFETY: `self` exists only where `detect` found the features that `run_compiled` is compiled for.
        unsafe { self.run_compiled(kernel) }
    }

    #[target_feature(enable = "avx2,fma,f16c")]
    fn run_compiled(self, kernel: impl Kernel) {
        kernel.run(self);
    }
}

/// Calls intrinsics that need no more than the features an [`Avx2`] proves.
macro_rules! proven {
    ($self:ident, $e:expr) => {{
        let Avx2(()) = $self;
        // SAFETY: `$self` exists only where `detect` found AVX2, FMA and F16C, and `$e` uses nothing else. Pointers in
        // it come from references to arrays at least as large as the (unaligned) access.
        unsafe { $e }
    }};
}

impl Lanes for Avx2 {
    type F = __m256;
    type I = __m256i;
    type W = __m256i;

    #[inline(always)]
    fn splat(self, v: f32) -> __m256 {
        proven!(self, _mm256_set1_ps(v))
    }

    #[inline(always)]
    fn load(self, v: &[f32; LANES]) -> __m256 {
        proven!(self, _mm256_loadu_ps(v.as_ptr()))
    }

    #[inline(always)]
    fn store(self, v: __m256, to: &mut [f32; LANES]) {
        proven!(self, _mm256_storeu_ps(to.as_mut_ptr(), v));
    }

    #[inline(always)]
    fn load_f16(self, v: &[u16; LANES]) -> __m256 {
        proven!(self, _mm256_cvtph_ps(_mm_loadu_si128(v.as_ptr().cast())))
    }

    #[inline(always)]
    fn load_bf16(self, v: &[u16; LANES]) -> __m256 {
        proven!(self, {
            let wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(v.as_ptr().cast()));
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(wide))
        })
    }

    #[inline(always)]
    fn add(self, a: __m256, b: __m256) -> __m256 {
        proven!(self, _mm256_add_ps(a, b))
    }

    #[inline(always)]
    fn mul(self, a: __m256, b: __m256) -> __m256 {
        proven!(self, _mm256_mul_ps(a, b))
    }

    #[inline(always)]
    fn div(self, a: __m256, b: __m256) -> __m256 {
        proven!(self, _mm256_div_ps(a, b))
    }

    #[inline(always)]
    fn fma(self, a: __m256, b: __m256, c: __m256) -> __m256 {
        proven!(self, _mm256_fmadd_ps(a, b, c))
    }

    #[inline(always)]
    fn max(self, a: __m256, b: __m256) -> __m256 {
        proven!(self, _mm256_max_ps(a, b))
    }

    #[inline(always)]
    fn min(self, a: __m256, b: __m256) -> __m256 {
        proven!(self, _mm256_min_ps(a, b))
    }

    #[inline(always)]
    fn zero_below(self, v: __m256, x: __m256, limit: f32) -> __m256 {
        proven!(self, _mm256_andnot_ps(_mm256_cmp_ps::<_CMP_LT_OQ>(x, _mm256_set1_ps(limit)), v))
    }

    #[inline(always)]
    fn round(self, a: __m256) -> __m256 {
        proven!(self, _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(a))
    }

    #[inline(always)]
    fn pow2(self, n: __m256) -> __m256 {
        proven!(self, {
            let biased = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
            _mm256_castsi256_ps(_mm256_slli_epi32::<23>(biased))
        })
    }

    #[inline(always)]
    fn isplat(self, v: i32) -> __m256i {
        proven!(self, _mm256_set1_epi32(v))
    }

    #[inline(always)]
    fn to_f32(self, v: __m256i) -> __m256 {
        proven!(self, _mm256_cvtepi32_ps(v))
    }

    #[inline(always)]
    fn max_magnitude(self, m: __m256i, a: __m256) -> __m256i {
        proven!(self, {
            let magnitude = _mm256_and_si256(_mm256_castps_si256(a), _mm256_set1_epi32(i32::MAX));
            _mm256_max_epi32(m, magnitude)
        })
    }

    #[inline(always)]
    fn istore(self, v: __m256i, to: &mut [i32; LANES]) {
        proven!(self, _mm256_storeu_si256(to.as_mut_ptr().cast(), v));
    }

    #[inline(always)]
    fn to_i32(self, a: __m256) -> __m256i {
        proven!(self, _mm256_cvtps_epi32(a))
    }

    #[inline(always)]
    fn dot(self, acc: __m256i, w: __m256i, pair: i32) -> __m256i {
        proven!(self, in_order(_mm256_add_epi32(acc, _mm256_madd_epi16(w, _mm256_set1_epi32(pair)))))
    }

    #[inline(always)]
    fn nibble<const N: usize>(self, packed: &[u16; 16]) -> __m256i {
        const { assert!(N < 4, "a word has four nibbles") };
        proven!(self, {
            let v = _mm256_loadu_si256(packed.as_ptr().cast());
            let mask = _mm256_set1_epi16(15);
            match N {
                0 => _mm256_and_si256(v, mask),
                1 => _mm256_and_si256(_mm256_srli_epi16::<4>(v), mask),
                2 => _mm256_and_si256(_mm256_srli_epi16::<8>(v), mask),
                _ => _mm256_srli_epi16::<12>(v),
            }
        })
    }

    #[inline(always)]
    fn bytes(self, packed: &[u16; 16]) -> [__m256i; 2] {
        proven!(self, {
            let v = _mm256_loadu_si256(packed.as_ptr().cast());
            [_mm256_srai_epi16::<8>(_mm256_slli_epi16::<8>(v)), _mm256_srai_epi16::<8>(v)]
        })
    }

    #[inline(always)]
    fn prefetch(self, address: *const u8) {
        // A hint: it does not fault and reads nothing into the program, whatever the address.
        proven!(self, _mm_prefetch::<_MM_HINT_T0>(address.cast()));
    }
}

/// The same value, to be computed where it stands. Left to itself the compiler sums integer products in trees, which take
/// more registers than there are: accumulators then go through memory, and every addition waits for a store.
#[inline]
#[target_feature(enable = "avx2")]
fn in_order(mut v: __m256i) -> __m256i {
    // SAFETY: no instruction at all.
    unsafe {
        std::arch::asm!("/* {0} */", inout(ymm_reg) v, options(pure, nomem, nostack, preserves_flags));
    }
    v
}
