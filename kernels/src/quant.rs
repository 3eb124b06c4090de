//! Storage formats of weights as GGUF files define them, and the rounding of activations. Never computes a product.
//!
//! ```text
//! bytes of a row ──blocks──▶ integers and scales ──▶ values      values ──encode──▶ bytes of a row
//! ```
//!
//! [`int_blocks`] is the only reader of quantized bytes: [`dequantize_row`] stands on it, so what is proven of one holds
//! for the other.

mod blocks;
mod encode;

use std::fmt;

use half::{bf16, f16};

use crate::ops::ACTIVATION_BLOCK;

pub(crate) use self::blocks::{E2M1_DOUBLED, IQ4_VALUES, e4m3, half_of_e8m0, small_scales, super_scales};
pub use self::blocks::{IntBlock, IntFormat, int_blocks};
pub use self::encode::quantize_row;

/// Largest magnitude of a quantized activation.
pub const ACTIVATION_MAX: f32 = 127.0;

/// What one unit of the high plane of an activation of 15 bits is worth, in units of the low plane.
pub const PLANE_STEP: f32 = 128.0;

/// Largest magnitude of an activation of 15 bits.
pub const ACTIVATION_MAX_FINE: f32 = PLANE_STEP * ACTIVATION_MAX;

/// How the values of a matrix are stored.
///
/// Layouts are those of the `block_*` structures in ggml's ggml-common.h, fields in the order in which they lie in the
/// file. Superblocks of 256 have an `f16 d` (and an `f16 dmin`), by which the small integers that scale their groups of
/// 16 or 32 are multiplied. Bits of `q` are packed so that one shift of consecutive bytes gives consecutive columns.
#[allow(non_camel_case_types, reason = "these are the names that people and files use")]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Quant {
    /// IEEE single precision.
    F32,
    /// IEEE half precision.
    F16,
    /// The upper half of a single.
    BF16,
    /// Blocks of 32: `f16 d`, 16 bytes of nibbles; value `d * (q - 8)`.
    Q4_0,
    /// Blocks of 32: `f16 d`, `f16 m`, 16 bytes of nibbles; value `d * q + m`.
    Q4_1,
    /// Blocks of 32: `f16 d`, 4 bytes of fifth bits, 16 bytes of nibbles; value `d * (q - 16)`.
    Q5_0,
    /// Blocks of 32: `f16 d`, `f16 m`, 4 bytes of fifth bits, 16 bytes of nibbles; value `d * q + m`.
    Q5_1,
    /// Blocks of 32: `f16 d`, 32 signed bytes; value `d * q`.
    Q8_0,
    /// Superblocks of 256: 16 bytes of a 4-bit scale `sc` (low) and minimum `m` (high) a group of 16, 64 bytes of 2-bit
    /// `q`, `f16 d`, `f16 dmin`; value `d * sc * q - dmin * m`.
    Q2_K,
    /// Superblocks of 256: 32 bytes of third bits, 64 bytes of lower two bits, 12 bytes of 6-bit scales `sc` of groups
    /// of 16, `f16 d`; value `d * (sc - 32) * (q - 4)`.
    Q3_K,
    /// Superblocks of 256: `f16 d`, `f16 dmin`, 12 bytes of 6-bit scales `sc` and minimums `m` of groups of 32, 128 bytes
    /// of nibbles; value `d * sc * q - dmin * m`.
    Q4_K,
    /// Superblocks of 256: `f16 d`, `f16 dmin`, 12 bytes of 6-bit scales `sc` and minimums `m` of groups of 32, 32 bytes
    /// of fifth bits, 128 bytes of nibbles; value `d * sc * q - dmin * m`.
    Q5_K,
    /// Superblocks of 256: 128 bytes of nibbles, 64 bytes of upper two bits, 16 signed bytes `sc` that scale groups of
    /// 16, `f16 d`; value `d * sc * (q - 32)`.
    Q6_K,
    /// Blocks of 32: `f16 d`, 16 bytes of nibbles that choose from the 16 values of `kvalues_iq4nl`; value `d * k[q]`.
    IQ4_NL,
    /// Superblocks of 256: `f16 d`, 2 bytes of upper and 4 bytes of lower bits of 6-bit scales `sc` of groups of 32, 128
    /// bytes of nibbles that choose as those of [`Quant::IQ4_NL`]; value `d * (sc - 32) * k[q]`.
    IQ4_XS,
    /// Blocks of 32: a byte `e` (E8M0), 16 bytes of nibbles (E2M1); value `2^(e - 127) * q`. The microscaling format of
    /// the Open Compute Project, but, as in ggml, `e = 255` is a power of two and not NaN.
    MXFP4,
    /// Blocks of 32: `f32 d`, `f32 m`, 16 bytes of nibbles; value `d * q + m`. In no file: what the four-bit weights of AWQ
    /// and GPTQ become. `d` is the file's scale, `m` minus the scale times the zero point, exact for scales of 20 bits.
    INT4,
    /// Blocks of 32: `f32 d`, 32 bytes of E4M3; value `d * q`, rounded once. In no file: what FP8 weights and their scales
    /// become. The codes 7f and ff, which are no numbers in E4M3, count as 480 and -480 here; files with them are refused.
    FP8,
}

