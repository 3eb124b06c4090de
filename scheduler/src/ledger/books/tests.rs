//! The rules on worked examples and on random histories. Writes nothing to disk.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

pub(in super::super) fn client(n: u8) -> ClientId {
    ClientId([n; 8])
}

pub(in super::super) fn peer(n: u8) -> PeerId {
    PeerId([n; 32])
}

pub(in super::super) fn request(n: u8) -> RequestId {
    RequestId([n; 16])
}

pub(in super::super) fn deposit(n: u8, to: u8, amount: u64) -> Command {
    Command::Deposit { id: DepositId([n; 16]), client: client(to), amount }
}

pub(in super::super) fn hold(n: u8, from: u8, amount: u64) -> Command {
    Command::Hold { request: request(n), client: client(from), amount }
}

fn attempt(miner: u8, input_per_mtok: u64, output_per_mtok: u64, tokens: u32) -> Attempt {
    Attempt { tokens, ..Attempt::new(peer(miner), Price { input_per_mtok, output_per_mtok }) }
}

const AUTHOR: u8 = 200;
const BASE: u8 = 201;

/// A settlement whose counts agree with its attempts.
pub(in super::super) fn settle(n: u8, prompt_tokens: u32, attempts: Vec<Attempt>, royalty_bps: u16) -> Settlement {
    let delivered_tokens = attempts.iter().map(|a| a.tokens).sum();
    Settlement {
        request: request(n),
        prompt_tokens,
        delivered_tokens,
        max_tokens: delivered_tokens,
        attempts,
        royalties: vec![Royalty { author: peer(AUTHOR), bps: royalty_bps }],
    }
}

/// The design's example: 40 and 160 nano-credits a token, prompt 500, A delivers 100 and dies, B delivers 150.
pub(in super::super) fn failover(n: u8) -> Settlement {
    let attempts = vec![attempt(1, 40_000_000, 160_000_000, 100), attempt(2, 40_000_000, 160_000_000, 150)];
    Settlement { max_tokens: 400, ..settle(n, 500, attempts, 800) }
}

fn apply(books: &mut Books, command: Command) -> Result<Outcome, Rejection> {
    books.apply(&command).unwrap().map(|d| d.outcome)
}

fn books_with(command: Command) -> Books {
    let mut books = Books::default();
    apply(&mut books, command).unwrap();
    books
}

#[test]
fn the_worked_example_with_a_failover() {
    let mut books = books_with(deposit(1, 1, 100_000));
    apply(&mut books, hold(1, 1, 84_000)).unwrap();
    assert_eq!(books.balance(&Account::Client(client(1))), 16_000);
    assert_eq!(books.balance(&Account::Hold(request(1))), 84_000);
    let outcome = apply(&mut books, Command::Settle(failover(1))).unwrap();
    assert_eq!(outcome, Outcome::Settled(Settled { cost: 60_000, miner: 49_200, author: 4_800, network: 6_000 }));
    let balances = [
        (Account::NetFee, 3_000),
        (Account::NetAudit, 1_800),
        (Account::NetReliability, 1_200),
        (Account::AuthorPending(peer(AUTHOR)), 4_800),
        (Account::MinerPending(peer(1)), 13_120),
        (Account::MinerPending(peer(2)), 19_680 + 16_400),
        (Account::Client(client(1)), 16_000 + 24_000),
        (Account::Hold(request(1)), 0),
        (Account::ExtDeposit, -100_000),
    ];
    for (account, balance) in balances {
        assert_eq!(books.balance(&account), balance, "{account}");
    }
    assert_eq!(books.sum(), 0);
}

#[test]
fn one_miner_computed_by_hand() {
    // 17 × 123.456789 + 33 × 987.654321 = 34,691.358006. Shares of 34,691: fee 1,734.55, audit 1,040.73,
    // reliability 693.82, author 2,775.28; the miner has what rounding down leaves, 28,449.
    let mut books = books_with(deposit(1, 1, 50_000));
    apply(&mut books, hold(1, 1, 34_692)).unwrap();
    let settlement = settle(1, 17, vec![attempt(1, 123_456_789, 987_654_321, 33)], 800);
    let outcome = apply(&mut books, Command::Settle(settlement)).unwrap();
    let network = 1_734 + 1_040 + 693;
    assert_eq!(outcome, Outcome::Settled(Settled { cost: 34_691, miner: 28_449, author: 2_775, network }));
    assert_eq!(books.balance(&Account::MinerPending(peer(1))), 28_449);
    assert_eq!(books.balance(&Account::NetFee), 1_734);
    assert_eq!(books.balance(&Account::NetAudit), 1_040);
    assert_eq!(books.balance(&Account::NetReliability), 693);
    assert_eq!(books.balance(&Account::Client(client(1))), 50_000 - 34_691);
}

