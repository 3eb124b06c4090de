//! Why a request went where it went: what its developer may read of each of its placements.

use serde::{Deserialize, Serialize};

use super::{ReplicaId, RequestId};
use crate::PeerId;

/// How urgent a request is. In `service_tier` of the HTTP interface: `priority`, `default` and `flex`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum ServiceClass {
    /// Somebody waits for each word.
    Interactive,
    /// As everybody.
    #[default]
    Standard,
    /// Cheap rather than soon.
    Batch,
}

/// What a placement costs, in milliseconds: the sum is compared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Terms {
    /// To the miner and back.
    pub network: f32,
    /// Prompts that are computed before this one.
    pub queue: f32,
    /// The part of the prompt that is not cached there.
    pub prefill: f32,
    /// The output, at the speed that the miner has with one sequence more.
    pub decode: f32,
    /// By how much others on that miner get slower.
    pub crowding: f32,
    /// What is paid above the cheapest ask, at the class's rate.
    pub price: f32,
    /// A loss's time, times its probability.
    pub risk: f32,
}

impl Terms {
    /// All together.
    pub fn total(&self) -> f32 {
        self.network + self.queue + self.prefill + self.decode + self.crowding + self.price + self.risk
    }
}

/// A replica that was considered.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Candidate {
    /// Its miner.
    pub miner: PeerId,
    /// Its name there.
    pub replica: ReplicaId,
    /// Tokens of the prompt that it has cached.
    pub cached_tokens: u32,
    /// What it would cost.
    pub terms: Terms,
    /// When 95 % of first tokens would have come, in milliseconds.
    pub ttft_p95_ms: f32,
    /// Milliseconds between tokens.
    pub itl_ms: f32,
    /// Whether both are within what the class asks for.
    pub meets: bool,
    /// Why it was considered.
    pub found_by: FoundBy,
}

/// How a candidate was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FoundBy {
    /// It has the beginning of the prompt in its cache.
    Prefix,
    /// Prompts of this beginning go there, as long as it is not busier than others.
    Ring,
    /// By chance.
    Chance,
    /// By looking at all, because nobody else could take it.
    Search,
    /// Its room was kept for this request.
    Kept,
}

/// One placement, and why it was made.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PlacementReasons {
    /// How long the request had waited, in milliseconds.
    pub waited_ms: f32,
    /// Requests of the same model that went on waiting.
    pub waiting: u32,
    /// Replicas of the model.
    pub replicas: u32,
    /// Of these, those that were left out because they compute in another way than those that made its beginning: their tokens
    /// would be others. See [`super::Numerics`].
    pub other_numerics: u32,
    /// Its class.
    pub class: ServiceClass,
    /// Tokens that its account had got in that class when it was this request's turn.
    pub served_tokens: u64,
    /// Tokens of its prompt, those accepted earlier included.
    pub prompt_tokens: u32,
    /// Who was considered; the first was taken.
    pub candidates: Vec<Candidate>,
}

/// What is known of a request's way, oldest placement first.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Explanation {
    /// Which request.
    pub request: RequestId,
    /// Where it went.
    pub placements: Vec<PlacementReasons>,
}
