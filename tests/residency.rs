//! A miner that may serve more models than fit: which of them it has follows what is asked for.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use cuckoo::{Address, Client, FinishReason, Generation, Identity, Request};
use cuckoo_wire::FrameWriter;
use cuckoo_wire::limits::{DEVICES_MAX, MINER_FRAME_BYTES_MAX};
use cuckoo_wire::message::{Capacity, FromMiner, Hello};
use cuckoo_wire::{Role, connect};
use serde_json::Value;
use tempfile::TempDir;

use crate::cli::folder_model;
use crate::support::{self, MODEL, PATIENCE, Process, cuckoo, metric};

/// Each of the models takes 33 MiB, and 8 for keys and values: two do not fit.
const SMALL: [&str; 10] =
    ["--memory-mib", "48", "--kv-mib", "8", "--batch", "256", "--step-tokens", "256", "--threads", "1"];

/// The real model with room for two long answers, which leaves too little for a tiny one.
const LARGE: [&str; 8] = ["--memory-mib", "160", "--kv-mib", "48", "--batch", "16", "--step-tokens", "64"];

/// A shelf with models of these names: the real one, where it is named, and tiny ones.
fn shelf(names: &[&str]) -> TempDir {
    let shelf = tempfile::tempdir().unwrap();
    for name in names {
        if *name == MODEL {
            copy_of_the_real_one(shelf.path());
            continue;
        }
        let folder = shelf.path().join(format!("of-{name}"));
        std::fs::create_dir(&folder).unwrap();
        folder_model(&folder);
        // Other weights: what a model is called is not part of them.
        let template = format!("{{% for m in messages %}}<user>{name} {{{{ m.content }}}}{{% endfor %}}");
        std::fs::write(folder.join("chat_template.jinja"), template).unwrap();
        let publish = ["models", "publish", folder.to_str().unwrap(), "--name", name, "--license", "MIT"];
        let published = on(shelf.path(), shelf.path(), &publish).output().unwrap();
        assert!(published.status.success(), "{}", String::from_utf8_lossy(&published.stderr));
    }
    shelf
}

fn copy_of_the_real_one(shelf: &Path) {
    for folder in ["weights", "manifests"] {
        std::fs::create_dir_all(shelf.join(folder)).unwrap();
        for file in std::fs::read_dir(support::shelf().join(folder)).unwrap().flatten() {
            std::fs::copy(file.path(), shelf.join(folder).join(file.file_name())).unwrap();
        }
    }
}

fn on(shelf: &Path, home: &Path, args: &[&str]) -> Command {
    let mut command = cuckoo();
    command.args(args).arg("--home").arg(home).arg("--models-dir").arg(shelf);
    command
}

struct Market {
    /// Kept: it is killed when dropped.
    _scheduler: Process,
    _miner: Process,
    shelf: TempDir,
    http: String,
    key: String,
    client: Client,
}

impl Market {
    /// A scheduler, and a miner that may serve all of `names`, as far as its `limits` go.
    async fn start(names: &[&str], limits: &[&str]) -> Self {
        let shelf = shelf(names);
        let schedule = ["schedule", "--quic", "127.0.0.1:0", "--http", "127.0.0.1:0"];
        let scheduler = Process::start_on(shelf.path(), tempfile::tempdir().unwrap(), &schedule);
        let ready = scheduler.ready();
        let text = |name: &str| ready[name].as_str().unwrap().to_owned();
        let (join, models) = (text("join"), names.join(","));
        let mine = [&["mine", "--join", &join, "--model", &models][..], limits].concat();
        let miner = Process::start_on(shelf.path(), tempfile::tempdir().unwrap(), &mine);
        miner.ready();
        let to: Address = join.parse().unwrap();
        let client = Client::connect(&to, &Identity::generate()).await.unwrap();
        let (http, key) = (text("http"), text("api_key"));
        Self { _scheduler: scheduler, _miner: miner, shelf, http, key, client }
    }

    fn request(&self, model: &str, tokens: u32) -> Request {
        let mut request = Request::chat(self.key.clone(), model, "Name a bird.").max_tokens(tokens);
        request.0.ignore_eos = true;
        request.0.sampling.temperature = 0.0;
        request.0.sampling.repetition_penalty = 1.0;
        request
    }

    /// What a model answers, and how often the request moved.
    async fn ask(&self, model: &str, tokens: u32) -> (String, u32) {
        let generation = self.client.generate(self.request(model, tokens)).await.unwrap();
        read(generation, tokens).await
    }

