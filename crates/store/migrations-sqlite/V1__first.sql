-- Times are milliseconds since the Unix epoch, UTC. Lists are JSON arrays. BLOBs named *_token are sealed by the vault.

-- Which programs may use this schema: those that know its version `oldest`, or a later one. A migration after which older programs
-- would do wrong ends with raising it to its own version; any other leaves it, and they go on and may start beside newer ones.
CREATE TABLE schema_use (
    only_row INTEGER PRIMARY KEY CHECK (only_row = 1),
    oldest   INTEGER NOT NULL
) STRICT;
INSERT INTO schema_use (only_row, oldest) VALUES (1, 1);

CREATE TABLE vault_check (
    only_row INTEGER PRIMARY KEY CHECK (only_row = 1),
    sealed   BLOB NOT NULL
) STRICT;

CREATE TABLE connections (
    id             TEXT PRIMARY KEY,
    app            TEXT NOT NULL,
    customer       TEXT NOT NULL,
    kind           TEXT NOT NULL CHECK (kind IN ('oauth', 'static')),
    account_id     TEXT,
    account_domain TEXT,
    account_user   TEXT,

    status         TEXT NOT NULL CHECK (status IN ('active', 'reconnect_required', 'disconnected')),
    status_reason  TEXT CHECK (status_reason IN ('grant_refused', 'redemption_outcome_lost', 'wrong_client',
                                                 'account_mismatch', 'no_refresh_token', 'uninstalled')),
    status_since   INTEGER,
    superseded_by  TEXT,
    revocation     TEXT CHECK (revocation IN ('pending', 'done', 'unsupported', 'shared')),

    version        INTEGER NOT NULL CHECK (version >= 1),
    fence          INTEGER NOT NULL CHECK (fence >= 0),

    access_token   BLOB,
    refresh_token  BLOB,
    refresh_token_fingerprint TEXT,
    token_type     TEXT NOT NULL,
    scopes         TEXT NOT NULL,
    issued_at      INTEGER NOT NULL,
    soft_end       INTEGER NOT NULL,
    hard_end       INTEGER NOT NULL,
    expires_at     INTEGER NOT NULL,
    unproven       INTEGER NOT NULL CHECK (unproven IN (0, 1)),

    -- The lease: who may redeem this version's refresh token. `until` counts on the boot-time clock of that boot, `shown_until`
    -- is the same in wall time, for people.
    lease_holder      TEXT,
    lease_boot        TEXT,
    lease_until       INTEGER,
    lease_shown_until INTEGER,
    -- The intent: each attempt at redeeming this version's refresh token that may have reached the provider, as an array of
    -- its lease's fence, when it began, and its holder. In the row, so that one statement takes the lease and adds to it.
    attempts          TEXT NOT NULL DEFAULT '[]',

    trouble_failed_at       INTEGER,
    trouble_code            TEXT,
    trouble_failures        INTEGER,
    trouble_next_attempt_at INTEGER,
    cooldown_began_at       INTEGER,
    cooldown_ms             INTEGER,
    forced_at               INTEGER,
    claimed_until           INTEGER NOT NULL DEFAULT 0,

    labels       TEXT NOT NULL,
    created_at   INTEGER NOT NULL,
    connected_at INTEGER NOT NULL,
    updated_at   INTEGER NOT NULL,
    last_call_at         INTEGER,
    last_success_at      INTEGER,
    last_refresh_at      INTEGER,
    last_unauthorized_at INTEGER,
    last_forbidden_at    INTEGER,
    last_rate_limited_at INTEGER,

    -- Each status carries exactly what is valid in it.
    CHECK ((status = 'active') = (status_since IS NULL)),
    CHECK ((status = 'reconnect_required') = (status_reason IS NOT NULL)),
    CHECK ((status = 'disconnected') = (access_token IS NULL)),
    CHECK ((status = 'disconnected') = (revocation IS NOT NULL)),
    CHECK (status = 'disconnected' OR superseded_by IS NULL),
    CHECK (status = 'active' OR trouble_failed_at IS NULL),
    CHECK (status = 'active' OR status = 'reconnect_required' OR lease_holder IS NULL),
    CHECK (status <> 'disconnected' OR refresh_token IS NULL),
    CHECK (status <> 'disconnected' OR attempts = '[]'),
    CHECK (kind = 'oauth' OR refresh_token IS NULL),
    CHECK ((refresh_token IS NULL) = (refresh_token_fingerprint IS NULL)),
    CHECK (account_id IS NOT NULL OR (account_domain IS NULL AND account_user IS NULL)),
    CHECK ((lease_holder IS NULL) = (lease_boot IS NULL)),
    CHECK ((lease_holder IS NULL) = (lease_until IS NULL)),
    CHECK ((lease_holder IS NULL) = (lease_shown_until IS NULL)),
    CHECK ((trouble_failed_at IS NULL) = (trouble_code IS NULL)),
    CHECK ((trouble_failed_at IS NULL) = (trouble_failures IS NULL)),
    CHECK ((trouble_failed_at IS NULL) = (trouble_next_attempt_at IS NULL)),
    CHECK ((cooldown_began_at IS NULL) = (cooldown_ms IS NULL))
) STRICT;

CREATE UNIQUE INDEX one_live_connection_per_account ON connections (app, customer, account_id)
    WHERE status <> 'disconnected' AND account_id IS NOT NULL;
CREATE UNIQUE INDEX one_live_connection_per_grant ON connections (app, refresh_token_fingerprint)
    WHERE refresh_token_fingerprint IS NOT NULL;
