//! Activations as integers, for products with quantized weights. Who writes activations may leave them rounded beside them, if
//! the product that follows is known to want that: what followed last time is what will follow. Never changes a result: a product
//! that finds nothing of use rounds for itself.

use std::collections::HashMap;

use super::args::{cuckoo_quantize, cuckoo_rounded};
use super::machine::Machine;
use super::operations::THREADS;
use super::{Buffer, Cuda};
use crate::ops::{ACTIVATION_BLOCK, OpsError};

/// What is known of rounded activations.
#[derive(Default)]
pub(super) struct Rounding {
    /// What lies rounded in scratch memory: of which buffer's contents, and how.
    kept: Option<((u64, u64), cuckoo_rounded)>,
    /// In how many planes products wanted what an operation made.
    wanted: HashMap<u64, u32>,
}

/// Bytes of scales and sums of a block of rounded activations: as one, and as two halves.
pub(super) const FACTOR_BYTES: usize = 16;

/// Columns that a thread rounds.
const COLS_EACH: usize = 4;

impl<M: Machine> Cuda<M> {
    /// Where `out`, which is about to be written, is to be left rounded as well: nowhere if nobody asked last time. `maker` names
    /// the operation: an address that is its alone, of its weights or of what it writes.
    pub(super) fn leave_rounded(&mut self, maker: u64, out: &mut Buffer<M>) -> Result<cuckoo_rounded, OpsError> {
        out.maker = Some(maker);
        match self.rounding.wanted.get(&maker) {
            Some(planes) if out.cols.is_multiple_of(ACTIVATION_BLOCK) => self.room(*planes, out),
            _ => Ok(cuckoo_rounded::default()),
        }
    }

    /// The rows of `x` as integers.
    pub(super) fn rounded(&mut self, x: &Buffer<M>, planes: u32) -> Result<cuckoo_rounded, OpsError> {
        if let Some(maker) = x.maker {
            self.rounding.wanted.entry(maker).or_insert(planes);
        }
        if let Some((_, kept)) = self.rounding.kept.filter(|(of, kept)| *of == x.contents && kept.planes == planes) {
            return Ok(kept);
        }
        let to = self.room(planes, x)?;
        let args = cuckoo_quantize { x: x.address(), to };
        let grid = [(x.rows * x.cols / COLS_EACH).div_ceil(THREADS), 1, 1];
        // SAFETY: `x` has so many rows and columns in use, and the scratch was asked to have room for them.
        unsafe { self.launch(c"cuckoo_quantize_rows", grid, (THREADS, 0), &args)? };
        Ok(to)
    }

    /// Room for the rows of a buffer, which are what is kept from now on.
    fn room(&mut self, planes: u32, of: &Buffer<M>) -> Result<cuckoo_rounded, OpsError> {
        let (machine, values) = (&mut self.machine, planes as usize * of.rows * of.cols);
        self.rounding.kept = None;
        let q = self.scratch.codes.at_least(machine, values, "rounded activations")?;
        let each = values / ACTIVATION_BLOCK * FACTOR_BYTES;
        let factors = self.scratch.scales.at_least(machine, each, "scales and sums of activations")?;
        let to = cuckoo_rounded {
            q,
            factors,
            halves: factors + each as u64 / 2,
            rows: of.rows as u32,
            cols: of.cols as u32,
            planes,
            padding: 0,
        };
        self.rounding.kept = Some((of.contents, to));
        Ok(to)
    }
}