    /// What it answers where there is no other.
    fn alone(&self, model: &str, tokens: u32) -> String {
        let (home, count) = (tempfile::tempdir().unwrap(), tokens.to_string());
        let up = ["up", "--model", model, "--ask", "Name a bird.", "--once", "--json", "--ignore-eos"];
        let up = [&up[..], &["--repetition-penalty", "1", "--max-tokens", &count]].concat();
        let output = on(self.shelf.path(), home.path(), &up).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let printed = String::from_utf8(output.stdout).unwrap();
        let answer: Value = serde_json::from_str(printed.lines().last().unwrap()).unwrap();
        answer["text"].as_str().unwrap().to_owned()
    }

    /// The models that are loaded.
    async fn loaded(&self) -> Vec<String> {
        let models = self.client.models().await.unwrap();
        let mut names: Vec<String> = models.into_iter().filter(|m| m.replicas > 0).map(|m| m.name).collect();
        names.sort();
        names
    }
}

/// A whole answer, and how often its request moved.
async fn read(mut generation: Generation, tokens: u32) -> (String, u32) {
    let (mut text, mut count) = (String::new(), 0);
    while let Some(delta) = generation.next().await.unwrap() {
        assert_eq!(delta.first, count, "no token twice or missing");
        count += delta.tokens.len() as u32;
        text.push_str(&delta.text);
    }
    assert_eq!((count, generation.finish_reason()), (tokens, Some(FinishReason::Length)));
    (text, generation.usage().unwrap().migrations)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_that_is_asked_for_takes_the_place_of_another() {
    let market = Market::start(&["finch", "heron"], &SMALL).await;
    assert_eq!(market.loaded().await, ["finch"], "the first, and no other beside it");
    let finch = market.ask("finch", 20).await;
    // Nobody has it, and somebody could: that is worth waiting for.
    let heron = market.ask("heron", 20).await;
    assert_ne!(finch.0, heron.0);
    assert_eq!(market.loaded().await, ["heron"], "in its place");
    assert_eq!(market.ask("finch", 20).await, finch, "and back");
    assert_eq!((finch.1, heron.1), (0, 0));
    assert_eq!((market.alone("finch", 20), market.alone("heron", 20)), (finch.0, heron.0));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_runs_on_a_model_that_goes_is_finished_first() {
    const ANSWER: u32 = 1_000;
    let market = Market::start(&[MODEL, "heron"], &LARGE).await;
    let long = market.request(MODEL, ANSWER);
    let begun = [market.client.generate(long.clone()).await.unwrap(), market.client.generate(long).await.unwrap()];
    let heron = market.client.generate(market.request("heron", 4)).await.unwrap();
    let asked = Instant::now();
    while !market.loaded().await.is_empty() {
        assert!(asked.elapsed() < PATIENCE, "the one takes nothing more, and the other has no room yet");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(metric(&market.http, "cuckoo_num_requests_running"), 3.0, "nothing was cut short");
    let [one, two] = begun;
    let (one, two) = (read(one, ANSWER).await, read(two, ANSWER).await);
    assert_eq!((&one, one.1), (&two, 0));
    read(heron, 4).await;
    assert_eq!(market.loaded().await, ["heron"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_miner_that_names_more_than_there_can_be_is_shut_out() {
    let shelf = shelf(&["finch"]);
    let schedule = ["schedule", "--quic", "127.0.0.1:0", "--http", "127.0.0.1:0"];
    let scheduler = Process::start_on(shelf.path(), tempfile::tempdir().unwrap(), &schedule);
    let to: Address = scheduler.ready()["join"].as_str().unwrap().parse().unwrap();
    let connection = connect(&to, &Identity::generate(), Role::Miner).await.unwrap();
    let (send, _recv) = connection.open_bi().await.unwrap();
    let mut control = FrameWriter::new(send, MINER_FRAME_BYTES_MAX);
    control.send(&Hello { name: "fake".into(), program: "test".into() }).await.unwrap();
    let device = |device| Capacity { device, memory_bytes: 1, models: Vec::new() };
    control.send(&FromMiner::Devices((0..=DEVICES_MAX as u32).map(device).collect())).await.unwrap();
    let why = connection.closed().await.to_string();
    assert!(why.contains("at most 32 devices"), "{why}");
}
