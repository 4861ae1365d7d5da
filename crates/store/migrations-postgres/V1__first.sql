-- Times are milliseconds since the Unix epoch, UTC. Lists are JSON arrays. BYTEAs named *_token are sealed by the vault.
-- Names and meanings are those of the SQLite schema.

-- Which programs may use this schema: those that know its version `oldest`, or a later one. A migration after which older programs
-- would do wrong ends with raising it to its own version; any other leaves it, and they go on and may start beside newer ones.
CREATE TABLE schema_use (
    only_row SMALLINT PRIMARY KEY CHECK (only_row = 1),
    oldest   BIGINT NOT NULL
);
INSERT INTO schema_use (only_row, oldest) VALUES (1, 1);

CREATE TABLE vault_check (
    only_row SMALLINT PRIMARY KEY CHECK (only_row = 1),
    sealed   BYTEA NOT NULL
);

CREATE TABLE connections (
    id             TEXT COLLATE "C" PRIMARY KEY,
    app            TEXT NOT NULL,
    customer       TEXT NOT NULL,
    kind           TEXT NOT NULL CHECK (kind IN ('oauth', 'static')),
    account_id     TEXT,
    account_domain TEXT,
    account_user   TEXT,

    status         TEXT NOT NULL CHECK (status IN ('active', 'reconnect_required', 'disconnected')),
    status_reason  TEXT CHECK (status_reason IN ('grant_refused', 'redemption_outcome_lost', 'wrong_client',
                                                 'account_mismatch', 'no_refresh_token', 'uninstalled')),
    status_since   BIGINT,
    superseded_by  TEXT,
    revocation     TEXT CHECK (revocation IN ('pending', 'done', 'unsupported', 'shared')),

    version        BIGINT NOT NULL CHECK (version >= 1),
    fence          BIGINT NOT NULL CHECK (fence >= 0),

    access_token   BYTEA,
    refresh_token  BYTEA,
    refresh_token_fingerprint TEXT,
    token_type     TEXT NOT NULL,
    scopes         TEXT NOT NULL,
    issued_at      BIGINT NOT NULL,
    soft_end       BIGINT NOT NULL,
    hard_end       BIGINT NOT NULL,
    expires_at     BIGINT NOT NULL,
    unproven       BOOLEAN NOT NULL,

    -- The lease: who may redeem this version's refresh token. `until` is judged by this database's clock alone, `shown_until`
    -- is about the same on the holder's clock, for people.
    lease_holder      TEXT,
    lease_until       TIMESTAMPTZ,
    lease_shown_until BIGINT,
    -- The intent: each attempt at redeeming this version's refresh token that may have reached the provider, as an array of
    -- its lease's fence, when it began, and its holder. In the row, so that one statement takes the lease and adds to it.
    attempts          TEXT NOT NULL DEFAULT '[]',

    trouble_failed_at       BIGINT,
    trouble_code            TEXT,
    trouble_failures        BIGINT,
    trouble_next_attempt_at BIGINT,
    cooldown_began_at       BIGINT,
    cooldown_ms             BIGINT,
    forced_at               BIGINT,
    claimed_until           BIGINT NOT NULL DEFAULT 0,

    labels       TEXT NOT NULL,
    created_at   BIGINT NOT NULL,
    connected_at BIGINT NOT NULL,
    updated_at   BIGINT NOT NULL,
    last_call_at         BIGINT,
    last_success_at      BIGINT,
    last_refresh_at      BIGINT,
    last_unauthorized_at BIGINT,
    last_forbidden_at    BIGINT,
    last_rate_limited_at BIGINT,

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
    CHECK ((lease_holder IS NULL) = (lease_until IS NULL)),
    CHECK ((lease_holder IS NULL) = (lease_shown_until IS NULL)),
    CHECK ((trouble_failed_at IS NULL) = (trouble_code IS NULL)),
    CHECK ((trouble_failed_at IS NULL) = (trouble_failures IS NULL)),
    CHECK ((trouble_failed_at IS NULL) = (trouble_next_attempt_at IS NULL)),
    CHECK ((cooldown_began_at IS NULL) = (cooldown_ms IS NULL))
);

CREATE UNIQUE INDEX one_live_connection_per_account ON connections (app, customer, account_id)
    WHERE status <> 'disconnected' AND account_id IS NOT NULL;
CREATE UNIQUE INDEX one_live_connection_per_grant ON connections (app, refresh_token_fingerprint)
    WHERE refresh_token_fingerprint IS NOT NULL;
CREATE INDEX connections_by_account ON connections (app, account_id) WHERE status <> 'disconnected';
CREATE INDEX connections_by_creation ON connections (created_at, id);
CREATE INDEX connections_due ON connections (app, soft_end) WHERE status = 'active' AND kind = 'oauth';

-- Where the coordination mode `row_lock` locks a row while its holder redeems. Nothing is kept in it, and it refers to nothing:
-- a lock on it stands in nobody's way but those who want one, too.
CREATE TABLE turns (
    connection TEXT COLLATE "C" PRIMARY KEY
);

CREATE TABLE events (
    id         BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at         BIGINT NOT NULL,
    connection TEXT NOT NULL REFERENCES connections (id) ON DELETE CASCADE,
    kind       TEXT NOT NULL,
    detail     TEXT NOT NULL,
    version    BIGINT NOT NULL,
    provider_correlation_id TEXT
);
CREATE INDEX events_by_connection ON events (connection, id);

