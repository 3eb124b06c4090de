-- The ledger's and the journal's tables on PostgreSQL. Amounts are nano-credits. Rows of `posting` are never changed or
-- deleted. Many schedulers write: what only one of them writes is named by its row in `scheduler`.

CREATE TABLE store (
  id          integer PRIMARY KEY CHECK (id = 1),
  application text    NOT NULL,
  version     integer NOT NULL
);

-- Who has ever written here. `run` counts the processes that were this scheduler; the newest may write, and must hold this
-- row's lock while it does. `taken` counts how often others took requests over from it.
CREATE TABLE scheduler (
  id      bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  peer    bytea       NOT NULL UNIQUE CHECK (length(peer) = 32),
  run     bigint      NOT NULL CHECK (run >= 1),
  taken   bigint      NOT NULL CHECK (taken >= 0),
  expires timestamptz NOT NULL
);

-- Balances of developers, holds and the world outside are as of now, and locked by who changes them. What others have is
-- this and their rows in `income`.
CREATE TABLE account (
  id      bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  name    text   COLLATE "C" NOT NULL UNIQUE CHECK (length(name) BETWEEN 1 AND 80),
  balance bigint NOT NULL CHECK (balance >= 0 OR name LIKE 'ext:%')
);

-- What was earned and is not yet in `account.balance`: one row a commit and account, so that no commit waits for another
-- at the account of a miner or of the network.
CREATE TABLE income (
  id      bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  account bigint NOT NULL,
  amount  bigint NOT NULL CHECK (amount > 0)
);

CREATE INDEX income_account ON income (account);

-- Accounts are not looked up for each row, which would lock those of the network; the trial balance does.
CREATE TABLE posting (
  writer   bigint NOT NULL REFERENCES scheduler (id),
  seq      bigint NOT NULL CHECK (seq >= 1),
  transfer bytea  NOT NULL UNIQUE CHECK (length(transfer) = 16),
  kind     text   NOT NULL CHECK (kind IN ('deposit', 'hold', 'settle', 'void', 'release')),
  request  bytea  CHECK (request IS NULL OR length(request) = 16),
  debit    bigint NOT NULL,
  credit   bigint NOT NULL CHECK (credit <> debit),
  amount   bigint NOT NULL CHECK (amount > 0),
  at_ms    bigint NOT NULL,
  -- BLAKE3 of the chain of the writer's previous row and of this row's content.
  chain    bytea  NOT NULL CHECK (length(chain) = 32),
  PRIMARY KEY (writer, seq)
);

CREATE INDEX posting_debit ON posting (debit, at_ms);
CREATE INDEX posting_credit ON posting (credit, at_ms);

CREATE TABLE hold (
  request           bytea  PRIMARY KEY CHECK (length(request) = 16),
  client            bigint NOT NULL,
  amount            bigint NOT NULL CHECK (amount >= 0),
  state             text   NOT NULL CHECK (state IN ('open', 'settled', 'released')),
  cost              bigint NOT NULL CHECK (cost BETWEEN 0 AND amount AND (cost = 0 OR state = 'settled')),
  miner             bigint NOT NULL CHECK (miner >= 0),
  author            bigint NOT NULL CHECK (author >= 0),
  network           bigint NOT NULL CHECK (network >= 0),
  prompt_tokens     bigint NOT NULL CHECK (prompt_tokens >= 0),
  completion_tokens bigint NOT NULL CHECK (completion_tokens >= 0),
  CHECK (cost = miner + author + network)
);

CREATE INDEX hold_open ON hold (request) WHERE state = 'open';

-- Sums over the holds that each scheduler settled.
CREATE TABLE total (
  writer   bigint PRIMARY KEY REFERENCES scheduler (id),
  requests bigint NOT NULL,
  cost     bigint NOT NULL,
  miner    bigint NOT NULL,
  author   bigint NOT NULL,
  network  bigint NOT NULL,
  CHECK (cost = miner + author + network)
);

CREATE TABLE request (
  request       bytea  PRIMARY KEY REFERENCES hold (request),
  owner         bigint NOT NULL REFERENCES scheduler (id),
  -- The owner's run that opened it or took it over.
  run           bigint NOT NULL CHECK (run >= 0),
  -- Its owners, counted: only who knows this number may write.
  epoch         bigint NOT NULL CHECK (epoch >= 1),
  spec          bytea  NOT NULL CHECK (length(spec) <= 1048576),
  -- Its tokens are in the owner's segments from this one on.
  first_segment bigint NOT NULL CHECK (first_segment >= 1),
  opened_ms     bigint NOT NULL,
  ended_ms      bigint,
  -- All tokens and how it ended, postcard.
  output        bytea,
  ending        bytea  CHECK (length(ending) <= 4160),
  CHECK ((ended_ms IS NULL) = (output IS NULL) AND (ended_ms IS NULL) = (ending IS NULL))
);

CREATE INDEX request_open ON request (owner, run) WHERE ended_ms IS NULL;
CREATE INDEX request_ended ON request (ended_ms) WHERE ended_ms IS NOT NULL;

-- The log of accepted tokens: one row a commit, of all requests that it speaks of.
CREATE TABLE segment (
  owner bigint NOT NULL REFERENCES scheduler (id),
  seq   bigint NOT NULL CHECK (seq >= 1),
  body  bytea  NOT NULL,
  PRIMARY KEY (owner, seq)
);

CREATE TABLE api_key (
  hash       bytea  PRIMARY KEY CHECK (length(hash) = 32),
  prefix     text   NOT NULL CHECK (length(prefix) = 8),
  client     bigint NOT NULL REFERENCES account (id),
  label      text   NOT NULL CHECK (octet_length(label) <= 64),
  created_ms bigint NOT NULL
);

CREATE INDEX api_key_prefix ON api_key (prefix);

-- Which pepper the hashes above were made with; one row once there is a pepper.
CREATE TABLE pepper (
  id          integer PRIMARY KEY CHECK (id = 1),
  fingerprint bytea   NOT NULL CHECK (length(fingerprint) = 32)
);

-- `notes.sql` goes on from here.
INSERT INTO store (id, application, version) VALUES (1, 'cuckoo ledger', 1);
