//! Which models should be loaded on which devices, decided from what is asked for.
//!
//! Pure: what miners could serve and do, and how much of each model is wanted, come in; which models each device should have
//! comes out, as a list. The aim is as much value served as possible: for each model no more than is wanted, for each device no
//! more than it computes. Models are added one at a time, the one first that gives most for its memory (the greedy rule for
//! knapsacks, Dantzig 1957), and one takes the place of another only where that clearly pays: after the time to load it, and
//! with something to spare, so that nothing is loaded back and forth.
//!
//! A miner does what it is asked as far as its memory goes; several schedulers may ask.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use cuckoo_wire::message::{Capacity, Loadable, WeightsHash};

use super::{LinkId, ReplicaKey};

pub(super) mod actor;
mod plan;
#[cfg(test)]
mod tests;

use plan::Plan;

/// A model that was asked for and is not there after so many times its usual time, and [`LOAD_PATIENCE`], will not come.
const LOAD_TIMES_MAX: u32 = 4;
const LOAD_PATIENCE: Duration = Duration::from_secs(90);
/// A device is not asked again for a model that did not come, for so long.
const AVOID: Duration = Duration::from_secs(300);
/// A device that was asked for something new keeps what it has for so long, and for so many times the time that loading takes:
/// no more than a tenth of its time goes into loading.
const STAY: Duration = Duration::from_secs(20);
const STAY_TIMES: u32 = 10;

/// One device of one connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct DeviceKey {
    /// The connection.
    pub link: LinkId,
    /// The device's number there.
    pub device: u32,
}

/// All devices, and what they have.
#[derive(Debug, Default)]
pub struct Residency {
    devices: BTreeMap<DeviceKey, Device>,
    replicas: BTreeMap<ReplicaKey, (DeviceKey, WeightsHash)>,
    /// How many devices could serve a model.
    loadable: BTreeMap<WeightsHash, u32>,
}

#[derive(Debug, Default)]
struct Device {
    memory_bytes: u64,
    models: BTreeMap<WeightsHash, Loadable>,
    /// What it has, and the newest replica of it.
    held: BTreeMap<WeightsHash, ReplicaKey>,
    /// What it was asked for last.
    needed: BTreeSet<WeightsHash>,
    /// Of these, those that it does not have yet, and when they were asked for.
    awaited: BTreeMap<WeightsHash, Duration>,
    /// Models that did not come, and until when they are not asked for.
    avoided: BTreeMap<WeightsHash, Duration>,
    /// Until when it keeps what it has.
    stays: Duration,
}

impl Residency {
    /// What a miner's devices could serve, from now on.
    pub fn capacity(&mut self, link: LinkId, devices: Vec<Capacity>) {
        let mut gone: BTreeSet<DeviceKey> = self.of_link(link).collect();
        for Capacity { device, memory_bytes, models } in devices {
            let key = DeviceKey { link, device };
            gone.remove(&key);
            self.forget_models(key);
            models.iter().for_each(|model| *self.loadable.entry(model.weights).or_default() += 1);
            let there = self.devices.entry(key).or_default();
            there.memory_bytes = memory_bytes;
            there.models = models.into_iter().map(|model| (model.weights, model)).collect();
        }
        for key in gone {
            self.forget_models(key);
        }
    }

    /// A device has a model.
    pub fn offered(&mut self, key: ReplicaKey, device: u32, weights: WeightsHash) {
        let at = DeviceKey { link: key.link, device };
        self.replicas.insert(key, (at, weights));
        let there = self.devices.entry(at).or_default();
        there.held.insert(weights, key);
        there.awaited.remove(&weights);
    }

    /// A device has a model no more.
    pub fn lost(&mut self, key: ReplicaKey) {
        if let Some((at, weights)) = self.replicas.remove(&key)
            && let Some(there) = self.devices.get_mut(&at)
            && there.held.get(&weights) == Some(&key)
        {
            there.held.remove(&weights);
        }
    }

    /// A miner is gone.
    pub fn lost_link(&mut self, link: LinkId) {
        for key in self.of_link(link).collect::<Vec<_>>() {
            self.forget_models(key);
            self.devices.remove(&key);
        }
        self.replicas.retain(|key, _| key.link != link);
    }

    /// Models that a miner's devices could serve.
    pub fn named(&self, link: LinkId) -> BTreeSet<WeightsHash> {
        self.of_link(link)
            .filter_map(|key| self.devices.get(&key))
            .flat_map(|there| there.models.keys())
            .copied()
            .collect()
    }

