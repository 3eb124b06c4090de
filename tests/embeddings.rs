//! Vectors of texts: the real encoder against numpy (`tests/fixtures/minilm_vectors.py`), bit for bit against itself, and
//! through both doors. Skipped where the encoder has not been fetched.

use cuckoo::{Client, ClientError, Embed, EmbedInput, Identity, Refusal, RefusalCode, Request};
use cuckoo_kernels::{Cpu, Exact};
use cuckoo_models::{ModelFiles, Shelf};
use cuckoo_wire::message::{ApiKey, End, KvFormat, StepItem, Task, ToMiner, WeightsHash};
use serde::Deserialize;

use crate::families::vectors;
use crate::hostile::FakeMiner;
use crate::openai::run_client;
use crate::support::{MODEL, Process, Up, encoder_shelf, eventually, metric, minilm};

#[derive(Deserialize)]
struct Golden {
    text: String,
    tokens: Vec<u32>,
    vector: Vec<f32>,
}

fn golden() -> Vec<Golden> {
    serde_json::from_str(include_str!("fixtures/minilm_vectors.json")).unwrap()
}

fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

fn bits(v: &[f32]) -> Vec<u32> {
    v.iter().map(|v| v.to_bits()).collect()
}

#[test]
fn the_real_encoder_makes_the_vectors_of_its_reference_code() {
    let Some(folder) = minilm() else { return };
    let files = ModelFiles::open(folder).unwrap();
    let (spec, tokenizer, golden) = (files.spec().unwrap(), files.tokenizer().unwrap(), golden());
    for entry in &golden {
        let plain = tokenizer.encode(&entry.text, true).unwrap();
        let ours: Vec<u32> = tokenizer.bos().into_iter().chain(plain).chain(tokenizer.last()).collect();
        assert_eq!(ours, entry.tokens, "{:?}", entry.text);
    }
    let texts: Vec<Vec<u32>> = golden.iter().map(|entry| entry.tokens.clone()).collect();
    let ours = vectors(Cpu::new(2), &files, &spec, &texts, texts.len());
    let mut worst = 1.0f64;
    for (entry, ours) in golden.iter().zip(ours.chunks(spec.hidden)) {
        let cosine = cosine(ours, &entry.vector);
        assert!(cosine >= 0.9999, "{cosine} for {:?}", entry.text);
        worst = worst.min(cosine);
    }
    println!("{} texts, cosines of {worst:.9} and more", golden.len());
    // However texts share steps and whoever computes them, to the last bit; and as the contract says.
    for (threads, together) in [(1, 7), (3, texts.len()), (2, 1)] {
        let again = vectors(Cpu::new(threads), &files, &spec, &texts, together);
        assert!(bits(&again) == bits(&ours), "{together} texts a step on {threads} threads");
    }
    let few = &texts[..8];
    assert_eq!(bits(&vectors(Exact::new(), &files, &spec, few, 8)), bits(&ours[..8 * spec.hidden]));
}

fn embed(up: &Up, inputs: Vec<EmbedInput>) -> Embed {
    Embed::new(ApiKey(up.api_key.clone()), up.model.clone(), inputs)
}