#[test]
fn an_adapters_author_and_its_bases_are_paid_their_own_shares() {
    // 34,691 as above: 5 % for the adapter, 1,734.55, and 8 % for its base, 2,775.28.
    let mut books = books_with(deposit(1, 1, 50_000));
    apply(&mut books, hold(1, 1, 34_692)).unwrap();
    let mut settlement = settle(1, 17, vec![attempt(1, 123_456_789, 987_654_321, 33)], 500);
    settlement.royalties.push(Royalty { author: peer(BASE), bps: 800 });
    let (author, network) = (1_734 + 2_775, 1_734 + 1_040 + 693);
    let outcome = apply(&mut books, Command::Settle(settlement.clone())).unwrap();
    let miner = 34_691 - author - network;
    assert_eq!(outcome, Outcome::Settled(Settled { cost: 34_691, miner, author, network }));
    assert_eq!(books.balance(&Account::AuthorPending(peer(AUTHOR))), 1_734);
    assert_eq!(books.balance(&Account::AuthorPending(peer(BASE))), 2_775);
    assert_eq!(books.balance(&Account::MinerPending(peer(1))), i64::try_from(miner).unwrap());
    assert_eq!(books.sum(), 0);
    // Together they are bounded as one alone is, and there are no more than two.
    let refused = |royalties: Vec<Royalty>| {
        let mut books = books_with(deposit(1, 1, 50_000));
        apply(&mut books, hold(1, 1, 34_692)).unwrap();
        apply(&mut books, Command::Settle(Settlement { royalties, ..settlement.clone() })).unwrap_err()
    };
    let share = |bps| Royalty { author: peer(AUTHOR), bps };
    for royalties in [vec![share(1_200), share(801)], vec![share(u16::MAX), share(1)], vec![share(1); 3]] {
        assert!(matches!(refused(royalties), Rejection::Invalid(_)));
    }
}

#[test]
fn a_cost_above_the_hold_gives_way_in_proportion() {
    // 100 and 300 asked, 200 held: 50 and 150.
    let mut books = books_with(deposit(1, 1, 1_000));
    apply(&mut books, hold(1, 1, 200)).unwrap();
    let attempts = vec![attempt(1, 0, 1_000_000, 100), attempt(2, 0, 3_000_000, 100)];
    let outcome = apply(&mut books, Command::Settle(settle(1, 9, attempts, 0))).unwrap();
    assert_eq!(outcome, Outcome::Settled(Settled { cost: 200, miner: 180, author: 0, network: 20 }));
    assert_eq!(books.balance(&Account::MinerPending(peer(1))), 45);
    assert_eq!(books.balance(&Account::MinerPending(peer(2))), 135);
    assert_eq!(books.balance(&Account::Client(client(1))), 800);
}

#[test]
fn the_prompt_is_paid_to_the_last_who_delivered() {
    let cases = [([7, 0], 1), ([7, 3], 2), ([0, 0], 2)];
    for (tokens, paid) in cases {
        let mut books = books_with(deposit(1, 1, 1_000));
        apply(&mut books, hold(1, 1, 1_000)).unwrap();
        let attempts = vec![attempt(1, 100_000_000, 0, tokens[0]), attempt(2, 100_000_000, 0, tokens[1])];
        apply(&mut books, Command::Settle(settle(1, 10, attempts, 0))).unwrap();
        let earned = [1, 2].map(|m| books.balance(&Account::MinerPending(peer(m))));
        assert_eq!(earned, if paid == 1 { [900, 0] } else { [0, 900] }, "{tokens:?}");
    }
}

