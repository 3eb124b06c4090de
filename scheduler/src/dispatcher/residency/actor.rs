//! The actor around [`Residency`]: a decision over ten thousand devices takes a twentieth of a second, for which no request
//! should wait to be placed.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use cuckoo_wire::message::{Capacity, ToMiner, WeightsHash};
use ractor::{Actor, ActorProcessingErr, ActorRef};
use tokio::sync::OwnedSemaphorePermit;

use super::Residency;
use crate::dispatcher::{DispatcherMsg, LinkId, ReplicaKey};
use crate::gateway::miner::MinerLink;

/// Messages of the residency.
pub(in crate::dispatcher) enum ResidencyMsg {
    /// What a miner's devices could serve, and its place among those that are unheard.
    Capacity(Arc<MinerLink>, Vec<Capacity>, OwnedSemaphorePermit),
    /// A device has a model.
    Offered(ReplicaKey, u32, WeightsHash),
    /// It has it no more.
    Lost(ReplicaKey),
    /// A miner is gone.
    LinkLost(LinkId),
    /// Ask miners for the models that should be loaded. Answered by [`DispatcherMsg::Decided`].
    Decide(Demand),
}

/// What a decision is made from, as the board has it.
pub(in crate::dispatcher) struct Demand {
    /// Tokens a second of each model.
    pub(in crate::dispatcher) wanted: BTreeMap<WeightsHash, f64>,
    /// What replicas compute of them, where that is known.
    pub(in crate::dispatcher) rates: HashMap<ReplicaKey, f64>,
    /// The board's time.
    pub(in crate::dispatcher) now: Duration,
}

pub(in crate::dispatcher) struct ResidencyActor;

pub(in crate::dispatcher) struct State {
    residency: Residency,
    /// Miners that said what they could serve.
    miners: HashMap<LinkId, Arc<MinerLink>>,
    dispatcher: ActorRef<DispatcherMsg>,
}

impl Actor for ResidencyActor {
    type Msg = ResidencyMsg;
    type State = State;
    type Arguments = ActorRef<DispatcherMsg>;

    async fn pre_start(
        &self,
        _: ActorRef<ResidencyMsg>,
        dispatcher: ActorRef<DispatcherMsg>,
    ) -> Result<State, ActorProcessingErr> {
        Ok(State { residency: Residency::default(), miners: HashMap::new(), dispatcher })
    }

    async fn handle(
        &self,
        _: ActorRef<ResidencyMsg>,
        message: ResidencyMsg,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            ResidencyMsg::Capacity(link, devices, _place) => state.capacity(link, devices)?,
            ResidencyMsg::Offered(key, device, weights) => state.residency.offered(key, device, weights),
            ResidencyMsg::Lost(key) => state.residency.lost(key),
            ResidencyMsg::LinkLost(link) => {
                let named = state.residency.named(link);
                state.residency.lost_link(link);
                state.miners.remove(&link);
                state.expect(&named)?;
            }
            ResidencyMsg::Decide(demand) => {
                state.decide(&demand);
                state.dispatcher.cast(DispatcherMsg::Decided)?;
            }
        }
        Ok(())
    }
}

impl State {
    fn capacity(&mut self, link: Arc<MinerLink>, devices: Vec<Capacity>) -> Result<(), ActorProcessingErr> {
        let mut named = self.residency.named(link.id());
        named.extend(devices.iter().flat_map(|device| &device.models).map(|model| model.weights));
        self.residency.capacity(link.id(), devices);
        self.miners.insert(link.id(), link);
        self.expect(&named)
    }

    /// Tells the board of models whether they could be loaded.
    fn expect(&self, models: &BTreeSet<WeightsHash>) -> Result<(), ActorProcessingErr> {
        let expected = models.iter().map(|weights| (*weights, self.residency.is_loadable(weights))).collect();
        Ok(self.dispatcher.cast(DispatcherMsg::Expected(expected))?)
    }

    fn decide(&mut self, Demand { wanted, rates, now }: &Demand) {
        for (key, weights) in self.residency.decide(wanted, &|replica| rates.get(&replica).copied(), *now) {
            if let Some(miner) = self.miners.get(&key.link) {
                tracing::info!(miner = %miner.peer().short(), device = key.device, ?weights, "models needed on a device");
                miner.send(ToMiner::Serve { device: key.device, weights });
            }
        }
    }
}
