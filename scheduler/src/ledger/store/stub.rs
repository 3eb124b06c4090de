//! A store for tests: books in memory, and failures on demand. Knows no keys and refuses to be asked for any.

use std::collections::VecDeque;

use parking_lot::Mutex;

use super::super::books::Books;
use super::*;

/// See the file's head.
#[derive(Default)]
pub(in super::super) struct Stub {
    pub(in super::super) books: Mutex<Books>,
    /// What the next commits fail with.
    pub(in super::super) failures: Mutex<VecDeque<StoreError>>,
    /// Every batch that came, failed ones too.
    pub(in super::super) batches: Mutex<Vec<Vec<Command>>>,
}

impl Store for Stub {
    async fn commit(&self, commands: &[Command], _: i64) -> Result<Vec<Result<Outcome, Rejection>>, StoreError> {
        self.batches.lock().push(commands.to_vec());
        // As a disk would, it lets others run meanwhile.
        tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        if let Some(failure) = self.failures.lock().pop_front() {
            return Err(failure);
        }
        let mut books = self.books.lock();
        commands.iter().map(|c| Ok(books.apply(c)?.map(|decision| decision.outcome))).collect()
    }

    async fn open_holds(&self) -> Result<Vec<RequestId>, StoreError> {
        unreachable!("the store was asked for holds")
    }

    async fn wallet(&self, _: &[Account], _: u32) -> Result<Wallet, StoreError> {
        unreachable!("the store was asked for a wallet")
    }

    async fn totals(&self) -> Result<Totals, StoreError> {
        unreachable!("the store was asked for totals")
    }

    async fn trial_balance(&self) -> Result<TrialBalance, StoreError> {
        unreachable!("the store was asked for a trial balance")
    }

    async fn pin_pepper(&self, _: &[u8; 32]) -> Result<bool, StoreError> {
        Ok(true)
    }

    async fn add_key(&self, _: &StoredKey) -> Result<(), StoreError> {
        unreachable!("the store was asked to add a key")
    }

    async fn keys(&self, _: Option<&str>) -> Result<Vec<StoredKey>, StoreError> {
        unreachable!("the store was asked for keys")
    }
}
