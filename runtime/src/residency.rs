//! Which models a device has loaded, decided.
//!
//! Pure: what schedulers need and what became of loading comes in, what to load and to unload next comes out. What anybody
//! needs stays; what nobody needs stays too, until its memory is wanted for what somebody does.

use std::collections::{BTreeMap, BTreeSet};

use cuckoo_wire::message::WeightsHash;

use crate::memory::{MemoryPlan, Room};

/// What a device has, and what it is asked for.
#[derive(Debug)]
pub(crate) struct Residency {
    room: Room,
    models: Vec<Model>,
    /// What each scheduler needs, by its link.
    needs: BTreeMap<usize, Vec<WeightsHash>>,
    /// Counts lists of needs, as a clock.
    turn: u64,
}

#[derive(Debug)]
struct Model {
    hash: WeightsHash,
    /// What it takes where it is alone; nothing where it does not fit at all.
    alone: Option<MemoryPlan>,
    state: State,
    /// When it was needed last.
    needed: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Out,
    Loading(MemoryPlan),
    In(MemoryPlan),
    Leaving(MemoryPlan),
    /// It could not be loaded, and is not tried again.
    Broken,
}

/// What is to be done next with one of the models, by its place in the list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    Load(usize),
    Unload(usize),
}

impl Residency {
    /// A device with nothing loaded: the memory of all models together, and what each takes alone, if it fits, in order of
    /// preference.
    pub(crate) fn new(room: Room, models: impl IntoIterator<Item = (WeightsHash, Option<MemoryPlan>)>) -> Self {
        let model = |(hash, alone)| Model { hash, alone, state: State::Out, needed: 0 };
        Self { room, models: models.into_iter().map(model).collect(), needs: BTreeMap::new(), turn: 0 }
    }

    /// Begins to load what a miner has at first: the first model, and those after it that fit as if they were alone.
    pub(crate) fn first(&mut self, plan: &dyn Fn(usize, Room) -> Option<MemoryPlan>) -> Vec<usize> {
        let all = 0..self.models.len();
        all.filter(|at| {
            let planned = plan(*at, self.left());
            let planned = planned.filter(|plan| *at == 0 || self.models[*at].has_all(plan));
            self.models[*at].state = planned.map_or(State::Out, State::Loading);
            planned.is_some()
        })
        .collect()
    }

    /// What a scheduler needs from now on. Of what is not here nothing is remembered.
    pub(crate) fn need(&mut self, link: usize, mut weights: Vec<WeightsHash>) {
        weights.retain(|weights| self.models.iter().any(|model| model.hash == *weights));
        self.needs.insert(link, weights);
        self.turn += 1;
        let (needed, turn) = (self.needed(), self.turn);
        self.models.iter_mut().filter(|model| needed.contains(&model.hash)).for_each(|model| model.needed = turn);
    }

    /// A scheduler is gone, and needs nothing.
    pub(crate) fn forget(&mut self, link: usize) {
        self.needs.remove(&link);
    }

    /// A model is loaded.
    pub(crate) fn loaded(&mut self, at: usize) {
        if let State::Loading(plan) = self.models[at].state {
            self.models[at].state = State::In(plan);
        }
    }

    /// A model could not be loaded.
    pub(crate) fn broke(&mut self, at: usize) {
        self.models[at].state = State::Broken;
    }

    /// A model's memory is free again.
    pub(crate) fn unloaded(&mut self, at: usize) {
        self.models[at].state = State::Out;
    }

    /// The memory that a model which is loading may take: what the others leave.
    pub(crate) fn room_of(&self, at: usize) -> Room {
        self.without(&[at])
    }

    /// The memory of all models together.
    pub(crate) fn room(&self) -> Room {
        self.room
    }

    /// What a model takes where it is alone; `None` if it cannot be asked for.
    pub(crate) fn usable(&self, at: usize) -> Option<&MemoryPlan> {
        self.models[at].alone.as_ref().filter(|_| self.models[at].state != State::Broken)
    }

    /// What is to be done now; `plan` says what a model takes in some room, if it fits there.
    pub(crate) fn next(&mut self, plan: &dyn Fn(usize, Room) -> Option<MemoryPlan>) -> Vec<Action> {
        let mut actions = Vec::new();
        let needed = self.needed();
        for at in 0..self.models.len() {
            if self.models[at].state != State::Out || !needed.contains(&self.models[at].hash) {
                continue;
            }
            let Some(victims) = self.victims(at, &needed, plan) else { continue };
            if victims.is_empty()
                && let Some(plan) = plan(at, self.left())
            {
                self.models[at].state = State::Loading(plan);
                actions.push(Action::Load(at));
                continue;
            }
            for victim in victims {
                if let State::In(plan) = self.models[victim].state {
                    self.models[victim].state = State::Leaving(plan);
                    actions.push(Action::Unload(victim));
                }
            }
            // Whoever comes later in the list would take the memory that is freed for this one.
            break;
        }
        actions
    }

    /// Which models must go, or go already, for one that is out to have all it wants, or else enough: as few as possible,
    /// and those first that nobody has needed for longest. `None` if it would not fit beside those that are needed.
    fn victims(
        &self,
        at: usize,
        needed: &BTreeSet<WeightsHash>,
        plan: &dyn Fn(usize, Room) -> Option<MemoryPlan>,
    ) -> Option<Vec<usize>> {
        let mut order: Vec<usize> = (0..self.models.len()).filter(|other| self.may_go(*other, needed)).collect();
        order
            .sort_by_key(|other| (!matches!(self.models[*other].state, State::Leaving(_)), self.models[*other].needed));
        let fits = |count: usize| plan(at, self.without(&order[..count]));
        let counts = || 0..=order.len();
        let has_all = |count: &usize| fits(*count).is_some_and(|plan| self.models[at].has_all(&plan));
        let count = counts().find(has_all).or_else(|| counts().find(|count| fits(*count).is_some()))?;
        Some(order[..count].to_vec())
    }

    fn may_go(&self, at: usize, needed: &BTreeSet<WeightsHash>) -> bool {
        match self.models[at].state {
            State::Leaving(_) => true,
            State::In(_) => !needed.contains(&self.models[at].hash),
            State::Out | State::Loading(_) | State::Broken => false,
        }
    }

    fn needed(&self) -> BTreeSet<WeightsHash> {
        self.needs.values().flatten().copied().collect()
    }

    /// The memory that nobody has.
    fn left(&self) -> Room {
        self.without(&[])
    }

    /// The same if some were not there.
    fn without(&self, gone: &[usize]) -> Room {
        let there = self.models.iter().enumerate().filter(|(at, _)| !gone.contains(at));
        there.fold(self.room, |room, (_, model)| match model.state {
            State::Loading(plan) | State::In(plan) | State::Leaving(plan) => room.without(&plan),
            State::Out | State::Broken => room,
        })
    }
}

impl Model {
    /// Whether a plan gives it as much for keys and values as it would take alone.
    fn has_all(&self, plan: &MemoryPlan) -> bool {
        self.alone.is_some_and(|alone| plan.kv >= alone.kv)
    }
}

#[cfg(test)]
mod tests;
