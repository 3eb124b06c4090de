//! Quantized weights of safetensors files, put into rows as backends take them. Nothing is rounded: what comes out stands
//! for the values that the file's own format defines. Pure; knows no files.

use cuckoo_kernels::Quant;

/// Columns of a block in all formats here.
const BLOCK: usize = 32;

/// A matrix of four-bit weights, in either layout.
#[derive(Debug, Clone, Copy)]
pub(super) struct FourBits<'a> {
    pub(super) inputs: usize,
    /// A multiple of eight.
    pub(super) outputs: usize,
    /// Inputs that share a scale: a multiple of 32.
    pub(super) group: usize,
    pub(super) qweight: &'a [u8],
    pub(super) qzeros: &'a [u8],
    /// `[groups][outputs]`.
    pub(super) scales: &'a [f32],
}

/// Which nibble of eight, from the lowest, AWQ's kernels put an output into.
const AWQ_NIBBLE: [usize; 8] = [0, 4, 1, 5, 2, 6, 3, 7];

impl FourBits<'_> {
    /// AWQ: `qweight` is `[inputs][outputs / 8]` words.
    pub(super) fn awq(&self) -> Vec<u8> {
        let words = self.outputs / 8;
        let nibble = |bytes: &[u8], row: usize, output: usize| {
            nibble_of(bytes, row * words + output / 8, AWQ_NIBBLE[output % 8])
        };
        self.rows(
            |input, output| nibble(self.qweight, input, output),
            |group, output| nibble(self.qzeros, group, output),
        )
    }

    /// GPTQ without reordered columns: `qweight` is `[inputs / 8][outputs]` words, `qzeros` `[groups][outputs / 8]`.
    /// `zero_offset` is added to zero points, modulo 16.
    pub(super) fn gptq(&self, zero_offset: u8) -> Vec<u8> {
        self.rows(
            |input, output| nibble_of(self.qweight, input / 8 * self.outputs + output, input % 8),
            |group, output| {
                (nibble_of(self.qzeros, group * (self.outputs / 8) + output / 8, output % 8) + zero_offset) % 16
            },
        )
    }

    /// Rows of [`Quant::INT4`], from a weight and a zero point for every place.
    fn rows(&self, weight: impl Fn(usize, usize) -> u8, zero: impl Fn(usize, usize) -> u8) -> Vec<u8> {
        let (row_bytes, block_bytes) = (Quant::INT4.row_bytes(self.inputs), Quant::INT4.block_bytes());
        let mut data = vec![0; self.outputs * row_bytes];
        // Blocks outside, outputs inside: the file's words lie that way.
        for block in 0..self.inputs / BLOCK {
            let (first, group) = (block * BLOCK, block * BLOCK / self.group);
            for output in 0..self.outputs {
                let out = &mut data[output * row_bytes + block * block_bytes..][..block_bytes];
                let scale = self.scales[group * self.outputs + output];
                let minimum = match zero(group, output) {
                    0 => 0.0,
                    zero => -(scale * f32::from(zero)),
                };
                out[..4].copy_from_slice(&scale.to_le_bytes());
                out[4..8].copy_from_slice(&minimum.to_le_bytes());
                for (c, byte) in out[8..].iter_mut().enumerate() {
                    *byte = weight(first + c, output) | weight(first + c + 16, output) << 4;
                }
            }
        }
        data
    }
}

/// Four bits of word `word`, which lies with its lowest byte first.
fn nibble_of(bytes: &[u8], word: usize, nibble: usize) -> u8 {
    bytes[4 * word + nibble / 2] >> (4 * (nibble % 2)) & 15
}

/// Rows of [`Quant::FP8`] from a matrix of bytes `[outputs][inputs]` and a scale for each block of `[inputs, outputs]`.
/// `None` where a byte is no number.
pub(super) fn fp8(codes: &[u8], inputs: usize, block: [usize; 2], scales: &[f32]) -> Option<Vec<u8>> {
    let across = inputs.div_ceil(block[0]);
    let mut data = Vec::with_capacity(codes.len() / BLOCK * Quant::FP8.block_bytes());
    for (output, row) in codes.chunks_exact(inputs).enumerate() {
        for (i, codes) in row.chunks_exact(BLOCK).enumerate() {
            let scale = scales[output / block[1] * across + i * BLOCK / block[0]];
            if codes.iter().any(|code| code & 0x7f == 0x7f) {
                return None;
            }
            data.extend(scale.to_le_bytes());
            data.extend(codes);
        }
    }
    Some(data)
}