#[test]
fn texts_are_paid_to_whoever_made_their_vectors() {
    let mut books = books_with(deposit(1, 1, 10_000));
    apply(&mut books, hold(1, 1, 6_000)).unwrap();
    let texts = |miner, price, own_prompt_tokens| Attempt { own_prompt_tokens, ..attempt(miner, price, 7, 0) };
    let attempts = vec![texts(1, 100_000_000, 10), texts(2, 50_000_000, 40), texts(1, 200_000_000, 5)];
    let outcome = apply(&mut books, Command::Settle(settle(1, 0, attempts, 1_000))).unwrap();
    assert_eq!(outcome, Outcome::Settled(Settled { cost: 4_000, miner: 3_200, author: 400, network: 400 }));
    assert_eq!([1, 2].map(|m| books.balance(&Account::MinerPending(peer(m)))), [1_600, 1_600]);
    assert_eq!(books.balance(&Account::Client(client(1))), 6_000);
}

#[test]
fn a_free_model_needs_no_credit() {
    let mut books = Books::default();
    assert_eq!(apply(&mut books, hold(1, 1, 0)), Ok(Outcome::Held));
    let settlement = settle(1, 10, vec![attempt(1, 0, 0, 10)], 2_000);
    assert_eq!(apply(&mut books, Command::Settle(settlement)), Ok(Outcome::Settled(Settled::default())));
    assert_eq!(apply(&mut books, hold(1, 1, 0)), Err(Rejection::AlreadySettled(request(1))));
}

#[test]
fn what_makes_no_sense_is_rejected_and_changes_nothing() {
    let mut books = books_with(deposit(1, 1, 1_000));
    apply(&mut books, hold(1, 1, 600)).unwrap();
    let before = books.clone();
    let release = |n| Command::Release { request: request(n) };
    let cases = [
        (deposit(1, 1, 999), Rejection::Conflict("deposit 01010101010101010101010101010101".to_owned())),
        (hold(2, 1, 401), Rejection::Insufficient { available: 400, needed: 401 }),
        (hold(2, 9, u64::MAX), Rejection::Insufficient { available: 0, needed: u64::MAX }),
        (hold(1, 1, 601), Rejection::Conflict(request(1).to_string())),
        (hold(1, 2, 600), Rejection::Conflict(request(1).to_string())),
        (release(3), Rejection::UnknownHold(request(3))),
        (Command::Settle(failover(3)), Rejection::UnknownHold(request(3))),
    ];
    for (command, rejection) in cases {
        assert_eq!(apply(&mut books, command), Err(rejection));
    }
    let most = u64::try_from(i64::MAX).unwrap();
    let invalid = [
        deposit(2, 1, 0),
        deposit(2, 1, u64::MAX),
        deposit(2, 1, most - 999),
        Command::Settle(settle(1, 1, Vec::new(), 0)),
        Command::Settle(settle(1, 1, vec![attempt(1, 1, 1, 1)], ROYALTY_BPS_MAX + 1)),
    ];
    for command in invalid {
        assert!(matches!(apply(&mut books, command.clone()), Err(Rejection::Invalid(_))), "{command:?}");
    }
    assert_eq!(books, before);
    assert_eq!(apply(&mut books, deposit(2, 1, most - 1_000)), Ok(Outcome::Deposited), "the books can be full");
}

#[test]
fn a_hold_resolves_once_and_keeps_its_first_outcome() {
    let mut books = books_with(deposit(1, 1, 100_000));
    apply(&mut books, hold(1, 1, 84_000)).unwrap();
    apply(&mut books, hold(2, 1, 10_000)).unwrap();
    let first = apply(&mut books, Command::Settle(failover(1)));
    assert_eq!(apply(&mut books, Command::Release { request: request(2) }), Ok(Outcome::Released(10_000)));
    let before = books.clone();
    let other = settle(1, 1, vec![attempt(3, 1_000_000, 1_000_000, 1)], 0);
    assert_eq!(apply(&mut books, Command::Settle(other)), first);
    assert_eq!(apply(&mut books, Command::Release { request: request(2) }), Ok(Outcome::Released(10_000)));
    let settled = Err(Rejection::AlreadySettled(request(1)));
    assert_eq!(apply(&mut books, Command::Release { request: request(1) }), settled);
    let released = Err(Rejection::AlreadyReleased(request(2)));
    assert_eq!(apply(&mut books, Command::Settle(failover(2))), released);
    assert_eq!(apply(&mut books, hold(2, 1, 10_000)), released);
    assert_eq!(books, before);
}

#[test]
fn counts_that_disagree_are_a_broken_invariant() {
    let mut books = books_with(deposit(1, 1, 100_000));
    apply(&mut books, hold(1, 1, 84_000)).unwrap();
    let before = books.clone();
    let too_many = Settlement { max_tokens: 249, ..failover(1) };
    assert!(books.apply(&Command::Settle(too_many)).unwrap_err().invariant.starts_with("I5"));
    let unpaid = Settlement { delivered_tokens: 251, ..failover(1) };
    assert!(books.apply(&Command::Settle(unpaid)).unwrap_err().invariant.starts_with("I6"));
    assert_eq!(books, before);
}

