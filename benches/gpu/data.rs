//! Random weights and activations: no zeros, no pattern that a card could learn, and the same in every run.

use cuckoo_kernels::Quant;
use half::{bf16, f16};

/// Blocks of a format that are drawn; then they come again. A prime, so that no two rows of a matrix begin alike.
const DRAWN_BLOCKS: usize = 65_537;

/// Numbers without a pattern (SplitMix64).
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// From -1 to 1.
    pub(crate) fn value(&mut self) -> f32 {
        (self.bits() >> 40) as f32 / (1 << 23) as f32 - 1.0
    }

    pub(crate) fn values(&mut self, count: usize) -> Vec<f32> {
        (0..count).map(|_| self.value()).collect()
    }
}

/// Weights of some format, about as large as `size`, as they lie in a file.
pub(crate) struct Weights {
    drawn: Vec<u8>,
}

impl Weights {
    pub(crate) fn new(quant: Quant, size: f32, seed: u64) -> Self {
        let mut random = Random(seed);
        let mut drawn = Vec::with_capacity(DRAWN_BLOCKS * quant.block_bytes());
        for _ in 0..DRAWN_BLOCKS {
            let end = drawn.len() + quant.block_bytes();
            let v = random.value() * size;
            match quant {
                Quant::F32 => drawn.extend(v.to_le_bytes()),
                Quant::F16 => drawn.extend(f16::from_f32(v).to_le_bytes()),
                Quant::BF16 => drawn.extend(bf16::from_f32(v).to_le_bytes()),
                // Nibbles are 8 more than what they stand for, so their mean is nearly none.
                Quant::Q4_0 => drawn.extend(f16::from_f32(size / 8.0).to_le_bytes()),
                // Scales and minimums are drawn with the rest: up to 63 units, nibbles 7.5 in the mean.
                Quant::Q4_K => {
                    let unit = size / 256.0;
                    drawn.extend([unit, 7.5 * unit].map(|v| f16::from_f32(v).to_le_bytes()).concat());
                }
                // Codes reach 448, most are far smaller.
                Quant::FP8 => drawn.extend((size / 16.0).to_le_bytes()),
                _ => panic!("no weights are drawn in {quant}"),
            }
            while drawn.len() < end {
                // 7f and ff are no numbers in FP8.
                let byte = random.bits() as u8;
                drawn.push(if quant == Quant::FP8 && byte & 0x7f == 0x7f { byte ^ 1 } else { byte });
            }
        }
        Self { drawn }
    }

    /// The bytes from `at` on.
    pub(crate) fn bytes(&self, at: usize, count: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(count);
        let mut at = at % self.drawn.len();
        while bytes.len() < count {
            let end = self.drawn.len().min(at + count - bytes.len());
            bytes.extend_from_slice(&self.drawn[at..end]);
            at = 0;
        }
        bytes
    }
}