CREATE INDEX connections_by_account ON connections (app, account_id) WHERE status <> 'disconnected';
CREATE INDEX connections_by_creation ON connections (created_at, id);
CREATE INDEX connections_due ON connections (app, soft_end) WHERE status = 'active' AND kind = 'oauth';

CREATE TABLE events (
    id         INTEGER PRIMARY KEY AUTOINCREMENT,
    at         INTEGER NOT NULL,
    connection TEXT NOT NULL REFERENCES connections (id) ON DELETE CASCADE,
    kind       TEXT NOT NULL,
    detail     TEXT NOT NULL,
    version    INTEGER NOT NULL,
    provider_correlation_id TEXT
) STRICT;
CREATE INDEX events_by_connection ON events (connection, id);

CREATE TABLE changes (
    id         INTEGER PRIMARY KEY AUTOINCREMENT,
    at         INTEGER NOT NULL DEFAULT (CAST(unixepoch('subsec') * 1000 AS INTEGER)),
    kind       TEXT NOT NULL CHECK (kind IN ('connection', 'app', 'keys')),
    connection TEXT,
    version    INTEGER,
    app        TEXT,
    CHECK ((kind = 'connection') = (connection IS NOT NULL)),
    CHECK ((kind = 'connection') = (version IS NOT NULL)),
    CHECK ((kind = 'app') = (app IS NOT NULL))
) STRICT;

-- No reference to the connection: a revocation outlives a purge.
CREATE TABLE revocations (
    id            INTEGER PRIMARY KEY AUTOINCREMENT,
    connection    TEXT NOT NULL,
    app           TEXT NOT NULL,
    version       INTEGER NOT NULL,
    refresh_token BLOB,
    refresh_token_fingerprint TEXT,
    state         TEXT NOT NULL CHECK (state IN ('pending', 'done', 'unsupported', 'shared')),
    attempts      INTEGER NOT NULL,
    next_try_at   INTEGER NOT NULL,
    finished_at   INTEGER,
    CHECK ((state = 'pending') = (refresh_token IS NOT NULL)),
    CHECK ((state = 'pending') = (refresh_token_fingerprint IS NOT NULL)),
    CHECK ((state = 'pending') = (finished_at IS NULL))
) STRICT;
CREATE UNIQUE INDEX one_revocation_per_grant ON revocations (app, refresh_token_fingerprint) WHERE state = 'pending';
CREATE INDEX revocations_due ON revocations (next_try_at) WHERE state = 'pending';

CREATE TABLE apps (
    name                  TEXT PRIMARY KEY,
    rejected_code         TEXT,
    rejected_since        INTEGER,
    rejected_fingerprint  TEXT,
    single_use_since      INTEGER,
    secret_that_worked    TEXT,
    -- The breaker of the token endpoint.
    endpoint_failures     INTEGER,
    endpoint_code         TEXT,
    endpoint_rest_until   INTEGER,
    -- The last look whether it does again, and by which connection.
    probed_at             INTEGER,
    probed_by             TEXT,
    CHECK ((endpoint_failures IS NULL) = (endpoint_code IS NULL)),
    CHECK ((endpoint_failures IS NULL) = (endpoint_rest_until IS NULL)),
    CHECK ((probed_at IS NULL) = (probed_by IS NULL)),
    CHECK ((rejected_code IS NULL) = (rejected_since IS NULL)),
    CHECK ((rejected_code IS NULL) = (rejected_fingerprint IS NULL))
) STRICT;

-- Each app's exchanges with its token endpoint in the second that `second` counts; `granted` is what the last claim got.
CREATE TABLE exchanges (
    app     TEXT PRIMARY KEY,
    second  INTEGER NOT NULL,
    used    INTEGER NOT NULL,
    granted INTEGER NOT NULL
) STRICT;

CREATE TABLE api_keys (
    id          TEXT PRIMARY KEY,
    hash        BLOB NOT NULL UNIQUE CHECK (length(hash) = 32),
    name        TEXT NOT NULL,
    role        TEXT NOT NULL CHECK (role IN ('gateway', 'tokens', 'support', 'metrics', 'admin')),
    apps        TEXT NOT NULL,
    customers   TEXT NOT NULL,
    connections TEXT NOT NULL,
    lane        TEXT,
    max_wait    INTEGER,
    created_at  INTEGER NOT NULL,
    expires_at  INTEGER,
    revoked_at  INTEGER
) STRICT;

CREATE TABLE connect_sessions (
    id                 TEXT PRIMARY KEY,
    app                TEXT NOT NULL,
    customer           TEXT NOT NULL,
    connection         TEXT,
    scopes             TEXT NOT NULL,
    return_url         TEXT,
    expires_at         INTEGER NOT NULL,
    outcome            TEXT NOT NULL CHECK (outcome IN ('pending', 'connected', 'failed')),
    outcome_connection TEXT,
    outcome_code       TEXT,
    outcome_detail     TEXT,
    CHECK ((outcome = 'connected') = (outcome_connection IS NOT NULL)),
    CHECK ((outcome = 'failed') = (outcome_code IS NOT NULL)),
    CHECK ((outcome = 'failed') = (outcome_detail IS NOT NULL))
) STRICT;
CREATE INDEX connect_sessions_by_end ON connect_sessions (expires_at);

CREATE TABLE authorizations (
    state_hash    BLOB PRIMARY KEY CHECK (length(state_hash) = 32),
    session       TEXT,
    app           TEXT NOT NULL,
    customer      TEXT NOT NULL,
    connection    TEXT,
    scopes        TEXT NOT NULL,
    return_url    TEXT,
    code_verifier BLOB,
    expires_at    INTEGER NOT NULL
) STRICT;
CREATE INDEX authorizations_by_end ON authorizations (expires_at);
