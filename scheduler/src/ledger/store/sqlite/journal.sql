-- Version 2: the journal of requests, beside the ledger's tables.

-- Who has ever written here. `run` counts the processes that were this scheduler; the newest may write.
CREATE TABLE scheduler (
  id   INTEGER PRIMARY KEY,
  peer BLOB    NOT NULL UNIQUE CHECK (length(peer) = 32),
  run  INTEGER NOT NULL CHECK (run >= 1)
) STRICT;

-- Requests that run or ended not long ago. Each has a hold, and is open for as long as that is.
CREATE TABLE request (
  request       BLOB    PRIMARY KEY REFERENCES hold (request),
  owner         INTEGER NOT NULL REFERENCES scheduler (id),
  -- The owner's run that opened it or took it over.
  run           INTEGER NOT NULL CHECK (run >= 0),
  -- Its owners, counted: only who knows this number may write.
  epoch         INTEGER NOT NULL CHECK (epoch >= 1),
  spec          BLOB    NOT NULL CHECK (length(spec) <= 1048576),
  -- Its tokens are in the owner's segments from this one on.
  first_segment INTEGER NOT NULL CHECK (first_segment >= 1),
  opened_ms     INTEGER NOT NULL,
  ended_ms      INTEGER,
  -- All tokens and how it ended, postcard.
  output        BLOB,
  ending        BLOB    CHECK (length(ending) <= 4160),
  CHECK ((ended_ms IS NULL) = (output IS NULL) AND (ended_ms IS NULL) = (ending IS NULL))
) STRICT;

CREATE INDEX request_open ON request (owner, run) WHERE ended_ms IS NULL;
CREATE INDEX request_ended ON request (ended_ms) WHERE ended_ms IS NOT NULL;

-- The log of accepted tokens: one row a commit, of all requests that it speaks of.
CREATE TABLE segment (
  owner INTEGER NOT NULL REFERENCES scheduler (id),
  seq   INTEGER NOT NULL CHECK (seq >= 1),
  body  BLOB    NOT NULL,
  PRIMARY KEY (owner, seq)
) STRICT;

PRAGMA user_version = 2;
