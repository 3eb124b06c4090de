//! Adapters on a device, and where the forward pass adds what they say. Knows no file format.

use std::fs::File;
use std::ops::Range;

use cuckoo_kernels::low_rank::{Adapted, LowRankSource};
use cuckoo_kernels::ops::{MatrixSource, OpsError};
use cuckoo_kernels::{Memory, Ops, Quant};
use cuckoo_models::arch::{FeedForward, Product, Up};
use cuckoo_models::{ArchSpec, GgmlType, adapter};

use super::load::LoadError;

/// An adapter's matrices on a device.
pub struct Adapter<O: Memory> {
    layers: Vec<LayerAdapter<O>>,
}

/// What is added to the products of one layer, by [`Place`].
struct LayerAdapter<O: Memory> {
    products: [Option<O::LowRank>; 4],
}

/// The products of a layer, as the forward pass computes them: those with the same input as one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    Qkv,
    Output,
    Up,
    Down,
}

/// Rows of a step that use an adapter.
pub struct Use<'a, O: Memory> {
    /// Which rows.
    pub rows: Range<usize>,
    /// The adapter.
    pub adapter: &'a Adapter<O>,
}

impl<O: Memory> Adapter<O> {
    /// Loads all matrices of `adapter`, which was opened from `file` for `spec`.
    pub fn load(
        ops: &mut O,
        adapter: &cuckoo_models::Adapter,
        file: &File,
        spec: &ArchSpec,
    ) -> Result<Self, LoadError> {
        Ok(Self::place(ops, adapter, spec, |change| Ok(adapter.read(file, change)?))?.0)
    }

    /// Asks `memory` for the same room without reading a value, and returns the most bytes of the file that loading holds at
    /// once. For memory that only counts: what it is given are sizes.
    pub fn survey(memory: &mut O, adapter: &cuckoo_models::Adapter, spec: &ArchSpec) -> Result<u64, LoadError> {
        Ok(Self::place(memory, adapter, spec, |change| Ok(change.sizes()))?.1)
    }

    /// Loads what `read` gives; also tells the most bytes of it that are held at once.
    fn place(
        memory: &mut O,
        adapter: &cuckoo_models::Adapter,
        spec: &ArchSpec,
        read: impl Fn(&adapter::Change) -> Result<adapter::Matrices, LoadError>,
    ) -> Result<(Self, u64), LoadError> {
        let mut layers: Vec<LayerAdapter<O>> = spec.blocks.iter().map(|_| LayerAdapter::default()).collect();
        let mut held_max = 0;
        for changes in adapter.changes().chunk_by(|a, b| a.of.layer == b.of.layer) {
            for place in [Place::Qkv, Place::Output, Place::Up, Place::Down] {
                let here: Vec<_> = changes.iter().filter(|change| place_of(spec, change).0 == place).collect();
                let read = here.iter().map(|change| read(change)).collect::<Result<Vec<_>, _>>()?;
                let parts: Vec<_> = here.iter().zip(&read).map(|(change, read)| source(spec, change, read)).collect();
                held_max = held_max.max(here.iter().map(|change| change.bytes()).sum());
                if !parts.is_empty() {
                    layers[changes[0].of.layer].products[place as usize] = Some(memory.low_rank(&parts)?);
                }
            }
        }
        Ok((Self { layers }, held_max))
    }
}

impl<O: Memory> Default for LayerAdapter<O> {
    fn default() -> Self {
        Self { products: [None, None, None, None] }
    }
}

/// Which of the forward pass's products a change belongs to, and the column at which it begins.
fn place_of(spec: &ArchSpec, change: &adapter::Change) -> (Place, usize) {
    let gate = match &spec.blocks[change.of.layer].ffn {
        FeedForward::Dense(dense) if matches!(dense.up, Up::Gated { .. }) => dense.width,
        _ => 0,
    };
    match change.of.product {
        Product::Q | Product::Qkv => (Place::Qkv, 0),
        Product::K => (Place::Qkv, spec.query_width()),
        Product::V => (Place::Qkv, spec.query_width() + spec.kv_width()),
        Product::Output => (Place::Output, 0),
        Product::Gate | Product::GateUp => (Place::Up, 0),
        Product::Up => (Place::Up, gate),
        Product::Down => (Place::Down, 0),
    }
}

fn source<'a>(spec: &ArchSpec, change: &adapter::Change, matrices: &'a adapter::Matrices) -> LowRankSource<'a> {
    let quant = |kind| match kind {
        GgmlType::F16 => Quant::F16,
        GgmlType::BF16 => Quant::BF16,
        // The only other that a checked adapter has.
        _ => Quant::F32,
    };
    let ((a_kind, a), (b_kind, b)) = (&matrices.a, &matrices.b);
    LowRankSource {
        first_col: place_of(spec, change).1,
        a: MatrixSource { quant: quant(*a_kind), rows: change.rank, cols: change.of.inputs, data: a },
        b: MatrixSource { quant: quant(*b_kind), rows: change.of.outputs, cols: change.rank, data: b },
        scale: change.scale,
    }
}

/// The adapters of a step, at one of its layers.
pub(super) struct Changes<'a, O: Ops> {
    pub(super) uses: &'a [Use<'a, O>],
    pub(super) layer: usize,
}

impl<O: Ops> Clone for Changes<'_, O> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<O: Ops> Copy for Changes<'_, O> {}

impl<O: Ops> Changes<'_, O> {
    /// Nobody uses any.
    pub(super) fn none() -> Self {
        Self { uses: &[], layer: 0 }
    }

    /// Adds to `out`, the product of `x` at `place`, what the adapters of its rows say.
    pub(super) fn add(self, ops: &mut O, place: Place, x: &O::Buffer, out: &mut O::Buffer) -> Result<(), OpsError> {
        let adapted: Vec<Adapted<'_, O::LowRank>> = self
            .uses
            .iter()
            .filter_map(|Use { rows, adapter }| {
                let by = adapter.layers[self.layer].products[place as usize].as_ref()?;
                Some(Adapted { rows: rows.clone(), by })
            })
            .collect();
        match adapted.is_empty() {
            true => Ok(()),
            false => ops.lora_add(x, &adapted, out),
        }
    }
}
