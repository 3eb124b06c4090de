//! Adapters through the command, the market and both doors, as processes of their own.

use std::path::Path;

use cuckoo::{Address, Client, Identity, Request, Sampling, Usage};
use cuckoo_models::{ArchSpec, Base, Gguf, Manifest, Shelf, adapter};
use serde_json::Value;
use tempfile::TempDir;

use crate::model::adapters::save_adapter;
use crate::openai::run_client;
use crate::support::{MODEL, Process, author_home, cuckoo, eventually, get, metric, shelf, weights};

/// A shelf of its own with the test model, and a folder with an adapter that is on no shelf.
fn own_shelf() -> (TempDir, std::path::PathBuf, std::path::PathBuf) {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let own = Shelf::open(folder.path().join("shelf")).unwrap();
    own.add_file(weights(), &mut |_| ()).unwrap();
    own.put_manifest(&Shelf::open(shelf()).unwrap().manifest(MODEL).unwrap().unwrap()).unwrap();
    let spec = ArchSpec::from_gguf(&Gguf::open(weights()).unwrap()).unwrap();
    let adapter = folder.path().join("tuned");
    save_adapter(&adapter, &spec, "served", 0.3);
    let shelf = own.root().to_owned();
    (folder, shelf, adapter)
}

/// A manifest on the shelf, whose author asks for more than the base's leaves.
fn ask_too_much(shelf: &Shelf, folder: &Path) {
    let base = shelf.manifest(MODEL).unwrap().unwrap().manifest;
    let spec = ArchSpec::from_gguf(&Gguf::open(weights()).unwrap()).unwrap();
    save_adapter(folder, &spec, "greedy", 0.3);
    let shelved = adapter::shelve(shelf, folder, &spec).unwrap();
    let author = Identity::generate();
    let manifest = Manifest {
        name: "greedy".to_owned(),
        author: author.public_key().0,
        royalty_bps: 2_000,
        weights: shelved.hash,
        base: Some(Base { name: base.name.clone(), weights: base.weights }),
        ..base
    };
    shelf.put_manifest(&manifest.sign(author.signing_key()).unwrap()).unwrap();
}

#[test]
fn the_official_client_asks_for_an_adapter_by_its_name() {
    let (folder, shelf, adapter) = own_shelf();
    // The client finds that this one is not offered.
    ask_too_much(&Shelf::open(&shelf).unwrap(), &folder.path().join("greedy"));
    let home = tempfile::tempdir().unwrap();
    let local = ["--quic", "127.0.0.1:0", "--http", "127.0.0.1:0"];
    let args = [&["up"][..], &local, &["--adapter", adapter.to_str().unwrap()]].concat();
    let up = Process::start_on(&shelf, home, &args);
    let ready = up.ready();
    let endpoint = format!("{}/v1", ready["http"].as_str().unwrap());
    run_client("lora/openai_client.py", &[&endpoint, ready["api_key"].as_str().unwrap(), MODEL, "tuned"]);
}

/// What `account` of the owner of `home` holds, by the scheduler at `join`.
fn balance(home: &Path, account: &str, join: &str, key: &str) -> i64 {
    let mut wallet = cuckoo();
    wallet.args(["wallet", "--json", "--scheduler", join, "--api-key", key, "--home"]).arg(home);
    let printed = wallet.output().unwrap();
    assert!(printed.status.success(), "{}", String::from_utf8_lossy(&printed.stderr));
    let wallet: Value = serde_json::from_slice(&printed.stdout).unwrap();
    let rows = wallet["balances"].as_array().unwrap().iter();
    rows.filter(|row| row["account"].as_str().unwrap().starts_with(account)).map(|r| r["nano"].as_i64().unwrap()).sum()
}

/// Publishes the adapter as `robin` with a royalty of 5 %; whose home that is.
fn publish(shelf: &Path, adapter: &Path) -> TempDir {
    let publisher = tempfile::tempdir().unwrap();
    let published = cuckoo()
        .args(["models", "publish", adapter.to_str().unwrap(), "--name", "robin", "--base", MODEL])
        .args(["--license", "MIT", "--royalty", "5", "--json", "--home"])
        .arg(publisher.path())
        .arg("--models-dir")
        .arg(shelf)
        .output()
        .unwrap();
    assert!(published.status.success(), "{}", String::from_utf8_lossy(&published.stderr));
    publisher
}