/// The type number of formats that GGUF files do not have.
const NOT_IN_GGUF: u32 = u32::MAX;

impl Quant {
    /// Every format, in the order of declaration.
    pub const ALL: [Quant; 18] = [
        Self::F32,
        Self::F16,
        Self::BF16,
        Self::Q4_0,
        Self::Q4_1,
        Self::Q5_0,
        Self::Q5_1,
        Self::Q8_0,
        Self::Q2_K,
        Self::Q3_K,
        Self::Q4_K,
        Self::Q5_K,
        Self::Q6_K,
        Self::IQ4_NL,
        Self::IQ4_XS,
        Self::MXFP4,
        Self::INT4,
        Self::FP8,
    ];

    /// The one table of formats: name, values in a block, bytes of a block, type number in a GGUF file
    /// (`enum ggml_type` of ggml.h).
    const fn shape(self) -> (&'static str, usize, usize, u32) {
        match self {
            Self::F32 => ("F32", 1, 4, 0),
            Self::F16 => ("F16", 1, 2, 1),
            Self::BF16 => ("BF16", 1, 2, 30),
            Self::Q4_0 => ("Q4_0", 32, 18, 2),
            Self::Q4_1 => ("Q4_1", 32, 20, 3),
            Self::Q5_0 => ("Q5_0", 32, 22, 6),
            Self::Q5_1 => ("Q5_1", 32, 24, 7),
            Self::Q8_0 => ("Q8_0", 32, 34, 8),
            Self::Q2_K => ("Q2_K", 256, 84, 10),
            Self::Q3_K => ("Q3_K", 256, 110, 11),
            Self::Q4_K => ("Q4_K", 256, 144, 12),
            Self::Q5_K => ("Q5_K", 256, 176, 13),
            Self::Q6_K => ("Q6_K", 256, 210, 14),
            Self::IQ4_NL => ("IQ4_NL", 32, 18, 20),
            Self::IQ4_XS => ("IQ4_XS", 256, 136, 23),
            Self::MXFP4 => ("MXFP4", 32, 17, 39),
            Self::INT4 => ("INT4", 32, 24, NOT_IN_GGUF),
            Self::FP8 => ("FP8", 32, 36, NOT_IN_GGUF),
        }
    }

    /// The format with this type number in a GGUF file, or `None` for one that this crate does not know.
    pub fn from_gguf(number: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|q| q.shape().3 == number && number != NOT_IN_GGUF)
    }

    /// Values that are quantized together; a row holds a whole number of blocks.
    pub const fn block(self) -> usize {
        self.shape().1
    }

    /// Bytes of one block.
    pub const fn block_bytes(self) -> usize {
        self.shape().2
    }

    /// Bytes of a row of `cols` values; `cols` is a multiple of [`Quant::block`].
    pub const fn row_bytes(self, cols: usize) -> usize {
        cols / self.block() * self.block_bytes()
    }

    /// Whether values are floating point; such weights are multiplied with activations that are not quantized.
    pub const fn is_float(self) -> bool {
        self.integers().is_none()
    }
}

impl fmt::Display for Quant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.shape().0)
    }
}

/// Turns one row of `bytes` into `out.len()` values, bit for bit as ggml does.
///
/// Products of scales and integers are exact in `f32` in every format of GGUF files, so the order of the factors, and whether a
/// minimum is added by a fused instruction, make no difference.
///
/// # Panics
/// If `out.len()` is not a whole number of blocks or `bytes` is not as long as that row.
pub fn dequantize_row(quant: Quant, bytes: &[u8], out: &mut [f32]) {
    assert_eq!(out.len() % quant.block(), 0, "a {quant} row of {} values is not a whole number of blocks", out.len());
    assert_eq!(bytes.len(), quant.row_bytes(out.len()), "wrong number of bytes for a {quant} row");
    match quant {
        Quant::F32 => each(bytes, out, |b| f32::from_le_bytes(*b)),
        Quant::F16 => each(bytes, out, |b| f16::from_le_bytes(*b).to_f32()),
        Quant::BF16 => each(bytes, out, |b| bf16::from_le_bytes(*b).to_f32()),
        Quant::FP8 => blocks::dequantize_fp8(bytes, out),
        _ => blocks::dequantize(quant, bytes, out),
    }
}

