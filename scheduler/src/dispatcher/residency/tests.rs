#![allow(clippy::unwrap_used)]
use cuckoo_wire::message::{Price, ReplicaId};
use proptest::prelude::*;

use super::*;

const GIB: u64 = 1 << 30;

fn model(n: u8) -> WeightsHash {
    WeightsHash([n; 32])
}

/// Miners with a device each, that do at once what they are asked; model `n` takes `n` GiB.
struct Market {
    residency: Residency,
    rates: BTreeMap<ReplicaKey, f64>,
    rate: f64,
    memory: BTreeMap<DeviceKey, u64>,
    replicas: u32,
    loads: usize,
    now: Duration,
}

impl Market {
    /// Devices with so many GiB, each of which could serve models 1 to `models`, computes 100 tokens a second of any, and has
    /// some already.
    fn new(devices: &[(u64, &[u8])], models: u8) -> Self {
        let mut market = Self {
            residency: Residency::default(),
            rates: BTreeMap::new(),
            rate: 100.0,
            memory: BTreeMap::new(),
            replicas: 0,
            loads: 0,
            now: Duration::from_secs(1_000),
        };
        for (link, (gib, has)) in (0..).zip(devices) {
            let link = LinkId(link);
            let loadable = |n| Loadable {
                weights: model(n),
                memory_bytes: u64::from(n) * GIB,
                load_ms: 1_000,
                ask: Price { input_per_mtok: 1, output_per_mtok: 1 },
            };
            let models = (1..=models).map(loadable).collect();
            market.residency.capacity(link, vec![Capacity { device: 0, memory_bytes: gib * GIB, models }]);
            let key = DeviceKey { link, device: 0 };
            market.memory.insert(key, gib * GIB);
            has.iter().for_each(|n| market.offer(key, model(*n)));
        }
        market
    }

    fn offer(&mut self, at: DeviceKey, weights: WeightsHash) {
        self.replicas += 1;
        let replica = ReplicaKey { link: at.link, replica: ReplicaId(self.replicas) };
        self.rates.insert(replica, self.rate);
        self.residency.offered(replica, at.device, weights);
    }

    fn decide(&mut self, wanted: &[(u8, f64)]) -> Vec<(DeviceKey, Vec<WeightsHash>)> {
        let wanted = wanted.iter().map(|(n, tokens)| (model(*n), *tokens)).collect();
        let rates = self.rates.clone();
        self.residency.decide(&wanted, &|replica| rates.get(&replica).copied(), self.now)
    }

    /// Decides, and has it done.
    fn go_on(&mut self, wanted: &[(u8, f64)]) {
        self.now += Duration::from_secs(5);
        for (key, needed) in self.decide(wanted) {
            let bytes = |weights: &WeightsHash| u64::from(weights.0[0]) * GIB;
            assert!(needed.iter().map(bytes).sum::<u64>() <= self.memory[&key], "{key:?} {needed:?}");
            let has = self.has(key.link.0);
            let missing: Vec<WeightsHash> =
                needed.iter().filter(|weights| !has.contains(&weights.0[0])).copied().collect();
            for weights in missing {
                // What nobody needs goes where there is no room.
                let there = &self.residency.devices[&key];
                let mut used: u64 = there.held.keys().map(bytes).sum();
                let idle = there.held.iter().filter(|(held, _)| !needed.contains(held));
                let mut gone = Vec::new();
                for (held, replica) in idle {
                    if used + bytes(&weights) > self.memory[&key] {
                        used -= bytes(held);
                        gone.push(*replica);
                    }
                }
                gone.into_iter().for_each(|replica| self.residency.lost(replica));
                self.loads += 1;
                self.offer(key, weights);
            }
        }
    }

    fn has(&self, link: u64) -> Vec<u8> {
        let there = &self.residency.devices[&DeviceKey { link: LinkId(link), device: 0 }];
        there.held.keys().map(|weights| weights.0[0]).collect()
    }
}

#[test]
fn what_is_asked_for_and_nobody_has_is_loaded_where_there_is_room() {
    let mut market = Market::new(&[(4, &[3]), (8, &[3])], 4);
    assert_eq!(market.decide(&[]), []);
    let asked = market.decide(&[(4, 1.0)]);
    assert_eq!(asked, [(DeviceKey { link: LinkId(1), device: 0 }, vec![model(4)])]);
    assert_eq!(market.decide(&[(4, 1.0)]), [], "it is on its way");
    market.go_on(&[(4, 1.0), (3, 10.0)]);
    assert_eq!(market.has(0), [3]);
}

