//! Merges neighbouring symbols, cheapest pair first: the loop that byte-pair encoders share. It knows no vocabulary.
//!
//! A heap of candidate pairs over a linked list keeps a run of n symbols at O(n log n), however hostile the text.

use std::{cmp::Reverse, collections::BinaryHeap};

/// The index of no symbol.
const NONE: u32 = u32::MAX;

/// A stretch of the text being merged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Symbol {
    /// Where it begins, in bytes.
    pub(super) start: u32,
    /// How long it is, in bytes; 0 once it was merged into its left neighbour.
    pub(super) len: u32,
    /// The token it is, if it is one.
    pub(super) token: Option<u32>,
    previous: u32,
    next: u32,
}

/// A pair that may merge, ordered by cost and then from left to right.
type Candidate = Reverse<(u32, u32, u32, u32, u32)>;

/// The working memory of [`Merger::merge`], kept between words.
#[derive(Debug, Default)]
pub(super) struct Merger {
    symbols: Vec<Symbol>,
    heap: BinaryHeap<Candidate>,
}

impl Merger {
    /// Forgets the last word.
    pub(super) fn clear(&mut self) {
        self.symbols.clear();
        self.heap.clear();
    }

    /// Appends a symbol of `len` bytes.
    pub(super) fn push(&mut self, len: u32, token: Option<u32>) {
        let index = self.symbols.len() as u32;
        let (start, previous) = match self.symbols.last_mut() {
            Some(last) => {
                last.next = index;
                (last.start + last.len, index - 1)
            }
            None => (0, NONE),
        };
        self.symbols.push(Symbol { start, len, token, previous, next: NONE });
    }

    /// Merges until no pair is left and returns the symbols that remain. `pair` gives the cost of a merge (lowest
    /// first) and the token it makes; `None` where two symbols do not merge.
    pub(super) fn merge(
        &mut self,
        mut pair: impl FnMut(&Symbol, &Symbol) -> Option<(u32, u32)>,
    ) -> impl Iterator<Item = &Symbol> {
        for right in 1..self.symbols.len() as u32 {
            self.consider(right - 1, right, &mut pair);
        }
        while let Some(Reverse((_, left, right, len, token))) = self.heap.pop() {
            let (l, r) = (self.symbols[left as usize], self.symbols[right as usize]);
            // Symbols only grow or vanish, so an unchanged total proves that neither has changed since.
            if l.len == 0 || r.len == 0 || l.len + r.len != len {
                continue;
            }
            self.symbols[left as usize] = Symbol { len, token: Some(token), next: r.next, ..l };
            self.symbols[right as usize].len = 0;
            if r.next != NONE {
                self.symbols[r.next as usize].previous = left;
                self.consider(left, r.next, &mut pair);
            }
            if l.previous != NONE {
                self.consider(l.previous, left, &mut pair);
            }
        }
        self.symbols.iter().filter(|symbol| symbol.len > 0)
    }

    fn consider(&mut self, left: u32, right: u32, pair: &mut impl FnMut(&Symbol, &Symbol) -> Option<(u32, u32)>) {
        let (l, r) = (&self.symbols[left as usize], &self.symbols[right as usize]);
        if let Some((cost, token)) = pair(l, r) {
            self.heap.push(Reverse((cost, left, right, l.len + r.len, token)));
        }
    }
}
