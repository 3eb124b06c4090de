//! What a miner offers: a loaded model, how much of it, and in which arithmetic.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::{Invalid, Price, ReplicaId, Task, WeightsHash};
use crate::limits;

/// A loaded model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Offer {
    /// Its name on this connection.
    pub replica: ReplicaId,
    /// What it runs.
    pub weights: WeightsHash,
    /// Longest sequence.
    pub context_tokens: u32,
    /// Tokens in a KV block.
    pub block_tokens: u32,
    /// What it asks.
    pub ask: Price,
    /// What it accepts now.
    pub window: Window,
    /// What it is for.
    pub task: Task,
    /// Adapters of these weights that it has loaded: hashes of their files, each once, at most
    /// [`limits::ADAPTERS_MAX`].
    pub adapters: Vec<WeightsHash>,
    /// Which of the miner's devices has it, by [`super::Capacity::device`].
    pub device: u32,
    /// How it computes: what one began, another of the same class goes on with to the bit.
    pub numerics: Numerics,
}

/// How much a replica accepts, counted since its offer. Cumulative like QUIC's MAX_STREAMS (RFC 9000 §4.6): a repeated
/// or overtaken grant is harmless.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Window {
    /// Sequences.
    pub sequences: u64,
    /// KV blocks, at [`super::Assign::blocks`] a sequence.
    pub blocks: u64,
}

/// How a miner computes, as far as tokens depend on it beside the model, the adapter and the request. Two replicas of one class
/// give the same tokens, bit for bit; two of different classes do not, so neither may go on with what the other began.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Numerics {
    /// The version of the arithmetic's contract that it keeps to; from 1.
    pub contract: u16,
    /// How keys and values are kept.
    pub kv: KvFormat,
    /// Where some products are those of tensor cores, in an order of sums of the hardware's own: which hardware, as ten times
    /// the major compute capability and the minor one. `None` is the contract to the bit, wherever it is computed.
    pub tensor_cores: Option<u16>,
}

/// How keys and values are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[allow(non_camel_case_types, reason = "as such formats are called everywhere")]
pub enum KvFormat {
    /// IEEE half precision.
    F16,
    /// The upper halves of singles.
    BF16,
    /// Signed bytes in blocks, each with a scale.
    Q8_0,
}

impl Numerics {
    /// The contract to the bit.
    pub const fn exact(contract: u16, kv: KvFormat) -> Self {
        Self { contract, kv, tensor_cores: None }
    }

    /// Refuses what no arithmetic is called.
    pub fn check(&self) -> Result<(), Invalid> {
        match () {
            () if self.contract == 0 => Err(Invalid("contracts of arithmetic are numbered from 1".to_owned())),
            () if self.tensor_cores.is_some_and(|capability| !limits::COMPUTE_CAPABILITIES.contains(&capability)) => {
                let capability = self.tensor_cores.unwrap_or_default();
                Err(Invalid(format!("no GPU with tensor cores has the compute capability {capability} / 10")))
            }
            () => Ok(()),
        }
    }
}

impl fmt::Display for Numerics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { contract, kv, tensor_cores } = self;
        let kv = match kv {
            KvFormat::F16 => "f16",
            KvFormat::BF16 => "bf16",
            KvFormat::Q8_0 => "q8_0",
        };
        write!(f, "contract {contract}, keys and values as {kv}")?;
        match tensor_cores {
            Some(capability) => write!(f, ", tensor cores of {}.{}", capability / 10, capability % 10),
            None => Ok(()),
        }
    }
}
