//! One decision: who serves what is wanted, and what would serve more of it.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use cuckoo_wire::message::{Loadable, WeightsHash};

use super::{Device, DeviceKey, Residency};
use crate::dispatcher::ReplicaKey;

/// Models that one decision adds to devices; more are added by the next.
const ADDED_MAX: usize = 16;
/// What is gained must be so many times what is lost.
const HYSTERESIS: f64 = 1.2;
/// Demand is foreseen for so long: what takes longer to load gains nothing.
const HORIZON_S: f64 = 300.0;
/// A model that nobody serves is worth so many times another: its requests have nowhere else to go.
const UNSERVED_WORTH: f64 = 4.0;
/// Less than so many tokens a second are wanted by nobody.
const WANTED_MIN: f64 = 0.01;
/// What a device is thought to compute, in tokens a second, where nothing is known.
const RATE_PRIOR: f64 = 100.0;

/// What is wanted and who would serve it.
pub(super) struct Plan<'a> {
    devices: Vec<Work<'a>>,
    /// Tokens a second of each model that nobody serves yet.
    unmet: BTreeMap<WeightsHash, f64>,
    /// How many devices have a model, or will.
    holders: BTreeMap<WeightsHash, usize>,
    rates: Rates,
    now: Duration,
}

/// One device's part.
struct Work<'a> {
    key: DeviceKey,
    device: &'a Device,
    /// What it computes of what it has, in tokens a second, as far as is known.
    rates: BTreeMap<WeightsHash, f64>,
    /// How much faster it is than others.
    speed: f64,
    /// What it will have.
    has: BTreeSet<WeightsHash>,
    /// Of these, what is not to be given up for others: it comes, or has just been asked for.
    fixed: BTreeSet<WeightsHash>,
    /// Bytes that are free.
    free: u64,
    /// The share of its time that is free.
    left: f64,
    /// Tokens a second that it serves of each model.
    flow: BTreeMap<WeightsHash, f64>,
}

/// A model that a device could have beside, or in place of, others.
struct Change {
    at: usize,
    weights: WeightsHash,
    victims: Vec<WeightsHash>,
    /// Tokens a second that it would serve there.
    served: f64,
    /// The share of what the others serve there that they would not.
    yielded: f64,
    /// Value a second for each byte.
    worth: f64,
}

impl<'a> Plan<'a> {
    pub(super) fn new(
        residency: &'a Residency,
        wanted: &BTreeMap<WeightsHash, f64>,
        rate: &dyn Fn(ReplicaKey) -> Option<f64>,
        now: Duration,
    ) -> Self {
        let work = |(key, device): (&DeviceKey, &'a Device)| {
            let (has, free) = device.expected();
            let fixed = device.awaited.keys().copied().collect();
            let (rates, flow) = (BTreeMap::new(), BTreeMap::new());
            Work { key: *key, device, rates, speed: 1.0, has, fixed, free, left: 1.0, flow }
        };
        let mut devices: Vec<Work<'a>> = residency.devices.iter().map(work).collect();
        let rates = Rates::learn(&mut devices, rate);
        let unmet = wanted.iter().filter(|(_, tokens)| **tokens >= WANTED_MIN).map(|(model, t)| (*model, *t)).collect();
        let mut holders = BTreeMap::new();
        devices.iter().flat_map(|work| &work.has).for_each(|model| *holders.entry(*model).or_default() += 1);
        Self { devices, unmet, holders, rates, now }
    }

    /// Gives each device what it can serve: models first that fewest have.
    pub(super) fn fill(&mut self) {
        let mut order: Vec<(usize, WeightsHash)> =
            self.unmet.keys().map(|model| (self.holders(model), *model)).collect();
        order.sort_unstable();
        for (_, model) in order {
            self.serve(model);
        }
    }

    /// Spreads what is wanted of a model over those who have it and have time, by what they can do.
    fn serve(&mut self, model: WeightsHash) {
        let Some(unmet) = self.unmet.get_mut(&model) else { return };
        let rates = &self.rates;
        let able = |work: &Work| match work.has.contains(&model) {
            true => rates.of_model(work, &model) * work.left,
            false => 0.0,
        };
        let all: f64 = self.devices.iter().map(able).sum();
        if all <= 0.0 {
            return;
        }
        let share = (*unmet / all).min(1.0);
        for work in &mut self.devices {
            let served = able(work) * share;
            if served > 0.0 {
                *work.flow.entry(model).or_default() += served;
                work.left = (work.left * (1.0 - share)).max(0.0);
            }
        }
        *unmet = (*unmet - all * share).max(0.0);
    }

