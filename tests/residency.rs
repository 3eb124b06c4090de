//! A miner that may serve more models than fit: which of them it has follows what is asked for.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use cuckoo::{Address, Client, FinishReason, Generation, Identity, Request};
use cuckoo_wire::FrameWriter;
use cuckoo_wire::limits::{DEVICES_MAX, MINER_FRAME_BYTES_MAX};
use cuckoo_wire::message::{Capacity, FromMiner, Hello};
use cuckoo_wire::{Role, connect};
use serde_json::Value;
use tempfile::TempDir;

use crate::cli::folder_model;
use crate::support::{Process, cuckoo};

/// Each of the models takes 33 MiB, and 8 for keys and values: two do not fit.
const SMALL: [&str; 10] =
    ["--memory-mib", "48", "--kv-mib", "8", "--batch", "256", "--step-tokens", "256", "--threads", "1"];

/// A shelf with tiny models of these names, and their folders, which `mine` takes.
fn shelf(names: &[&str]) -> TempDir {
    let shelf = tempfile::tempdir().unwrap();
    for name in names {
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
    key: String,
    client: Client,
}

impl Market {
    /// A scheduler, and a miner that may serve all of `names`.
    async fn start(names: &[&str]) -> Self {
        let shelf = shelf(names);
        let schedule = ["schedule", "--quic", "127.0.0.1:0", "--http", "127.0.0.1:0"];
        let scheduler = Process::start_on(shelf.path(), tempfile::tempdir().unwrap(), &schedule);
        let ready = scheduler.ready();
        let text = |name: &str| ready[name].as_str().unwrap().to_owned();
        let (join, models) = (text("join"), names.join(","));
        let mine = [&["mine", "--join", &join, "--model", &models][..], &SMALL].concat();
        let miner = Process::start_on(shelf.path(), tempfile::tempdir().unwrap(), &mine);
        miner.ready();
        let to: Address = join.parse().unwrap();
        let client = Client::connect(&to, &Identity::generate()).await.unwrap();
        let key = text("api_key");
        Self { _scheduler: scheduler, _miner: miner, shelf, key, client }
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
    let market = Market::start(&["finch", "heron"]).await;
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
    let market = Market::start(&["finch", "heron"]).await;
    let whole = market.ask("finch", 480).await;
    let begun = market.client.generate(market.request("finch", 480)).await.unwrap();
    let heron = market.client.generate(market.request("heron", 4)).await.unwrap();
    // Nobody reads meanwhile, so that the one cannot end; and for the other there is no room as long as it has not.
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(read(begun, 480).await, whole);
    read(heron, 4).await;
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