#[test]
fn a_state_that_contradicts_itself_is_a_broken_invariant() {
    // The row says that 500 are held; the account says 100.
    let mut books = books_with(deposit(1, 1, 1_000));
    books.set_hold(request(1), HoldRow { client: client(1), amount: 500, state: HoldState::Open });
    books.set_balance(Account::Hold(request(1)), 100);
    let release = Command::Release { request: request(1) };
    assert!(books.apply(&release).unwrap_err().invariant.starts_with("I4"));
    books.set_balance(Account::Hold(request(1)), 600);
    assert!(books.apply(&release).unwrap_err().invariant.starts_with("I3"));
    books.set_balance(Account::Hold(request(1)), 500);
    assert_eq!(apply(&mut books, release), Ok(Outcome::Released(500)));
}

#[test]
fn transfer_ids_differ_by_request_phase_and_leg() {
    let mut seen = BTreeMap::new();
    for n in 0..4 {
        for phase in [Kind::Deposit, Kind::Hold, Kind::Settle, Kind::Release] {
            for leg in [0, 1, 5, 256] {
                let id = TransferId::new(&[n; 16], phase, leg);
                assert_eq!(seen.insert(id, (n, leg)), None);
            }
        }
    }
}

#[test]
fn credits_print_exactly() {
    let cases = [
        (0, "0"),
        (1, "0.000000001"),
        (1_500_000_000, "1.5"),
        (84_000, "0.000084"),
        (u64::MAX, "18446744073.709551615"),
    ];
    for (nano, text) in cases {
        assert_eq!(Credits(nano).to_string(), text);
    }
}

prop_compose! {
    fn any_settlement()(
        n in 0..12_u8,
        prompt_tokens in 0..2_000_u32,
        attempts in prop::collection::vec((0..4_u8, 0..2_000_000_000_u64, 0..2_000_000_000_u64, 0..300_u32), 1..4),
        slack in 0..10_u32,
        (royalty_bps, base_bps) in (0..=ROYALTY_BPS_MAX).prop_flat_map(|bps| (Just(bps), 0..=ROYALTY_BPS_MAX - bps)),
        base in prop::option::of(any::<bool>()),
    ) -> Settlement {
        let attempts = attempts.into_iter().map(|(m, i, o, t)| attempt(m, i, o, t)).collect();
        let mut settlement = settle(n, prompt_tokens, attempts, royalty_bps);
        // An adapter's base may be of the same author.
        settlement.royalties.extend(base.map(|own| Royalty { author: peer(if own { AUTHOR } else { BASE }), bps: base_bps }));
        Settlement { max_tokens: settlement.delivered_tokens + slack, ..settlement }
    }
}

/// Any command over a few clients and requests, so that histories collide.
pub(in super::super) fn any_command() -> impl Strategy<Value = Command> {
    prop_oneof![
        2 => (0..8_u8, 0..3_u8, 0..2_000_000_u64).prop_map(|(n, to, amount)| deposit(n, to, amount)),
        4 => (0..12_u8, 0..3_u8, 0..1_000_000_u64).prop_map(|(n, from, amount)| hold(n, from, amount)),
        4 => any_settlement().prop_map(Command::Settle),
        1 => (0..12_u8).prop_map(|n| Command::Release { request: request(n) }),
    ]
}

/// What a hundred lines less would do: sums by hand, no accounts.
#[derive(Default)]
struct Naive {
    deposits: BTreeMap<[u8; 16], (ClientId, u64)>,
    holds: BTreeMap<RequestId, (ClientId, u64)>,
    settled: BTreeMap<RequestId, (ClientId, Settled)>,
    released: BTreeMap<RequestId, ()>,
}

