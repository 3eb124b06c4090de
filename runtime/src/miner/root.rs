//! The root of a miner's actor tree: starts links and devices, and loads and unloads models as [`Residency`] decides.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cuckoo_wire::message::Capacity;
use ractor::{Actor, ActorId, ActorProcessingErr, ActorRef, SupervisionEvent};
use tokio::sync::watch;

use super::MineError;
use super::stock::Stock;
use crate::device::{Beyond, Device, DeviceArgs, DeviceKind, DeviceMsg};
use crate::link::{Link, LinkArgs, LinkConfig, LinkMsg, LinkNews};
use crate::memory::Room;
use crate::residency::{Action, Residency};

/// A model that is to be unloaded may finish what it runs for so long; then that goes on elsewhere, or here when it is back.
const UNLOAD_PATIENCE: Duration = Duration::from_secs(60);

/// What ended a miner.
#[derive(Clone, Debug)]
pub(super) enum Failure {
    /// What only a new process mends.
    Stuck(String),
    /// Anything else.
    Other(String),
}

#[derive(Debug)]
pub(super) enum RootMsg {
    Drain,
    /// A link has heard something.
    Heard(LinkNews),
    /// A model was loaded, or could not be.
    Loaded(usize, Result<ActorRef<DeviceMsg>, String>),
    /// A model has had its time to finish.
    Unload(usize),
}

impl From<LinkNews> for RootMsg {
    fn from(news: LinkNews) -> Self {
        Self::Heard(news)
    }
}

impl TryFrom<RootMsg> for LinkNews {
    type Error = ();

    fn try_from(message: RootMsg) -> Result<Self, ()> {
        match message {
            RootMsg::Heard(news) => Ok(news),
            _ => Err(()),
        }
    }
}

pub(super) struct RootArgs {
    pub(super) stock: Arc<Stock>,
    pub(super) devices: Vec<DeviceRoom>,
    pub(super) links: Vec<LinkConfig>,
    pub(super) failure: watch::Sender<Option<Failure>>,
}

/// A device and what it has loaded.
pub(super) struct DeviceRoom {
    kind: DeviceKind,
    residency: Residency,
    /// How long each model took to load, if it has been.
    took: Vec<Option<Duration>>,
}

impl DeviceRoom {
    /// A device with nothing loaded. The first model must fit it; others that do not are never loaded there.
    pub(super) fn new(stock: &Stock, kind: DeviceKind, room: Room) -> Result<Self, MineError> {
        let mut alone = Vec::new();
        for model in 0..stock.len() {
            match stock.plan(model, &kind, room) {
                Ok((_, memory)) => alone.push((stock.hash(model), Some(memory))),
                Err(why) if model == 0 => return Err(why),
                Err(why) => {
                    tracing::warn!(%kind, %why, "a model is not served on this device");
                    alone.push((stock.hash(model), None));
                }
            }
        }
        Ok(Self { kind, residency: Residency::new(room, alone), took: vec![None; stock.len()] })
    }

    fn capacity(&self, device: usize, stock: &Stock) -> Capacity {
        let room = self.residency.room();
        let usable = |model: usize| {
            let alone = self.residency.usable(model)?;
            Some(stock.loadable(model, (alone, room), self.took[model]))
        };
        Capacity {
            device: device as u32,
            memory_bytes: room.device.bytes,
            models: (0..stock.len()).filter_map(usable).collect(),
        }
    }
}

pub(super) struct Root;

pub(super) struct RootState {
    stock: Arc<Stock>,
    devices: Vec<DeviceRoom>,
    links: Vec<ActorRef<LinkMsg>>,
    /// Models on devices, by numbers that are never used again.
    slots: HashMap<usize, Slot>,
    slots_made: usize,
    /// What schedulers are told.
    capacities: watch::Sender<Vec<Capacity>>,
    draining: bool,
    failure: watch::Sender<Option<Failure>>,
}

/// A model on a device, from when it begins to load until its memory is free.
struct Slot {
    device: usize,
    model: usize,
    began: Instant,
    /// None while it is loading.
    actor: Option<ActorRef<DeviceMsg>>,
    /// Links that still have sequences on it, while it leaves.
    held_by: usize,
}