CREATE TABLE changes (
    id         BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at         BIGINT NOT NULL DEFAULT (extract(epoch FROM clock_timestamp()) * 1000)::bigint,
    kind       TEXT NOT NULL CHECK (kind IN ('connection', 'app', 'keys')),
    connection TEXT,
    version    BIGINT,
    app        TEXT,
    CHECK ((kind = 'connection') = (connection IS NOT NULL)),
    CHECK ((kind = 'connection') = (version IS NOT NULL)),
    CHECK ((kind = 'app') = (app IS NOT NULL))
);

-- Numbers are drawn before their transactions commit, so a lower one can appear after a higher one. Before any is drawn, its
-- transaction shows how far the numbers stood, as a lock that ends with it; readers go no further than the lowest of these.
-- 17750 marks our locks among those of others.
CREATE FUNCTION show_how_far_changes_stood() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_advisory_xact_lock_shared(
        (17750::bigint << 40) | (SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM changes_id_seq));
    RETURN NULL;
END
$$;
CREATE TRIGGER changes_in_order BEFORE INSERT ON changes
    FOR EACH STATEMENT EXECUTE FUNCTION show_how_far_changes_stood();

-- No reference to the connection: a revocation outlives a purge.
CREATE TABLE revocations (
    id            BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    connection    TEXT NOT NULL,
    app           TEXT NOT NULL,
    version       BIGINT NOT NULL,
    refresh_token BYTEA,
    refresh_token_fingerprint TEXT,
    state         TEXT NOT NULL CHECK (state IN ('pending', 'done', 'unsupported', 'shared')),
    attempts      BIGINT NOT NULL,
    next_try_at   BIGINT NOT NULL,
    finished_at   BIGINT,
    CHECK ((state = 'pending') = (refresh_token IS NOT NULL)),
    CHECK ((state = 'pending') = (refresh_token_fingerprint IS NOT NULL)),
    CHECK ((state = 'pending') = (finished_at IS NULL))
);
CREATE UNIQUE INDEX one_revocation_per_grant ON revocations (app, refresh_token_fingerprint) WHERE state = 'pending';
CREATE INDEX revocations_due ON revocations (next_try_at) WHERE state = 'pending';

CREATE TABLE apps (
    name                  TEXT PRIMARY KEY,
    rejected_code         TEXT,
    rejected_since        BIGINT,
    rejected_fingerprint  TEXT,
    single_use_since      BIGINT,
    secret_that_worked    TEXT,
    -- The breaker of the token endpoint.
    endpoint_failures     BIGINT,
    endpoint_code         TEXT,
    endpoint_rest_until   BIGINT,
    -- The last look whether it does again, and by which connection.
    probed_at             BIGINT,
    probed_by             TEXT,
    CHECK ((endpoint_failures IS NULL) = (endpoint_code IS NULL)),
    CHECK ((endpoint_failures IS NULL) = (endpoint_rest_until IS NULL)),
    CHECK ((probed_at IS NULL) = (probed_by IS NULL)),
    CHECK ((rejected_code IS NULL) = (rejected_since IS NULL)),
    CHECK ((rejected_code IS NULL) = (rejected_fingerprint IS NULL))
);

-- Each app's exchanges with its token endpoint in the second that `second` counts; `granted` is what the last claim got. Every
-- process writes the same row, and what a crash loses is over: nobody waits for a disk here.
CREATE UNLOGGED TABLE exchanges (
    app     TEXT PRIMARY KEY,
    second  BIGINT NOT NULL,
    used    BIGINT NOT NULL,
    granted BIGINT NOT NULL
) WITH (fillfactor = 50);

CREATE TABLE api_keys (
    id          TEXT PRIMARY KEY,
    hash        BYTEA NOT NULL UNIQUE CHECK (octet_length(hash) = 32),
    name        TEXT NOT NULL,
    role        TEXT NOT NULL CHECK (role IN ('gateway', 'tokens', 'support', 'metrics', 'admin')),
    apps        TEXT NOT NULL,
    customers   TEXT NOT NULL,
    connections TEXT NOT NULL,
    lane        TEXT,
    max_wait    BIGINT,
    created_at  BIGINT NOT NULL,
    expires_at  BIGINT,
    revoked_at  BIGINT
);

CREATE TABLE connect_sessions (
    id                 TEXT PRIMARY KEY,
    app                TEXT NOT NULL,
    customer           TEXT NOT NULL,
    connection         TEXT,
    scopes             TEXT NOT NULL,
    return_url         TEXT,
    expires_at         BIGINT NOT NULL,
    outcome            TEXT NOT NULL CHECK (outcome IN ('pending', 'connected', 'failed')),
    outcome_connection TEXT,
    outcome_code       TEXT,
    outcome_detail     TEXT,
    CHECK ((outcome = 'connected') = (outcome_connection IS NOT NULL)),
    CHECK ((outcome = 'failed') = (outcome_code IS NOT NULL)),
    CHECK ((outcome = 'failed') = (outcome_detail IS NOT NULL))
);
CREATE INDEX connect_sessions_by_end ON connect_sessions (expires_at);

CREATE TABLE authorizations (
    state_hash    BYTEA PRIMARY KEY CHECK (octet_length(state_hash) = 32),
    session       TEXT,
    app           TEXT NOT NULL,
    customer      TEXT NOT NULL,
    connection    TEXT,
    scopes        TEXT NOT NULL,
    return_url    TEXT,
    code_verifier BYTEA,
    expires_at    BIGINT NOT NULL
);
CREATE INDEX authorizations_by_end ON authorizations (expires_at);