fn each<const N: usize>(bytes: &[u8], out: &mut [f32], value: impl Fn(&[u8; N]) -> f32) {
    out.iter_mut().zip(bytes.as_chunks().0).for_each(|(v, bytes)| *v = value(bytes));
}

/// Quantizes a row of activations in blocks of [`ACTIVATION_BLOCK`]: `scale = amax / 127`,
/// `q = round_ties_even(x * (1 / scale))`, each operation rounded to `f32`.
///
/// A block of zeros, or one so small that its scale would be subnormal (`amax < 1.5e-36`), gets scale 0 and zeros. A
/// block that holds an infinity or NaN gets scale NaN and zeros, so that the fault shows in every product.
///
/// # Panics
/// If `row.len()` is not a whole number of blocks, or the outputs are not `row.len()` and one value a block long.
pub fn quantize_activations(row: &[f32], out: &mut [i8], scales: &mut [f32]) {
    assert_eq!(row.len(), out.len(), "one integer per activation");
    let mut blocks = out.chunks_exact_mut(ACTIVATION_BLOCK);
    each_block(row, ACTIVATION_MAX, scales, |units| {
        let q = blocks.next().expect("one integer per activation");
        q.iter_mut().zip(units).for_each(|(q, unit)| *q = *unit as i8);
    });
}

/// Quantizes a row of activations to 15 bits in blocks of [`ACTIVATION_BLOCK`]: `scale = amax / 16256`,
/// `q = round_ties_even(x * (1 / scale))`, as two planes of 8 bits: `q = 128 * high + low` with
/// `high = round_ties_even(q / 128)`. Otherwise as [`quantize_activations`].
///
/// # Panics
/// Likewise.
pub fn quantize_activations_fine(row: &[f32], high: &mut [i8], low: &mut [i8], scales: &mut [f32]) {
    assert!(row.len() == high.len() && row.len() == low.len(), "two integers per activation");
    let mut blocks = high.chunks_exact_mut(ACTIVATION_BLOCK).zip(low.chunks_exact_mut(ACTIVATION_BLOCK));
    each_block(row, ACTIVATION_MAX_FINE, scales, |units| {
        let (high, low) = blocks.next().expect("two integers per activation");
        for ((high, low), unit) in high.iter_mut().zip(low).zip(units) {
            let upper = (unit / PLANE_STEP).round_ties_even();
            (*high, *low) = (upper as i8, (unit - PLANE_STEP * upper) as i8);
        }
    });
}

/// Sets the scale of each block of `row` so that its largest magnitude is `most` units, and hands over all in whole units.
fn each_block(row: &[f32], most: f32, scales: &mut [f32], mut put: impl FnMut(&[f32; ACTIVATION_BLOCK])) {
    let (blocks, rest) = row.as_chunks::<ACTIVATION_BLOCK>();
    assert!(rest.is_empty(), "activations come in blocks of {ACTIVATION_BLOCK}");
    assert_eq!(blocks.len(), scales.len(), "one scale per block");
    for (x, scale) in blocks.iter().zip(scales) {
        // The bits of non-negative floats order as the floats do, with infinities and NaNs on top.
        let amax_bits = x.iter().fold(0, |m, v| m.max(v.abs().to_bits()));
        *scale = activation_scale(amax_bits, most);
        let inverse = 1.0 / *scale;
        put(&x.map(|x| if *scale > 0.0 { (x * inverse).round_ties_even() } else { 0.0 }));
    }
}

