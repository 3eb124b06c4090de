//! Quantized rows as integers and scales, in one shape for all formats. Never rounds: what comes out is what is stored.

use half::f16;

use super::Quant;

/// 32 consecutive columns of one row of a quantized format, as integers and exact scales:
///
/// ```text
/// value(c) = scale[c / 16] * (q[c] - offset) + minimum[c / 16]
/// ```
///
/// where `offset` is that of the format ([`Quant::integers`]). The product is exact in `f32`; the sum rounds once, and
/// only in formats that have minimums. Scales are what the bytes say: those of a broken file may be infinite or NaN.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct IntBlock {
    /// Integers, between [`IntFormat::smallest`] and [`IntFormat::largest`].
    pub q: [i8; 32],
    /// What one unit is worth in columns 0..16 and 16..32; equal unless [`IntFormat::halves`].
    pub scale: [f32; 2],
    /// What is added in columns 0..16 and 16..32; equal unless [`IntFormat::halves`], 0 unless [`IntFormat::minimums`].
    pub minimum: [f32; 2],
}

impl IntBlock {
    /// The values of the 32 columns, rounded as [`super::dequantize_row`] rounds.
    pub(crate) fn values(&self, quant: Quant, out: &mut [f32]) {
        let Some(IntFormat { offset, minimums, .. }) = quant.integers() else { return };
        for (c, v) in out.iter_mut().enumerate() {
            *v = self.scale[c / 16] * (i32::from(self.q[c]) - offset) as f32;
            // Not added where there is none: that would turn -0 into 0.
            if minimums {
                *v += self.minimum[c / 16];
            }
        }
    }
}

/// What the integers of a format are like, whatever the weights: all that a kernel must know when it is compiled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IntFormat {
    /// The integers are this much above the real ones.
    pub offset: i32,
    /// Smallest integer that bytes of this format can hold, before the offset is taken off.
    pub smallest: i8,
    /// Largest integer that bytes of this format can hold, before the offset is taken off.
    pub largest: i8,
    /// Whether the two halves of 16 columns have scales (and minimums) of their own.
    pub halves: bool,
    /// Whether something is added to the products.
    pub minimums: bool,
}

impl Quant {
    /// The integers of this format, or `None` if it is a floating-point one.
    ///
    /// Where the format stores bits without a sign, so are these integers, and the offset is left to whoever multiplies:
    /// it is one subtraction of a sum rather than of every value. Integers chosen from a table have a sign and no offset.
    pub const fn integers(self) -> Option<IntFormat> {
        let (offset, smallest, largest, halves, minimums) = match self {
            Self::F32 | Self::F16 | Self::BF16 | Self::FP8 => return None,
            Self::Q4_0 => (8, 0, 15, false, false),
            Self::Q4_1 | Self::INT4 => (0, 0, 15, false, true),
            Self::Q5_0 => (16, 0, 31, false, false),
            Self::Q5_1 => (0, 0, 31, false, true),
            Self::Q8_0 => (0, -128, 127, false, false),
            Self::Q2_K => (0, 0, 3, true, true),
            Self::Q3_K => (4, 0, 7, true, false),
            Self::Q4_K => (0, 0, 15, false, true),
            Self::Q5_K => (0, 0, 31, false, true),
            Self::Q6_K => (32, 0, 63, true, false),
            Self::IQ4_NL | Self::IQ4_XS => (0, -127, 113, false, false),
            Self::MXFP4 => (0, -12, 12, false, false),
        };
        Some(IntFormat { offset, smallest, largest, halves, minimums })
    }
}

/// `kvalues_iq4nl` of ggml-common.h: what the nibbles of IQ4_NL and IQ4_XS stand for.
pub(crate) const IQ4_VALUES: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

/// `kvalues_mxfp4` of ggml-common.h: what the nibbles of MXFP4 stand for (E2M1), doubled so as to be integers.
pub(crate) const E2M1_DOUBLED: [i8; 16] = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];

/// Takes one row apart, 32 columns at a time.
///
/// Scales are `d` or, in superblocks, `d * sc`, minimums `m` or `-(dmin * m)`: 11 bits by at most 8, exact in `f32`. In
/// INT4 both are `f32` as they stand. In MXFP4 the integers are doubled and the scale is half the power of two.
///
/// # Panics
/// If `quant` is a floating-point format, or `row` is not a whole number of its blocks with `out` 32 columns for each.
pub fn int_blocks(quant: Quant, row: &[u8], out: &mut [IntBlock]) {
    assert!(!quant.is_float(), "{quant} has no integers");
    let parts = quant.block() / 32;
    assert_eq!(out.len() % parts, 0, "{} times 32 columns are not a whole number of {quant} blocks", out.len());
    assert_eq!(row.len(), quant.row_bytes(out.len() * 32), "wrong number of bytes for a {quant} row");
    let blocks = row.chunks_exact(quant.block_bytes());
    for (block, out) in blocks.zip(out.chunks_exact_mut(parts)) {
        take_apart(quant, block, out);
    }
}

