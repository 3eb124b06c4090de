//! Tenants that want more than there is, at two schedulers with one store.

use std::time::{Duration, Instant};

use cuckoo::{Client, ClientError, RefusalCode, Request};
use tokio::task::JoinSet;

use crate::resume::Pair;
use crate::support::MODEL;

/// Requests of a tenant at a scheduler at any time: several times what the miner takes.
const AT_ONCE: usize = 12;
/// How long it takes until schedulers know how long answers are, and have told each other.
const WARM_UP: Duration = Duration::from_secs(6);
/// How long is measured.
const MEASURED: Duration = Duration::from_secs(24);

/// Asks with `key` again and again, and counts the tokens of what was answered between these times.
async fn asks(client: Client, key: String, number: usize, (from, until): (Instant, Instant)) -> u64 {
    let mut tokens = 0;
    for turn in 0.. {
        // No beginning is in a cache.
        let mut request = Request::chat(&key, MODEL, format!("{turn} and {number} are numbers.")).max_tokens(16);
        request.0.ignore_eos = true;
        let answered = async {
            let mut stream = client.generate(request).await?;
            stream.text().await?;
            Ok::<_, ClientError>(stream.usage().cloned())
        };
        match answered.await {
            Ok(usage) if (from..until).contains(&Instant::now()) => {
                let usage = usage.unwrap();
                tokens += u64::from(usage.prompt_tokens + usage.completion_tokens);
            }
            Ok(_) => {}
            Err(ClientError::Refused(refusal)) if refusal.code == RefusalCode::QueueFull => {
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
            Err(other) => panic!("{other}"),
        }
        if Instant::now() >= until {
            break;
        }
    }
    tokens
}

#[tokio::test(flavor = "multi_thread")]
async fn who_asks_two_schedulers_has_one_share() {
    let pair = Pair::start_with(1, &["--batch", "4", "--kv-mib", "64"]).await;
    let from = Instant::now() + WARM_UP;
    let (mut asking, both, one) = (JoinSet::new(), pair.first.key(), pair.other_key.as_str());
    for (of, market, key) in [(0, &pair.first, both), (0, &pair.second, both), (1, &pair.first, one)] {
        let client = market.client().await;
        for number in 0..AT_ONCE {
            let asks = asks(client.clone(), key.to_owned(), number, (from, from + MEASURED));
            asking.spawn(async move { (of, asks.await) });
        }
    }
    let mut got = [0; 2];
    while let Some(done) = asking.join_next().await {
        let (of, tokens) = done.unwrap();
        got[of] += tokens;
    }
    let share = got[1] as f64 / (got[0] + got[1]) as f64;
    println!("tokens of who asks two schedulers and of who asks one: {got:?}, a share of {share:.2}");
    // Where schedulers tell each other nothing it is a quarter.
    assert!(share >= 0.4, "{got:?}");
}
