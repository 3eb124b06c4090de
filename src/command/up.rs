//! `cuckoo up`: everything on this machine, in one process, still over real QUIC between the parts.

use std::net::{Ipv4Addr, SocketAddr};

use cuckoo::{Client, Prompt};
use cuckoo_runtime::Miner;
use cuckoo_wire::message::ChatMessage;

use super::schedule::{HTTP_PORT, QUIC_PORT, Started};
use super::{DRAIN_MAX, asked_to_stop, drain, generate, mine, schedule};
use crate::args::{Common, UpArgs};
use crate::home::Home;
use crate::provision;

pub(super) async fn run(common: &Common, args: UpArgs) -> anyhow::Result<()> {
    let home = Home::open(common)?;
    let identity = home.identity()?;
    let models = mine::models(&home, common, &identity, &args.mining).await?;
    let model = &models[0];
    let adapters = provision::adapters(&home, common, &identity, model, &args.mining.adapters).await?;
    // One question needs no fixed ports, and must not collide with a scheduler that runs already.
    let port = |usual: u16| if args.once { 0 } else { usual };
    let local = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let quic = args.doors.quic.unwrap_or(local(port(QUIC_PORT)));
    let http = args.doors.http.unwrap_or(local(port(HTTP_PORT)));
    let mut started = schedule::start(&home, &args.doors, quic, http, None, None).await?;
    let mut to = started.scheduler.address().clone();
    if quic.ip().is_unspecified() {
        to.host = Ipv4Addr::LOCALHOST.to_string();
    }
    let work = (mine::config(&models, &adapters, &args.mining), mine::devices(&args.mining)?);
    let mut miner = mine::start(identity.clone(), vec![to], "local".to_owned(), work, &args.mining).await?;
    mine::connected(&mut miner).await?;
    for served in std::iter::once(model).chain(&adapters) {
        started.await_replica(&served.name).await;
    }
    if !args.once || common.json {
        started.announce(common.json);
    }
    if let Some(question) = &args.ask {
        let client = Client::connect(started.scheduler.address(), &identity).await?;
        let turn = ChatMessage::new("user", question.clone());
        let name = args.generation.ask_model.as_deref().unwrap_or(&model.name);
        let prompt = Prompt::Chat(vec![turn]);
        let answer = generate::stream(&client, &started.key, name, prompt, &args.generation, common.json).await?;
        answer.report(common.json);
        client.close();
    }
    if args.once {
        stop(started, miner).await;
        return Ok(());
    }
    if !common.json {
        println!("\n  ready; Ctrl-C drains and stops");
    }
    tokio::select! {
        () = asked_to_stop() => {}
        error = started.scheduler.ended() => return Err(error.into()),
        error = miner.ended() => return Err(error.into()),
    }
    drain(stop(started, miner)).await;
    Ok(())
}

/// The doors close first, so that the miner finishes what it has and gets nothing new.
async fn stop(started: Started, miner: Miner) {
    started.scheduler.close();
    started.scheduler.drained(DRAIN_MAX).await;
    miner.stop(DRAIN_MAX).await;
    started.scheduler.stop(DRAIN_MAX).await;
}

impl Started {
    /// Waits until the scheduler counts a replica of `model`: the miner's offer is a moment behind its link.
    async fn await_replica(&self, model: &str) {
        let offered = async {
            while !self.scheduler.is_served(model).await {
                tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            }
        };
        let _ = tokio::time::timeout(DRAIN_MAX, offered).await;
    }
}
