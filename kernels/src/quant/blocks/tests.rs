#![allow(clippy::unwrap_used)]

use proptest::prelude::*;

use super::*;
use crate::quant::dequantize_row;

const QUANTIZED: [Quant; 14] = [
    Quant::Q4_0,
    Quant::Q4_1,
    Quant::Q5_0,
    Quant::Q5_1,
    Quant::Q8_0,
    Quant::Q2_K,
    Quant::Q3_K,
    Quant::Q4_K,
    Quant::Q5_K,
    Quant::Q6_K,
    Quant::IQ4_NL,
    Quant::IQ4_XS,
    Quant::MXFP4,
    Quant::INT4,
];

/// One format's record of `quants_decoded.bin`, as the gguf package decodes it.
struct Record {
    quant: Quant,
    bytes: Vec<u8>,
    values: Vec<u32>,
}

/// `tests/fixtures/make_quants.py` makes and describes the file.
fn records() -> Vec<Record> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/quants_decoded.bin");
    let file = std::fs::read(path).unwrap();
    let mut rest = &file[..];
    let mut take = |n: usize| rest.split_off(..n).map(<[u8]>::to_vec);
    let words = |bytes: Vec<u8>| -> Vec<u32> { bytes.as_chunks().0.iter().map(|b| u32::from_le_bytes(*b)).collect() };
    let mut records = Vec::new();
    while let Some(head) = take(16) {
        let [number, block, block_bytes, blocks] = words(head).try_into().unwrap();
        let quant = Quant::from_gguf(number).unwrap();
        assert_eq!((quant.block(), quant.block_bytes()), (block as usize, block_bytes as usize), "{quant}");
        let bytes = take((block_bytes * blocks) as usize).unwrap();
        records.push(Record { quant, bytes, values: words(take((block * blocks * 4) as usize).unwrap()) });
    }
    records
}

fn int_blocks_of(quant: Quant, bytes: &[u8]) -> Vec<IntBlock> {
    let mut blocks = vec![IntBlock::default(); bytes.len() / quant.block_bytes() * quant.block() / 32];
    int_blocks(quant, bytes, &mut blocks);
    blocks
}

fn values_of(quant: Quant, bytes: &[u8]) -> Vec<f32> {
    let mut values = vec![0.0; bytes.len() / quant.block_bytes() * quant.block()];
    dequantize_row(quant, bytes, &mut values);
    values
}

#[test]
fn every_format_decodes_as_ggml_does_bit_for_bit() {
    let records = records();
    // The last is in no file.
    assert_eq!(records.iter().map(|r| r.quant).collect::<Vec<_>>(), QUANTIZED[..13]);
    for Record { quant, bytes, values: expect } in records {
        for (i, (got, bits)) in values_of(quant, &bytes).iter().zip(&expect).enumerate() {
            // What comes of infinity times zero has a sign that depends on the processor.
            let both_nan = got.is_nan() && f32::from_bits(*bits).is_nan();
            assert!(both_nan || got.to_bits() == *bits, "{quant} value {i}: {got} is not {}", f32::from_bits(*bits));
        }
    }
}

#[test]
fn the_fixture_reaches_both_ends_of_every_format() {
    for Record { quant, bytes, .. } in records() {
        let all: Vec<i8> = int_blocks_of(quant, &bytes).iter().flat_map(|b| b.q).collect();
        let format = quant.integers().unwrap();
        let ends = (all.iter().min().copied(), all.iter().max().copied());
        assert_eq!(ends, (Some(format.smallest), Some(format.largest)), "{quant}");
    }
}

#[test]
fn formats_with_integers_are_those_that_are_not_floats() {
    for quant in Quant::ALL {
        assert_eq!(quant.integers().is_none(), quant.is_float(), "{quant}");
        assert_eq!(QUANTIZED.contains(&quant), !quant.is_float(), "{quant}");
    }
}

#[test]
fn exponents_of_mxfp4() {
    let expect = |e: i32| 2f64.powi(e - 128) as f32;
    for e in 0..=255 {
        assert_eq!(half_of_e8m0(e), expect(i32::from(e)), "{e}");
    }
}

#[test]
#[should_panic(expected = "F16 has no integers")]
fn floats_have_no_integers() {
    int_blocks(Quant::F16, &[0; 64], &mut [IntBlock::default()]);
}

#[test]
#[should_panic(expected = "not a whole number of Q4_K blocks")]
fn superblocks_are_not_divided() {
    int_blocks(Quant::Q4_K, &[0; 144], &mut [IntBlock::default(); 7]);
}

proptest! {
    #[test]
    fn integers_keep_the_promises_of_their_format(seed in prop::collection::vec(any::<u8>(), 2 * 272)) {
        for quant in QUANTIZED {
            let mut bytes = seed[..2 * quant.block_bytes()].to_vec();
            if quant == Quant::INT4 {
                // Scales of 20 bits, as the format wants them, whose products are finite.
                bytes.chunks_exact_mut(24).for_each(|block| (block[0], block[3]) = (block[0] & 0xf0, block[3] & 0xbf));
            }
            let bytes = &bytes[..];
            let (format, values) = (quant.integers().unwrap(), values_of(quant, bytes));
            for (block, values) in int_blocks_of(quant, bytes).iter().zip(values.as_chunks::<32>().0) {
                prop_assert!(block.q.iter().all(|q| (format.smallest..=format.largest).contains(q)), "{}", quant);
                let bits = |pair: [f32; 2]| pair.map(f32::to_bits);
                let (scale, minimum) = (bits(block.scale), bits(block.minimum));
                prop_assert!(format.halves || (scale[0] == scale[1] && minimum[0] == minimum[1]), "{}", quant);
                prop_assert!(format.minimums || minimum == [0; 2], "{}", quant);
                for (c, v) in values.iter().enumerate() {
                    // 53 bits hold product and sum, or nearly so: rounding once, at the end, is what the type promises.
                    let q = f64::from(i32::from(block.q[c]) - format.offset);
                    let exact = f64::from(block.scale[c / 16]) * q + f64::from(block.minimum[c / 16]);
                    prop_assert!(*v == exact as f32 || v.is_nan() && exact.is_nan(), "{} {} {}", quant, v, exact);
                }
            }
        }
    }
}