fn text(text: &str) -> EmbedInput {
    EmbedInput::Text(text.to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn vectors_are_the_same_alone_and_among_others_and_input_is_all_that_is_paid() {
    let Some(up) = Up::encoder() else { return };
    let client = up.client().await;
    let golden: Vec<Golden> = golden().into_iter().filter(|entry| !entry.text.is_empty()).collect();
    let inputs: Vec<EmbedInput> = golden.iter().map(|entry| text(&entry.text)).collect();
    let together = client.embed(embed(&up, inputs)).await.unwrap();
    for (entry, ours) in golden.iter().zip(&together.vectors) {
        assert!(cosine(ours, &entry.vector) >= 0.9999, "{:?}", entry.text);
    }
    let tokens: usize = golden.iter().map(|entry| entry.tokens.len()).sum();
    let usage = &together.usage;
    assert_eq!((usage.prompt_tokens as usize, usage.completion_tokens), (tokens, 0));
    assert!(usage.cost > 0 && usage.cost == usage.miner + usage.author + usage.network);
    // All at once, so that they share steps in ways that nobody chose; token ids are the text that they stand for.
    let alone = golden.iter().enumerate().map(|(i, entry)| {
        let input = if i % 2 == 0 { text(&entry.text) } else { EmbedInput::Tokens(entry.tokens.clone()) };
        let (client, request) = (client.clone(), embed(&up, vec![input]));
        tokio::spawn(async move { client.embed(request).await.unwrap() })
    });
    for (i, task) in alone.collect::<Vec<_>>().into_iter().enumerate() {
        let alone = task.await.unwrap();
        assert_eq!(bits(&alone.vectors[0]), bits(&together.vectors[i]), "{:?}", golden[i].text);
        assert_eq!(alone.usage.prompt_tokens as usize, golden[i].tokens.len());
    }
    // More texts than are under way at a time, in their order.
    let many: Vec<EmbedInput> = (0..300).map(|i| text(&golden[i % golden.len()].text)).collect();
    let many = client.embed(embed(&up, many)).await.unwrap();
    assert_eq!(many.vectors.len(), 300);
    assert!(many.vectors.iter().enumerate().all(|(i, v)| bits(v) == bits(&together.vectors[i % golden.len()])));
    eventually("nothing runs", || up.metric("cuckoo_num_requests_running") == 0.0);
}

async fn refused(client: &Client, request: Embed) -> Refusal {
    match client.embed(request).await {
        Err(ClientError::Refused(refusal)) => refusal,
        other => panic!("{:?}", other.map(|e| e.usage)),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_encoder_cannot_do_is_refused_with_its_numbers() {
    let Some(up) = Up::encoder() else { return };
    let client = up.client().await;
    let long = refused(&client, embed(&up, vec![text("fine"), text(&"bird ".repeat(600))])).await;
    assert_eq!((long.code, long.param.as_deref()), (RefusalCode::ContextLengthExceeded, Some("input[1]")));
    assert!(long.message.contains("602 tokens") && long.message.contains("512"), "{long}");
    // The longest text that fits is whole.
    let whole = client.embed(embed(&up, vec![text(&"bird ".repeat(510))])).await.unwrap();
    assert_eq!(whole.usage.prompt_tokens, 512);

    let unknown = refused(&client, embed(&up, vec![EmbedInput::Tokens(vec![101, 30_522, 102])])).await;
    assert!(unknown.message.contains("30522") && unknown.param.as_deref() == Some("input[0]"), "{unknown}");
    let narrow = refused(&client, Embed { dimensions: Some(256), ..embed(&up, vec![text("a")]) }).await;
    assert!(narrow.message.contains("256") && narrow.message.contains("384"), "{narrow}");
    assert!(client.embed(Embed { dimensions: Some(384), ..embed(&up, vec![text("a")]) }).await.is_ok());
    let empty = refused(&client, embed(&up, vec![text("a"), text("")])).await;
    assert_eq!(empty.param.as_deref(), Some("input[1]"));
    let key = ApiKey("ck_live_wrong".into());
    let key = refused(&client, Embed { api_key: key, ..embed(&up, vec![text("a")]) }).await;
    assert_eq!(key.code, RefusalCode::InvalidApiKey);

    match client.generate(Request::chat(&up.api_key, &up.model, "hi")).await {
        Err(ClientError::Refused(refusal)) => assert!(refusal.message.contains("vectors"), "{refusal}"),
        other => panic!("{:?}", other.map(|_| "accepted")),
    }
    let info = client.models().await.unwrap();
    assert_eq!((info[0].embedding_dims, info[0].context_tokens), (Some(384), 512));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_that_generates_makes_no_vectors() {
    let up = Up::shared();
    let client = up.client().await;
    let refusal = refused(&client, embed(&up, vec![text("a")])).await;
    assert_eq!((refusal.code, refusal.param.as_deref()), (RefusalCode::InvalidRequest, Some("model")));
    assert!(refusal.message.contains(MODEL) && refusal.message.contains("generates"), "{refusal}");
}

#[test]
fn the_official_python_client_gets_vectors() {
    let Some(up) = Up::encoder() else { return };
    let vectors = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/minilm_vectors.json");
    run_client("openai_embeddings.py", &[&format!("{}/v1", up.http), &up.api_key, &up.model, vectors]);
}

/// A unit vector.
fn unit(dims: usize) -> Vec<f32> {
    let mut vector = vec![0.0; dims];
    vector[0] = 1.0;
    vector
}

/// The next text that a miner is given, or told to leave.
async fn next(fake: &mut FakeMiner) -> ToMiner {
    fake.control.next::<ToMiner>().await.unwrap().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_miner_that_says_nothing_of_a_text_is_not_waited_for() {
    let Some(_up) = Up::encoder() else { return };
    let weights = Shelf::open(encoder_shelf()).unwrap().list().unwrap().remove(0).hash;
    let args = ["schedule", "--quic", "127.0.0.1:0", "--http", "127.0.0.1:0", "--model", crate::support::ENCODER];
    let scheduler = Process::start_on(encoder_shelf(), tempfile::tempdir().unwrap(), &args);
    let ready = scheduler.ready();
    let join = ready["join"].as_str().unwrap().parse().unwrap();
    let key = ApiKey(ready["api_key"].as_str().unwrap().to_owned());
    let client = Client::connect(&join, &Identity::generate()).await.unwrap();
    let offering = async || {
        FakeMiner::offering(&join, &Identity::generate(), WeightsHash(weights.0), (Task::Embed, KvFormat::F16), 8).await
    };
    let mut mute = offering().await;
    let request = Embed::new(key, crate::support::ENCODER.to_owned(), vec![text("a bird")]);
    let asked = tokio::spawn(async move { client.embed(request).await });
    assert!(matches!(next(&mut mute).await, ToMiner::Encode(_)));
    // Its connection stays, and says nothing; somebody else is asked, and who answers first is paid.
    let mut other = offering().await;
    let ToMiner::Encode(encode) = next(&mut other).await else { panic!("not a text") };
    other.step(vec![StepItem::new(encode.sequence, 0, vec![], Some(End::Embedded(unit(384))))]).await;
    let made = asked.await.unwrap().unwrap();
    assert_eq!((made.vectors.as_slice(), made.usage.prompt_tokens), (&[unit(384)][..], 4));
    assert!(matches!(next(&mut mute).await, ToMiner::Cancel { .. }), "and the other need not");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_miner_with_wrong_answers_is_not_paid_and_its_texts_move_on() {
    // The other process makes sure that the shelf holds the encoder.
    let Some(_up) = Up::encoder() else { return };
    let weights = Shelf::open(encoder_shelf()).unwrap().list().unwrap().remove(0).hash;
    let args = ["schedule", "--quic", "127.0.0.1:0", "--http", "127.0.0.1:0", "--model", crate::support::ENCODER];
    let scheduler = Process::start_on(encoder_shelf(), tempfile::tempdir().unwrap(), &args);
    let ready = scheduler.ready();
    let (join, http) = (ready["join"].as_str().unwrap().parse().unwrap(), ready["http"].as_str().unwrap());
    let key = ready["api_key"].as_str().unwrap();
    let client = Client::connect(&join, &Identity::generate()).await.unwrap();
    let mut fake =
        FakeMiner::offering(&join, &Identity::generate(), WeightsHash(weights.0), (Task::Embed, KvFormat::F16), 8)
            .await;
    let request = Embed::new(ApiKey(key.to_owned()), crate::support::ENCODER.to_owned(), vec![text("a bird")]);
    let asked = tokio::spawn(async move { client.embed(request).await });
    let mut nan = unit(384);
    nan[1] = 1e30;
    let answers = [
        End::Embedded(unit(383)),
        End::Embedded(nan),
        End::Failed("its device is tired".into()),
        End::Embedded(unit(384)),
    ];
    for end in answers {
        let encode = loop {
            if let Some(ToMiner::Encode(encode)) = fake.control.next::<ToMiner>().await.unwrap() {
                break encode;
            }
        };
        assert_eq!((encode.tokens.as_slice(), encode.blocks), (&[101, 1037, 4743, 102][..], 1));
        fake.step(vec![StepItem::new(encode.sequence, 0, vec![], Some(end))]).await;
    }
    let made = asked.await.unwrap().unwrap();
    assert_eq!((made.vectors.as_slice(), made.usage.migrations), (&[unit(384)][..], 3));
    eventually("nothing runs", || metric(http, "cuckoo_num_requests_running") == 0.0);
}
