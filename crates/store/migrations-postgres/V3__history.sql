-- What programs that know version 2 write and read stays as it was, so they go on: `oldest` stays.

-- The history tells more of each event, and apps have one, too. `context` is JSON: what is never searched by. Who wrote it with an
-- older program said nothing of `app`: it is the connection's.
ALTER TABLE events
    ALTER COLUMN connection DROP NOT NULL,
    ALTER COLUMN version DROP NOT NULL,
    ADD COLUMN app            TEXT,
    ADD COLUMN version_before BIGINT,
    -- The keyed one of the refresh token that stood after it.
    ADD COLUMN fingerprint    TEXT,
    ADD COLUMN process        TEXT,
    ADD COLUMN request_id     TEXT,
    ADD COLUMN context        TEXT NOT NULL DEFAULT '{}',
    ADD CHECK (connection IS NOT NULL OR app IS NOT NULL),
    ADD CHECK ((connection IS NULL) = (version IS NULL));
CREATE INDEX events_by_request ON events (request_id) WHERE request_id IS NOT NULL;
CREATE INDEX events_by_correlation ON events (provider_correlation_id) WHERE provider_correlation_id IS NOT NULL;

-- As for the change feed: whoever reads the events as they come goes no further than what stood before any that is on its way.
-- 17752 marks these locks.
CREATE FUNCTION show_how_far_events_stood() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_advisory_xact_lock_shared(
        (17752::bigint << 40) | (SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM events_id_seq));
    RETURN NULL;
END
$$;
CREATE TRIGGER events_in_order BEFORE INSERT ON events
    FOR EACH STATEMENT EXECUTE FUNCTION show_how_far_events_stood();

-- What calls did, added up: JSON objects of words and how often. `hour` and `minute` are when that began.
CREATE TABLE tallies (
    connection TEXT COLLATE "C" NOT NULL,
    hour       BIGINT NOT NULL,
    counts     JSONB NOT NULL,
    PRIMARY KEY (connection, hour)
);
CREATE INDEX tallies_by_hour ON tallies (hour);
CREATE TABLE app_tallies (
    app    TEXT NOT NULL,
    minute BIGINT NOT NULL,
    counts JSONB NOT NULL,
    PRIMARY KEY (app, minute)
) WITH (fillfactor = 50);

-- The orders that connections are listed in. By their last use there is none: it changes with every use, and would cost more than a
-- sorted list does.
CREATE INDEX connections_by_customer ON connections (customer COLLATE "C", id);
CREATE INDEX connections_by_end ON connections (expires_at, id);
CREATE INDEX connections_by_status ON connections (coalesce(status_since, 0), id);
