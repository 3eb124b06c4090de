//! `cuckoo schedule`: the market without a miner of its own. Shares its start with `cuckoo up`.

use std::net::{Ipv4Addr, SocketAddr};

use cuckoo_scheduler::ledger::PostgresUrl;
use cuckoo_scheduler::{ScheduleConfig, Scheduler, schedule};
use cuckoo_wire::Address;
use cuckoo_wire::message::ApiKey;
use serde_json::json;

use super::{DRAIN_MAX, asked_to_stop, drain};
use crate::args::{Common, Doors, ScheduleArgs, StoreUrl};
use crate::home::{Home, LastScheduler};
use crate::provision;

/// The port of the native interface where none is given.
pub(super) const QUIC_PORT: u16 = 4433;
/// The port of the HTTP interface where none is given.
pub(super) const HTTP_PORT: u16 = 8080;

/// A scheduler that runs, and what its user needs to know.
pub(super) struct Started {
    pub(super) scheduler: Scheduler,
    pub(super) key: ApiKey,
    /// What miners and developers elsewhere use.
    pub(super) join: Address,
}

pub(super) async fn run(common: &Common, args: ScheduleArgs) -> anyhow::Result<()> {
    let database = args.store.map(StoreUrl::get).transpose()?;
    let home = Home::open(common)?;
    let identity = home.identity()?;
    for model in &args.models {
        provision::model(&home, common, &identity, model).await?;
    }
    let allowed = (!args.allow_miners.is_empty()).then(|| args.allow_miners.iter().copied().collect());
    let any = Ipv4Addr::UNSPECIFIED;
    let quic = args.doors.quic.unwrap_or(SocketAddr::from((any, QUIC_PORT)));
    let http = args.doors.http.unwrap_or(SocketAddr::from((Ipv4Addr::LOCALHOST, HTTP_PORT)));
    let mut started = start(&home, &args.doors, quic, http, database, allowed).await?;
    started.announce(common.json);
    if !common.json {
        println!("  waiting for miners; Ctrl-C to stop");
    }
    tokio::select! {
        () = asked_to_stop() => {}
        error = started.scheduler.ended() => return Err(error.into()),
    }
    drain(started.scheduler.stop(DRAIN_MAX)).await;
    Ok(())
}

/// Opens the doors, and an account with test credit if there is none yet.
pub(super) async fn start(
    home: &Home,
    doors: &Doors,
    quic: SocketAddr,
    http: SocketAddr,
    database: Option<PostgresUrl>,
    miners_allowed: Option<std::collections::HashSet<cuckoo_wire::PeerId>>,
) -> anyhow::Result<Started> {
    let config = ScheduleConfig {
        identity: home.scheduler_identity()?,
        name: "cuckoo".to_owned(),
        quic,
        http: Some(http),
        ledger_dir: home.ledger_dir(),
        database,
        shelf_dir: home.models_dir(),
        miners_allowed,
    };
    let scheduler = schedule(config).await?;
    let mut local = scheduler.address().clone();
    if quic.ip().is_unspecified() {
        local.host = Ipv4Addr::LOCALHOST.to_string();
    }
    let known = match home.last_scheduler()? {
        Some(last) if scheduler.knows_key(&last.api_key()).await? => Some(last.api_key()),
        _ => None,
    };
    let key = match known {
        Some(key) => key,
        None => scheduler.create_key("first", doors.credit.0).await?,
    };
    home.remember(&LastScheduler::new(&local, &key))?;
    let join = match &doors.public_host {
        Some(host) => Address { host: host.clone(), ..local },
        None => local,
    };
    Ok(Started { scheduler, key, join })
}

impl Started {
    fn http_url(&self) -> String {
        self.scheduler.http().map_or_else(String::new, |at| {
            let host = if at.ip().is_unspecified() { "127.0.0.1".to_owned() } else { at.ip().to_string() };
            match host.contains(':') {
                true => format!("http://[{host}]:{}", at.port()),
                false => format!("http://{host}:{}", at.port()),
            }
        })
    }

    /// Says where everything is.
    pub(super) fn announce(&self, json: bool) {
        let (http, models) = (self.http_url(), self.scheduler.models());
        if json {
            let line = json!({
                "event": "ready", "http": http, "api": format!("{http}/v1"), "quic": self.join.to_string(),
                "join": self.join.to_string(), "api_key": self.key.0, "models": models,
            });
            println!("{line}");
            return;
        }
        let model = models.first().map_or("MODEL", String::as_str);
        println!("  API     {http}/v1");
        println!("  QUIC    {}", self.join);
        println!("  models  {}", models.join(", "));
        println!("\n  export OPENAI_BASE_URL={http}/v1 OPENAI_API_KEY={}", self.key.0);
        let (path, body) = match self.scheduler.is_encoder(model) {
            true => ("embeddings", json!({"model": model, "input": "a bird"})),
            false => {
                let messages = json!([{"role": "user", "content": "Name a bird."}]);
                ("chat/completions", json!({"model": model, "messages": messages}))
            }
        };
        println!("  curl {http}/v1/{path} -H 'Authorization: Bearer {}' \\", self.key.0);
        println!("    -H 'Content-Type: application/json' \\");
        println!("    -d '{body}'");
        println!("\n  another miner:  cuckoo mine --join {}", self.join);
    }
}