impl Actor for Root {
    type Msg = RootMsg;
    type State = RootState;
    type Arguments = RootArgs;

    async fn pre_start(&self, me: ActorRef<RootMsg>, args: RootArgs) -> Result<RootState, ActorProcessingErr> {
        let (capacities, seen) = watch::channel(Vec::new());
        let mut links = Vec::new();
        for config in args.links {
            let link = LinkArgs { config, capacities: seen.clone(), root: me.get_derived() };
            links.push(Actor::spawn_linked(None, Link, link, me.get_cell()).await?.0);
        }
        let mut state = RootState {
            stock: args.stock,
            devices: args.devices,
            links,
            slots: HashMap::new(),
            slots_made: 0,
            capacities,
            draining: false,
            failure: args.failure,
        };
        for device in 0..state.devices.len() {
            let (stock, DeviceRoom { kind, residency, .. }) = (&state.stock, &mut state.devices[device]);
            for model in residency.first(&|model, room| Some(stock.plan(model, kind, room).ok()?.1)) {
                let (slot, args) = state.slot(device, model)?;
                let (actor, _) = Actor::spawn_linked(None, Device, args, me.get_cell()).await?;
                state.loaded(slot, Ok(actor));
            }
        }
        state.tell();
        Ok(state)
    }

    async fn handle(
        &self,
        me: ActorRef<RootMsg>,
        message: RootMsg,
        state: &mut RootState,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            RootMsg::Drain => {
                state.draining = true;
                for link in &state.links {
                    link.cast(LinkMsg::Drain)?;
                }
            }
            RootMsg::Heard(LinkNews::Serve { link, device, weights }) => {
                // A scheduler may name a device that it made up.
                if let Some(there) = state.devices.get_mut(device as usize) {
                    there.residency.need(link, weights);
                    state.act(device as usize, &me)?;
                }
            }
            RootMsg::Heard(LinkNews::Lost(link)) => {
                state.devices.iter_mut().for_each(|device| device.residency.forget(link));
            }
            RootMsg::Heard(LinkNews::Released(slot)) => {
                if let Some(leaving) = state.slots.get_mut(&slot) {
                    leaving.held_by = leaving.held_by.saturating_sub(1);
                    if leaving.held_by == 0 {
                        leaving.end();
                    }
                }
            }
            RootMsg::Loaded(slot, loaded) => {
                state.loaded(slot, loaded);
                state.tell();
                state.act_all(&me)?;
            }
            RootMsg::Unload(slot) => {
                if let Some(leaving) = state.slots.get(&slot) {
                    leaving.end();
                }
            }
        }
        Ok(())
    }

    async fn handle_supervisor_evt(
        &self,
        me: ActorRef<RootMsg>,
        event: SupervisionEvent,
        state: &mut RootState,
    ) -> Result<(), ActorProcessingErr> {
        match event {
            SupervisionEvent::ActorTerminated(who, ..) => {
                state.unloaded(who.get_id());
                state.act_all(&me)?;
            }
            // Link and devices mend what they can by themselves; what reaches this far is the miner's end.
            SupervisionEvent::ActorFailed(_, why) => {
                state.failure.send_replace(Some(match why.is::<Beyond>() {
                    true => Failure::Stuck(why.to_string()),
                    false => Failure::Other(why.to_string()),
                }));
                me.stop(Some(why.to_string()));
            }
            _ => {}
        }
        Ok(())
    }
}

impl RootState {
    fn act_all(&mut self, me: &ActorRef<RootMsg>) -> Result<(), ActorProcessingErr> {
        (0..self.devices.len()).try_for_each(|device| self.act(device, me))
    }

