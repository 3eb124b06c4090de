//! Tenants that want more than there is, at two schedulers with one store.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use cuckoo::{Client, ClientError, RefusalCode, Request};
use tokio::task::JoinSet;

use crate::resume::Pair;
use crate::support::MODEL;

/// Requests of a tenant at a scheduler at any time: several times what the miner takes.
const AT_ONCE: usize = 12;
/// Until schedulers know how long answers are, and have told each other: so long, and so many answers.
const WARM_UP: (Duration, usize) = (Duration::from_secs(4), 40);
/// What is counted then: so long, and so many answers.
const COUNTED: (Duration, usize) = (Duration::from_secs(10), 120);

/// Who was answered how often.
struct Tally {
    began: Instant,
    /// Before it was counted, and of each tenant since.
    answers: Mutex<(usize, [usize; 2])>,
}

impl Tally {
    fn answered(&self, tenant: usize) {
        let mut answers = self.answers.lock().unwrap();
        match self.began.elapsed() < WARM_UP.0 || answers.0 < WARM_UP.1 {
            true => answers.0 += 1,
            false => answers.1[tenant] += 1,
        }
    }

    /// Those of each tenant, once there are enough.
    fn counted(&self) -> Option<[usize; 2]> {
        let (_, counted) = *self.answers.lock().unwrap();
        let is_done = self.began.elapsed() >= WARM_UP.0 + COUNTED.0 && counted.iter().sum::<usize>() >= COUNTED.1;
        is_done.then_some(counted)
    }
}

/// Asks again and again, always for as much.
async fn ask(client: Client, (key, tenant): (String, usize), number: usize, tally: Arc<Tally>) {
    for turn in 0.. {
        // Nobody asks what anybody has asked.
        let mut request = Request::chat(&key, MODEL, format!("{turn} and {number} are numbers.")).max_tokens(16);
        request.0.ignore_eos = true;
        let answered = async { client.generate(request).await?.text().await };
        match answered.await {
            Ok(_) => tally.answered(tenant),
            Err(ClientError::Refused(refusal)) if refusal.code == RefusalCode::QueueFull => {
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
            Err(other) => panic!("{other}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_asks_two_schedulers_has_one_share() {
    let pair = Pair::start_with(1, &["--batch", "4", "--kv-mib", "64"]).await;
    let tally = Arc::new(Tally { began: Instant::now(), answers: Mutex::default() });
    let (mut asking, both, one) = (JoinSet::new(), pair.first.key(), pair.other_key.as_str());
    let asked = [(&pair.first, both, 0), (&pair.second, both, 0), (&pair.first, one, 1)];
    for (at, (market, key, tenant)) in asked.into_iter().enumerate() {
        let client = market.client().await;
        for number in at * AT_ONCE..(at + 1) * AT_ONCE {
            asking.spawn(ask(client.clone(), (key.to_owned(), tenant), number, tally.clone()));
        }
    }
    let counted = loop {
        // Who asks ends only where something is wrong.
        if let Ok(Some(ended)) = tokio::time::timeout(Duration::from_millis(100), asking.join_next()).await {
            ended.unwrap();
        }
        if let Some(counted) = tally.counted() {
            break counted;
        }
    };
    let share = counted[1] as f64 / (counted[0] + counted[1]) as f64;
    println!("answers of who asks two schedulers and of who asks one: {counted:?}, a share of {share:.2}");
    // Where schedulers tell each other nothing it is a quarter.
    assert!(share >= 0.4, "{counted:?}");
}