    /// Adds models where that serves more, the best first: each is looked at again when it is its turn.
    pub(super) fn improve(&mut self) {
        let unmet: Vec<WeightsHash> = self.unmet.keys().copied().collect();
        let all = unmet.iter().flat_map(|model| (0..self.devices.len()).map(move |at| (at, *model)));
        let mut changes: Vec<Change> = all.filter_map(|(at, model)| self.change(at, model)).collect();
        changes.sort_by(|a, b| b.worth.total_cmp(&a.worth).then_with(|| a.order(b)));
        let mut added = 0;
        for Change { at, weights, .. } in changes {
            if let Some(change) = self.change(at, weights) {
                self.make(change);
                added += 1;
            }
            if added == ADDED_MAX {
                return;
            }
        }
    }

    /// What it would be to have a model on a device; `None` where it would not pay.
    fn change(&self, at: usize, weights: WeightsHash) -> Option<Change> {
        let work = &self.devices[at];
        let model = work.device.models.get(&weights)?;
        let unmet = self.unmet.get(&weights).copied().filter(|unmet| *unmet >= WANTED_MIN)?;
        if work.has.contains(&weights) || work.device.avoided.contains_key(&weights) {
            return None;
        }
        let is_served = self.holders(&weights) > 0;
        let victims = self.victims(work, model)?;
        let rate = self.rates.of_model(work, &weights);
        let value = |model: &Loadable| (model.ask.output_per_mtok as f64).max(1.0);
        let worth_of = |other: &WeightsHash| {
            let flow = work.flow.get(other).copied().unwrap_or(0.0);
            // Who is served elsewhere leaves the last one of another alone; who is served nowhere takes turns with it.
            let times = if is_served && self.holders(other) == 1 { UNSERVED_WORTH } else { 1.0 };
            (times * flow * work.device.models.get(other).map_or(1.0, value), flow / self.rates.of_model(work, other))
        };
        let sum = |(worth, time): (f64, f64), (w, t): (f64, f64)| (worth + w, time + t);
        let (mut lost, freed) = victims.iter().map(worth_of).fold((0.0, work.left), sum);
        let mut time = (unmet / rate).min(freed);
        let mut yielded = 0.0;
        if !is_served && time < unmet / rate {
            // It shares the device's time with those who stay, up to half of what they have.
            let stay = work.flow.keys().filter(|model| !victims.contains(model));
            let (worth, used) = stay.map(worth_of).fold((0.0, 0.0), sum);
            let more = (unmet / rate - time).min(used / 2.0);
            if more > 0.0 {
                yielded = more / used;
                lost += worth * yielded;
                time += more;
            }
        }
        let load_s = f64::from(model.load_ms) / 1e3;
        let times = if is_served { 1.0 } else { UNSERVED_WORTH };
        let gained = rate * time * value(model) * times * (1.0 - load_s / HORIZON_S).max(0.0);
        let net = gained - HYSTERESIS * lost;
        let worth = net / model.memory_bytes.max(1) as f64;
        (net > 0.0).then_some(Change { at, weights, victims, served: rate * time, yielded, worth })
    }

    /// How many devices have a model, or will.
    fn holders(&self, model: &WeightsHash) -> usize {
        self.holders.get(model).copied().unwrap_or(0)
    }

    /// What a device must give up for a model, that first which serves least for its memory. `None` where it cannot.
    fn victims(&self, work: &Work<'_>, model: &Loadable) -> Option<Vec<WeightsHash>> {
        if model.memory_bytes <= work.free {
            return Some(Vec::new());
        }
        if self.now < work.device.stays {
            return None;
        }
        let bytes = |model: &WeightsHash| work.device.models.get(model).map_or(0, |model| model.memory_bytes);
        let mut may_go: Vec<(f64, WeightsHash)> = work
            .has
            .iter()
            .filter(|model| !work.fixed.contains(model) && bytes(model) > 0)
            .map(|model| (work.flow.get(model).copied().unwrap_or(0.0) / bytes(model) as f64, *model))
            .collect();
        may_go.sort_by(|(a, x), (b, y)| a.total_cmp(b).then_with(|| x.cmp(y)));
        let (mut free, mut victims) = (work.free, Vec::new());
        for (_, victim) in may_go {
            if free >= model.memory_bytes {
                break;
            }
            free = free.saturating_add(bytes(&victim));
            victims.push(victim);
        }
        (free >= model.memory_bytes).then_some(victims)
    }

