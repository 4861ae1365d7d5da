-- What programs that know version 2 write and read stays as it was, so they go on: `oldest` stays.

-- The history tells more of each event, and apps have one, too. `context` is JSON: what is never searched by. Who wrote it with an
-- older program said nothing of `app`: it is the connection's.
CREATE TABLE events_3 (
    id             INTEGER PRIMARY KEY AUTOINCREMENT,
    at             INTEGER NOT NULL,
    connection     TEXT REFERENCES connections (id) ON DELETE CASCADE,
    app            TEXT,
    kind           TEXT NOT NULL,
    detail         TEXT NOT NULL,
    version_before INTEGER,
    version        INTEGER,
    -- The keyed one of the refresh token that stood after it.
    fingerprint    TEXT,
    process        TEXT,
    request_id     TEXT,
    provider_correlation_id TEXT,
    context        TEXT NOT NULL DEFAULT '{}',
    CHECK (connection IS NOT NULL OR app IS NOT NULL),
    CHECK ((connection IS NULL) = (version IS NULL))
) STRICT;
INSERT INTO events_3 (id, at, connection, app, kind, detail, version, provider_correlation_id)
    SELECT e.id, e.at, e.connection, c.app, e.kind, e.detail, e.version, e.provider_correlation_id
      FROM events e JOIN connections c ON c.id = e.connection ORDER BY e.id;
-- Numbers go on from the highest that was ever given, also where its event is gone.
DELETE FROM sqlite_sequence WHERE name = 'events_3';
INSERT INTO sqlite_sequence (name, seq)
    SELECT 'events_3', coalesce((SELECT seq FROM sqlite_sequence WHERE name = 'events'), 0);
DROP TABLE events;
ALTER TABLE events_3 RENAME TO events;
CREATE INDEX events_by_connection ON events (connection, id);
CREATE INDEX events_by_request ON events (request_id) WHERE request_id IS NOT NULL;
CREATE INDEX events_by_correlation ON events (provider_correlation_id) WHERE provider_correlation_id IS NOT NULL;

-- What calls did, added up: JSON objects of words and how often. `hour` and `minute` are when that began.
CREATE TABLE tallies (
    connection TEXT NOT NULL,
    hour       INTEGER NOT NULL,
    counts     TEXT NOT NULL,
    PRIMARY KEY (connection, hour)
) STRICT, WITHOUT ROWID;
CREATE INDEX tallies_by_hour ON tallies (hour);
CREATE TABLE app_tallies (
    app    TEXT NOT NULL,
    minute INTEGER NOT NULL,
    counts TEXT NOT NULL,
    PRIMARY KEY (app, minute)
) STRICT, WITHOUT ROWID;

-- The orders that connections are listed in.
CREATE INDEX connections_by_customer ON connections (customer, id);
CREATE INDEX connections_by_end ON connections (expires_at, id);
CREATE INDEX connections_by_use ON connections (coalesce(last_call_at, 0), id);
CREATE INDEX connections_by_status ON connections (coalesce(status_since, 0), id);
