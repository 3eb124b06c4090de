//! Values into bytes of a storage format. Never looks for the best scales: files of models are made elsewhere; this is
//! for tests, and for weights that must be stored differently than they came.

mod superblocks;

use half::{bf16, f16};

use super::Quant;
use super::blocks::{E2M1_DOUBLED, IQ4_VALUES, e4m3, half_of_e8m0};

/// Turns values into one row of a format. They are finite, and small enough for their scales to be so as `f16`.
///
/// F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0 and MXFP4 come out as by ggml's `quantize_row_*_ref`, byte for byte; the others
/// are valid, with scales taken from the extremes of each group where ggml searches for better ones.
///
/// # Panics
/// If `values` is not a whole number of blocks.
pub fn quantize_row(quant: Quant, values: &[f32]) -> Vec<u8> {
    let n = values.len();
    assert_eq!(n % quant.block(), 0, "a {quant} row of {n} values is not a whole number of blocks");
    let mut out = Vec::with_capacity(quant.row_bytes(n));
    for x in values.chunks_exact(quant.block()) {
        match quant {
            Quant::F32 => out.extend(x[0].to_le_bytes()),
            Quant::F16 => out.extend(f16::from_f32(x[0]).to_le_bytes()),
            Quant::BF16 => out.extend(bf16::from_f32(x[0]).to_le_bytes()),
            Quant::Q4_0 => signed(x, 16.0, &mut out),
            Quant::Q5_0 => signed(x, 32.0, &mut out),
            Quant::Q4_1 => with_minimum(x, 15.0, &mut out),
            Quant::Q5_1 => with_minimum(x, 31.0, &mut out),
            Quant::Q8_0 => q8_0(x, &mut out),
            Quant::IQ4_NL => iq4_nl(x, &mut out),
            Quant::MXFP4 => mxfp4(x, &mut out),
            Quant::INT4 => int4(x, &mut out),
            Quant::FP8 => fp8(x, &mut out),
            Quant::Q2_K => superblocks::q2_k(x, &mut out),
            Quant::Q3_K => superblocks::q3_k(x, &mut out),
            Quant::Q4_K => superblocks::q4_k(x, &mut out),
            Quant::Q5_K => superblocks::q5_k(x, &mut out),
            Quant::Q6_K => superblocks::q6_k(x, &mut out),
            Quant::IQ4_XS => superblocks::iq4_xs(x, &mut out),
        }
    }
    out
}

/// Q4_0 and Q5_0: the value of largest magnitude becomes the smallest integer, as that side reaches one further.
fn signed(x: &[f32], levels: f32, out: &mut Vec<u8>) {
    let d = extreme(x) / (levels / -2.0);
    let id = inverse(d);
    out.extend(f16::from_f32(d).to_le_bytes());
    pack(x, levels, |x| x * id + (levels / 2.0 + 0.5), out);
}

/// Q4_1 and Q5_1.
fn with_minimum(x: &[f32], most: f32, out: &mut Vec<u8>) {
    let (min, max) = x.iter().fold((f32::MAX, f32::MIN), |(min, max), &v| (v.min(min), v.max(max)));
    let d = (max - min) / most;
    let id = inverse(d);
    out.extend(f16::from_f32(d).to_le_bytes());
    out.extend(f16::from_f32(min).to_le_bytes());
    pack(x, most + 1.0, |x| (x - min) * id + 0.5, out);
}

/// Truncates to fewer than `levels`, at most 32, and packs: fifth bits where there are any, then nibbles.
fn pack(x: &[f32], levels: f32, level: impl Fn(f32) -> f32, out: &mut Vec<u8>) {
    let q: Vec<u8> = x.iter().map(|&x| level(x).min(levels - 1.0) as u8).collect();
    if levels > 16.0 {
        let fifth = q.iter().enumerate().fold(0u32, |bits, (c, q)| bits | (u32::from(q >> 4) << c));
        out.extend(fifth.to_le_bytes());
    }
    out.extend(nibbles(|c| q[c] & 15));
}

fn q8_0(x: &[f32], out: &mut Vec<u8>) {
    let d = extreme(x).abs() / 127.0;
    let id = inverse(d);
    out.extend(f16::from_f32(d).to_le_bytes());
    out.extend(x.iter().map(|x| (x * id).round() as i8 as u8));
}

fn iq4_nl(x: &[f32], out: &mut Vec<u8>) {
    let d = f16::from_f32(extreme(x) / f32::from(IQ4_VALUES[0]));
    out.extend(d.to_le_bytes());
    out.extend(nibbles(|c| nearest(&IQ4_VALUES, d.to_f32(), x[c])));
}

/// The exponent is read off the bits of the largest value, where ggml rounds a logarithm down. That differs only for
/// values so close below a power of two that `log2f` rounds up to it.
fn mxfp4(x: &[f32], out: &mut Vec<u8>) {
    let e = ((extreme(x).abs().to_bits() >> 23) as u8).saturating_sub(2);
    out.push(e);
    out.extend(nibbles(|c| nearest(&E2M1_DOUBLED, half_of_e8m0(e), x[c])));
}

fn int4(x: &[f32], out: &mut Vec<u8>) {
    let (min, max) = x.iter().fold((f32::MAX, f32::MIN), |(min, max), &v| (v.min(min), v.max(max)));
    let d = f16::from_f32((max - min) / 15.0).to_f32();
    let id = inverse(d);
    out.extend(d.to_le_bytes());
    out.extend(min.to_le_bytes());
    pack(x, 16.0, |x| (x - min) * id + 0.5, out);
}

fn fp8(x: &[f32], out: &mut Vec<u8>) {
    let d = extreme(x).abs() / e4m3(0x7e);
    let id = inverse(d);
    out.extend(d.to_le_bytes());
    let code = |x: &f32| {
        let error = |code: u8| (e4m3(code) - (x * id).abs()).abs();
        let nearest = (1..=0x7e).fold(0, |best, code| if error(code) < error(best) { code } else { best });
        nearest | if x.is_sign_negative() { 0x80 } else { 0 }
    };
    out.extend(x.iter().map(code));
}

/// The value of largest magnitude, with its sign; the first of several.
fn extreme(x: &[f32]) -> f32 {
    x.iter().fold(0.0, |most: f32, &v| if v.abs() > most.abs() { v } else { most })
}

fn inverse(d: f32) -> f32 {
    if d == 0.0 { 0.0 } else { 1.0 / d }
}

/// Which entry of a table, times a scale, comes closest; the first of several.
fn nearest(table: &[i8; 16], scale: f32, x: f32) -> u8 {
    let error = |i: u8| (scale * f32::from(table[usize::from(i)]) - x).abs();
    (1..16).fold(0, |best, i| if error(i) < error(best) { i } else { best })
}

/// 16 bytes: columns 0..16 are the low nibbles, 16..32 the high ones.
fn nibbles(q: impl Fn(usize) -> u8) -> [u8; 16] {
    std::array::from_fn(|c| q(c) | (q(c + 16) << 4))
}

#[cfg(test)]
mod tests;
