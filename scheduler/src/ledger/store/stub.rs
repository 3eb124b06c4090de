//! A store for tests: books and journal in memory, and failures on demand. Knows no keys and refuses to be asked for any.

use std::collections::VecDeque;

use parking_lot::Mutex;

use super::super::books::Books;
use super::*;
use crate::journal::Journal;

/// See the file's head.
pub(in super::super) struct Stub {
    pub(in super::super) books: Mutex<Books>,
    pub(in super::super) journal: Mutex<Journal>,
    /// What the next commits fail with.
    pub(in super::super) failures: Mutex<VecDeque<StoreError>>,
    /// Every batch that came, failed ones too.
    pub(in super::super) batches: Mutex<Vec<Vec<Write>>>,
}

impl Default for Stub {
    fn default() -> Self {
        Self {
            books: Mutex::default(),
            journal: Mutex::new(Journal::new(PeerId([7; 32]), 1)),
            failures: Mutex::default(),
            batches: Mutex::default(),
        }
    }
}

impl Store for Stub {
    async fn commit(&self, writes: &[Write], _: i64) -> Result<Vec<Result<Done, Rejected>>, StoreError> {
        self.batches.lock().push(writes.to_vec());
        // As a disk would, it lets others run meanwhile.
        tokio::time::sleep(Duration::from_millis(1)).await;
        if let Some(failure) = self.failures.lock().pop_front() {
            return Err(failure);
        }
        let (mut books, mut journal) = (self.books.lock(), self.journal.lock());
        writes.iter().map(|w| Ok(w.apply(&mut books, &mut journal)?.map(|changed| changed.done))).collect()
    }

    async fn take_over(&self, _: Takeover) -> Result<Vec<Reopened>, StoreError> {
        unreachable!("the store was asked to take over")
    }

    async fn request(&self, _: RequestId) -> Result<Option<Kept>, StoreError> {
        unreachable!("the store was asked for a request")
    }

    async fn exchange(&self, _: Option<&Note>) -> Result<Vec<Vec<u8>>, StoreError> {
        unreachable!("the store was asked to exchange notes")
    }

    async fn tend(&self, _: i64) -> Result<(), StoreError> {
        Ok(())
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
