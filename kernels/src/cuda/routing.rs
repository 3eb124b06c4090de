//! The choice of experts as a launch.

use bytemuck::{Zeroable, cast_slice_mut};

use super::args::{cuckoo_route, cuckoo_routed};
use super::machine::Machine;
use super::operations::{THREADS, WARP};
use super::{Buffer, Cuda};
use crate::ops::OpsError;
use crate::routing::{Gating, Routed, Routing};

impl<M: Machine> Cuda<M> {
    /// [`crate::ops::Ops::route`].
    pub(super) fn choose(&mut self, logits: &Buffer<M>, routing: &Routing) -> Result<Vec<Vec<Routed>>, OpsError> {
        let (used, rows, cols) = (routing.used, logits.rows, logits.cols);
        assert!(used <= cols, "{used} of {cols} experts are to be used");
        if used == 0 || rows == 0 {
            return Ok(vec![Vec::new(); rows]);
        }
        let mut chosen = vec![cuckoo_routed::zeroed(); rows * used];
        let bytes = size_of_val(chosen.as_slice());
        let args = cuckoo_route {
            logits: logits.address(),
            out: self.scratch.routed.at_least(&mut self.machine, bytes, "chosen experts")?,
            rows: rows as u32,
            cols: cols as u32,
            used: used as u32,
            gating: match routing.gating {
                Gating::Softmax => 0,
                Gating::Sigmoid => 1,
                Gating::SoftmaxOfChosen => 2,
            },
            normalize: u32::from(routing.normalize),
            scale: routing.scale,
        };
        // SAFETY: the rows are in use, and there is room for what each chooses.
        unsafe { self.launch(c"cuckoo_route_rows", [rows.div_ceil(THREADS / WARP), 1, 1], (THREADS, 0), &args)? }
        self.scratch.routed.read(&mut self.machine, 0, cast_slice_mut(&mut chosen))?;
        let routed = |c: &cuckoo_routed| Routed { expert: c.expert as usize, weight: c.weight };
        Ok(chosen.chunks_exact(used).map(|row| row.iter().map(routed).collect()).collect())
    }
}
