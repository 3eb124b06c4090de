#![allow(clippy::unwrap_used)]

use super::*;
use crate::quant::dequantize_row;

fn decoded(quant: Quant, bytes: &[u8]) -> Vec<f32> {
    let mut values = vec![0.0; bytes.len() / quant.block_bytes() * quant.block()];
    dequantize_row(quant, bytes, &mut values);
    values
}

/// A row that looks like one of a model: a bell curve whose width differs from one group of 16 to the next.
fn weights(n: usize) -> Vec<f32> {
    let mut state = 1u64;
    let mut uniform = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1 << 24) as f32
    };
    (0..n)
        .map(|i| {
            let bell = (0..12).map(|_| uniform()).sum::<f32>() - 6.0;
            bell * 0.02 * (1.0 + (i / 16 % 5) as f32 / 4.0)
        })
        .collect()
}

/// Mean square of the error by mean square of the values, after a round trip.
fn noise(quant: Quant, values: &[f32]) -> f64 {
    let square = |v: f32| f64::from(v).powi(2);
    let got = decoded(quant, &quantize_row(quant, values));
    let error: f64 = values.iter().zip(&got).map(|(a, b)| square(a - b)).sum();
    error / values.iter().map(|v| square(*v)).sum::<f64>()
}

/// `tests/fixtures/make_quants.py` makes and describes the file.
#[test]
fn simple_formats_are_encoded_as_ggml_does_byte_for_byte() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/quants_encoded.bin");
    let file = std::fs::read(path).unwrap();
    let mut rest = &file[..];
    let word = |bytes: &[u8]| u32::from_le_bytes(bytes.try_into().unwrap());
    let n = word(rest.split_off(..4).unwrap()) as usize;
    let values = rest.split_off(..4 * n).unwrap().as_chunks().0.iter().map(|b| f32::from_le_bytes(*b));
    let values: Vec<f32> = values.collect();
    let mut seen = Vec::new();
    while let Some(head) = rest.split_off(..8) {
        let quant = Quant::from_gguf(word(&head[..4])).unwrap();
        let expect = rest.split_off(..word(&head[4..]) as usize).unwrap();
        for (i, values) in values.chunks_exact(32).enumerate() {
            let bytes = quant.row_bytes(32);
            assert_eq!(quantize_row(quant, values), expect[i * bytes..][..bytes], "{quant} block {i}");
        }
        seen.push(quant);
    }
    use Quant::{BF16, MXFP4, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0};
    assert_eq!(seen, [BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, MXFP4]);
}

#[test]
fn a_round_trip_loses_what_the_bits_cost_and_no_more() {
    let values = weights(16 * 256);
    for quant in Quant::ALL {
        let bound = match quant {
            Quant::F32 => 0.0,
            Quant::F16 => 1e-7,
            Quant::BF16 => 1e-5,
            Quant::Q8_0 => 1e-4,
            Quant::Q6_K => 5e-4,
            Quant::Q5_0 | Quant::Q5_1 | Quant::Q5_K => 2.5e-3,
            Quant::FP8 => 1.5e-3,
            Quant::INT4 | Quant::Q4_0 | Quant::Q4_1 | Quant::Q4_K | Quant::IQ4_NL | Quant::IQ4_XS => 1e-2,
            Quant::MXFP4 => 2e-2,
            Quant::Q3_K => 3e-2,
            Quant::Q2_K => 1.2e-1,
        };
        let noise = noise(quant, &values);
        assert!(noise <= bound, "{quant}: {noise:e}");
    }
}

#[test]
fn odd_rows_survive_in_every_format() {
    let mut spike = vec![0.0; 256];
    spike[77] = -1.5;
    let mut one_group = vec![0.0; 256];
    one_group[32..48].copy_from_slice(&weights(16));
    for quant in Quant::ALL {
        assert!(decoded(quant, &quantize_row(quant, &[0.0; 256])).iter().all(|v| *v == 0.0), "{quant} of zeros");
        for row in [&spike, &one_group, &vec![0.75; 256], &vec![-0.75; 256]] {
            let got = decoded(quant, &quantize_row(quant, row));
            let most = row.iter().fold(0.0f32, |m, v| m.max(v.abs()));
            let error = row.iter().zip(&got).fold(0.0f32, |m, (a, b)| m.max((a - b).abs()));
            assert!(error <= 0.4 * most, "{quant}: {error} of {most}");
        }
        // No smaller than what f16 scales can hold, no larger: nothing may turn into NaN.
        for scale in [1e-9, 1e4] {
            let row: Vec<f32> = weights(256).iter().map(|v| v * scale).collect();
            assert!(decoded(quant, &quantize_row(quant, &row)).iter().all(|v| v.is_finite()), "{quant} by {scale}");
        }
    }
}

/// Where scales are powers of two and every group reaches its end, nothing is left to round.
#[test]
fn what_a_format_without_minimums_can_hold_comes_back_exactly() {
    use Quant::{IQ4_NL, IQ4_XS, MXFP4, Q3_K, Q4_0, Q5_0, Q6_K, Q8_0};
    for quant in [Q4_0, Q5_0, Q8_0, Q3_K, Q6_K, IQ4_NL, IQ4_XS, MXFP4] {
        let steps: Vec<i32> = match quant {
            IQ4_NL | IQ4_XS => IQ4_VALUES.map(i32::from).into(),
            MXFP4 => E2M1_DOUBLED.map(i32::from).into(),
            Q8_0 => (-127..128).collect(),
            _ => {
                let format = quant.integers().unwrap();
                (i32::from(format.smallest) - format.offset..=i32::from(format.largest) - format.offset).collect()
            }
        };
        let end = *steps.iter().max_by_key(|q| q.abs()).unwrap();
        let step = |c: usize| if c % 16 == c / 16 { end } else { steps[(c * 7 + c / 16) % steps.len()] };
        let row: Vec<f32> = (0..256).map(|c| step(c) as f32 / 64.0).collect();
        assert_eq!(decoded(quant, &quantize_row(quant, &row)), row, "{quant}");
    }
}
