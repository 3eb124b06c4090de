//! `cuckoo models`: what is on the shelf, and getting more onto it.

use anyhow::bail;
use cuckoo_models::{FetchConfig, Shelf, Source};
use cuckoo_wire::message::Price;
use serde_json::json;

use super::{ask, credits};
use crate::args::{Bps, Common, ModelsVerb, Target};
use crate::home::Home;
use crate::provision::{self, adapters};

pub(super) async fn run(common: &Common, verb: ModelsVerb) -> anyhow::Result<()> {
    let home = Home::open(common)?;
    match verb {
        ModelsVerb::List { remote: false, .. } => list(&home, common.json),
        ModelsVerb::List { remote: true, target } => list_remote(&home, &target, common.json).await,
        ModelsVerb::Pull { model } => pull(&home, common, &model).await,
        ModelsVerb::Publish { file, base, name, royalty, license } => {
            let (home, json) = (home.clone(), common.json);
            let publish = move || publish(&home, json, (&file, base.as_deref()), &name, royalty, &license);
            tokio::task::spawn_blocking(publish).await?
        }
    }
}

fn list(home: &Home, as_json: bool) -> anyhow::Result<()> {
    let shelf = Shelf::open(home.models_dir())?;
    let manifests = shelf.manifests()?;
    for weights in shelf.list()? {
        let named: Vec<_> = manifests.iter().filter(|m| m.manifest.weights == weights.hash).collect();
        if as_json {
            let names: Vec<&str> = named.iter().map(|m| m.manifest.name.as_str()).collect();
            println!("{}", json!({"weights": weights.hash.to_string(), "bytes": weights.bytes, "names": names}));
            continue;
        }
        match named.as_slice() {
            [] => println!("{:<28} {:>9.1} MB  no manifest", weights.hash.to_string(), weights.bytes as f64 / 1e6),
            named => named.iter().for_each(|m| {
                let m = &m.manifest;
                let of = m.base.as_ref().map_or_else(String::new, |base| format!("  adapter of {}", base.name));
                println!(
                    "{:<28} {:>9.1} MB  {:<6} context {:<7} {}  royalty {} %{of}",
                    m.name,
                    m.weights_bytes as f64 / 1e6,
                    m.quantization,
                    m.context_tokens,
                    m.license,
                    f64::from(m.royalty_bps) / 100.0
                );
            }),
        }
    }
    Ok(())
}

async fn list_remote(home: &Home, target: &Target, as_json: bool) -> anyhow::Result<()> {
    let (client, _) = ask::connect(home, target).await?;
    for m in client.models().await? {
        let price = |p: Price| (credits(p.input_per_mtok as i64), credits(p.output_per_mtok as i64));
        let ask = m.lowest_ask.map(price);
        if as_json {
            println!(
                "{}",
                json!({
                    "name": m.name, "context_tokens": m.context_tokens, "quantization": m.quantization,
                    "license": m.license, "author": m.author.to_string(), "royalty_bps": m.royalty_bps,
                    "replicas": m.replicas, "parent": m.parent, "lowest_ask_input": ask.as_ref().map(|a| &a.0),
                    "lowest_ask_output": ask.as_ref().map(|a| &a.1),
                })
            );
            continue;
        }
        let ask =
            ask.map_or_else(|| "nobody serves it".to_owned(), |(i, o)| format!("from {i} in / {o} out per million"));
        println!("{:<28} {:<6} context {:<7} {} replicas  {ask}", m.name, m.quantization, m.context_tokens, m.replicas);
    }
    client.close();
    Ok(())
}

async fn pull(home: &Home, common: &Common, model: &str) -> anyhow::Result<()> {
    let pulled = provision::model(home, common, &home.identity()?, model).await?;
    match common.json {
        true => println!(
            "{}",
            json!({"name": pulled.name, "weights": pulled.weights.hash.to_string(), "path": pulled.weights.path})
        ),
        false => println!("{} is at {}", pulled.name, pulled.weights.path.display()),
    }
    Ok(())
}

fn publish(
    home: &Home,
    as_json: bool,
    (file, base): (&std::path::Path, Option<&str>),
    name: &str,
    royalty: Bps,
    license: &str,
) -> anyhow::Result<()> {
    let (shelf, identity) = (Shelf::open(home.models_dir())?, home.identity()?);
    let author = identity.public_key().0;
    if let Some(taken) = shelf.manifest(name)?.filter(|m| m.manifest.author != author) {
        bail!("the name {name} is taken by another author ({})", taken.id());
    }
    let (weights, signed) = match base {
        None => {
            let weights = Source::File(file.to_owned()).fetch(&shelf, None, &FetchConfig::default(), &mut |_| ())?;
            let signed = provision::manifest(&weights, name, license, royalty, &identity)?;
            (weights, signed)
        }
        Some(base) => {
            let base = adapters::Base::find(&shelf, base)?;
            let weights = cuckoo_models::adapter::shelve(&shelf, file, &base.spec)?;
            let signed = base.manifest(&weights, name, license, royalty, &identity)?;
            (weights, signed)
        }
    };
    shelf.put_manifest(&signed)?;
    match as_json {
        true => println!(
            "{}",
            json!({"name": name, "manifest": signed.id().to_string(), "weights": weights.hash.to_string()})
        ),
        false => {
            println!("published {name}: manifest {}, weights {}", signed.id(), weights.hash);
            let serve =
                base.map_or_else(|| format!("--model {name}"), |base| format!("--model {base} --adapter {name}"));
            println!(
                "a scheduler on this machine offers it within seconds; serve it with `cuckoo mine {serve} --join …`"
            );
        }
    }
    Ok(())
}
