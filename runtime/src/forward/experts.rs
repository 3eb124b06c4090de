//! A mixture of experts: some of many networks for each row.

use cuckoo_kernels::ops::{Activation, OpsError};
use cuckoo_kernels::routing::{Routed, Routing};
use cuckoo_kernels::{Memory, Ops};

use super::{Inner, Network, Projection};

/// A mixture of experts.
pub(super) struct Experts<O: Memory> {
    pub(super) router: Projection<O>,
    pub(super) routing: Routing,
    pub(super) networks: Vec<Network<O>>,
    pub(super) shared: Option<Shared<O>>,
}

/// The expert that every token uses.
pub(super) struct Shared<O: Memory> {
    pub(super) network: Network<O>,
    /// A row whose product with the input, through a sigmoid, is the weight of the result; else it is 1.
    pub(super) router: Option<O::Matrix>,
}

/// What a mixture of experts needs beside.
pub(super) struct Mixture<O: Memory> {
    /// A router's logits.
    pub(super) logits: O::Buffer,
    /// The weight of the shared expert.
    pub(super) shared: O::Buffer,
    /// Rows that go to one expert.
    pub(super) gathered: O::Buffer,
    /// What it makes of them.
    pub(super) result: O::Buffer,
}

impl<O: Ops> Experts<O> {
    /// `out` is the sum of what the chosen experts make of each row of `x`, in order of their numbers, then the shared one.
    pub(super) fn apply(
        &self,
        ops: &mut O,
        act: Activation,
        x: &O::Buffer,
        (networks, mixture): (&mut [Inner<O>], &mut Mixture<O>),
        out: &mut O::Buffer,
    ) -> Result<(), OpsError> {
        self.router.apply_fine(ops, x, &mut mixture.logits)?;
        let routes = ops.route(&mixture.logits, &self.routing)?;
        ops.zero(routes.len(), out)?;
        for (number, network) in self.networks.iter().enumerate() {
            let here = |(row, routed): (usize, &Vec<Routed>)| {
                routed.iter().find(|r| r.expert == number).map(|r| (row, r.weight))
            };
            let to: Vec<(usize, f32)> = routes.iter().enumerate().filter_map(here).collect();
            if !to.is_empty() {
                let rows: Vec<usize> = to.iter().map(|(row, _)| *row).collect();
                ops.gather(x, &rows, &mut mixture.gathered)?;
                network.apply(ops, act, &mixture.gathered, networks, &mut mixture.result)?;
                ops.scatter_add(&mixture.result, &to, out)?;
            }
        }
        if let Some(shared) = &self.shared {
            shared.network.apply(ops, act, x, networks, &mut mixture.result)?;
            let to: Vec<(usize, f32)> = match &shared.router {
                None => (0..routes.len()).map(|row| (row, 1.0)).collect(),
                Some(router) => {
                    ops.linear(x, router, &mut mixture.shared)?;
                    ops.read(&mixture.shared)?.into_iter().map(sigmoid).enumerate().collect()
                }
            };
            ops.scatter_add(&mixture.result, &to, out)?;
        }
        Ok(())
    }
}

fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + libm::expf(-x))
}
