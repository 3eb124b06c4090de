//! Requests that somebody left open: of an earlier run of this scheduler, and of schedulers that are gone. Nobody listens
//! to them, so nobody goes on with them before their developer asks for them again; who does not come back pays for what
//! is accepted by then.

use std::time::Duration;

use cuckoo_wire::message::{Refusal, RefusalCode};

use crate::hold::end_later;
use crate::journal::Ending;
use crate::ledger::{End, LedgerError, LedgerHandle, Reopened};
use crate::serve::{RETURN_MAX, delivered};

/// How often it is looked for schedulers that are gone.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Takes all that is left open now.
pub(crate) async fn all(ledger: &LedgerHandle) -> Result<(), LedgerError> {
    let mut found = 0;
    loop {
        let reopened = ledger.adopt().await?;
        if reopened.is_empty() {
            break;
        }
        found += reopened.len();
        for request in reopened {
            keep(ledger.clone(), request);
        }
    }
    if found > 0 {
        tracing::info!(requests = found, "found requests that nobody runs; their developers may ask for them again");
    }
    Ok(())
}

/// Takes what is left open from now on.
pub(crate) async fn for_ever(ledger: LedgerHandle) {
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        // A store that is away is tended, and complained about, elsewhere; what is open stays so until it is back.
        if let Err(error) = all(&ledger).await {
            tracing::debug!(%error, "it could not be looked for requests that nobody runs");
        }
    }
}

/// Keeps a request for its developer, and ends it if it has not been asked for by then.
fn keep(ledger: LedgerHandle, reopened: Reopened) {
    let Reopened { request, epoch, .. } = reopened;
    match delivered(&reopened) {
        Some(delivered) => {
            let end = End { epoch, ending: Ending::Gone };
            tokio::spawn(async move {
                tokio::time::sleep(RETURN_MAX).await;
                // Refused if somebody has it again.
                end_later(&ledger, request, delivered.settlement(request), end);
            });
        }
        None => {
            let why = "the scheduler that ran this request is gone, and it is not of a kind that another one can go on \
                       with: send it again";
            let ending = Ending::Failed(Refusal::new(RefusalCode::Unavailable, why));
            ledger.release_later(request, End { epoch, ending });
        }
    }
}