/// [`super::dequantize_row`] for formats with integers.
pub(super) fn dequantize(quant: Quant, row: &[u8], out: &mut [f32]) {
    let mut parts = [IntBlock::default(); 8];
    let parts = &mut parts[..quant.block() / 32];
    for (block, out) in row.chunks_exact(quant.block_bytes()).zip(out.chunks_exact_mut(quant.block())) {
        take_apart(quant, block, parts);
        for (part, out) in parts.iter().zip(out.chunks_exact_mut(32)) {
            part.values(quant, out);
        }
    }
}

/// One block of the file. `block` and `out` are as long as the format says.
fn take_apart(quant: Quant, block: &[u8], out: &mut [IntBlock]) {
    out.fill(IntBlock::default());
    match quant {
        Quant::F32 | Quant::F16 | Quant::BF16 | Quant::FP8 => {}
        Quant::Q4_0 => {
            out[0].scale = [half_at(block, 0); 2];
            out[0].q = nibbles(&block[2..]);
        }
        Quant::Q4_1 => {
            (out[0].scale, out[0].minimum) = ([half_at(block, 0); 2], [half_at(block, 2); 2]);
            out[0].q = nibbles(&block[4..]);
        }
        Quant::Q5_0 => {
            out[0].scale = [half_at(block, 0); 2];
            out[0].q = nibbles_and_fifth_bits(&block[2..]);
        }
        Quant::Q5_1 => {
            (out[0].scale, out[0].minimum) = ([half_at(block, 0); 2], [half_at(block, 2); 2]);
            out[0].q = nibbles_and_fifth_bits(&block[4..]);
        }
        Quant::Q8_0 => {
            out[0].scale = [half_at(block, 0); 2];
            out[0].q = std::array::from_fn(|c| block[2 + c] as i8);
        }
        Quant::IQ4_NL => {
            out[0].scale = [half_at(block, 0); 2];
            out[0].q = nibbles(&block[2..]).map(|q| IQ4_VALUES[q as usize]);
        }
        Quant::MXFP4 => {
            out[0].scale = [half_of_e8m0(block[0]); 2];
            out[0].q = nibbles(&block[1..]).map(|q| E2M1_DOUBLED[q as usize]);
        }
        Quant::INT4 => {
            (out[0].scale, out[0].minimum) = ([single_at(block, 0); 2], [single_at(block, 4); 2]);
            out[0].q = nibbles(&block[8..]);
        }
        Quant::Q2_K | Quant::Q3_K | Quant::Q4_K | Quant::Q5_K | Quant::Q6_K | Quant::IQ4_XS => {
            superblock(quant, block, out);
        }
    }
}

/// The integers that scale a part of a superblock: `scale[half] = d * small.scale[half]`, `minimum = -(dmin * small.minimum)`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SmallScales {
    pub(crate) scale: [i8; 2],
    pub(crate) minimum: [u8; 2],
}

/// The bits of `d` and `dmin` (0 where there is none) of a superblock.
pub(crate) fn super_scales(quant: Quant, block: &[u8]) -> [u16; 2] {
    let bits = |at: usize| u16::from_le_bytes([block[at], block[at + 1]]);
    match quant {
        Quant::Q2_K => [bits(80), bits(82)],
        Quant::Q3_K => [bits(108), 0],
        Quant::Q4_K | Quant::Q5_K => [bits(0), bits(2)],
        Quant::Q6_K => [bits(208), 0],
        Quant::IQ4_XS => [bits(0), 0],
        _ => unreachable!("{quant} has no superblocks"),
    }
}

/// The scales of part `j` of a superblock.
pub(crate) fn small_scales(quant: Quant, block: &[u8], j: usize) -> SmallScales {
    match quant {
        Quant::Q2_K => {
            let bytes = [block[2 * j], block[2 * j + 1]];
            SmallScales { scale: bytes.map(|b| field(b, 0, 4)), minimum: bytes.map(|b| b >> 4) }
        }
        Quant::Q3_K => {
            let packed = &block[96..108];
            let scale = |i: usize| field(packed[i % 8], i / 8 * 4, 4) | (field(packed[8 + i % 4], i / 4 * 2, 2) << 4);
            SmallScales { scale: [scale(2 * j) - 32, scale(2 * j + 1) - 32], minimum: [0; 2] }
        }
        Quant::Q4_K | Quant::Q5_K => {
            // `get_scale_min_k4` of ggml-quants.c: those of the first four parts lie in the low six bits of a byte each;
            // of the others, the upper two bits lie above those.
            let packed = &block[4..16];
            let (scale, minimum) = if j < 4 {
                (packed[j] & 63, packed[j + 4] & 63)
            } else {
                ((packed[j + 4] & 15) | (packed[j - 4] >> 6 << 4), (packed[j + 4] >> 4) | (packed[j] >> 6 << 4))
            };
            SmallScales { scale: [scale as i8; 2], minimum: [minimum; 2] }
        }
        Quant::Q6_K => SmallScales { scale: [block[192 + 2 * j] as i8, block[192 + 2 * j + 1] as i8], minimum: [0; 2] },
        Quant::IQ4_XS => {
            let scale = field(block[4 + j / 2], j % 2 * 4, 4) | (field(block[2 + j / 4], j % 4 * 2, 2) << 4);
            SmallScales { scale: [scale - 32; 2], minimum: [0; 2] }
        }
        _ => unreachable!("{quant} has no superblocks"),
    }
}