    /// Whether any device could serve a model.
    pub fn is_loadable(&self, weights: &WeightsHash) -> bool {
        self.loadable.contains_key(weights)
    }

    /// What devices should be asked for that they were not asked for already. `wanted` are tokens a second of each model, and
    /// `rate` what a replica computes of them.
    pub fn decide(
        &mut self,
        wanted: &BTreeMap<WeightsHash, f64>,
        rate: &dyn Fn(ReplicaKey) -> Option<f64>,
        now: Duration,
    ) -> Vec<(DeviceKey, Vec<WeightsHash>)> {
        // Where nobody has a choice there is nothing to decide.
        if self.devices.values().all(|device| device.models.len() < 2) {
            return Vec::new();
        }
        self.devices.values_mut().for_each(|device| device.give_up(now));
        let mut plan = Plan::new(self, wanted, rate, now);
        plan.fill();
        plan.improve();
        let needs = plan.needs();
        let mut asked = Vec::new();
        for (key, needed) in needs {
            let Some(device) = self.devices.get_mut(&key).filter(|device| device.needed != needed) else { continue };
            device.ask(needed, now);
            asked.push((key, device.needed.iter().copied().collect()));
        }
        asked
    }

    fn of_link(&self, link: LinkId) -> impl Iterator<Item = DeviceKey> + '_ {
        let (first, last) = (DeviceKey { link, device: 0 }, DeviceKey { link, device: u32::MAX });
        self.devices.range(first..=last).map(|(key, _)| *key)
    }

    fn forget_models(&mut self, key: DeviceKey) {
        let Some(there) = self.devices.get_mut(&key) else { return };
        for weights in std::mem::take(&mut there.models).keys() {
            if let Some(count) = self.loadable.get_mut(weights) {
                *count -= 1;
                if *count == 0 {
                    self.loadable.remove(weights);
                }
            }
        }
    }
}

impl Device {
    /// What it will have soon, as far as is known, and the bytes that are then free: what comes, and what it has and need not
    /// give up for that. What it has beyond is on its way out: it was there when the other was asked for.
    fn expected(&self) -> (BTreeSet<WeightsHash>, u64) {
        let bytes = |weights: &WeightsHash| self.models.get(weights).map_or(0, |model| model.memory_bytes);
        let mut has: BTreeSet<WeightsHash> = self.awaited.keys().copied().collect();
        let mut free = self.memory_bytes.saturating_sub(has.iter().map(bytes).sum());
        let (needed, others): (Vec<_>, Vec<_>) = self.held.keys().partition(|weights| self.needed.contains(*weights));
        for weights in needed.into_iter().chain(others) {
            // Where nothing comes nothing goes: it may take less than it says.
            if self.awaited.is_empty() || bytes(weights) <= free {
                has.insert(*weights);
                free = free.saturating_sub(bytes(weights));
            }
        }
        (has, free)
    }

    /// Waits no longer for what does not come.
    fn give_up(&mut self, now: Duration) {
        self.avoided.retain(|_, until| *until > now);
        let models = &self.models;
        let patience = |weights: &WeightsHash| {
            let usual = models.get(weights).map(|model| Duration::from_millis(model.load_ms.into()));
            usual.map(|usual| usual.saturating_mul(LOAD_TIMES_MAX).saturating_add(LOAD_PATIENCE))
        };
        let is_late = |(weights, since): (&WeightsHash, &Duration)| {
            patience(weights).is_none_or(|patience| since.saturating_add(patience) <= now).then_some(*weights)
        };
        let late: Vec<WeightsHash> = self.awaited.iter().filter_map(is_late).collect();
        for weights in late {
            self.awaited.remove(&weights);
            self.avoided.insert(weights, now + AVOID);
        }
    }

    fn ask(&mut self, needed: BTreeSet<WeightsHash>, now: Duration) {
        self.awaited.retain(|weights, _| needed.contains(weights));
        for weights in needed.iter().filter(|weights| !self.held.contains_key(*weights)) {
            if !self.awaited.contains_key(weights) {
                self.awaited.insert(*weights, now);
                let load = self.models.get(weights).map_or(0, |model| model.load_ms);
                let stay = Duration::from_millis(load.into()).saturating_mul(STAY_TIMES);
                self.stays = now.saturating_add(STAY.max(stay));
            }
        }
        self.needed = needed;
    }
}
