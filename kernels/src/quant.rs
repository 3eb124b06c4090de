//! Storage formats of weights as GGUF files define them, and the rounding of activations. Never computes a product.

use std::fmt;

use half::{bf16, f16};

use crate::ops::ACTIVATION_BLOCK;

/// Largest magnitude of a quantized activation.
pub const ACTIVATION_MAX: f32 = 127.0;

/// How the values of a matrix are stored.
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
    /// Blocks of 32: `f16 d`, 32 signed bytes; value `d * q`.
    Q8_0,
}

impl Quant {
    /// Every format, in the order of declaration.
    pub const ALL: [Quant; 6] = [Self::F32, Self::F16, Self::BF16, Self::Q4_0, Self::Q4_1, Self::Q8_0];

    /// The one table of formats: name, values in a block, bytes of a block, type number in a GGUF file
    /// (`enum ggml_type` of ggml.h).
    const fn shape(self) -> (&'static str, usize, usize, u32) {
        match self {
            Self::F32 => ("F32", 1, 4, 0),
            Self::F16 => ("F16", 1, 2, 1),
            Self::BF16 => ("BF16", 1, 2, 30),
            Self::Q4_0 => ("Q4_0", 32, 18, 2),
            Self::Q4_1 => ("Q4_1", 32, 20, 3),
            Self::Q8_0 => ("Q8_0", 32, 34, 8),
        }
    }

    /// The format with this type number in a GGUF file, or `None` for one that this crate cannot compute with.
    pub fn from_gguf(number: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|q| q.shape().3 == number)
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
        self.block() == 1
    }
}

impl fmt::Display for Quant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.shape().0)
    }
}

/// Turns one row of `bytes` into `out.len()` values, bit for bit as ggml does.
///
/// # Panics
/// If `out.len()` is not a whole number of blocks or `bytes` is not as long as that row.
pub fn dequantize_row(quant: Quant, bytes: &[u8], out: &mut [f32]) {
    assert_eq!(out.len() % quant.block(), 0, "a {quant} row of {} values is not a whole number of blocks", out.len());
    assert_eq!(bytes.len(), quant.row_bytes(out.len()), "wrong number of bytes for a {quant} row");
    let blocks = bytes.chunks_exact(quant.block_bytes()).zip(out.chunks_exact_mut(quant.block()));
    for (block, values) in blocks {
        match quant {
            Quant::F32 => values[0] = f32::from_le_bytes([block[0], block[1], block[2], block[3]]),
            Quant::F16 => values[0] = half_at(block, 0),
            Quant::BF16 => values[0] = bf16::from_le_bytes([block[0], block[1]]).to_f32(),
            Quant::Q4_0 => {
                let d = half_at(block, 0);
                nibbles(&block[2..], values, |q| d * (f32::from(q) - 8.0));
            }
            Quant::Q4_1 => {
                let (d, m) = (half_at(block, 0), half_at(block, 2));
                nibbles(&block[4..], values, |q| d * f32::from(q) + m);
            }
            Quant::Q8_0 => {
                let d = half_at(block, 0);
                for (value, &q) in values.iter_mut().zip(&block[2..]) {
                    *value = d * f32::from(q as i8);
                }
            }
        }
    }
}

fn half_at(bytes: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32()
}

/// Low nibbles are the first half of a block, high nibbles the second.
fn nibbles(packed: &[u8], values: &mut [f32], value: impl Fn(u8) -> f32) {
    let (low, high) = values.split_at_mut(16);
    for ((&byte, low), high) in packed.iter().zip(low).zip(high) {
        *low = value(byte & 15);
        *high = value(byte >> 4);
    }
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
    assert_eq!(row.len() % ACTIVATION_BLOCK, 0, "activations come in blocks of {ACTIVATION_BLOCK}");
    assert_eq!(row.len(), out.len(), "one integer per activation");
    assert_eq!(row.len() / ACTIVATION_BLOCK, scales.len(), "one scale per block");
    let blocks = row.chunks_exact(ACTIVATION_BLOCK).zip(out.chunks_exact_mut(ACTIVATION_BLOCK));
    for ((x, q), scale) in blocks.zip(scales) {
        // The bits of non-negative floats order as the floats do, with infinities and NaNs on top.
        let amax_bits = x.iter().fold(0, |m, v| m.max(v.abs().to_bits()));
        *scale = activation_scale(amax_bits);
        if *scale > 0.0 {
            let inverse = 1.0 / *scale;
            for (q, x) in q.iter_mut().zip(x) {
                *q = (x * inverse).round_ties_even() as i8;
            }
        } else {
            q.fill(0);
        }
    }
}

/// The scale of a block whose largest magnitude has these bits.
pub(crate) fn activation_scale(amax_bits: u32) -> f32 {
    let scale = f32::from_bits(amax_bits) / ACTIVATION_MAX;
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
        let bytes: Vec<usize> = Quant::ALL.iter().map(|q| q.row_bytes(64)).collect();
        assert_eq!(bytes, [256, 128, 128, 36, 40, 68]);
        assert_eq!(Quant::from_gguf(3), Some(Quant::Q4_1));
        assert_eq!(Quant::from_gguf(14), None);
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
    }
}