impl Naive {
    fn note(&mut self, command: &Command, outcome: Outcome) {
        match (command, outcome) {
            (Command::Deposit { id, client, amount }, Outcome::Deposited) => {
                self.deposits.insert(id.0, (*client, *amount));
            }
            (Command::Hold { request, client, amount }, Outcome::Held) => {
                self.holds.insert(*request, (*client, *amount));
            }
            (Command::Settle(s), Outcome::Settled(split)) => {
                if let Some((client, held)) = self.holds.remove(&s.request) {
                    assert!(split.cost <= held);
                    assert_eq!(split.cost, split.miner + split.author + split.network);
                    self.settled.insert(s.request, (client, split));
                }
                assert_eq!(self.settled[&s.request].1, split);
            }
            (Command::Release { request }, Outcome::Released(amount)) => {
                if let Some((_, held)) = self.holds.remove(request) {
                    assert_eq!(held, amount);
                    self.released.insert(*request, ());
                }
                assert!(self.released.contains_key(request));
            }
            (command, outcome) => panic!("{command:?} had {outcome:?}"),
        }
    }

    fn available(&self, client: ClientId) -> i128 {
        let sum = |amounts: &mut dyn Iterator<Item = (ClientId, u64)>| {
            amounts.filter(|(c, _)| *c == client).map(|(_, a)| i128::from(a)).sum::<i128>()
        };
        sum(&mut self.deposits.values().copied())
            - sum(&mut self.holds.values().copied())
            - sum(&mut self.settled.values().map(|(c, s)| (*c, s.cost)))
    }

    fn check(&self, books: &Books) {
        assert_eq!(books.sum(), 0);
        for n in 0..3 {
            let balance = books.balance(&Account::Client(client(n)));
            assert!(balance >= 0);
            assert_eq!(i128::from(balance), self.available(client(n)));
        }
        let total = |part: fn(&Settled) -> u64| self.settled.values().map(|(_, s)| i128::from(part(s))).sum::<i128>();
        let sum = |accounts: &[Account]| accounts.iter().map(|a| i128::from(books.balance(a))).sum::<i128>();
        let miners: Vec<Account> = (0..4).map(|n| Account::MinerPending(peer(n))).collect();
        assert_eq!(sum(&miners), total(|s| s.miner));
        assert_eq!(sum(&[AUTHOR, BASE].map(|n| Account::AuthorPending(peer(n)))), total(|s| s.author));
        assert_eq!(sum(&[Account::NetFee, Account::NetAudit, Account::NetReliability]), total(|s| s.network));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn any_history_keeps_every_unit(commands in prop::collection::vec((any_command(), any::<bool>()), 1..80)) {
        let (mut books, mut naive) = (Books::default(), Naive::default());
        let mut done: Vec<Command> = Vec::new();
        for (command, retry) in commands {
            let answer = apply(&mut books, command.clone());
            if let Ok(outcome) = answer {
                naive.note(&command, outcome);
                done.push(command);
            }
            naive.check(&books);
            // Something that was done before is tried again: nothing moves, whether it is answered or refused.
            if retry && let Some(again) = done.get(done.len() / 2) {
                let before = books.clone();
                drop(apply(&mut books, again.clone()));
                prop_assert_eq!(&books, &before);
            }
        }
    }

    #[test]
    fn a_settlement_is_divided_to_the_unit(settlement in any_settlement(), held in 0..3_000_000_u64) {
        let n = settlement.request.0[0];
        let mut books = books_with(deposit(1, 1, 3_000_000));
        apply(&mut books, hold(n, 1, held)).unwrap();
        let decision = books.apply(&Command::Settle(settlement.clone())).unwrap().unwrap();
        let Outcome::Settled(split) = decision.outcome else { panic!("settled as {:?}", decision.outcome) };
        let asked: u64 = {
            let last = settlement.attempts.iter().rposition(|a| a.tokens > 0).unwrap_or(settlement.attempts.len() - 1);
            let prompt = |i| if i == last { settlement.prompt_tokens } else { 0 };
            settlement.attempts.iter().enumerate().map(|(i, a)| a.ask.cost(prompt(i), a.tokens)).sum()
        };
        prop_assert_eq!(split.cost, asked.min(held));
        let royalty = |r: &Royalty| split.cost * u64::from(r.bps) / 10_000;
        prop_assert_eq!(split.author, settlement.royalties.iter().map(royalty).sum::<u64>());
        prop_assert_eq!(split.network, split.cost * 5 / 100 + split.cost * 3 / 100 + split.cost * 2 / 100);
        let moved: i64 = decision.legs.iter().map(|l| l.amount).sum();
        prop_assert_eq!(u64::try_from(moved).unwrap(), held);
        prop_assert!(decision.legs.iter().all(|l| l.debit == Account::Hold(settlement.request) && l.amount > 0));
    }
}
