-- Adds tables alone, so programs that know version 1 go on: `oldest` stays.

-- The write ledger: each guarded write of a connection, by a keyed fingerprint of its caller's key. No reference to the connection:
-- what was sent is remembered for its time, whatever becomes of the connection, until that is purged. `answer` (status and headers)
-- and `body` are sealed by the vault, for this owner's place; `changed_at` is when the state came about.
CREATE TABLE writes (
    connection TEXT COLLATE "C" NOT NULL,
    key        TEXT COLLATE "C" NOT NULL,
    request    TEXT NOT NULL,
    owner      TEXT NOT NULL,
    state      TEXT NOT NULL CHECK (state IN ('reserved', 'sent', 'done', 'unknown')),
    deadline   BIGINT,
    keep_until BIGINT NOT NULL,
    changed_at BIGINT NOT NULL,
    answer     BYTEA,
    body       BYTEA,
    body_bytes BIGINT,
    PRIMARY KEY (connection, key),
    -- Each state carries exactly what is valid in it. A body may be missing: it was too large, or made room for others.
    CHECK ((state IN ('reserved', 'sent')) = (deadline IS NOT NULL)),
    CHECK ((state = 'done') = (answer IS NOT NULL)),
    CHECK (state = 'done' OR body IS NULL),
    CHECK ((body IS NULL) = (body_bytes IS NULL))
);
-- What is sealed does not get smaller by being compressed.
ALTER TABLE writes ALTER answer SET STORAGE EXTERNAL, ALTER body SET STORAGE EXTERNAL;
CREATE INDEX writes_by_end ON writes (keep_until);
CREATE INDEX writes_with_bodies ON writes (changed_at, body_bytes) WHERE body_bytes IS NOT NULL;

-- Budgets of calls that the whole fleet shares. `used` is an array of when a short while began and the calls
-- granted in it. Searches are counted over all apps: theirs is empty. Every process writes the same row, and what a crash loses is over within a window, or learnt from
-- the next answer: nobody waits for a disk here.
CREATE UNLOGGED TABLE budgets (
    kind        TEXT NOT NULL CHECK (kind IN ('calls', 'searches')),
    app         TEXT NOT NULL,
    account     TEXT NOT NULL,
    limit_calls BIGINT,
    limit_ms    BIGINT,
    rest_until  BIGINT,
    used        TEXT NOT NULL,
    touched_at  BIGINT NOT NULL,
    PRIMARY KEY (kind, app, account),
    CHECK ((kind = 'searches') = (app = '')),
    CHECK ((limit_calls IS NULL) = (limit_ms IS NULL))
) WITH (fillfactor = 50);
