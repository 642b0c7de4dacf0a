-- A message of one side (0 or 1), by its place in it: digests, no values.
CREATE TABLE message (
    side INTEGER NOT NULL,
    place INTEGER NOT NULL,
    id TEXT NOT NULL,
    is_made_up INTEGER NOT NULL,
    key BLOB,
    content BLOB NOT NULL,
    parts BLOB NOT NULL,
    PRIMARY KEY (side, place)
) WITHOUT ROWID;
-- A message of the first side, and its counterpart in the second.
CREATE TABLE pair (
    first INTEGER PRIMARY KEY,
    second INTEGER NOT NULL UNIQUE,
    is_same INTEGER NOT NULL
);