/// Rows of [`Quant::MXFP4`] from the file's `[rows][blocks][16]` bytes, whose lower nibbles are the even columns, and
/// `[rows][blocks]` exponents. Takes every `step`-th row from `first` on.
pub(super) fn mxfp4(blocks: &[u8], exponents: &[u8], cols: usize, (first, step): (usize, usize)) -> Vec<u8> {
    let across = cols / BLOCK;
    let rows = blocks.chunks_exact(16 * across).zip(exponents.chunks_exact(across)).skip(first).step_by(step);
    let mut data = Vec::new();
    for (codes, exponents) in rows {
        for (codes, exponent) in codes.as_chunks::<16>().0.iter().zip(exponents) {
            let code = |c: usize| codes[c / 2] >> (4 * (c % 2)) & 15;
            data.push(*exponent);
            data.extend((0..16).map(|c| code(c) | code(c + 16) << 4));
        }
    }
    data
}

#[cfg(test)]
mod tests {
    use super::*;
    use cuckoo_kernels::quant::dequantize_row;

    fn word(nibbles: [u8; 8]) -> [u8; 4] {
        std::array::from_fn(|i| nibbles[2 * i] | nibbles[2 * i + 1] << 4)
    }

    fn values(quant: Quant, data: &[u8], cols: usize) -> Vec<Vec<f32>> {
        let row = |bytes| {
            let mut out = vec![0.0; cols];
            dequantize_row(quant, bytes, &mut out);
            out
        };
        data.chunks_exact(quant.row_bytes(cols)).map(row).collect()
    }

    /// Output `o` of input `i` is `(i + o) % 16`, its zero point `o`, its scale a power of two.
    #[test]
    fn both_four_bit_layouts_give_the_same_rows() {
        let (inputs, outputs) = (64, 16);
        let q = |i: usize, o: usize| ((i + o) % 16) as u8;
        let scales: Vec<f32> = (0..2 * outputs).map(|i| 1.0 / (1 << (i % 5)) as f32).collect();
        let awq_order = [0, 2, 4, 6, 1, 3, 5, 7];
        let awq: Vec<u8> = (0..inputs)
            .flat_map(|i| (0..2).flat_map(move |o| word(std::array::from_fn(|n| q(i, 8 * o + awq_order[n])))))
            .collect();
        let awq_zeros: Vec<u8> = (0..2)
            .flat_map(|_| (0..2).flat_map(|o| word(std::array::from_fn(|n| (8 * o + awq_order[n]) as u8))))
            .collect();
        let gptq: Vec<u8> = (0..inputs / 8)
            .flat_map(|i| (0..outputs).flat_map(move |o| word(std::array::from_fn(|n| q(8 * i + n, o)))))
            .collect();
        let gptq_zeros = |offset: u8| -> Vec<u8> {
            let zero = |o: usize, n: usize| ((8 * o + n) as u8).wrapping_sub(offset) & 15;
            (0..2).flat_map(|_| (0..2).flat_map(|o| word(std::array::from_fn(|n| zero(o, n))))).collect()
        };
        let part = FourBits { inputs, outputs, group: 32, qweight: &awq, qzeros: &awq_zeros, scales: &scales };
        let rows = values(Quant::INT4, &part.awq(), inputs);
        for (o, row) in rows.iter().enumerate() {
            for (i, v) in row.iter().enumerate() {
                assert_eq!(*v, (f32::from(q(i, o)) - o as f32) * scales[i / 32 * outputs + o], "{i} {o}");
            }
        }
        for offset in [0, 1] {
            let qzeros = gptq_zeros(offset);
            let part = FourBits { inputs, outputs, group: 32, qweight: &gptq, qzeros: &qzeros, scales: &scales };
            assert_eq!(values(Quant::INT4, &part.gptq(offset), inputs), rows);
        }
    }

    #[test]
    fn fp8_takes_the_scale_of_its_block_and_refuses_what_is_no_number() {
        let codes: Vec<u8> = (0..3 * 64).map(|i| if i % 2 == 0 { 0x38 } else { 0xb8 }).collect();
        let rows = values(Quant::FP8, &fp8(&codes, 64, [32, 2], &[1.0, 2.0, 3.0, 4.0]).expect("numbers"), 64);
        assert_eq!((rows[0][0], rows[1][32], rows[2][31], rows[2][63]), (1.0, 2.0, -3.0, -4.0));
        let mut broken = codes;
        broken[70] = 0xff;
        assert!(fp8(&broken, 64, [64, 3], &[1.0]).is_none());
    }

    #[test]
    fn mxfp4_has_even_columns_in_lower_nibbles() {
        // Two rows of 32 columns; nibble 2 is 1, nibble 10 is -1.
        let blocks: Vec<u8> = [0xa2u8; 16].into_iter().chain([0x22; 16]).collect();
        let both = values(Quant::MXFP4, &mxfp4(&blocks, &[127, 129], 32, (0, 1)), 32);
        assert!(both[0].iter().enumerate().all(|(c, v)| *v == if c % 2 == 0 { 1.0 } else { -1.0 }));
        assert_eq!(both[1], [4.0; 32]);
        assert_eq!(values(Quant::MXFP4, &mxfp4(&blocks, &[127, 129], 32, (1, 2)), 32), both[1..]);
    }
}