    /// Does what is to be done on a device now.
    fn act(&mut self, device: usize, me: &ActorRef<RootMsg>) -> Result<(), ActorProcessingErr> {
        if self.draining {
            return Ok(());
        }
        let (stock, DeviceRoom { kind, residency, .. }) = (&self.stock, &mut self.devices[device]);
        for action in residency.next(&|model, room| Some(stock.plan(model, kind, room).ok()?.1)) {
            match action {
                Action::Load(model) => self.load(device, model, me)?,
                Action::Unload(model) => self.unload(device, model, me)?,
            }
        }
        Ok(())
    }

    /// A slot for a model that [`Residency`] has made room for.
    fn slot(&mut self, device: usize, model: usize) -> Result<(usize, DeviceArgs), ActorProcessingErr> {
        let there = &self.devices[device];
        let room = there.residency.room_of(model);
        let (config, memory) = self.stock.plan(model, &there.kind, room)?;
        tracing::info!(weights = ?config.hash, kind = %there.kind, ?memory, ?room, "memory planned");
        let slot = self.slots_made;
        self.slots_made += 1;
        let args = DeviceArgs::new((slot, device as u32), &config, self.links.clone());
        self.slots.insert(slot, Slot { device, model, began: Instant::now(), actor: None, held_by: 0 });
        Ok((slot, args))
    }

    /// Loads a model while everything else goes on.
    fn load(&mut self, device: usize, model: usize, me: &ActorRef<RootMsg>) -> Result<(), ActorProcessingErr> {
        let (slot, args) = self.slot(device, model)?;
        let me = me.clone();
        tokio::spawn(async move {
            let loaded = Actor::spawn_linked(None, Device, args, me.get_cell()).await;
            let loaded = loaded.map(|(actor, _)| actor).map_err(|error| error.to_string());
            let _ = me.cast(RootMsg::Loaded(slot, loaded));
        });
        Ok(())
    }

    fn loaded(&mut self, slot: usize, loaded: Result<ActorRef<DeviceMsg>, String>) {
        let Some(there) = self.slots.get_mut(&slot) else { return };
        let (device, model, took) = (&mut self.devices[there.device], there.model, there.began.elapsed());
        let weights = self.stock.hash(model);
        match loaded {
            Ok(actor) => {
                tracing::info!(?weights, kind = %device.kind, took_ms = took.as_millis() as u64, "model loaded");
                there.actor = Some(actor);
                device.took[model] = Some(took);
                device.residency.loaded(model);
            }
            Err(error) => {
                tracing::error!(?weights, kind = %device.kind, error, "a model could not be loaded; it is not tried again");
                device.residency.broke(model);
                self.slots.remove(&slot);
            }
        }
    }

    /// Lets a model finish what it runs, and then go.
    fn unload(&mut self, device: usize, model: usize, me: &ActorRef<RootMsg>) -> Result<(), ActorProcessingErr> {
        let found = self.slots.iter_mut().find(|(_, slot)| slot.device == device && slot.model == model);
        let Some((slot, leaving)) = found.map(|(slot, leaving)| (*slot, leaving)) else { return Ok(()) };
        tracing::info!(weights = ?self.stock.hash(model), kind = %self.devices[device].kind, "unloading a model for another");
        leaving.held_by = self.links.len();
        for link in &self.links {
            link.cast(LinkMsg::Unload(slot))?;
        }
        me.send_after(UNLOAD_PATIENCE, move || RootMsg::Unload(slot));
        Ok(())
    }

    fn unloaded(&mut self, who: ActorId) {
        let is_it = |slot: &Slot| slot.actor.as_ref().is_some_and(|actor| actor.get_id() == who);
        let Some(slot) = self.slots.iter().find(|(_, slot)| is_it(slot)).map(|(slot, _)| *slot) else { return };
        if let Some(gone) = self.slots.remove(&slot) {
            self.devices[gone.device].residency.unloaded(gone.model);
        }
    }

    fn tell(&self) {
        let devices = self.devices.iter().enumerate();
        self.capacities.send_replace(devices.map(|(at, device)| device.capacity(at, &self.stock)).collect());
    }
}

impl Slot {
    /// Ends it, and frees its memory.
    fn end(&self) {
        if let Some(actor) = &self.actor {
            let _ = actor.cast(DeviceMsg::Unload);
        }
    }
}
