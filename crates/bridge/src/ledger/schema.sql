-- One row: what the ledger is of, and which of the two tables of identities is being filled.
CREATE TABLE bridge (
    version INTEGER NOT NULL,
    source TEXT NOT NULL,
    sink TEXT NOT NULL,
    filling INTEGER NOT NULL DEFAULT 0,
    filled INTEGER NOT NULL DEFAULT 0
);
-- A run each. `ended` is empty while it runs, and stays so when it was killed.
CREATE TABLE run (
    id INTEGER PRIMARY KEY,
    began INTEGER NOT NULL,
    ended INTEGER,
    in_flight INTEGER NOT NULL,
    moved INTEGER NOT NULL DEFAULT 0,
    bytes INTEGER NOT NULL DEFAULT 0,
    rejected INTEGER NOT NULL DEFAULT 0,
    skipped INTEGER NOT NULL DEFAULT 0,
    already_moved INTEGER NOT NULL DEFAULT 0,
    copies INTEGER NOT NULL DEFAULT 0,
    sent_again INTEGER NOT NULL DEFAULT 0,
    deduplicated INTEGER NOT NULL DEFAULT 0
);
-- What the sink has accepted, or the reject address. Two, so that the older can be emptied at once.
CREATE TABLE moved_0 (identity BLOB PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE moved_1 (identity BLOB PRIMARY KEY) WITHOUT ROWID;
-- What became of messages (0: sent, 1: rejected, 2: moved before), where that is to be compared with the source and the
-- sink: digests only.
CREATE TABLE sent (
    number INTEGER PRIMARY KEY,
    place INTEGER NOT NULL,
    became INTEGER NOT NULL,
    id TEXT NOT NULL,
    is_made_up INTEGER NOT NULL,
    key BLOB,
    content BLOB NOT NULL,
    parts BLOB NOT NULL
);
-- What went to the reject address, and why.
CREATE TABLE rejected (
    at INTEGER NOT NULL,
    id TEXT NOT NULL,
    message_type TEXT,
    class TEXT NOT NULL,
    reason TEXT NOT NULL
);
