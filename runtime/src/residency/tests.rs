#![allow(clippy::unwrap_used)]
use proptest::prelude::*;

use super::*;
use crate::memory::Available;

const WEIGHTS: u64 = 10;

fn hash(at: usize) -> WeightsHash {
    WeightsHash([at as u8; 32])
}

fn room(bytes: u64) -> Room {
    Room::shared(Available { bytes, limit: "a test" })
}

/// A model of [`WEIGHTS`] that wants `kv` for keys and values, and makes do with 1.
fn plan_in(kv: u64, room: Room) -> Option<MemoryPlan> {
    let plan = |kv| MemoryPlan { weights: WEIGHTS, kv, ..MemoryPlan::default() };
    (1..=kv).rev().map(plan).find(|plan| room.lacks(plan).is_none())
}

/// A device with so much memory, and models that want so much for keys and values; what it has loaded at first.
fn device(bytes: u64, wants: &[u64]) -> (Residency, Vec<usize>) {
    let alone = |(at, kv): (usize, &u64)| (hash(at), plan_in(*kv, room(bytes)));
    let mut device = Residency::new(room(bytes), wants.iter().enumerate().map(alone));
    let first = device.first(&|at, room| plan_in(wants[at], room));
    first.iter().for_each(|at| device.loaded(*at));
    (device, first)
}

fn act(device: &mut Residency, wants: &[u64]) -> Vec<Action> {
    device.next(&|at, room| plan_in(wants[at], room))
}

#[test]
fn at_first_there_is_the_first_and_what_fits_beside_it() {
    for (bytes, first) in [(45, vec![0, 1, 2]), (44, vec![0, 1]), (29, vec![0]), (12, vec![0])] {
        assert_eq!(device(bytes, &[5, 5, 5]).1, first, "{bytes}");
    }
}

#[test]
fn what_is_needed_takes_the_place_of_what_nobody_has_needed_for_longest() {
    let wants = [5, 5, 5];
    let (mut device, _) = device(30, &wants);
    device.need(0, vec![hash(1)]);
    device.need(0, vec![hash(0)]);
    assert_eq!(act(&mut device, &wants), [], "it is there");
    device.need(0, vec![hash(2)]);
    assert_eq!(act(&mut device, &wants), [Action::Unload(1)]);
    assert_eq!(act(&mut device, &wants), [], "it waits until that is gone");
    device.unloaded(1);
    assert_eq!(act(&mut device, &wants), [Action::Load(2)]);
    assert_eq!(act(&mut device, &wants), []);
    device.loaded(2);
    // Nobody needs anything: nothing is given up for nothing.
    device.need(0, vec![]);
    assert_eq!(act(&mut device, &wants), []);
}

#[test]
fn what_another_scheduler_needs_stays() {
    let wants = [5, 5];
    let (mut device, _) = device(15, &wants);
    device.need(0, vec![hash(0)]);
    device.need(1, vec![hash(1)]);
    assert_eq!(act(&mut device, &wants), []);
    device.forget(0);
    assert_eq!(act(&mut device, &wants), [Action::Unload(0)]);
}

#[test]
fn who_cannot_have_all_it_wants_makes_do_with_less_before_it_has_nothing() {
    let wants = [5, 5];
    let (mut device, _) = device(28, &wants);
    device.need(0, vec![hash(0), hash(1)]);
    assert_eq!(act(&mut device, &wants), [Action::Load(1)], "3 of 5 beside what is needed too");
    let wants = [15, 15];
    let (mut device, _) = self::device(28, &wants);
    device.need(0, vec![hash(1)]);
    assert_eq!(act(&mut device, &wants), [Action::Unload(0)], "all of it, where the other is not needed");
}

#[test]
fn what_is_not_here_or_never_fits_is_not_loaded() {
    let wants = [5, 5];
    let fits = MemoryPlan { weights: WEIGHTS, kv: 5, ..MemoryPlan::default() };
    let mut device = Residency::new(room(15), [(hash(0), Some(fits)), (hash(1), None)]);
    let plan = |at: usize, room| if at == 0 { plan_in(5, room) } else { None };
    assert_eq!(device.first(&plan), [0]);
    device.loaded(0);
    device.need(0, vec![hash(1), hash(7)]);
    assert_eq!((device.next(&plan), device.usable(1)), (vec![], None));
    assert_eq!(device.needs[&0], [hash(1)], "who names what is not here makes nobody remember it");
    device.forget(0);
    assert_eq!(act(&mut device, &wants), []);
}

#[test]
fn what_broke_is_not_tried_again() {
    let wants = [5, 5];
    let (mut device, _) = device(15, &wants);
    device.need(0, vec![hash(1)]);
    assert_eq!(act(&mut device, &wants), [Action::Unload(0)]);
    device.unloaded(0);
    assert_eq!(act(&mut device, &wants), [Action::Load(1)]);
    device.broke(1);
    assert_eq!((act(&mut device, &wants), device.usable(1)), (vec![], None));
    device.need(0, vec![hash(0), hash(1)]);
    assert_eq!(act(&mut device, &wants), [Action::Load(0)]);
}

proptest! {
    /// Whatever is needed when, and however long things take: memory is never overdrawn, nothing that is needed is unloaded,
    /// and in the end all that is needed is there or does not fit beside the rest that is.
    #[test]
    fn needs_are_met_within_memory(
        bytes in 11u64..60,
        wants in prop::collection::vec(1u64..20, 1..5),
        needs in prop::collection::vec((0usize..2, prop::collection::vec(0usize..5, 0..3), any::<bool>()), 1..12),
    ) {
        let (mut device, _) = device(bytes, &wants);
        let mut under_way: Vec<Action> = Vec::new();
        let settle = |device: &mut Residency, under_way: &mut Vec<Action>| {
            for action in under_way.drain(..) {
                match action {
                    Action::Load(at) => device.loaded(at),
                    Action::Unload(at) => device.unloaded(at),
                }
            }
        };
        for (link, models, settles) in needs {
            device.need(link, models.iter().map(|at| hash(*at)).collect());
            for action in act(&mut device, &wants) {
                if let Action::Unload(at) = action {
                    prop_assert!(!device.needed().contains(&hash(at)));
                }
                under_way.push(action);
            }
            let taken: u64 = device.models.iter().map(|model| match model.state {
                State::Loading(plan) | State::In(plan) | State::Leaving(plan) => plan.peak(),
                _ => 0,
            }).sum();
            prop_assert!(taken <= bytes, "{taken} of {bytes}");
            if settles {
                settle(&mut device, &mut under_way);
            }
        }
        for _ in 0..10 {
            settle(&mut device, &mut under_way);
            under_way = act(&mut device, &wants);
        }
        prop_assert!(under_way.is_empty());
        let needed = device.needed();
        for (at, model) in device.models.iter().enumerate() {
            if needed.contains(&model.hash) && model.state == State::Out {
                let idle: Vec<usize> = (0..wants.len()).filter(|other| device.may_go(*other, &needed)).collect();
                prop_assert!(plan_in(wants[at], device.without(&idle)).is_none(), "{at} would fit");
            }
        }
    }
}
