//! `cuckoo mine`: a miner for some scheduler. Shares its start with `cuckoo up`.

use std::num::NonZero;

use anyhow::bail;
use cuckoo_kernels::cuda::NoGpu;
use cuckoo_runtime::{DeviceKind, Devices, LinkStatus, MineConfig, Miner, ModelConfig, mine};
use cuckoo_wire::message::WeightsHash;
use cuckoo_wire::{Address, Identity};
use serde_json::json;

use super::{DRAIN_MAX, asked_to_stop, drain};
use crate::args::{Common, MineArgs, Mining};
use crate::home::Home;
use crate::provision::{self, Provisioned};

pub(super) async fn run(common: &Common, args: MineArgs) -> anyhow::Result<()> {
    let home = Home::open(common)?;
    let identity = home.identity()?;
    let models = models(&home, common, &identity, &args.mining).await?;
    let peer = identity.peer_id();
    if !common.json {
        println!("  miner   {} ({peer})", args.name);
        for model in &models {
            println!("  model   {} from {}", model.name, model.weights.path.display());
        }
    }
    let adapters = provision::adapters(&home, common, &identity, &models[0], &args.mining.adapters).await?;
    let models = config(&models, &adapters, &args.mining);
    let devices = devices(&args.mining)?;
    if !common.json {
        devices.iter().for_each(|device| println!("  device  {device}"));
    }
    let mut miner = start(identity, args.join, args.name, (models, devices), &args.mining).await?;
    let mut status = miner.status();
    let mut was_connected = false;
    loop {
        let now = status.borrow_and_update().clone();
        // It is ready with its first model; later one may go before another comes.
        let connected = match now {
            LinkStatus::Connected { replicas } => was_connected || replicas > 0,
            _ => false,
        };
        if connected != was_connected {
            was_connected = connected;
            report(connected, &peer.to_string(), common.json);
        }
        tokio::select! {
            () = asked_to_stop() => break,
            error = miner.ended() => return Err(error.into()),
            changed = status.changed() => if changed.is_err() { return Err(miner.ended().await.into()) },
        }
    }
    drain(miner.stop(DRAIN_MAX)).await;
    Ok(())
}

fn report(connected: bool, peer: &str, json: bool) {
    match (json, connected) {
        (true, _) => println!("{}", json!({"event": if connected { "ready" } else { "disconnected" }, "peer": peer})),
        (false, true) => println!("  ready: earning as soon as somebody asks; Ctrl-C drains"),
        (false, false) => println!("  the link is lost; trying again"),
    }
}

/// Fetches what is to be served; at least one model.
pub(super) async fn models(
    home: &Home,
    common: &Common,
    identity: &Identity,
    mining: &Mining,
) -> anyhow::Result<Vec<Provisioned>> {
    let mut models: Vec<Provisioned> = Vec::new();
    for name in &mining.models {
        let model = provision::model(home, common, identity, name).await?;
        if models.iter().any(|known| known.weights.hash == model.weights.hash) {
            bail!("{name} is named twice, or has the weights of another model: name each model once");
        }
        models.push(model);
    }
    match models.is_empty() {
        true => bail!("no model was named: name at least one with --model"),
        false => Ok(models),
    }
}

/// The files of models, and of what drafts for the first and of its adapters.
pub(super) fn config(models: &[Provisioned], adapters: &[Provisioned], mining: &Mining) -> Vec<ModelConfig> {
    let hash = |provisioned: &Provisioned| WeightsHash(provisioned.weights.hash.0);
    let alone = |model: &Provisioned| ModelConfig {
        path: model.weights.path.clone(),
        hash: hash(model),
        draft: None,
        adapters: Vec::new(),
    };
    let mut configs: Vec<ModelConfig> = models.iter().map(alone).collect();
    if let Some(first) = configs.first_mut() {
        first.draft.clone_from(&mining.draft_model);
        first.adapters = adapters.iter().map(|adapter| (adapter.weights.path.clone(), hash(adapter))).collect();
    }
    configs
}

/// What computes. Says on standard error why no GPU does, where nobody has said that none should.
pub(super) fn devices(mining: &Mining) -> anyhow::Result<Vec<DeviceKind>> {
    let processors = std::thread::available_parallelism().map_or(1, NonZero::get);
    let found = Devices::survey(&mining.devices, mining.threads.map_or(processors, usize::from), mining.numerics)?;
    match found.no_gpu {
        // Who builds without GPUs knows it.
        Some(NoGpu::NotBuilt) | None => {}
        Some(why) => eprintln!("  computing on processors: {why}"),
    }
    Ok(found.kinds)
}

/// Loads models onto the devices and links up with the schedulers.
pub(super) async fn start(
    identity: Identity,
    schedulers: Vec<Address>,
    name: String,
    (models, devices): (Vec<ModelConfig>, Vec<DeviceKind>),
    mining: &Mining,
) -> anyhow::Result<Miner> {
    let config = MineConfig {
        identity,
        schedulers,
        name,
        devices,
        models,
        ask: mining.ask(),
        batch_sequences_max: mining.batch,
        step_tokens_max: mining.step_tokens,
        drafts_max: mining.drafts,
        kv_bytes_max: mining.kv_mib.map(|mib| mib << 20),
        kv_kind: mining.kv_type,
        spill_bytes_max: mining.spill_mib << 20,
        memory_bytes_max: mining.memory_mib.map(|mib| mib << 20),
        context_tokens_max: mining.context,
    };
    Ok(mine(config).await?)
}

/// Waits until the miner is at work.
pub(super) async fn connected(miner: &mut Miner) -> anyhow::Result<()> {
    let mut status = miner.status();
    let ready = async {
        let at_work = |s: &LinkStatus| matches!(s, LinkStatus::Connected { replicas: 1.. } | LinkStatus::Refused(_));
        status.wait_for(at_work).await.map(|s| s.clone())
    };
    tokio::select! {
        status = ready => match status {
            Ok(LinkStatus::Refused(why)) => bail!("refused by the scheduler: {why}"),
            _ => Ok(()),
        },
        error = miner.ended() => Err(error.into()),
    }
}