/// A superblock of 256 columns.
fn superblock(quant: Quant, block: &[u8], out: &mut [IntBlock]) {
    let [d, dmin] = super_scales(quant, block).map(|bits| f16::from_bits(bits).to_f32());
    for (j, out) in out.iter_mut().enumerate() {
        let small = small_scales(quant, block, j);
        out.scale = small.scale.map(|scale| d * f32::from(scale));
        if matches!(quant, Quant::Q2_K | Quant::Q4_K | Quant::Q5_K) {
            out.minimum = small.minimum.map(|minimum| -(dmin * f32::from(minimum)));
        }
        out.q = super_integers(quant, block, j);
    }
}

/// The integers of part `j` of a superblock.
fn super_integers(quant: Quant, block: &[u8], j: usize) -> [i8; 32] {
    match quant {
        Quant::Q2_K => {
            let bits = &block[16 + j / 4 * 32..];
            std::array::from_fn(|c| field(bits[c], j % 4 * 2, 2))
        }
        Quant::Q3_K => {
            let bits = &block[32 + j / 4 * 32..];
            std::array::from_fn(|c| field(bits[c], j % 4 * 2, 2) | (field(block[c], j, 1) << 2))
        }
        Quant::Q4_K => {
            let bits = &block[16 + j / 2 * 32..];
            std::array::from_fn(|c| field(bits[c], j % 2 * 4, 4))
        }
        Quant::Q5_K => {
            let (fifth, bits) = (&block[16..48], &block[48 + j / 2 * 32..]);
            std::array::from_fn(|c| field(bits[c], j % 2 * 4, 4) | (field(fifth[c], j, 1) << 4))
        }
        Quant::Q6_K => {
            let (low, high) = (&block[j / 4 * 64 + j % 2 * 32..], &block[128 + j / 4 * 32..]);
            std::array::from_fn(|c| field(low[c], j % 4 / 2 * 4, 4) | (field(high[c], j % 4 * 2, 2) << 4))
        }
        Quant::IQ4_XS => nibbles(&block[8 + 16 * j..]).map(|q| IQ4_VALUES[q as usize]),
        _ => unreachable!("{quant} has no superblocks"),
    }
}

fn half_at(bytes: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32()
}

fn single_at(bytes: &[u8], at: usize) -> f32 {
    f32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

/// [`super::dequantize_row`] for [`Quant::FP8`].
pub(super) fn dequantize_fp8(row: &[u8], out: &mut [f32]) {
    for (block, out) in row.chunks_exact(Quant::FP8.block_bytes()).zip(out.chunks_exact_mut(32)) {
        let scale = single_at(block, 0);
        out.iter_mut().zip(&block[4..]).for_each(|(v, code)| *v = e4m3(*code) * scale);
    }
}

/// The value of a byte of E4M3, exact. As an `f16` with the same exponent bits it is 256 times smaller.
pub(crate) fn e4m3(code: u8) -> f32 {
    let code = u16::from(code);
    f16::from_bits((code & 0x80) << 8 | (code & 0x7f) << 7).to_f32() * 256.0
}

/// Half the power of two that an exponent byte stands for, 2^(e - 128), which for the two smallest is subnormal
/// (`ggml_e8m0_to_fp32_half` of ggml-impl.h).
pub(crate) fn half_of_e8m0(e: u8) -> f32 {
    f32::from_bits(if e < 2 { 0x0020_0000 << e } else { (u32::from(e) - 1) << 23 })
}

/// `width` bits of a byte, at most 7, from bit `at` on.
fn field(byte: u8, at: usize, width: u32) -> i8 {
    ((byte >> at) & ((1 << width) - 1)) as i8
}

/// Low nibbles are columns 0..16, high nibbles 16..32.
fn nibbles(packed: &[u8]) -> [i8; 32] {
    std::array::from_fn(|c| field(packed[c % 16], c / 16 * 4, 4))
}

/// 4 bytes with a bit for each column, then nibbles.
fn nibbles_and_fifth_bits(packed: &[u8]) -> [i8; 32] {
    let low = nibbles(&packed[4..]);
    std::array::from_fn(|c| low[c] | (field(packed[c / 8], c % 8, 1) << 4))
}

#[cfg(test)]
mod tests;
