//! The data directory: which file is what. Holds no secrets itself.

use std::path::PathBuf;

use anyhow::Context;
use cuckoo_wire::message::ApiKey;
use cuckoo_wire::{Address, Identity};
use serde::{Deserialize, Serialize};

use crate::args::Common;

/// Paths under one data directory.
#[derive(Clone, Debug)]
pub(crate) struct Home {
    root: PathBuf,
    models: PathBuf,
}

/// The scheduler that ran here last, so that `cuckoo ask` needs no arguments on the same machine.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct LastScheduler {
    address: String,
    api_key: String,
}

impl LastScheduler {
    pub(crate) fn new(address: &Address, api_key: &ApiKey) -> Self {
        Self { address: address.to_string(), api_key: api_key.0.clone() }
    }

    pub(crate) fn address(&self) -> anyhow::Result<Address> {
        Ok(self.address.parse()?)
    }

    pub(crate) fn api_key(&self) -> ApiKey {
        ApiKey(self.api_key.clone())
    }
}

impl Home {
    pub(crate) fn open(common: &Common) -> anyhow::Result<Self> {
        let (root, models) = (common.home()?, common.models_dir()?);
        std::fs::create_dir_all(&root).with_context(|| {
            format!("cannot write to the data directory {}: choose another with --home DIR", root.display())
        })?;
        Ok(Self { root, models })
    }

    /// Who this machine's user is: as miner, as author and as developer.
    pub(crate) fn identity(&self) -> anyhow::Result<Identity> {
        Ok(Identity::load_or_create(&self.root.join("identity.key"))?)
    }

    /// Who a scheduler on this machine is.
    pub(crate) fn scheduler_identity(&self) -> anyhow::Result<Identity> {
        Ok(Identity::load_or_create(&self.root.join("scheduler.key"))?)
    }

    pub(crate) fn ledger_dir(&self) -> PathBuf {
        self.root.join("ledger")
    }

    pub(crate) fn models_dir(&self) -> PathBuf {
        self.models.clone()
    }

    fn last_path(&self) -> PathBuf {
        self.root.join("scheduler.json")
    }

    /// The scheduler that ran here last, if any did.
    pub(crate) fn last_scheduler(&self) -> anyhow::Result<Option<LastScheduler>> {
        let path = self.last_path();
        match std::fs::read(&path) {
            Ok(json) => {
                Ok(Some(serde_json::from_slice(&json).with_context(|| {
                    format!("{} is damaged: delete it and start the scheduler again", path.display())
                })?))
            }
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e).with_context(|| format!("cannot read {}", path.display())),
        }
    }

    /// Remembers a scheduler. The file holds an API key, so nobody else may read it.
    pub(crate) fn remember(&self, last: &LastScheduler) -> anyhow::Result<()> {
        use std::io::Write;
        use std::os::unix::fs::OpenOptionsExt;
        let (path, staged) = (self.last_path(), self.root.join(format!("scheduler.json.{}", std::process::id())));
        let write = || {
            let mut file =
                std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&staged)?;
            file.write_all(&serde_json::to_vec(last)?)?;
            file.sync_all()?;
            std::fs::rename(&staged, &path)
        };
        write().with_context(|| format!("cannot write {}", path.display()))
    }
}
