//! `cuckoo ask` and `cuckoo chat`: one question or many, to any scheduler.

use std::io::{BufRead, IsTerminal, Write};

use anyhow::{Context, bail};
use cuckoo::{ApiKey, ChatMessage, Client, Prompt};
use tokio::sync::mpsc;

use super::{asked_to_stop, generate};
use crate::args::{AskArgs, ChatArgs, Common, Target};
use crate::home::{Home, LastScheduler};

/// Connects to the first that answers of the schedulers that were named, or to the one that ran here last.
pub(super) async fn connect(home: &Home, target: &Target) -> anyhow::Result<(Client, Option<ApiKey>)> {
    let last = home.last_scheduler()?;
    let addresses = match (target.scheduler.as_slice(), &last) {
        ([], Some(last)) => vec![last.address()?],
        ([], None) => bail!("no scheduler has run here: start one with `cuckoo up`, or name one with --scheduler"),
        (named, _) => named.to_vec(),
    };
    // A key belongs to the scheduler that made it.
    let made_here =
        |last: &&LastScheduler| last.address().is_ok_and(|own| addresses.iter().any(|a| a.peer == own.peer));
    let own = last.as_ref().filter(made_here).map(LastScheduler::api_key);
    let key = target.api_key.clone().map(ApiKey).or(own);
    let client = Client::connect_any(&addresses, &home.identity()?).await.context("is the scheduler running?")?;
    Ok((client, key))
}

pub(super) fn paying(key: Option<ApiKey>) -> anyhow::Result<ApiKey> {
    key.context("no API key for this scheduler: give one with --api-key, or in CUCKOO_API_KEY")
}

pub(super) async fn ask(common: &Common, args: AskArgs) -> anyhow::Result<()> {
    let home = Home::open(common)?;
    let (client, key) = connect(&home, &args.target).await?;
    let key = paying(key)?;
    let model = generate::model(&client, &args.generation).await?;
    let prompt = Prompt::Chat(vec![ChatMessage::new("user", args.question)]);
    let answer = tokio::select! {
        answer = generate::stream(&client, &key, &model, prompt, &args.generation, common.json) => answer?,
        () = asked_to_stop() => bail!("cancelled"),
    };
    answer.report(common.json);
    client.close();
    Ok(())
}

pub(super) async fn chat(common: &Common, args: ChatArgs) -> anyhow::Result<()> {
    let home = Home::open(common)?;
    let (client, key) = connect(&home, &args.target).await?;
    let key = paying(key)?;
    let model = generate::model(&client, &args.generation).await?;
    let mut history: Vec<ChatMessage> = args.system.map(|text| ChatMessage::new("system", text)).into_iter().collect();
    let interactive = std::io::stdin().is_terminal();
    if interactive {
        eprintln!("talking with {model}; Ctrl-D or /exit ends, Ctrl-C stops an answer");
    }
    let mut lines = lines();
    loop {
        if interactive {
            eprint!("> ");
            std::io::stderr().flush()?;
        }
        let line = tokio::select! {
            line = lines.recv() => line,
            () = asked_to_stop() => None,
        };
        let Some(line) = line.filter(|l| l.trim() != "/exit") else { break };
        if line.trim().is_empty() {
            continue;
        }
        history.push(ChatMessage::new("user", line));
        let prompt = Prompt::Chat(history.clone());
        let answer = tokio::select! {
            answer = generate::stream(&client, &key, &model, prompt, &args.generation, common.json) => answer?,
            () = asked_to_stop() => {
                eprintln!("\n(stopped)");
                history.pop();
                continue;
            }
        };
        answer.report(common.json);
        history.push(ChatMessage::new("assistant", answer.text));
    }
    client.close();
    Ok(())
}

/// Lines of standard input, read on a thread that may block.
fn lines() -> mpsc::Receiver<String> {
    let (lines_in, lines) = mpsc::channel(1);
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines().map_while(Result::ok) {
            if lines_in.blocking_send(line).is_err() {
                return;
            }
        }
    });
    lines
}
