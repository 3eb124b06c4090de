//! The products with weights that an adapter may change, by the names that adapters have for them. Only names and shapes.

use super::family::Family;
use super::names::{Names, Role, Scheme};
use super::{ArchError, ArchSpec, FeedForward, Linear, Qkv, RopePairing, Up};

/// A product with weights in a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[allow(missing_docs)] // The field's own names, which say all.
pub enum Product {
    Q,
    K,
    V,
    /// All three of one matrix.
    Qkv,
    Output,
    Gate,
    Up,
    /// Both of one matrix.
    GateUp,
    Down,
}

/// One product of one layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProductSpec {
    /// Which layer.
    pub layer: usize,
    /// Which product.
    pub product: Product,
    /// Values that go in.
    pub inputs: usize,
    /// Values that come out.
    pub outputs: usize,
    /// Its name in GGUF files, without `.weight`.
    pub gguf: String,
    /// Its name in files of Hugging Face, without `.weight`.
    pub hf: String,
}

impl ArchSpec {
    /// The products that an adapter may change: all but those of experts. In order of layers, then of [`Product`].
    pub fn products(&self) -> Result<Vec<ProductSpec>, ArchError> {
        let family = self.family()?;
        if family.is_bert() {
            return Err(ArchError::Feature("an encoder, which takes no adapters".to_owned()));
        }
        let mut all = Vec::new();
        for (layer, block) in self.blocks.iter().enumerate() {
            let mut add = |product, role, linear: &Linear| {
                let name = |scheme, prefix| Names { scheme, family, prefix }.of(role, layer);
                let (inputs, outputs) = (linear.weight.dims[0], linear.weight.dims[1]);
                let (gguf, hf) = (name(Scheme::Gguf, ""), name(Scheme::Hf, "model."));
                all.push(ProductSpec { layer, product, inputs, outputs, gguf, hf });
            };
            match &block.attention.qkv {
                Qkv::Separate { q, k, v } => {
                    add(Product::Q, Role::Q, q);
                    add(Product::K, Role::K, k);
                    add(Product::V, Role::V, v);
                }
                Qkv::Fused(all) => add(Product::Qkv, Role::Qkv, all),
            }
            add(Product::Output, Role::AttentionOutput, &block.attention.output);
            if let FeedForward::Dense(dense) = &block.ffn {
                match &dense.up {
                    Up::Gated { gate, up } => {
                        add(Product::Gate, Role::Gate, gate);
                        add(Product::Up, Role::Up, up);
                    }
                    Up::Fused(both) => add(Product::GateUp, Role::GateUp, both),
                    Up::Plain(up) => add(Product::Up, Role::Up, up),
                }
                add(Product::Down, Role::Down, &dense.down);
            }
        }
        Ok(all)
    }

    /// Whether rows of queries and keys stand in the order in which GGUF files have them where pairs are adjacent: here,
    /// and in GGUF files of this architecture.
    pub(crate) fn rows_are_permuted(&self) -> Result<(bool, bool), ArchError> {
        let here = self.ropes.first().is_some_and(|rope| rope.pairs == RopePairing::Adjacent);
        Ok((here, self.family()?.rope == Some(RopePairing::Adjacent)))
    }

    fn family(&self) -> Result<&'static Family, ArchError> {
        Family::named(&self.architecture).ok_or_else(|| ArchError::Unsupported(self.architecture.clone()))
    }
}
