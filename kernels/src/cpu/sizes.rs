//! How much memory the CPU backend takes, counted without taking any: the same [`Memory`] with nothing in it.

use super::arena::Layout;
use super::kv_cache::RopeTable;
use super::low_rank::{inner, tiles_bytes};
use super::weights::matrix_slabs;
use super::{Activations, Planes};
use crate::low_rank::LowRankSource;
use crate::memory::{Counted, Memory};
use crate::ops::{ACTIVATION_BLOCK, KvShape, MatrixSource, OpsError, Rope};

/// Counts what a [`super::Cpu`] of which the same is asked takes, to the byte. The data of a [`MatrixSource`] is not looked
/// at and may be empty.
#[derive(Clone, Debug, Default)]
pub struct Sizes {
    arena: Layout,
    /// Beside the arena and the scratch.
    bytes: u64,
    scratch: Scratch,
}

/// Room for the quantized activations of the largest product there can be.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Scratch {
    /// Rows of the largest buffer.
    rows: usize,
    /// Columns of the widest matrix whose activations are quantized.
    cols: usize,
    /// Values that the adapter with the highest ranks computes for a row between its two products.
    inner: usize,
}

impl Scratch {
    pub(super) fn for_buffer(&mut self, rows: usize) {
        self.rows = self.rows.max(rows);
    }

    pub(super) fn for_matrix(&mut self, cols: usize) {
        self.cols = self.cols.max(cols);
    }

    pub(super) fn for_low_rank(&mut self, parts: &[LowRankSource<'_>]) {
        self.inner = self.inner.max(inner(parts));
    }

    /// Values between the two products of adapters.
    pub(super) fn inner(&self) -> usize {
        self.rows.saturating_mul(self.inner)
    }

    /// Blocks of activations.
    pub(super) fn blocks(&self) -> usize {
        self.rows.saturating_mul(self.cols / ACTIVATION_BLOCK * Planes::Two as usize)
    }
}

impl Sizes {
    fn slab(&mut self, bytes: usize, what: &'static str) -> Result<(), OpsError> {
        let place = self.arena.place(bytes).ok_or(OpsError::OutOfMemory { what, bytes })?;
        self.arena.take(place);
        Ok(())
    }
}

impl Memory for Sizes {
    type Matrix = ();
    type Vector = ();
    type Buffer = ();
    type KvCache = ();
    type HostKv = ();
    type RopeTable = ();
    type LowRank = ();

    fn matrix(&mut self, parts: &[MatrixSource<'_>]) -> Result<(), OpsError> {
        for part in parts {
            self.slab(matrix_slabs(part), "a weight matrix")?;
            if !part.quant.is_float() {
                self.scratch.for_matrix(part.cols);
            }
        }
        Ok(())
    }

    fn vector(&mut self, values: &[f32]) -> Result<(), OpsError> {
        self.bytes += size_of_val(values) as u64;
        Ok(())
    }

    fn low_rank(&mut self, parts: &[LowRankSource<'_>]) -> Result<(), OpsError> {
        for matrix in parts.iter().flat_map(|part| [&part.a, &part.b]) {
            self.slab(tiles_bytes(matrix), "an adapter")?;
        }
        self.scratch.for_low_rank(parts);
        Ok(())
    }

    fn buffer(&mut self, rows: usize, cols: usize) -> Result<(), OpsError> {
        self.bytes = self.bytes.saturating_add((rows as u64).saturating_mul(cols as u64).saturating_mul(4));
        self.scratch.for_buffer(rows);
        Ok(())
    }

    fn kv_cache(&mut self, shape: KvShape) -> Result<(), OpsError> {
        self.slab(shape.bytes(), "the KV cache")
    }

    fn host_kv(&mut self, shape: KvShape) -> Result<(), OpsError> {
        self.kv_cache(shape)
    }

    fn rope_table(&mut self, rope: &Rope) -> Result<(), OpsError> {
        self.bytes += RopeTable::bytes(rope);
        Ok(())
    }
}

impl Counted for Sizes {
    fn bytes(&self) -> u64 {
        let scratch = (self.scratch.blocks() as u64).saturating_mul(size_of::<Activations>() as u64);
        let inner = (self.scratch.inner() as u64).saturating_mul(size_of::<f32>() as u64);
        self.arena.mapped().saturating_add(self.bytes).saturating_add(scratch).saturating_add(inner)
    }
}
