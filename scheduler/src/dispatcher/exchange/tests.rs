#![allow(clippy::unwrap_used)]

use super::*;

const MODEL: WeightsHash = WeightsHash([1; 32]);

fn charge(tenant: u64, tokens: i64) -> Charge {
    Charge { weights: MODEL, class: ServiceClass::Standard, tenant: Tenant(tenant), tokens }
}

#[test]
fn a_note_is_the_same_until_it_was_told() {
    let mut outbox = Outbox::default();
    outbox.put(&[]);
    assert_eq!(outbox.note(), None, "nothing is no note");
    outbox.told();
    outbox.put(&[charge(1, 10), charge(2, -3)]);
    let first = outbox.note().cloned().unwrap();
    assert_eq!((first.number, outbox.note()), (1, Some(&first)));
    outbox.told();
    assert_eq!(outbox.note(), None);
    outbox.put(&[charge(1, 5)]);
    assert_eq!(outbox.note().unwrap().number, 2);
    let notes = [first.body, outbox.note().unwrap().body.clone()];
    assert_eq!(sums(&notes), [charge(1, 15), charge(2, -3)]);
}

#[test]
fn what_cannot_be_read_is_left_out() {
    let mut outbox = Outbox::default();
    outbox.put(&[charge(1, 10)]);
    let known = outbox.note().unwrap().body.clone();
    let (newer, cut) = ([&[NOTE_VERSION + 1], &known[1..]].concat(), known[..known.len() - 2].to_vec());
    assert_eq!(sums(&[newer, cut, Vec::new(), known.clone(), known]), [charge(1, 20)]);
}

#[test]
fn the_largest_note_fits() {
    let mut outbox = Outbox::default();
    let largest = Charge { weights: MODEL, class: ServiceClass::Batch, tenant: Tenant(u64::MAX), tokens: i64::MIN };
    outbox.put(&vec![largest; CHARGES_MAX]);
    let bytes = outbox.note().unwrap().body.len();
    assert!((CHARGES_MAX * CHARGE_BYTES_MAX..=NOTE_BYTES_MAX).contains(&bytes), "{bytes}");
}
