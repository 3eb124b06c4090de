#![allow(clippy::unwrap_used)]

use super::*;
use crate::device::tests::offer;

const FIGURES: Figures = Figures { batch: 1, blocks_used: 1 };

fn id(link: usize) -> OutletId {
    OutletId { link, replica: ReplicaId(1) }
}

fn window(sequences: u64, blocks: u64) -> Window {
    Window { sequences, blocks }
}

fn attach(outlets: &mut Outlets, link: usize, all: Window) -> (mpsc::Receiver<ReplicaFrame>, Window) {
    let (frames_in, mut frames) = mpsc::channel(64);
    outlets.attach(id(link), frames_in, (&offer(), all), [7, 8].into_iter(), Instant::now());
    let Ok(ReplicaFrame::Offer(offer)) = frames.try_recv() else { panic!("the offer comes first") };
    (frames, offer.window)
}

fn steps(frames: &mut mpsc::Receiver<ReplicaFrame>) -> Vec<Step> {
    let step = |frame| match frame {
        ReplicaFrame::Step(step) => Some(step),
        _ => None,
    };
    std::iter::from_fn(|| frames.try_recv().ok()).filter_map(step).collect()
}

#[test]
fn each_hears_of_its_own_by_its_own_names() {
    let mut outlets = Outlets::default();
    let all = window(2, 20);
    let (mut first, granted) = attach(&mut outlets, 0, all);
    assert_eq!(granted, all);
    let local = outlets.admit(id(0), SequenceId(1), 10).unwrap();
    let (mut second, granted) = attach(&mut outlets, 1, all);
    assert_eq!((granted, outlets.len()), (all, 2), "as if it were alone");
    let theirs = outlets.admit(id(1), SequenceId(1), 10).unwrap();
    assert!(theirs != local && outlets.local(id(1), SequenceId(1)) == Some(theirs));
    outlets.route(vec![StepItem::new(local, 0, vec![5], Some(End::Length)), StepItem::new(theirs, 0, vec![6], None)]);
    assert_eq!(outlets.local(id(0), SequenceId(1)), None);
    outlets.stepped(3, Duration::from_millis(2));
    outlets.publish(FIGURES, Instant::now());
    let told = steps(&mut first).remove(0);
    assert_eq!((told.items[0].sequence, told.items[0].tokens.as_slice()), (SequenceId(1), &[5][..]));
    assert_eq!((told.window, told.steps, told.rows, told.took_us), (window(3, 30), 1, 3, 2_000));
    assert_eq!(told.cached, [7, 8]);
    let told = steps(&mut second).remove(0);
    assert_eq!((told.items[0].sequence, told.items[0].tokens.as_slice()), (SequenceId(1), &[6][..]));
    assert_eq!(told.window, all);
    // One that is gone leaves its sequences, and the other hears nothing of it.
    assert_eq!(outlets.detach(id(1)), [theirs]);
    assert_eq!(outlets.local(id(1), SequenceId(1)), None);
    outlets.route(vec![StepItem::new(theirs, 1, Vec::new(), Some(End::Cancelled))]);
    outlets.publish(FIGURES, Instant::now());
    assert!(steps(&mut first).is_empty());
}

#[test]
fn who_takes_more_than_its_window_is_told_so_and_gets_it_back_as_its_sequences_end() {
    let mut outlets = Outlets::default();
    let (mut frames, _) = attach(&mut outlets, 0, window(2, 20));
    let first = outlets.admit(id(0), SequenceId(1), 15).unwrap();
    assert_eq!(outlets.admit(id(0), SequenceId(2), 6), None);
    outlets.publish(FIGURES, Instant::now());
    let told = steps(&mut frames).remove(0);
    assert!(matches!(&told.items[0].end, Some(End::Failed(why)) if why.contains("overdrawn")));
    assert_eq!((told.items[0].sequence, told.window), (SequenceId(2), window(2, 20)));
    outlets.route(vec![StepItem::new(first, 0, Vec::new(), Some(End::Length))]);
    assert!(outlets.admit(id(0), SequenceId(3), 20).is_some());
    assert!(outlets.admit(id(0), SequenceId(4), 0).is_some());
    assert_eq!(outlets.admit(id(0), SequenceId(5), 0), None);
}

#[test]
fn a_name_that_comes_twice_is_refused_and_the_first_goes_on() {
    let mut outlets = Outlets::default();
    let (mut frames, all) = attach(&mut outlets, 0, window(8, 80));
    let first = outlets.admit(id(0), SequenceId(1), 1).unwrap();
    assert_eq!(outlets.admit(id(0), SequenceId(1), 2), None);
    outlets.publish(FIGURES, Instant::now());
    let told = steps(&mut frames).remove(0);
    assert!(matches!(&told.items[0].end, Some(End::Failed(why)) if why.contains("already here")));
    assert_eq!(told.window, window(all.sequences + 1, all.blocks + 2), "what it took returns");
    outlets.route(vec![StepItem::new(first, 0, vec![5], None)]);
    outlets.publish(FIGURES, Instant::now());
    assert_eq!(steps(&mut frames)[0].items[0].tokens, [5]);
}

#[test]
fn one_that_reads_nothing_holds_nobody_up() {
    let mut outlets = Outlets::default();
    let (frames_in, stuck) = mpsc::channel(1);
    outlets.attach(id(0), frames_in, (&offer(), window(4, 40)), std::iter::empty(), Instant::now());
    let local = outlets.admit(id(0), SequenceId(1), 1).unwrap();
    let (mut other, _) = attach(&mut outlets, 1, window(4, 40));
    outlets.route(vec![StepItem::new(local, 0, vec![5], None)]);
    assert!(outlets.publish(FIGURES, Instant::now()).is_full);
    outlets.cached(&[9], &[]);
    outlets.publish(FIGURES, Instant::now());
    assert_eq!(steps(&mut other).iter().flat_map(|step| step.cached.clone()).collect::<Vec<_>>(), [7, 8, 9]);
    drop(stuck);
    assert_eq!(outlets.publish(FIGURES, Instant::now()).gone, [id(0)]);
}
