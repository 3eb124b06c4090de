//! How the integers of a block of 16 rows by 32 columns lie in bytes: planes of bits, each ready for one shift and mask.
//!
//! A [`Group`] holds [`GROUP`] columns of every row, one byte each. Planes of fewer bits put several groups into one byte.

use super::super::lanes::{GROUP, LANES, Lanes};
use super::BLOCK;

/// Four columns of 16 rows, one byte each.
pub(super) type Group = [u8; GROUP * LANES];

/// The place of a column of a row within its group.
const fn at(lane: usize, col: usize) -> usize {
    GROUP * lane + col % GROUP
}

/// Four bits of 32 columns: column `c` below, column `c + 16` above.
pub(super) type Nibbles = [Group; 4];

pub(super) fn put_nibbles(plane: &mut Nibbles, lane: usize, q: &[i8; BLOCK]) {
    for (col, q) in q.iter().enumerate() {
        plane[col % 16 / GROUP][at(lane, col)] |= (*q as u8 & 15) << (4 * (col / 16));
    }
}

pub(super) fn nibble(plane: &Nibbles, lane: usize, col: usize) -> u8 {
    plane[col % 16 / GROUP][at(lane, col)] >> (4 * (col / 16)) & 15
}

/// The eight groups of a block, in order of columns.
#[inline(always)]
pub(super) fn nibbles<L: Lanes>(l: L, plane: &Nibbles) -> [L::B; 8] {
    let [a, b, c, d] = [l.bytes(&plane[0]), l.bytes(&plane[1]), l.bytes(&plane[2]), l.bytes(&plane[3])];
    [l.low(a), l.low(b), l.low(c), l.low(d), l.high(a), l.high(b), l.high(c), l.high(d)]
}

/// Two bits of 32 columns: group `g` of the first half of columns in bits `2 g`, of the second in the second plane.
pub(super) type Pairs = [Group; 2];

pub(super) fn put_pairs(plane: &mut Pairs, lane: usize, q: &[i8; BLOCK], from: u32) {
    for (col, q) in q.iter().enumerate() {
        plane[col / 16][at(lane, col)] |= (*q as u8 >> from & 3) << (2 * (col % 16 / GROUP));
    }
}

pub(super) fn pair(plane: &Pairs, lane: usize, col: usize) -> u8 {
    plane[col / 16][at(lane, col)] >> (2 * (col % 16 / GROUP)) & 3
}

/// The eight groups of a block.
#[inline(always)]
pub(super) fn pairs<L: Lanes>(l: L, plane: &Pairs) -> [L::B; 8] {
    let zero = l.bytes(&[0; GROUP * LANES]);
    join_pairs::<L, 0>(l, [zero; 8], plane)
}

/// The eight groups of a block, each joined to `with` at bit `TO`.
#[inline(always)]
pub(super) fn join_pairs<L: Lanes, const TO: u32>(l: L, with: [L::B; 8], plane: &Pairs) -> [L::B; 8] {
    let [a, b] = [l.bytes(&plane[0]), l.bytes(&plane[1])];
    [
        l.join::<0, 2, TO>(with[0], a),
        l.join::<2, 2, TO>(with[1], a),
        l.join::<4, 2, TO>(with[2], a),
        l.join::<6, 2, TO>(with[3], a),
        l.join::<0, 2, TO>(with[4], b),
        l.join::<2, 2, TO>(with[5], b),
        l.join::<4, 2, TO>(with[6], b),
        l.join::<6, 2, TO>(with[7], b),
    ]
}

/// One bit of 32 columns: group `g` in bit `g`.
pub(super) fn put_bits(plane: &mut Group, lane: usize, q: &[i8; BLOCK], from: u32) {
    for (col, q) in q.iter().enumerate() {
        plane[at(lane, col)] |= (*q as u8 >> from & 1) << (col / GROUP);
    }
}

pub(super) fn bit(plane: &Group, lane: usize, col: usize) -> u8 {
    plane[at(lane, col)] >> (col / GROUP) & 1
}

/// The eight groups of a block, each joined to `with` at bit `TO`.
#[inline(always)]
pub(super) fn join_bits<L: Lanes, const TO: u32>(l: L, with: [L::B; 8], plane: &Group) -> [L::B; 8] {
    let v = l.bytes(plane);
    [
        l.join::<0, 1, TO>(with[0], v),
        l.join::<1, 1, TO>(with[1], v),
        l.join::<2, 1, TO>(with[2], v),
        l.join::<3, 1, TO>(with[3], v),
        l.join::<4, 1, TO>(with[4], v),
        l.join::<5, 1, TO>(with[5], v),
        l.join::<6, 1, TO>(with[6], v),
        l.join::<7, 1, TO>(with[7], v),
    ]
}

/// Whole bytes of 32 columns; files have them in the same order, so groups are copied as they stand.
pub(super) type Bytes = [Group; 8];

pub(super) fn byte(plane: &Bytes, lane: usize, col: usize) -> u8 {
    plane[col / GROUP][at(lane, col)]
}

#[inline(always)]
pub(super) fn bytes<L: Lanes>(l: L, q: &Bytes) -> [L::B; 8] {
    let [a, b, c, d] = [l.bytes(&q[0]), l.bytes(&q[1]), l.bytes(&q[2]), l.bytes(&q[3])];
    let [e, f, g, h] = [l.bytes(&q[4]), l.bytes(&q[5]), l.bytes(&q[6]), l.bytes(&q[7])];
    [a, b, c, d, e, f, g, h]
}
