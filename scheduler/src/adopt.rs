//! Requests that somebody left open: of an earlier run of this scheduler, and of schedulers that are gone. Nobody goes on
//! with them yet, so they are ended and what they hold is given back.

use std::time::Duration;

use cuckoo_wire::message::{Refusal, RefusalCode};

use crate::journal::Ending;
use crate::ledger::{End, LedgerError, LedgerHandle, Reopened};

/// How often it is looked for schedulers that are gone.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Ends all that is left open now.
pub(crate) async fn all(ledger: &LedgerHandle) -> Result<(), LedgerError> {
    let mut ended = 0;
    loop {
        let reopened = ledger.adopt().await?;
        if reopened.is_empty() {
            break;
        }
        ended += reopened.len();
        for request in reopened {
            end(ledger, request).await;
        }
    }
    if ended > 0 {
        tracing::info!(requests = ended, "released what was held for requests that nobody runs");
    }
    Ok(())
}

/// Ends what is left open from now on.
pub(crate) async fn for_ever(ledger: LedgerHandle) {
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        // A store that is away is tended, and complained about, elsewhere; what is open stays so until it is back.
        if let Err(error) = all(&ledger).await {
            tracing::debug!(%error, "it could not be looked for requests that nobody runs");
        }
    }
}

async fn end(ledger: &LedgerHandle, Reopened { request, epoch, .. }: Reopened) {
    let refusal = Refusal::new(RefusalCode::Unavailable, "the scheduler that ran this request is gone: send it again");
    let end = End { epoch, ending: Ending::Failed(refusal) };
    match ledger.release(request, end.clone()).await {
        // It may be refused: a developer has asked for it elsewhere meanwhile, and it goes on there.
        Ok(_) | Err(LedgerError::Refused(_)) => {}
        // It is this scheduler's now, so nobody else would end it.
        Err(_) => ledger.release_later(request, end),
    }
}
