//! Money and journal together, on small histories. Writes nothing to disk.
#![allow(clippy::unwrap_used)]

use cuckoo_wire::PeerId;
use cuckoo_wire::message::FinishReason;

use super::super::account::Account;
use super::super::books::tests::{client, deposit, failover, hold, request};
use super::*;

/// A command as the write that it belongs to, of a request that nobody can go on with.
pub(in super::super) fn write(command: Command) -> Write {
    match command {
        Command::Deposit { id, client, amount } => Write::deposit(id, client, amount),
        Command::Hold { request, client, amount } => Write::open(request, client, amount, Vec::new()),
        Command::Settle(settlement) => Write::settle(settlement, finished()),
        Command::Release { request } => Write::release(request, finished()),
    }
}

pub(in super::super) fn finished() -> End {
    End::first(Ending::Finished { reason: FinishReason::Stop, migrations: 0 })
}

pub(in super::super) fn release(n: u8) -> Write {
    Write::release(request(n), finished())
}

/// A request that another could go on with.
pub(in super::super) fn open(n: u8, amount: u64) -> Write {
    Write::open(request(n), client(1), amount, vec![n, 1, 2])
}

pub(in super::super) fn append(n: u8, epoch: u32, first: u32, tokens: &[u32]) -> Write {
    Write::append(request(n), Epoch(epoch), first, tokens.to_vec(), None)
}

fn start() -> (Books, Journal) {
    let (mut books, mut journal) = (Books::default(), Journal::new(PeerId([9; 32]), 1));
    write(deposit(1, 1, 100_000)).apply(&mut books, &mut journal).unwrap().unwrap();
    (books, journal)
}

#[test]
fn what_is_refused_by_one_is_not_done_by_the_other() {
    let (mut books, mut journal) = start();
    let rejected = open(1, 100_001).apply(&mut books, &mut journal).unwrap().unwrap_err();
    assert_eq!(rejected, Rejected::Money(Rejection::Insufficient { available: 100_000, needed: 100_001 }));
    assert_eq!(journal.row(&request(1)), None, "no money, no request");
    open(1, 84_000).apply(&mut books, &mut journal).unwrap().unwrap();
    let late = End { epoch: Epoch(2), ..finished() };
    let before = (books.clone(), journal.clone());
    let rejected = Write::settle(failover(1), late).apply(&mut books, &mut journal).unwrap().unwrap_err();
    assert_eq!(rejected, Rejected::Journal(Refused::Fenced(request(1))));
    assert_eq!((books, journal), before, "who may not write moves no money");
}

#[test]
fn nobody_is_billed_for_tokens_that_are_not_in_the_journal() {
    let (mut books, mut journal) = start();
    open(1, 84_000).apply(&mut books, &mut journal).unwrap().unwrap();
    append(1, 1, 0, &[7; 249]).apply(&mut books, &mut journal).unwrap().unwrap();
    let settle = Write::settle(failover(1), finished());
    assert!(settle.apply(&mut books, &mut journal).unwrap_err().invariant.starts_with("I5"));
    append(1, 1, 249, &[7]).apply(&mut books, &mut journal).unwrap().unwrap();
    let done = settle.apply(&mut books, &mut journal).unwrap().unwrap().done;
    assert!(matches!(done, Done::Money(Outcome::Settled(_))));
    assert_eq!(settle.apply(&mut books, &mut journal).unwrap().unwrap().done, done, "tried again, it has its outcome");
    assert_eq!(journal.row(&request(1)).unwrap().ending, Some(finished().ending));
}

#[test]
fn a_hold_without_a_request_is_a_broken_invariant() {
    let (mut books, mut journal) = start();
    books.apply(&hold(1, 1, 500)).unwrap().unwrap();
    assert!(release(1).apply(&mut books, &mut journal).unwrap_err().invariant.starts_with("I3"));
    // The other way round: the journal says that it runs, and the books that it does not.
    let (mut books, mut journal) = start();
    open(2, 500).apply(&mut books, &mut journal).unwrap().unwrap();
    books.apply(&Command::Release { request: request(2) }).unwrap().unwrap();
    assert!(release(2).apply(&mut books, &mut journal).unwrap_err().invariant.starts_with("I3"));
}

#[test]
fn what_is_forgotten_keeps_its_outcome_in_the_books() {
    let (mut books, mut journal) = start();
    open(1, 84_000).apply(&mut books, &mut journal).unwrap().unwrap();
    let first = release(1).apply(&mut books, &mut journal).unwrap().unwrap().done;
    journal.keep_running();
    assert_eq!(release(1).apply(&mut books, &mut journal).unwrap().unwrap().done, first);
    let again = open(1, 84_000).apply(&mut books, &mut journal).unwrap().unwrap_err();
    assert_eq!(again, Rejected::Money(Rejection::AlreadyReleased(request(1))));
    assert_eq!(
        release(3).apply(&mut books, &mut journal).unwrap().unwrap_err(),
        Rejection::UnknownHold(request(3)).into()
    );
    assert_eq!(books.balance(&Account::Client(client(1))), 100_000);
}