#[test]
fn the_idle_make_room_and_the_busy_do_not() {
    let mut market = Market::new(&[(4, &[3]), (4, &[4])], 4);
    market.go_on(&[(3, 50.0), (2, 1.0)]);
    assert_eq!((market.has(0), market.has(1)), (vec![3], vec![2]), "4 was idle");
    let mut market = Market::new(&[(4, &[3])], 4);
    (0..20).for_each(|_| market.go_on(&[(3, 100.0), (2, 1.0)]));
    assert_eq!((market.has(0), market.loads), (vec![3], 0));
}

#[test]
fn what_makes_room_for_another_is_not_needed_while_it_goes() {
    let mut market = Market::new(&[(4, &[3])], 4);
    let device = DeviceKey { link: LinkId(0), device: 0 };
    let wanted = [(3, 1.0), (4, 50.0)];
    assert_eq!(market.decide(&wanted), [(device, vec![model(4)])]);
    // It finishes what runs there, and much of it is wanted still.
    for _ in 0..4 {
        market.now += Duration::from_secs(5);
        assert_eq!(market.decide(&wanted), []);
    }
}

#[test]
fn replicas_follow_demand_and_stay_when_it_wavers() {
    let mut market = Market::new(&[(4, &[3]), (4, &[3]), (4, &[4]), (4, &[4])], 4);
    for second in 0..60 {
        let wavering = if second % 2 == 0 { 120.0 } else { 140.0 };
        market.go_on(&[(3, wavering), (4, 130.0)]);
    }
    assert_eq!(market.loads, 0, "as it was is as good");
    for _ in 0..20 {
        market.go_on(&[(3, 350.0), (4, 40.0)]);
    }
    let of = |n: u8| (0..4).filter(|link| market.has(*link).contains(&n)).count();
    assert_eq!((of(3), of(4), market.loads), (3, 1, 1));
}

#[test]
fn two_that_need_all_of_one_device_take_turns_and_little_of_it_goes_into_loading() {
    let mut market = Market::new(&[(4, &[3])], 4);
    // A fifth of an hour.
    (0..144).for_each(|_| market.go_on(&[(3, 100.0), (4, 100.0)]));
    assert!((20..=40).contains(&market.loads), "{} loads of a second in 720", market.loads);
}

#[test]
fn what_does_not_come_is_asked_for_elsewhere() {
    let mut market = Market::new(&[(4, &[]), (4, &[])], 4);
    let first = market.decide(&[(4, 1.0)]);
    assert_eq!(first.len(), 1);
    market.now += Duration::from_secs(60);
    assert_eq!(market.decide(&[(4, 1.0)]), [], "it may still come");
    market.now += Duration::from_secs(60);
    let second: Vec<_> = market.decide(&[(4, 1.0)]).into_iter().filter(|(_, needed)| !needed.is_empty()).collect();
    assert_eq!(second.len(), 1);
    assert_ne!(second[0].0, first[0].0);
}

#[test]
fn who_goes_is_forgotten() {
    let mut market = Market::new(&[(4, &[3]), (4, &[4])], 4);
    assert!(market.residency.is_loadable(&model(2)));
    market.residency.capacity(LinkId(1), vec![]);
    market.residency.lost_link(LinkId(0));
    assert!(!market.residency.is_loadable(&model(2)));
    market.residency.lost_link(LinkId(1));
    assert!(market.residency.devices.is_empty() && market.residency.replicas.is_empty());
    assert_eq!(market.decide(&[(4, 1.0)]), []);
}

proptest! {
    /// Whatever is wanted of whatever fleet: no device is asked for more than fits, and where demand stays as it is, so do
    /// models, after a while, but for those that take turns.
    #[test]
    fn steady_demand_needs_no_more_loading(
        devices in prop::collection::vec((4u64..12, prop::collection::vec(1u8..5, 0..1)), 1..8),
        wanted in prop::collection::vec((1u8..5, 0.0f64..300.0), 1..4),
    ) {
        let devices: Vec<(u64, &[u8])> = devices.iter().map(|(gib, has)| (*gib, &has[..])).collect();
        let mut market = Market::new(&devices, 4);
        (0..40).for_each(|_| market.go_on(&wanted));
        let before = market.loads;
        (0..40).for_each(|_| market.go_on(&wanted));
        // Two hundred seconds more: each device changes at most once in twenty, and has room for two or three.
        prop_assert!(market.loads - before <= 30 * devices.len());
        let all: f64 = wanted.iter().map(|(_, tokens)| tokens).sum();
        if all * 4.0 < 100.0 * devices.len() as f64 && wanted.len() <= devices.len() {
            prop_assert_eq!(market.loads, before, "there is enough for all");
            for (n, tokens) in &wanted {
                prop_assert!(*tokens < 0.01 || (0..devices.len() as u64).any(|link| market.has(link).contains(n)));
            }
        }
    }
}
