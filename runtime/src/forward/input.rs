//! What turns token ids into the residual stream: embeddings of tokens, positions and types, and the norm of their sum.

use cuckoo_kernels::ops::{OpsError, StepLayout};
use cuckoo_kernels::{Memory, Ops};
use cuckoo_models::ArchSpec;

use super::{Norm, Workspace};

/// The weights at a model's input.
pub(super) struct Input<O: Memory> {
    pub(super) embedding: O::Matrix,
    /// A row for each position.
    pub(super) positions: Option<O::Matrix>,
    /// The row of type 0, which all tokens of a text alone have.
    pub(super) token_type: Option<O::Vector>,
    /// On the sum.
    pub(super) norm: Option<Norm<O>>,
}

impl<O: Ops> Input<O> {
    /// Leaves the residual stream of `tokens` in `work.hidden`.
    pub(super) fn begin(
        &self,
        ops: &mut O,
        spec: &ArchSpec,
        work: &mut Workspace<O>,
        tokens: &[u32],
        steps: &[StepLayout<'_>],
    ) -> Result<(), OpsError> {
        let Workspace { hidden, normed, branch, .. } = work;
        ops.embed(&self.embedding, tokens, hidden)?;
        if spec.embedding_scale != 1.0 {
            ops.scale(spec.embedding_scale, None, hidden)?;
        }
        if let Some(table) = &self.positions {
            // Any group of layers has the same spans.
            let spans = steps.first().into_iter().flat_map(|step| step.spans);
            let positions = spans.flat_map(|span| span.first_position..span.first_position + span.rows);
            let positions: Vec<u32> = positions.map(|position| position as u32).collect();
            ops.embed(table, &positions, branch)?;
            ops.add_scaled(branch, 1.0, hidden)?;
        }
        if let Some(token_type) = &self.token_type {
            ops.add_bias(token_type, hidden)?;
        }
        if let Some(norm) = &self.norm {
            norm.apply(ops, spec.norm_epsilon, hidden, normed)?;
            std::mem::swap(hidden, normed);
        }
        Ok(())
    }
}
