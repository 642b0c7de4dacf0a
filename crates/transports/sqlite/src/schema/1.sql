-- What has to be right for a queue to go on is checked by SQLite: a row that somebody writes by hand and gets wrong is refused
-- then, and not met by every consumer later. Only the messages' own columns take anything.

-- One row. `next` gives ids and places: they only ever rise, so that a late settlement never meets another message.
CREATE TABLE throughline_meta (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    version INTEGER NOT NULL,
    next INTEGER NOT NULL CHECK (next > 0)
) STRICT;
INSERT INTO throughline_meta VALUES (1, 0, 1);

CREATE TABLE throughline_queues (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    topic TEXT NOT NULL,               -- '': a work queue
    name TEXT NOT NULL,                -- of the queue or subscription; '': the topic itself
    max_length INTEGER CHECK (max_length BETWEEN 0 AND 4294967295),
    held INTEGER NOT NULL DEFAULT 0,   -- how many messages it holds
    alive_until INTEGER,               -- of a consumer's own subscription: after that its consumer may have died
    suspected_until INTEGER,           -- so it seems to have; it ends then, unless the consumer says otherwise
    deleted INTEGER NOT NULL DEFAULT 0 CHECK (deleted IN (0, 1)) -- its messages go piece by piece, and then it
) STRICT;
CREATE UNIQUE INDEX throughline_queues_by_name ON throughline_queues (topic, name) WHERE deleted = 0;
CREATE INDEX throughline_queues_deleted ON throughline_queues (deleted) WHERE deleted = 1;

-- Messages as they came: no key, no delay, no failure, delivered to nobody, or leased by a range. A message comes here when it
-- is published, behind all others, and never again.
CREATE TABLE throughline_fresh (
    queue INTEGER NOT NULL,
    rank INTEGER NOT NULL              -- 255 - priority: the lowest goes first
        CHECK (rank BETWEEN 0 AND 255),
    id INTEGER NOT NULL                -- of the message, and its place in the order of the queue
        CHECK (id BETWEEN 1 AND 4611686018427387904),
    enqueued INTEGER NOT NULL,         -- when this hop began
    PRIMARY KEY (queue, rank, id)
) STRICT, WITHOUT ROWID;

-- Leases of fresh messages that were claimed together: all of them that stand from `first` to `last`.
CREATE TABLE throughline_ranges (
    queue INTEGER NOT NULL,
    rank INTEGER NOT NULL,
    last INTEGER NOT NULL,             -- ids
    first INTEGER NOT NULL CHECK (first <= last),
    due INTEGER NOT NULL,              -- when the lease ends, in ms since the epoch
    PRIMARY KEY (queue, rank, last)
) STRICT, WITHOUT ROWID;
CREATE INDEX throughline_ranges_due ON throughline_ranges (queue, due);

-- Where each other message stands: what claims and settlements change, in small rows, so that they write little.
CREATE TABLE throughline_line (
    id INTEGER PRIMARY KEY             -- of the message
        CHECK (id BETWEEN 1 AND 4611686018427387904),
    queue INTEGER NOT NULL,
    state INTEGER NOT NULL             -- 0 ready, 1 behind its key, 2 leased, 3 held for its retry, 4 delayed
        CHECK (state BETWEEN 0 AND 4),
    due INTEGER NOT NULL,              -- when that ends, in ms since the epoch
    rank INTEGER NOT NULL              -- 255 - priority: the lowest goes first
        CHECK (rank BETWEEN 0 AND 255),
    place INTEGER NOT NULL,            -- in the order of the queue
    receive_count INTEGER NOT NULL DEFAULT 0 CHECK (receive_count BETWEEN 0 AND 4294967295),
    failed_attempts INTEGER NOT NULL DEFAULT 0 CHECK (failed_attempts BETWEEN 0 AND 4294967295),
    enqueued INTEGER NOT NULL,         -- when this hop began, a delay added
    key BLOB,                          -- the ordering key
    history TEXT,                      -- the failures so far, as JSON
    dead_letter_source TEXT,           -- where it was rejected
    dead_letter_reason TEXT
) STRICT;
-- Each holds only what it is asked for: no claim, settlement or expiry looks at the rest of the queue.
CREATE INDEX throughline_ready ON throughline_line (queue, rank, place) WHERE state = 0;
CREATE INDEX throughline_behind ON throughline_line (queue, rank, place) WHERE state = 1;
CREATE INDEX throughline_due ON throughline_line (queue, due) WHERE state >= 2;
CREATE INDEX throughline_keys ON throughline_line (queue, key, place) WHERE key IS NOT NULL AND state <= 3;

-- The messages themselves, which never change.
CREATE TABLE throughline_messages (
    id INTEGER PRIMARY KEY CHECK (id BETWEEN 1 AND 4611686018427387904),
    message_id TEXT,
    id_origin INTEGER,
    type TEXT,
    source TEXT,
    time INTEGER,
    content_type TEXT,
    content_encoding TEXT,
    correlation_id TEXT,
    reply_to TEXT,
    expires INTEGER,
    priority INTEGER,
    idempotency_key TEXT,
    traceparent TEXT,
    tracestate TEXT,
    baggage TEXT,
    headers TEXT,                      -- all others, as JSON
    payload BLOB                       -- NULL is a tombstone
);

-- Runs of a publisher's operations, by their last: one row a publisher, as a rule.
CREATE TABLE throughline_operations (
    queue INTEGER NOT NULL,
    publisher INTEGER NOT NULL,
    last INTEGER NOT NULL,
    first INTEGER NOT NULL,
    until INTEGER NOT NULL,            -- remembered at least so long
    PRIMARY KEY (queue, publisher, last)
) STRICT, WITHOUT ROWID;
CREATE INDEX throughline_operations_until ON throughline_operations (until);
