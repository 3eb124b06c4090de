//! Encoders of superblocks of 256: groups are scaled by small integers, these by one or two `f16`. Never searches.

use std::ops::RangeInclusive;

use half::f16;

use super::{IQ4_VALUES, extreme, nearest, nibbles};

pub(super) fn q2_k(x: &[f32], out: &mut Vec<u8>) {
    let ([d, dmin], groups) = ranged(x, 16, 3.0, 15);
    let mut bits = [0u8; 64];
    for (c, &x) in x.iter().enumerate() {
        let [scale, minimum] = groups[c / 16];
        let q = level(x + dmin.to_f32() * minimum as f32, d.to_f32() * scale as f32, 0..=3);
        bits[c / 128 * 32 + c % 32] |= q << (c / 32 % 4 * 2);
    }
    out.extend(groups.iter().map(|[scale, minimum]| (scale | (minimum << 4)) as u8));
    out.extend(bits);
    out.extend(d.to_le_bytes());
    out.extend(dmin.to_le_bytes());
}

pub(super) fn q3_k(x: &[f32], out: &mut Vec<u8>) {
    let (d, scales) = symmetric(x, 16, -4.0, -32..=31);
    let (mut third, mut bits, mut packed) = ([0u8; 32], [0u8; 64], [0u8; 12]);
    for (c, &x) in x.iter().enumerate() {
        let q = level(x, d.to_f32() * scales[c / 16] as f32, -4..=3).wrapping_add(4);
        third[c % 32] |= q >> 2 << (c / 32);
        bits[c / 128 * 32 + c % 32] |= (q & 3) << (c / 32 % 4 * 2);
    }
    for (i, scale) in scales.iter().enumerate() {
        let scale = (scale + 32) as u8;
        packed[i % 8] |= (scale & 15) << (i / 8 * 4);
        packed[8 + i % 4] |= scale >> 4 << (i / 4 * 2);
    }
    out.extend(third);
    out.extend(bits);
    out.extend(packed);
    out.extend(d.to_le_bytes());
}

pub(super) fn q4_k(x: &[f32], out: &mut Vec<u8>) {
    out.extend(with_minimums(x, 15).1);
}

pub(super) fn q5_k(x: &[f32], out: &mut Vec<u8>) {
    let (fifth, rest) = with_minimums(x, 31);
    out.extend(&rest[..16]);
    out.extend(fifth);
    out.extend(&rest[16..]);
}

/// The fifth bits, and a Q4_K superblock of the others.
fn with_minimums(x: &[f32], most: i32) -> ([u8; 32], Vec<u8>) {
    let ([d, dmin], groups) = ranged(x, 32, most as f32, 63);
    let (mut fifth, mut low, mut packed) = ([0u8; 32], [0u8; 128], [0u8; 12]);
    for (c, &x) in x.iter().enumerate() {
        let [scale, minimum] = groups[c / 32];
        let q = level(x + dmin.to_f32() * minimum as f32, d.to_f32() * scale as f32, 0..=most);
        fifth[c % 32] |= q >> 4 << (c / 32);
        low[c / 64 * 32 + c % 32] |= (q & 15) << (c / 32 % 2 * 4);
    }
    for (j, group) in groups.iter().enumerate() {
        let [scale, minimum] = group.map(|v| v as u8);
        if j < 4 {
            (packed[j], packed[j + 4]) = (scale, minimum);
        } else {
            packed[j + 4] = (scale & 15) | (minimum << 4);
            packed[j - 4] |= scale >> 4 << 6;
            packed[j] |= minimum >> 4 << 6;
        }
    }
    (fifth, [&d.to_le_bytes()[..], &dmin.to_le_bytes(), &packed, &low].concat())
}

pub(super) fn q6_k(x: &[f32], out: &mut Vec<u8>) {
    let (d, scales) = symmetric(x, 16, -32.0, -128..=127);
    let (mut low, mut high) = ([0u8; 128], [0u8; 64]);
    for (c, &x) in x.iter().enumerate() {
        let q = level(x, d.to_f32() * scales[c / 16] as f32, -32..=31).wrapping_add(32);
        low[c / 128 * 64 + c % 64] |= (q & 15) << (c / 64 % 2 * 4);
        high[c / 128 * 32 + c % 32] |= q >> 4 << (c / 32 % 4 * 2);
    }
    out.extend(low);
    out.extend(high);
    out.extend(scales.iter().map(|&scale| scale as u8));
    out.extend(d.to_le_bytes());
}

pub(super) fn iq4_xs(x: &[f32], out: &mut Vec<u8>) {
    let (d, scales) = symmetric(x, 32, f32::from(IQ4_VALUES[0]), -32..=31);
    let (mut high, mut low) = (0u16, [0u8; 4]);
    for (j, scale) in scales.iter().enumerate() {
        let scale = (scale + 32) as u8;
        low[j / 2] |= (scale & 15) << (j % 2 * 4);
        high |= u16::from(scale >> 4) << (2 * j);
    }
    out.extend(d.to_le_bytes());
    out.extend(high.to_le_bytes());
    out.extend(low);
    for (x, &scale) in x.chunks_exact(32).zip(&scales) {
        out.extend(nibbles(|c| nearest(&IQ4_VALUES, d.to_f32() * scale as f32, x[c])));
    }
}

/// `d`, `dmin`, and by these the scale and minimum of each group that spread `0 ..= most` over its values and zero: a
/// minimum cannot be above zero in these formats.
fn ranged(x: &[f32], group: usize, most: f32, code_max: i32) -> ([f16; 2], Vec<[i32; 2]>) {
    let ranges = x.chunks_exact(group).map(|x| {
        let (min, max) = x.iter().fold((0.0f32, 0.0f32), |(min, max), &v| (v.min(min), v.max(max)));
        ((max - min) / most, -min)
    });
    let (scales, minimums): (Vec<f32>, Vec<f32>) = ranges.unzip();
    let (d, scales) = codes(&scales, code_max as f32, 0..=code_max);
    let (dmin, minimums) = codes(&minimums, code_max as f32, 0..=code_max);
    ([d, dmin], scales.into_iter().zip(minimums).map(|(scale, minimum)| [scale, minimum]).collect())
}

/// `d`, and by it the scale of each group that makes its extreme the integer `far`.
fn symmetric(x: &[f32], group: usize, far: f32, range: RangeInclusive<i32>) -> (f16, Vec<i32>) {
    let scales: Vec<f32> = x.chunks_exact(group).map(|x| extreme(x) / far).collect();
    codes(&scales, *range.start() as f32, range)
}

/// A unit by which the value of largest magnitude becomes `far`, and all values in it.
fn codes(values: &[f32], far: f32, range: RangeInclusive<i32>) -> (f16, Vec<i32>) {
    let unit = f16::from_f32(extreme(values) / far);
    (unit, values.iter().map(|&v| nearest_step(v, unit.to_f32(), &range)).collect())
}

/// The integer that `scale` makes nearest to `x`, in the lowest bits of a byte.
fn level(x: f32, scale: f32, range: RangeInclusive<i32>) -> u8 {
    nearest_step(x, scale, &range) as u8
}

fn nearest_step(x: f32, scale: f32, range: &RangeInclusive<i32>) -> i32 {
    if scale == 0.0 { 0 } else { ((x / scale).round() as i32).clamp(*range.start(), *range.end()) }
}
