-- Adds tables alone, so programs that know version 3 go on: `oldest` stays.

-- How far the events were read for making deliveries of them. Moves on in the transaction that keeps those deliveries.
CREATE TABLE webhook_position (
    only_row INTEGER PRIMARY KEY CHECK (only_row = 1),
    event    INTEGER NOT NULL
) STRICT;

-- What webhooks tell. `endpoint` is a fingerprint of where to, `url` is what of that may be shown. No reference to connection or event: what
-- is to be told is told, whatever becomes of them. `data` is JSON and holds no secret; the link that reconnects is made when it is sent.
CREATE TABLE webhook_deliveries (
    id          TEXT PRIMARY KEY,
    endpoint    TEXT NOT NULL,
    url         TEXT NOT NULL,
    event       INTEGER NOT NULL,
    type        TEXT NOT NULL,
    app         TEXT NOT NULL,
    customer    TEXT,
    connection  TEXT,
    at          INTEGER NOT NULL,
    data        TEXT NOT NULL,
    state       TEXT NOT NULL CHECK (state IN ('pending', 'delivered', 'dead')),
    tries       INTEGER NOT NULL,
    -- When the first try was due, and the next one is.
    began_at    INTEGER NOT NULL,
    next_try_at INTEGER,
    last_try_at INTEGER,
    last_status INTEGER,
    last_error  TEXT,
    finished_at INTEGER,
    CHECK ((connection IS NULL) = (customer IS NULL)),
    CHECK ((state = 'pending') = (next_try_at IS NOT NULL)),
    CHECK ((state = 'pending') = (finished_at IS NULL))
) STRICT;
CREATE UNIQUE INDEX one_delivery_per_event ON webhook_deliveries (endpoint, event);
CREATE INDEX webhook_deliveries_due ON webhook_deliveries (endpoint, next_try_at) WHERE state = 'pending';
CREATE INDEX webhook_deliveries_by_end ON webhook_deliveries (state, finished_at);
CREATE INDEX webhook_deliveries_by_state ON webhook_deliveries (state, id);

-- Each app's place in the journal that its provider keeps of installs and uninstalls. `reads_until` is how long one process has it to
-- itself.
CREATE TABLE journals (
    app           TEXT PRIMARY KEY,
    position      TEXT,
    subscribed_at INTEGER,
    reads_until   INTEGER NOT NULL
) STRICT;
