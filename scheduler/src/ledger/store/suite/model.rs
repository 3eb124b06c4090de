//! Random histories: a store does what books and journal in memory do, whatever order things come in, and whenever its
//! process ends.

use proptest::prelude::*;

use super::super::super::account::ClientId;
use super::super::super::books::tests::any_command;
use super::*;

/// Something that happens.
#[derive(Clone, Debug)]
enum Event {
    /// Money, as it comes; requests that nobody can go on with.
    Command(Command),
    /// A request that somebody could go on with.
    Open(u8, u64),
    /// Tokens in an epoch and from a number that are mostly the right ones: what is added to them.
    Append(u8, u32, i32, Vec<u32>),
    /// An end in an epoch that is mostly the right one, paid or not.
    End(u8, u32, bool),
}

fn any_event() -> impl Strategy<Value = Event> {
    let tokens = prop::collection::vec(0..3_u32, 1..4);
    let off = prop_oneof![6 => Just(0_u32), 1 => Just(1), 1 => Just(u32::MAX)];
    let shift = prop_oneof![6 => Just(0_i32), 1 => Just(1), 2 => Just(-1), 1 => Just(-2)];
    prop_oneof![
        3 => any_command().prop_map(Event::Command),
        3 => (0..12_u8, 0..100_000_u64).prop_map(|(n, amount)| Event::Open(n, amount)),
        6 => (0..12_u8, off.clone(), shift, tokens).prop_map(|(n, e, s, t)| Event::Append(n, e, s, t)),
        2 => (0..12_u8, off, any::<bool>()).prop_map(|(n, e, paid)| Event::End(n, e, paid)),
    ]
}

/// What happens between batches.
#[derive(Clone, Debug)]
enum Between {
    Nothing,
    /// The process ends and another one begins, which goes on with everything.
    Restart,
    /// A developer asks for a request.
    Claim(u8),
    Tend,
}

fn any_between() -> impl Strategy<Value = Between> {
    prop_oneof![
        2 => Just(Between::Nothing),
        2 => Just(Between::Restart),
        2 => (0..12_u8).prop_map(Between::Claim),
        2 => Just(Between::Tend),
    ]
}

/// Books and journal in memory.
struct Model {
    books: Books,
    journal: Journal,
}

impl Model {
    /// What `event` writes now; `None` if it would be a bug of the scheduler.
    fn write(&self, event: &Event) -> Write {
        let epoch = |n, off: u32| self.journal.row(&request(n)).map_or(1, |row| row.epoch.0).wrapping_add(off);
        match event {
            Event::Command(command) => write(command.clone()),
            Event::Open(n, amount) => open(*n, *amount),
            Event::Append(n, off, shift, tokens) => {
                let accepted = self.journal.row(&request(*n)).map_or(0, |row| row.tokens.len() as u32);
                append(*n, epoch(*n, *off), accepted.saturating_add_signed(*shift), tokens)
            }
            Event::End(n, off, paid) => {
                let end = End { epoch: Epoch(epoch(*n, *off)), ..finished() };
                let tokens = self.journal.row(&request(*n)).map_or(0, |row| row.tokens.len() as u32);
                let paid = paid.then(|| {
                    let mut settlement = failover(*n);
                    settlement.attempts.truncate(1);
                    settlement.attempts[0].tokens = tokens;
                    settlement.delivered_tokens = tokens;
                    settlement.max_tokens = tokens;
                    settlement
                });
                paid.map_or_else(|| Write::release(request(*n), end.clone()), |s| Write::settle(s, end.clone()))
            }
        }
    }

    /// Does a batch, without what would be a bug, and says what should come of it.
    fn batch(&mut self, events: &[Event]) -> (Vec<Write>, Vec<Result<Done, Rejected>>) {
        let mut all = (Vec::new(), Vec::new());
        for event in events {
            let write = self.write(event);
            let before = (self.books.clone(), self.journal.clone());
            match write.apply(&mut self.books, &mut self.journal) {
                Ok(answer) => {
                    all.0.push(write);
                    all.1.push(answer.map(|changed| changed.done));
                }
                Err(_) => (self.books, self.journal) = before,
            }
        }
        all
    }

    fn running(&self) -> Vec<RequestId> {
        let mut running: Vec<_> =
            self.journal.rows().filter(|(_, row)| row.ending.is_none()).map(|(request, _)| *request).collect();
        running.sort();
        running
    }

