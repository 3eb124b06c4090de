//! From the rows of texts to one vector for each: what an encoder is for.

use std::ops::Range;

use cuckoo_kernels::Ops;
use cuckoo_kernels::ops::OpsError;
use cuckoo_models::arch::Pooling;

use super::{Model, Workspace};

impl<O: Ops> Model<O> {
    /// Leaves one vector of length 1 for each of `texts` in `work.picked`: ranges of rows of the last [`Model::forward`], none
    /// of them empty, which the model's pooling turns into one.
    pub fn pool(&self, ops: &mut O, work: &mut Workspace<O>, texts: &[Range<usize>]) -> Result<(), OpsError> {
        let Workspace { hidden, normed, picked, .. } = &mut *work;
        let rows = self.normed(ops, hidden, normed)?;
        match self.spec.pooling {
            Pooling::Mean => ops.mean_rows(rows, texts, picked)?,
            Pooling::First => ops.gather(rows, &texts.iter().map(|text| text.start).collect::<Vec<_>>(), picked)?,
            Pooling::Last => ops.gather(rows, &texts.iter().map(|text| text.end - 1).collect::<Vec<_>>(), picked)?,
            Pooling::None => unreachable!("`check` refuses encoders without pooling"),
        }
        ops.normalize(picked)
    }
}