    /// Does it, and has others serve what is served there no more, as far as they can.
    fn make(&mut self, change: Change) {
        let Change { at, weights, victims, served, yielded, .. } = change;
        let rates = &self.rates;
        let work = &mut self.devices[at];
        let bytes = |model: &WeightsHash| work.device.models.get(model).map_or(0, |model| model.memory_bytes);
        let freed: u64 = victims.iter().map(bytes).sum();
        work.free = work.free.saturating_add(freed).saturating_sub(bytes(&weights));
        let mut displaced = Vec::new();
        for victim in &victims {
            work.has.remove(victim);
            self.holders.entry(*victim).and_modify(|holders| *holders -= 1);
            displaced.extend(work.flow.remove(victim).map(|flow| (*victim, flow)));
        }
        for (model, flow) in &mut work.flow {
            displaced.push((*model, *flow * yielded));
            *flow *= 1.0 - yielded;
        }
        let freed: f64 = displaced.iter().map(|(model, flow)| flow / rates.of_model(work, model)).sum();
        work.left = (work.left + freed - served / rates.of_model(work, &weights)).max(0.0);
        work.flow.insert(weights, served);
        work.has.insert(weights);
        work.fixed.insert(weights);
        *self.holders.entry(weights).or_default() += 1;
        self.unmet.entry(weights).and_modify(|unmet| *unmet = (*unmet - served).max(0.0));
        for (model, flow) in displaced.into_iter().filter(|(_, flow)| *flow > 0.0) {
            *self.unmet.entry(model).or_default() += flow;
            self.serve(model);
        }
    }

    /// What each device is needed for: what it serves, and what was asked for and comes.
    pub(super) fn needs(self) -> Vec<(DeviceKey, BTreeSet<WeightsHash>)> {
        let needs = |work: Work<'_>| {
            let serves = work.flow.iter().filter(|(_, flow)| **flow > 0.0).map(|(model, _)| *model);
            // Nothing can be asked for that the device does not name; it would not know it.
            let needed = serves.chain(work.fixed).filter(|model| work.device.models.contains_key(model)).collect();
            (work.key, needed)
        };
        self.devices.into_iter().map(needs).collect()
    }
}

impl Change {
    /// Of two that are worth the same, the one that moves less, then the one that comes first.
    fn order(&self, other: &Self) -> Ordering {
        self.victims
            .len()
            .cmp(&other.victims.len())
            .then_with(|| (self.at, self.weights).cmp(&(other.at, other.weights)))
    }
}

/// What devices compute of models where that is not known, in tokens a second: what follows from others.
struct Rates {
    /// Of each model, over all who have it.
    mean: BTreeMap<WeightsHash, f64>,
    /// Bytes of a model times its rate, over everything known: how fast models of any size are.
    bytes: Option<f64>,
}

impl Rates {
    /// Asks what devices compute of what they have, and finds out how much faster each is than others.
    fn learn(devices: &mut [Work<'_>], rate: &dyn Fn(ReplicaKey) -> Option<f64>) -> Self {
        let (mut sums, mut bytes) = (BTreeMap::<WeightsHash, (f64, f64)>::new(), Vec::new());
        for work in devices.iter_mut() {
            for (model, replica) in &work.device.held {
                let Some(rate) = rate(*replica).filter(|rate| rate.is_finite() && *rate > 0.0) else { continue };
                work.rates.insert(*model, rate);
                let (sum, count) = sums.entry(*model).or_default();
                (*sum, *count) = (*sum + rate, *count + 1.0);
                bytes.extend(work.device.models.get(model).map(|model| rate * model.memory_bytes as f64));
            }
        }
        let mean: BTreeMap<WeightsHash, f64> = sums.into_iter().map(|(model, (sum, n))| (model, sum / n)).collect();
        for work in devices.iter_mut().filter(|work| !work.rates.is_empty()) {
            let faster = work.rates.iter().map(|(model, rate)| rate / mean[model]);
            work.speed = faster.sum::<f64>() / work.rates.len() as f64;
        }
        let bytes = (!bytes.is_empty()).then(|| bytes.iter().sum::<f64>() / bytes.len() as f64);
        Self { mean, bytes }
    }

    /// What a device would compute of a model if it did nothing else; above 0.
    fn of_model(&self, work: &Work<'_>, model: &WeightsHash) -> f64 {
        if let Some(known) = work.rates.get(model) {
            return *known;
        }
        let by_size = || {
            let bytes = work.device.models.get(model)?.memory_bytes.max(1);
            Some(self.bytes? / bytes as f64)
        };
        self.mean.get(model).copied().or_else(by_size).unwrap_or(RATE_PRIOR) * work.speed
    }
}