    /// Every account and request that the two may differ in.
    async fn is_same(&self, store: &impl Store) {
        let mut accounts: Vec<Account> = (0..3).map(|n| Account::Client(ClientId([n; 8]))).collect();
        accounts.extend((0..12).map(|n| Account::Hold(request(n))));
        accounts.extend((0..4).chain([200]).flat_map(|n| Account::of_peer(peer(n))));
        accounts.extend([Account::NetFee, Account::NetAudit, Account::NetReliability, Account::ExtDeposit]);
        let wallet = store.wallet(&accounts, 0).await.unwrap();
        for (account, (name, balance)) in accounts.iter().zip(wallet.balances) {
            assert_eq!(balance, self.books.balance(account), "{name}");
        }
        for n in 0..12 {
            let kept = store.request(request(n)).await.unwrap();
            let kept = kept.map(|k| (k.client, k.owner, k.epoch, k.tokens, k.ending, !k.spec.is_empty()));
            let row = self.journal.row(&request(n)).cloned();
            assert_eq!(kept, row.map(|r| (r.client, r.owner, r.epoch, r.tokens, r.ending, r.resumable)), "{n}");
        }
        store.trial_balance().await.unwrap();
    }
}

/// Hands writes in as a scheduler does: tokens that can be accepted at once are, the rest is committed with what follows it.
async fn hand_in(store: &impl Store, mut writes: &[Write]) -> Vec<Result<Done, Rejected>> {
    let mut answers = Vec::new();
    while let Some(write) = writes.first() {
        let accepted = match write.entry() {
            Some(Entry::Append { request, epoch, first, tokens, by }) => {
                store.accept(Append { request: *request, epoch: *epoch, first: *first, tokens, by: *by })
            }
            _ => None,
        };
        let count = match accepted {
            Some(accepted) => {
                store.flush().unwrap();
                answers.push(accepted.map(|()| Done::Appended).map_err(Rejected::from));
                1
            }
            None => {
                let count = 1 + writes.iter().skip(1).take_while(|write| write.money().is_some()).count();
                answers.extend(commit(store, &writes[..count]).await);
                count
            }
        };
        writes = &writes[count..];
    }
    answers
}

/// What comes at once, whether tokens are then committed with the rest, and what comes next.
type Batch = (Vec<Event>, bool, Between);

fn any_batches() -> impl Strategy<Value = Vec<Batch>> {
    prop::collection::vec((prop::collection::vec(any_event(), 1..24), any::<bool>(), any_between()), 1..6)
}

async fn plays<P: Place>(batches: Vec<Batch>) {
    let place = P::make().await;
    let mut store = place.reopen().await;
    let mut model = Model { books: Books::default(), journal: Journal::new(peer(ME), 1) };
    for (events, as_one, between) in batches {
        let (writes, expected) = model.batch(&events);
        let answers = if as_one { commit(&store, &writes).await } else { hand_in(&store, &writes).await };
        assert_eq!(answers, expected, "{writes:?}");
        model.is_same(&store).await;
        match between {
            Between::Nothing => {}
            Between::Tend => store.tend(2_000).await.unwrap(),
            Between::Claim(n) => {
                let claimed = store.take_over(Takeover::Request(request(n))).await.unwrap().pop();
                let row = model.journal.take_over(request(n)).ok().cloned();
                assert_eq!(claimed.map(|c| (c.epoch, c.tokens)), row.map(|r| (r.epoch, r.tokens)));
            }
            Between::Restart => {
                drop(store);
                store = place.reopen().await;
                let mut taken: Vec<_> =
                    take_over(&store, Takeover::Earlier).await.into_iter().map(|r| r.request).collect();
                taken.sort();
                assert_eq!(taken, model.running());
                for request in taken {
                    model.journal.take_over(request).unwrap();
                }
            }
        }
        model.is_same(&store).await;
    }
}

fn run<P: Place>(batches: Vec<Batch>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(plays::<P>(batches));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn a_file_does_what_books_and_journal_do(batches in any_batches()) {
        run::<InFile>(batches);
    }
}

proptest! {
    // Tables are made for each, which takes a server longer.
    #![proptest_config(ProptestConfig::with_cases(12))]

    #[test]
    fn a_server_does_what_books_and_journal_do(batches in any_batches()) {
        run::<OnServer>(batches);
    }
}
