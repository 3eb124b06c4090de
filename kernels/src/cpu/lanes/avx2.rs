//! [`Lanes`] in AVX2, FMA and F16C: a vector is two registers. Nothing here can run before [`Avx2::detect`] has found all
//! three.

use std::arch::x86_64::*;

use super::{GROUP, Kernel, LANES, Lanes};

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

/// The same of both halves of a vector.
macro_rules! both {
    ($self:ident, $i:ident => $e:expr) => {
        proven!(
            $self,
            [
                {
                    let $i = 0;
                    $e
                },
                {
                    let $i = 1;
                    $e
                }
            ]
        )
    };
}

impl Lanes for Avx2 {
    type F = [__m256; 2];
    type I = [__m256i; 2];
    type B = [__m256i; 2];

    const TOKENS: usize = 4;
    const QUERIES: usize = 3;
    const SIGNED_BIAS: i32 = 0;

    #[inline(always)]
    fn splat(self, v: f32) -> Self::F {
        both!(self, _i => _mm256_set1_ps(v))
    }

    #[inline(always)]
    fn load(self, v: &[f32; LANES]) -> Self::F {
        both!(self, i => _mm256_loadu_ps(v.as_ptr().add(8 * i)))
    }

    #[inline(always)]
    fn store(self, v: Self::F, to: &mut [f32; LANES]) {
        both!(self, i => _mm256_storeu_ps(to.as_mut_ptr().add(8 * i), v[i]));
    }

    #[inline(always)]
    fn load_f16(self, v: &[u16; LANES]) -> Self::F {
        both!(self, i => _mm256_cvtph_ps(_mm_loadu_si128(v.as_ptr().add(8 * i).cast())))
    }

