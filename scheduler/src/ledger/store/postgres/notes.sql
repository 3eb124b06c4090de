-- Version 2: what schedulers tell each other, beside the tables of version 1.

-- One row a note, kept for minutes. A process writes its own one after the other, so none of them appears after a later one,
-- and whoever knows the last that it has heard of a scheduler misses none; but perhaps the last one of a process that was
-- fenced off.
CREATE TABLE note (
  id        bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  scheduler bigint      NOT NULL REFERENCES scheduler (id),
  -- Of the scheduler's process, and counted there: told again, it is the same note.
  run       bigint      NOT NULL CHECK (run >= 1),
  number    bigint      NOT NULL CHECK (number >= 1),
  at        timestamptz NOT NULL,
  body      bytea       NOT NULL CHECK (length(body) <= 262144),
  UNIQUE (scheduler, run, number)
);

CREATE INDEX note_scheduler ON note (scheduler, id);
CREATE INDEX note_at ON note (at);

UPDATE store SET version = 2;
