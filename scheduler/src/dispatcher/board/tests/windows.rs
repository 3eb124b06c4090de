use proptest::prelude::*;

use super::*;

#[derive(Clone, Debug)]
enum Event {
    Offer(u64, u64, u64),
    Submit(u32, u32),
    End(usize),
    Withdraw(usize),
    Lose(u64),
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        (0u64..4, 1u64..6, 1u64..40).prop_map(|(l, s, b)| Event::Offer(l, s, b)),
        (1u32..200, 1u32..200).prop_map(|(t, n)| Event::Submit(t, n)),
        any::<usize>().prop_map(Event::End),
        any::<usize>().prop_map(Event::Withdraw),
        (0u64..4).prop_map(Event::Lose),
    ]
}

proptest! {
    /// Against a plain model of each replica: windows are never overdrawn, and every request is placed at most once.
    #[test]
    fn windows_are_never_overdrawn(events in prop::collection::vec(event(), 1..300)) {
        let mut board = Still::default();
        let mut capacity: BTreeMap<ReplicaKey, Window> = BTreeMap::new();
        let mut granted: BTreeMap<ReplicaKey, Window> = BTreeMap::new();
        let mut running: Vec<Placement> = Vec::new();
        let mut waiting: Vec<Ticket> = Vec::new();
        let mut next = 0;
        for event in events {
            match event {
                Event::Offer(link, sequences, blocks) => {
                    let window = Window { sequences, blocks };
                    board.offer(key(link), offer(sequences, blocks, price(1, 1)));
                    for lost in running.extract_if(.., |p| p.key == key(link)) {
                        board.ended(lost.key, lost.ticket, Ended { output: 0, is_lost: true }, ZERO);
                    }
                    capacity.insert(key(link), window);
                    granted.insert(key(link), window);
                }
                Event::Submit(tokens, max_new) => {
                    next += 1;
                    prop_assert!(board.submit(Ticket(next), need(tokens, max_new)));
                    waiting.push(Ticket(next));
                }
                Event::End(which) if !running.is_empty() => {
                    let ended = running.swap_remove(which % running.len());
                    let window = granted.get_mut(&ended.key).unwrap();
                    window.sequences += 1;
                    window.blocks += u64::from(ended.blocks);
                    board.ended(ended.key, ended.ticket, Ended { output: 7, is_lost: false }, ZERO);
                    board.grant(ended.key, *window);
                }
                Event::Withdraw(which) if !waiting.is_empty() => {
                    let ticket = waiting.swap_remove(which % waiting.len());
                    prop_assert!(board.withdraw(ticket));
                }
                Event::Lose(link) => {
                    board.lose_link(LinkId(link));
                    capacity.remove(&key(link));
                    for lost in running.extract_if(.., |p| p.key == key(link)) {
                        board.ended(lost.key, lost.ticket, Ended { output: 0, is_lost: true }, ZERO);
                    }
                }
                Event::End(_) | Event::Withdraw(_) => {}
            }
            for placement in board.place() {
                let at = waiting.iter().position(|t| *t == placement.ticket);
                prop_assert!(at.is_some(), "placed twice or never submitted");
                waiting.remove(at.unwrap());
                running.push(placement);
            }
            prop_assert_eq!(board.waiting(), waiting.len());
            for (key, window) in &capacity {
                let here = running.iter().filter(|p| p.key == *key);
                prop_assert!(here.clone().count() as u64 <= window.sequences);
                prop_assert!(here.clone().map(|p| u64::from(p.blocks)).sum::<u64>() <= window.blocks);
                let seen = board.replicas().find(|replica| replica.key == *key).unwrap();
                prop_assert_eq!(seen.running.len(), here.count(), "who runs is who was placed and has not ended");
                let prefilling: u64 = seen.running.values().map(|runs| u64::from(runs.uncached)).sum();
                prop_assert_eq!(seen.prefilling, prefilling);
            }
        }
    }
}