    #[inline(always)]
    fn load_bf16(self, v: &[u16; LANES]) -> Self::F {
        both!(self, i => {
            let wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(v.as_ptr().add(8 * i).cast()));
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(wide))
        })
    }

    #[inline(always)]
    fn load_u8(self, v: &[u8; LANES]) -> Self::F {
        both!(self, i => _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64(v.as_ptr().add(8 * i).cast()))))
    }

    #[inline(always)]
    fn load_i8(self, v: &[i8; LANES]) -> Self::F {
        both!(self, i => _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(v.as_ptr().add(8 * i).cast()))))
    }

    #[inline(always)]
    fn add(self, a: Self::F, b: Self::F) -> Self::F {
        both!(self, i => _mm256_add_ps(a[i], b[i]))
    }

    #[inline(always)]
    fn mul(self, a: Self::F, b: Self::F) -> Self::F {
        both!(self, i => _mm256_mul_ps(a[i], b[i]))
    }

    #[inline(always)]
    fn div(self, a: Self::F, b: Self::F) -> Self::F {
        both!(self, i => _mm256_div_ps(a[i], b[i]))
    }

    #[inline(always)]
    fn max(self, a: Self::F, b: Self::F) -> Self::F {
        both!(self, i => _mm256_max_ps(a[i], b[i]))
    }

    #[inline(always)]
    fn min(self, a: Self::F, b: Self::F) -> Self::F {
        both!(self, i => _mm256_min_ps(a[i], b[i]))
    }

    #[inline(always)]
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        both!(self, i => _mm256_fmadd_ps(a[i], b[i], c[i]))
    }

    #[inline(always)]
    fn zero_below(self, v: Self::F, x: Self::F, limit: f32) -> Self::F {
        both!(self, i => _mm256_andnot_ps(_mm256_cmp_ps::<_CMP_LT_OQ>(x[i], _mm256_set1_ps(limit)), v[i]))
    }

    #[inline(always)]
    fn round(self, a: Self::F) -> Self::F {
        both!(self, i => _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(a[i]))
    }

    #[inline(always)]
    fn pow2(self, n: Self::F) -> Self::F {
        both!(self, i => {
            let biased = _mm256_add_epi32(_mm256_cvtps_epi32(n[i]), _mm256_set1_epi32(127));
            _mm256_castsi256_ps(_mm256_slli_epi32::<23>(biased))
        })
    }

    #[inline(always)]
    fn isplat(self, v: i32) -> Self::I {
        both!(self, _i => _mm256_set1_epi32(v))
    }

    #[inline(always)]
    fn to_f32(self, v: Self::I) -> Self::F {
        both!(self, i => _mm256_cvtepi32_ps(v[i]))
    }

    #[inline(always)]
    fn max_magnitude(self, m: Self::I, a: Self::F) -> Self::I {
        both!(self, i => {
            let magnitude = _mm256_and_si256(_mm256_castps_si256(a[i]), _mm256_set1_epi32(i32::MAX));
            _mm256_max_epi32(m[i], magnitude)
        })
    }

    #[inline(always)]
    fn isum(self, v: Self::I) -> i32 {
        proven!(self, {
            let sum = _mm256_add_epi32(v[0], v[1]);
            let sum = _mm_add_epi32(_mm256_castsi256_si128(sum), _mm256_extracti128_si256::<1>(sum));
            let sum = _mm_add_epi32(sum, _mm_shuffle_epi32::<0b01_00_11_10>(sum));
            _mm_cvtsi128_si32(_mm_add_epi32(sum, _mm_shuffle_epi32::<0b10_11_00_01>(sum)))
        })
    }

    #[inline(always)]
    fn ilargest(self, v: Self::I) -> i32 {
        proven!(self, {
            let max = _mm256_max_epi32(v[0], v[1]);
            let max = _mm_max_epi32(_mm256_castsi256_si128(max), _mm256_extracti128_si256::<1>(max));
            let max = _mm_max_epi32(max, _mm_shuffle_epi32::<0b01_00_11_10>(max));
            _mm_cvtsi128_si32(_mm_max_epi32(max, _mm_shuffle_epi32::<0b10_11_00_01>(max)))
        })
    }

    #[inline(always)]
    fn store_i8(self, v: Self::I, to: &mut [i8; LANES]) {
        proven!(self, {
            // Packing works within 128 bits, so the middle quarters come out swapped.
            let words = _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_packs_epi32(v[0], v[1]));
            let bytes = _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256::<1>(words));
            _mm_storeu_si128(to.as_mut_ptr().cast(), bytes);
        });
    }

    #[inline(always)]
    fn to_i32(self, a: Self::F) -> Self::I {
        both!(self, i => _mm256_cvtps_epi32(a[i]))
    }

    #[inline(always)]
    fn bytes(self, v: &[u8; GROUP * LANES]) -> Self::B {
        both!(self, i => _mm256_loadu_si256(v.as_ptr().add(32 * i).cast()))
    }

    #[inline(always)]
    fn low(self, v: Self::B) -> Self::B {
        both!(self, i => _mm256_and_si256(v[i], _mm256_set1_epi8(15)))
    }

    #[inline(always)]
    fn high(self, v: Self::B) -> Self::B {
        both!(self, i => _mm256_and_si256(_mm256_srli_epi16::<4>(v[i]), _mm256_set1_epi8(15)))
    }

    #[inline(always)]
    fn join<const FROM: u32, const COUNT: u32, const TO: u32>(self, with: Self::B, v: Self::B) -> Self::B {
        both!(self, i => {
            // Shifts of the 16-bit lanes; bits that cross a byte are masked away.
            let moved = match FROM > TO {
                true => _mm256_srl_epi16(v[i], _mm_cvtsi32_si128((FROM - TO) as i32)),
                false => _mm256_sll_epi16(v[i], _mm_cvtsi32_si128((TO - FROM) as i32)),
            };
            let mask = _mm256_set1_epi8((((1u32 << COUNT) - 1) << TO) as i8);
            _mm256_or_si256(with[i], _mm256_and_si256(moved, mask))
        })
    }

    #[inline(always)]
    fn lookup(self, v: Self::B, table: &[i8; 16]) -> Self::B {
        both!(self, i => {
            let table = _mm256_broadcastsi128_si256(_mm_loadu_si128(table.as_ptr().cast()));
            _mm256_shuffle_epi8(table, v[i])
        })
    }

    #[inline(always)]
    fn dot<const N: usize, const T: usize>(self, w: [Self::B; N], x: [&[i32; N]; T], to: &mut [Self::I; T]) {
        for half in 0..2 {
            for t in 0..T {
                let mut sum = proven!(self, _mm256_maddubs_epi16(w[0][half], _mm256_set1_epi32(x[t][0])));
                for n in 1..N {
                    let product = proven!(self, _mm256_maddubs_epi16(w[n][half], _mm256_set1_epi32(x[t][n])));
                    sum = proven!(self, in_order(_mm256_add_epi16(sum, product)));
                }
                let sum = proven!(self, _mm256_madd_epi16(sum, _mm256_set1_epi16(1)));
                to[t][half] = proven!(self, _mm256_add_epi32(to[t][half], sum));
            }
        }
    }

    #[inline(always)]
    fn dot_signed<const N: usize, const T: usize>(self, w: [Self::B; N], x: [&[i32; N]; T], to: &mut [Self::I; T]) {
        for half in 0..2 {
            for n in 0..N {
                // |w| * (x with the sign of w): at most 128 * 127, twice, which fits 16 bits.
                let magnitude = proven!(self, _mm256_abs_epi8(w[n][half]));
                for t in 0..T {
                    let signed = proven!(self, _mm256_sign_epi8(_mm256_set1_epi32(x[t][n]), w[n][half]));
                    let pairs = proven!(self, _mm256_maddubs_epi16(magnitude, signed));
                    let sum = proven!(self, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
                    to[t][half] = proven!(self, in_order(_mm256_add_epi32(to[t][half], sum)));
                }
            }
        }
    }

    #[inline(always)]
    fn sum(self, v: Self::F) -> f32 {
        proven!(self, {
            let sum = _mm256_add_ps(v[0], v[1]);
            let sum = _mm_add_ps(_mm256_castps256_ps128(sum), _mm256_extractf128_ps::<1>(sum));
            let sum = _mm_add_ps(sum, _mm_movehl_ps(sum, sum));
            _mm_cvtss_f32(_mm_add_ss(sum, _mm_movehdup_ps(sum)))
        })
    }

    #[inline(always)]
    fn largest(self, v: Self::F) -> f32 {
        proven!(self, {
            let max = _mm256_max_ps(v[0], v[1]);
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