/// The scale of a block whose largest magnitude has these bits, and is to be `most` units.
pub(crate) fn activation_scale(amax_bits: u32, most: f32) -> f32 {
    let scale = f32::from_bits(amax_bits) / most;
    if amax_bits >= f32::INFINITY.to_bits() {
        f32::NAN
    } else if scale < f32::MIN_POSITIVE {
        0.0
    } else {
        scale
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    fn f16_bytes(v: f32) -> [u8; 2] {
        f16::from_f32(v).to_le_bytes()
    }

    #[test]
    fn shapes_are_those_of_the_format() {
        let bytes: Vec<usize> = Quant::ALL.iter().map(|q| q.row_bytes(256)).collect();
        assert_eq!(bytes, [1024, 512, 512, 144, 160, 176, 192, 272, 84, 110, 144, 176, 210, 144, 136, 136, 192, 288]);
        assert_eq!(Quant::from_gguf(3), Some(Quant::Q4_1));
        assert_eq!((Quant::from_gguf(15), Quant::from_gguf(NOT_IN_GGUF)), (None, None));
        assert_eq!(format!("{:>6}", Quant::Q8_0), "  Q8_0");
    }

    #[test]
    fn q4_1_by_hand() {
        let mut block = Vec::new();
        block.extend(f16_bytes(0.5));
        block.extend(f16_bytes(-3.0));
        block.extend((0..16).map(|i| i | ((15 - i) << 4)));
        let mut out = [0.0; 32];
        dequantize_row(Quant::Q4_1, &block, &mut out);
        for i in 0..16 {
            assert_eq!(out[i], 0.5 * i as f32 - 3.0);
            assert_eq!(out[16 + i], 0.5 * (15 - i) as f32 - 3.0);
        }
    }

    #[test]
    fn q4_0_and_q8_0_by_hand() {
        let mut block = f16_bytes(0.25).to_vec();
        block.extend([0x0f; 16]);
        let mut out = [0.0; 32];
        dequantize_row(Quant::Q4_0, &block, &mut out);
        assert_eq!((out[0], out[16]), (0.25 * 7.0, -2.0));

        let mut block = f16_bytes(2.0).to_vec();
        block.extend((0..32).map(|i| (i as i8 - 16) as u8));
        dequantize_row(Quant::Q8_0, &block, &mut out);
        assert_eq!((out[0], out[16], out[31]), (-32.0, 0.0, 30.0));
    }

    #[test]
    fn int4_and_fp8_by_hand() {
        let mut block = [0.5f32.to_le_bytes(), (-3.5f32).to_le_bytes()].concat();
        block.extend((0..16).map(|i| i | ((15 - i) << 4)));
        let mut out = [0.0; 32];
        dequantize_row(Quant::INT4, &block, &mut out);
        assert_eq!((out[0], out[7], out[16], out[31]), (-3.5, 0.0, 4.0, -3.5));

        let mut block = 0.25f32.to_le_bytes().to_vec();
        block.extend([0x00, 0x80, 0x01, 0x07, 0x08, 0x38, 0xb9, 0x7e, 0xfe, 0x7f].iter().cycle().take(32));
        dequantize_row(Quant::FP8, &block, &mut out);
        let expect =
            [0.0, -0.0, 1.0 / 512.0, 7.0 / 512.0, 1.0 / 64.0, 1.0, -1.125, 448.0, -448.0, 480.0].map(|v: f32| 0.25 * v);
        assert_eq!(out[..10].iter().map(|v| v.to_bits()).collect::<Vec<_>>(), expect.map(f32::to_bits));
    }

    #[test]
    fn floats_by_hand() {
        let mut out = [0.0; 2];
        dequantize_row(Quant::BF16, &[0x80, 0x3f, 0x00, 0xc0], &mut out);
        assert_eq!(out, [1.0, -2.0]);
        dequantize_row(Quant::F16, &[0x00, 0x3c, 0x00, 0x80], &mut out);
        assert_eq!(out.map(f32::to_bits), [1.0f32, -0.0].map(f32::to_bits));
        dequantize_row(Quant::F32, &bytemuck::cast::<[f32; 2], [u8; 8]>([1.5, f32::MIN]), &mut out);
        assert_eq!(out, [1.5, f32::MIN]);
    }

    #[test]
    fn odd_blocks_of_activations() {
        let (mut q, mut s) = ([1i8; 32], [1.0f32]);
        quantize_activations(&[0.0; 32], &mut q, &mut s);
        assert_eq!((q, s), ([0; 32], [0.0]));
        quantize_activations(&[1e-37; 32], &mut q, &mut s);
        assert_eq!((q, s), ([0; 32], [0.0]));
        let mut x = [1.0; 32];
        x[7] = f32::NEG_INFINITY;
        quantize_activations(&x, &mut q, &mut s);
        assert!(s[0].is_nan() && q == [0; 32]);
    }

    proptest! {
        #[test]
        fn activations_round_to_the_nearest_step(x in prop::collection::vec(-1e3f32..1e3, 64)) {
            let (mut q, mut s) = ([0i8; 64], [0.0f32; 2]);
            quantize_activations(&x, &mut q, &mut s);
            for i in 0..64 {
                let scale = f64::from(s[i / 32]);
                prop_assert!((f64::from(x[i]) - f64::from(q[i]) * scale).abs() <= scale * 0.501);
            }
            prop_assert_eq!(q[..32].iter().map(|v| v.unsigned_abs()).max(), Some(127));
        }

        #[test]
        fn fine_activations_round_to_the_nearest_step(x in prop::collection::vec(-1e3f32..1e3, 64)) {
            let (mut high, mut low, mut s) = ([0i8; 64], [0i8; 64], [0.0f32; 2]);
            quantize_activations_fine(&x, &mut high, &mut low, &mut s);
            for i in 0..64 {
                let (scale, q) = (f64::from(s[i / 32]), 128 * i32::from(high[i]) + i32::from(low[i]));
                prop_assert!((f64::from(x[i]) - f64::from(q) * scale).abs() <= scale * 0.51);
                prop_assert!(low[i].unsigned_abs() <= 64);
            }
            prop_assert_eq!(high[..32].iter().map(|v| v.unsigned_abs()).max(), Some(127));
        }
    }
}
