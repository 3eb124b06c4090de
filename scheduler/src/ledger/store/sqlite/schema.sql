-- The ledger's tables. Amounts are nano-credits. Rows of `posting` are never changed or deleted.

CREATE TABLE account (
  id      INTEGER PRIMARY KEY,
  name    TEXT    NOT NULL UNIQUE CHECK (length(name) BETWEEN 1 AND 80),
  balance INTEGER NOT NULL CHECK (balance >= 0 OR name LIKE 'ext:%')
) STRICT;

CREATE TABLE posting (
  seq      INTEGER PRIMARY KEY CHECK (seq >= 1),
  transfer BLOB    NOT NULL UNIQUE CHECK (length(transfer) = 16),
  kind     TEXT    NOT NULL CHECK (kind IN ('deposit', 'hold', 'settle', 'void', 'release')),
  request  BLOB    CHECK (request IS NULL OR length(request) = 16),
  debit    INTEGER NOT NULL REFERENCES account (id),
  credit   INTEGER NOT NULL REFERENCES account (id) CHECK (credit <> debit),
  amount   INTEGER NOT NULL CHECK (amount > 0),
  at_ms    INTEGER NOT NULL,
  -- BLAKE3 of the previous row's chain and of this row's content.
  chain    BLOB    NOT NULL CHECK (length(chain) = 32)
) STRICT;

CREATE INDEX posting_debit ON posting (debit, seq);
CREATE INDEX posting_credit ON posting (credit, seq);

CREATE TABLE hold (
  request           BLOB    PRIMARY KEY CHECK (length(request) = 16),
  client            INTEGER NOT NULL REFERENCES account (id),
  amount            INTEGER NOT NULL CHECK (amount >= 0),
  state             TEXT    NOT NULL CHECK (state IN ('open', 'settled', 'released')),
  cost              INTEGER NOT NULL CHECK (cost BETWEEN 0 AND amount AND (cost = 0 OR state = 'settled')),
  miner             INTEGER NOT NULL CHECK (miner >= 0),
  author            INTEGER NOT NULL CHECK (author >= 0),
  network           INTEGER NOT NULL CHECK (network >= 0),
  prompt_tokens     INTEGER NOT NULL CHECK (prompt_tokens >= 0),
  completion_tokens INTEGER NOT NULL CHECK (completion_tokens >= 0),
  CHECK (cost = miner + author + network)
) STRICT, WITHOUT ROWID;

-- Few rows at any time: only these are looked for by state.
CREATE INDEX hold_open ON hold (request) WHERE state = 'open';

-- Sums over settled holds, kept so that nobody has to add them up.
CREATE TABLE total (
  id       INTEGER PRIMARY KEY CHECK (id = 1),
  requests INTEGER NOT NULL,
  cost     INTEGER NOT NULL,
  miner    INTEGER NOT NULL,
  author   INTEGER NOT NULL,
  network  INTEGER NOT NULL,
  CHECK (cost = miner + author + network)
) STRICT;

INSERT INTO total (id, requests, cost, miner, author, network) VALUES (1, 0, 0, 0, 0, 0);

CREATE TABLE api_key (
  hash       BLOB    PRIMARY KEY CHECK (length(hash) = 32),
  prefix     TEXT    NOT NULL CHECK (length(prefix) = 8),
  client     INTEGER NOT NULL REFERENCES account (id),
  label      TEXT    NOT NULL CHECK (length(label) <= 64),
  created_ms INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE INDEX api_key_prefix ON api_key (prefix);

-- Which pepper the hashes above were made with; one row once there is a pepper.
CREATE TABLE pepper (
  id          INTEGER PRIMARY KEY CHECK (id = 1),
  fingerprint BLOB NOT NULL CHECK (length(fingerprint) = 32)
) STRICT;

-- "ckLg", so that another program's database is not taken for a ledger. `journal.sql` sets the version.
PRAGMA application_id = 1667976295;