async fn run(client: &Client, request: Request) -> (Vec<u32>, Usage) {
    let mut stream = client.generate(request).await.unwrap();
    let mut tokens = Vec::new();
    while let Some(delta) = stream.next().await.unwrap() {
        tokens.extend(delta.tokens);
    }
    (tokens, stream.usage().unwrap().clone())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_adapter_moves_only_to_miners_that_have_it_and_pays_both_authors() {
    let (_folder, shelf, adapter) = own_shelf();
    let publisher = publish(&shelf, &adapter);
    let home = || tempfile::tempdir().unwrap();
    let scheduler = ["schedule", "--quic", "127.0.0.1:0", "--http", "127.0.0.1:0"];
    let scheduler = Process::start_on(&shelf, home(), &scheduler);
    let ready = scheduler.ready();
    let text = |name: &str| ready[name].as_str().unwrap().to_owned();
    let (http, join, key) = (text("http"), text("join"), text("api_key"));
    let mine = |adapters: &[&str]| {
        let miner =
            Process::start_on(&shelf, home(), &[&["mine", "--join", &join, "--threads", "1"], adapters].concat());
        miner.ready();
        miner
    };
    let replicas = |count: f64| eventually("miners offer", || metric(&http, "cuckoo_replicas") == count);
    let client = Client::connect(&join.parse::<Address>().unwrap(), &Identity::generate()).await.unwrap();
    let request = |model: &str| {
        let sampling = Sampling { temperature: 0.9, seed: Some(5), ..Sampling::default() };
        // More than a miner may send before somebody reads: it is not done when the other dies.
        let mut request = Request::chat(&key, model, "Tell me a story.").max_tokens(150).sampling(sampling);
        request.0.ignore_eos = true;
        request
    };
    let mut first = mine(&["--adapter", "robin"]);
    replicas(1.0);
    let (expected, usage) = run(&client, request("robin")).await;
    let (base, base_usage) = run(&client, request(MODEL)).await;
    assert_ne!(expected, base, "the adapter changes what is said");
    // The base's author has 8 %, the adapter's 5 %: at the base's price.
    assert_eq!((usage.cost, usage.author), (base_usage.cost, usage.cost * 500 / 10_000 + usage.cost * 800 / 10_000));
    let adapters_share = balance(publisher.path(), "author:", &join, &key);
    assert_eq!(adapters_share as u64, usage.cost * 500 / 10_000);
    let bases_share = balance(author_home(), "author:", &join, &key);
    assert_eq!(bases_share as u64, (usage.cost + base_usage.cost) / 2 * 800 / 10_000 * 2);

    // One that has the adapter and one that does not; then the first dies without a word.
    let (without, with) = (mine(&[]), mine(&["--adapter", "robin"]));
    replicas(3.0);
    let mut streams = Vec::new();
    for _ in 0..3 {
        streams.push(client.generate(request("robin")).await.unwrap());
    }
    let mut begun = Vec::new();
    for stream in &mut streams {
        begun.push(stream.next().await.unwrap().unwrap().tokens);
    }
    first.kill();
    let mut migrations = 0;
    for (mut stream, mut tokens) in streams.into_iter().zip(begun) {
        while let Some(delta) = stream.next().await.unwrap() {
            tokens.extend(delta.tokens);
        }
        assert_eq!(tokens, expected, "the same as without the fault");
        migrations += stream.usage().unwrap().migrations;
    }
    assert!(migrations > 0, "somebody had to move");
    let earned = |miner: &Process| balance(miner.home.path(), "miner:", &join, &key);
    assert!(earned(&with) > 0 && earned(&without) == 0, "only who has the adapter was asked");
    let settled = get(&http, "/metrics");
    let party = |name: &str| {
        let key = format!("cuckoo_settled_nanocredits_total{{party=\"{name}\"}} ");
        settled.lines().find_map(|l| l.strip_prefix(&key)).unwrap().parse::<u64>().unwrap()
    };
    assert_eq!(party("developer"), party("miner") + party("author") + party("network"));
}

#[test]
fn the_command_says_what_is_wrong_with_an_adapter() {
    let (folder, shelf, adapter) = own_shelf();
    let said = |args: &[&str]| {
        let mut command = cuckoo();
        command.args(args).arg("--home").arg(folder.path().join("home")).arg("--models-dir").arg(&shelf);
        let output = command.output().unwrap();
        assert!(!output.status.success(), "{args:?}");
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let publish = ["models", "publish", adapter.to_str().unwrap(), "--license", "MIT", "--name", "robin"];
    assert!(said(&[&publish[..], &["--base", "nobody"]].concat()).contains("pull or publish it first"));
    let royalty = said(&[&publish[..], &["--base", MODEL, "--royalty", "12.5"]].concat());
    assert!(royalty.contains("at most 12 %"), "{royalty}");
    let up = ["up", "--quic", "127.0.0.1:0", "--http", "127.0.0.1:0"];
    let model = weights();
    let no_adapter = said(&[&up[..], &["--adapter", model.to_str().unwrap()]].concat());
    assert!(no_adapter.contains("not a LoRA adapter"), "{no_adapter}");
    let config = adapter.join("adapter_config.json");
    let text = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, text.replacen('{', "{\"use_dora\": true, ", 1)).unwrap();
    let dora = said(&[&up[..], &["--adapter", adapter.to_str().unwrap()]].concat());
    assert!(dora.contains("use_dora"), "{dora}");
    std::fs::write(&config, text).unwrap();
    let small = said(&[&up[..], &["--adapter", adapter.to_str().unwrap(), "--memory-mib", "60"]].concat());
    assert!(small.contains("are needed and 60.0 MiB are there (--memory-mib)"), "{small}");
    assert!(small.contains(" MiB for adapters") && !small.contains(" 0.0 MiB for adapters"), "{small}");
    // It is published by now, under the folder's name.
    assert!(said(&[&up[..], &["--model", "tuned"]].concat()).contains("--adapter tuned"));
}
