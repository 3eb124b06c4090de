//! What a device holds: weights, activations, keys and values. One trait for placing them there, so that the same code that
//! loads a model also tells beforehand how much that takes: it is run on something that only counts.

use crate::low_rank::LowRankSource;
use crate::ops::{KvShape, MatrixSource, OpsError, Rope};

/// Memory on a device, and beside it on the host.
pub trait Memory {
    /// A weight matrix in the backend's own layout, quantized as in the file.
    type Matrix;
    /// A vector of `f32` weights.
    type Vector;
    /// Activations.
    type Buffer;
    /// Paged keys and values of all layers.
    type KvCache;
    /// Blocks of such a cache on the host.
    type HostKv;
    /// A prepared rotation table.
    type RopeTable;
    /// What an adapter adds to one product.
    type LowRank;

    /// Loads matrices stacked by rows, in order, as one: fused query/key/value, gate/up. All parts have equal `cols`.
    fn matrix(&mut self, parts: &[MatrixSource<'_>]) -> Result<Self::Matrix, OpsError>;
    /// Loads a vector.
    fn vector(&mut self, values: &[f32]) -> Result<Self::Vector, OpsError>;
    /// Loads what an adapter adds to one product: parts with the same inputs, in order of the columns that they change.
    fn low_rank(&mut self, parts: &[LowRankSource<'_>]) -> Result<Self::LowRank, OpsError>;
    /// Allocates activations of `rows` (capacity) by `cols`.
    fn buffer(&mut self, rows: usize, cols: usize) -> Result<Self::Buffer, OpsError>;
    /// Allocates a KV cache; contents are unspecified until stored.
    fn kv_cache(&mut self, shape: KvShape) -> Result<Self::KvCache, OpsError>;
    /// Allocates host memory for blocks of a KV cache; `shape.blocks` is how many, and may be none. Where a device reads the
    /// host's memory itself, such as it can read.
    fn host_kv(&mut self, shape: KvShape) -> Result<Self::HostKv, OpsError>;
    /// Prepares a rotation.
    fn rope_table(&mut self, rope: &Rope) -> Result<Self::RopeTable, OpsError>;
}

/// Memory that says how much of it was taken.
pub trait Counted: Memory {
    /// Bytes of all that was asked for so far, with what is set aside for operations on it.
    fn bytes(&self) -> u64;
    /// Of the host, where the device has memory of its own.
    fn host_bytes(&self) -> u64 {
        0
    }
}
