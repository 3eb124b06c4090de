//! Products of a block of weights and of `T` rows of activations, as [`crate::ops::Ops::linear`] says, for all formats.

use std::ops::Range;

use super::super::activations::Activations;
use super::super::lanes::Lanes;

/// `-offset * sum` of every row of activations, to start its products from.
#[inline(always)]
pub(super) fn start<L: Lanes, const T: usize>(l: L, offset: i32, x: &[&Activations; T]) -> [L::I; T] {
    let mut start = [l.isplat(0); T];
    if offset != 0 {
        for t in 0..T {
            start[t] = l.isplat(-offset * (x[t].sums[0] + x[t].sums[1]));
        }
    }
    start
}

/// [`start`] for half of the columns.
#[inline(always)]
pub(super) fn start_half<L: Lanes, const T: usize>(l: L, offset: i32, half: usize, x: &[&Activations; T]) -> [L::I; T] {
    let mut start = [l.isplat(0); T];
    if offset != 0 {
        for t in 0..T {
            start[t] = l.isplat(-offset * x[t].sums[half]);
        }
    }
    start
}

/// Adds the products of some groups of unsigned weights, `N` groups summed in 16 bits where the processor needs that.
#[inline(always)]
pub(super) fn dots<L: Lanes, const N: usize, const T: usize>(
    l: L,
    q: &[L::B; 8],
    groups: Range<usize>,
    x: &[&Activations; T],
    to: &mut [L::I; T],
) {
    for from in groups.step_by(N) {
        let mut w = [q[from]; N];
        w.copy_from_slice(&q[from..from + N]);
        let mut integers: [&[i32; N]; T] = [x[0].q.first_chunk().expect("a block has eight groups"); T];
        for t in 0..T {
            integers[t] = x[t].q[from..].first_chunk().expect("a block has eight groups");
        }
        l.dot(w, integers, to);
    }
}

/// Adds the products of all groups of signed weights.
#[inline(always)]
pub(super) fn dots_signed<L: Lanes, const T: usize>(l: L, q: &[L::B; 8], x: &[&Activations; T], to: &mut [L::I; T]) {
    l.dot_signed(*q, x.map(|x| &x.q), to);
}

/// `sums += products * (scale * x.scale)`.
#[inline(always)]
pub(super) fn add_scaled<L: Lanes, const T: usize>(
    l: L,
    products: [L::I; T],
    scale: L::F,
    x: &[&Activations; T],
    sums: &mut [L::F; T],
) {
    for t in 0..T {
        sums[t] = l.fma(l.to_f32(products[t]), l.mul(scale, l.splat(x[t].scale)), sums[t]);
    }
}

/// `sums += minimum * x.scaled_sum`.
#[inline(always)]
pub(super) fn add_minimum<L: Lanes, const T: usize>(l: L, minimum: L::F, x: &[&Activations; T], sums: &mut [L::F; T]) {
    for t in 0..T {
        sums[t] = l.fma(minimum, l.splat(x[t].scaled_sum), sums[t]);
    }
}

/// [`add_minimum`] for half of the columns.
#[inline(always)]
pub(super) fn add_half_minimum<L: Lanes, const T: usize>(
    l: L,
    minimum: L::F,
    half: usize,
    x: &[&Activations; T],
    sums: &mut [L::F; T],
) {
    for t in 0..T {
        sums[t] = l.fma(minimum, l.splat(x[t].scale * x[t].sums[half] as f32), sums[t]);
    }
}
