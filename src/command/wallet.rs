//! `cuckoo wallet`: balances and the last entries, as the scheduler's books have them.

use serde_json::json;

use super::{ask, credits};
use crate::args::{Common, WalletArgs};
use crate::home::Home;

pub(super) async fn run(common: &Common, args: WalletArgs) -> anyhow::Result<()> {
    let home = Home::open(common)?;
    let (client, key) = ask::connect(&home, &args.target).await?;
    let wallet = client.wallet(key, args.entries).await?;
    if common.json {
        let balances: Vec<_> =
            wallet.balances.iter().map(|(account, nano)| json!({"account": account, "nano": nano})).collect();
        let entries: Vec<_> = wallet
            .entries
            .iter()
            .map(|e| {
                json!({
                    "at_ms": e.at_ms, "account": e.account, "counterparty": e.counterparty, "nano": e.amount,
                    "kind": e.kind, "request": e.request.map(|r| r.to_string()),
                })
            })
            .collect();
        println!("{}", json!({"balances": balances, "entries": entries}));
        return Ok(());
    }
    for (account, nano) in &wallet.balances {
        println!("{:>20}  {account}", credits(*nano));
    }
    println!();
    for e in &wallet.entries {
        let request = e.request.map_or_else(String::new, |r| r.to_string());
        println!("{:>20}  {:<8} {} ↔ {}  {request}", credits(e.amount), e.kind, e.account, e.counterparty);
    }
    client.close();
    Ok(())
}
