//! What a sound configuration comes to.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use evergrant_config::{Config, CoordinationMode, Limits, LogCalls, Store, TlsFiles, load, template};
use evergrant_domain::app::{ClientAuth, Dialect};
use evergrant_domain::call_budget::{Limit, Setting};
use evergrant_domain::webhook::Notice;
use evergrant_domain::{App, AppName, ConnectionId, KeepFresh, RefreshPolicy, Rotation};
use tempfile::TempDir;

const HUBSPOT: &str =
    "[apps.crm]\nclient_id = \"id\"\nclient_secret_file = \"crm.secret\"\nscopes = [\"oauth\"]\n";
const GENERIC: &str = "[apps.erp]\nprovider = \"generic\"\nclient_id = \"id\"\nclient_secret_file = \"crm.secret\"\n\
    authorize_url = \"https://erp.example/a\"\ntoken_url = \"https://erp.example/t\"\napi_base = \"http://[::1]:80/v1\"\n";

fn folder(file: &str) -> TempDir {
    let folder = tempfile::tempdir().expect("a temporary folder");
    for (name, text) in [
        ("evergrant.toml", file),
        ("crm.secret", "new\n"),
        ("old.secret", "old"),
        ("my.key", " a2V5 \n"),
        ("hook.secret", "whsec_MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIz\n"),
        ("raw.secret", "raw-raw-raw-raw-raw-raw-\n"),
    ] {
        let path = folder.path().join(name);
        std::fs::write(&path, text).expect("a writable folder");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).expect("own file");
    }
    folder
}

fn load_in(folder: &Path, variables: &[(&str, &str)]) -> Config {
    let variables = variables
        .iter()
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    load(Some(&folder.join("evergrant.toml")), variables).expect("a sound configuration")
}

fn loaded(file: &str, variables: &[(&str, &str)]) -> Config {
    load_in(folder(file).path(), variables)
}

fn app(file: &str, variables: &[(&str, &str)]) -> App {
    let mut apps = loaded(file, variables).apps;
    assert_eq!(apps.len(), 1, "one app");
    apps.remove(0)
}

#[test]
fn an_empty_file_means_the_defaults_beside_it() {
    let folder = folder("");
    let config = load_in(folder.path(), &[]);
    assert_eq!(config.path, Some(folder.path().join("evergrant.toml")));
    assert_eq!(config.server.listen.to_string(), "127.0.0.1:8484");
    assert_eq!(
        config.server.other_loopback(),
        Some("::1".parse().expect("a literal address"))
    );
    assert_eq!(config.server.public_url.as_str(), "http://localhost:8484/");
    assert_eq!(config.server.drain_timeout, Duration::from_secs(25));
    assert_eq!(config.server.threads, None);
    assert_eq!(config.server.tls, None);
    assert!(config.server.trusted_proxies.is_empty());
    assert_eq!(config.store, sqlite(folder.path().join("evergrant.db")));
    assert_eq!(config.vault.key_file, folder.path().join("evergrant.key"));
    assert!(
        config.vault.key.is_none(),
        "there is no key yet, and nobody named one"
    );
    assert_eq!(config.coordination.mode, CoordinationMode::Lease);
    assert_eq!(config.coordination.max_stale, Duration::from_secs(60));
    assert_eq!(config.lifeboat.dir, folder.path().join("lifeboat"));
    assert_eq!(config.log.calls, LogCalls::Failures);
    assert_eq!(config.limits, Limits::default());
    assert!(config.apps.is_empty());
}

#[test]
fn a_journal_is_read_where_that_is_asked_for() {
    assert!(loaded(HUBSPOT, &[]).journals.is_empty());
    let journals = loaded(&format!("{HUBSPOT}journal = true\n"), &[]).journals;
    assert_eq!(journals.iter().map(AppName::as_str).collect::<Vec<_>>(), ["crm"]);
}

#[test]
fn webhooks_are_told_of_everything_unless_they_say_less() {
    let file = format!(
        "{HUBSPOT}[[webhooks]]\nurl = \"https://hooks.example.com/in\"\nsecret_file = \"hook.secret\"\n\
         [[webhooks]]\nurl = \"http://localhost:9000/\"\nsecret_file = [\"hook.secret\", \"raw.secret\"]\n\
         events = [\"app.*\", \"connection.reconnect_required\"]\napps = [\"crm\"]\n"
    );
    let webhooks = loaded(&file, &[]).webhooks;
    assert_eq!(webhooks.len(), 2);
    assert_eq!(webhooks[0].notices, Notice::ALL);
    assert!(webhooks[0].apps.is_empty());
    assert_eq!(webhooks[0].secrets[0].expose(), b"012345678901234567890123");
    assert_eq!(
        webhooks[1].notices,
        [
            Notice::CredentialsRejected,
            Notice::CredentialsAccepted,
            Notice::ReconnectRequired
        ]
    );
    assert_eq!(webhooks[1].apps[0].as_str(), "crm");
    assert_eq!(webhooks[1].secrets[1].expose(), b"raw-raw-raw-raw-raw-raw-");
    assert!(!format!("{webhooks:?}").contains("raw-raw"));
}

#[test]
fn hubspot_needs_little_said() {
    let app = app(HUBSPOT, &[]);
    assert_eq!(app.provider.dialect, Dialect::HubSpot);
    assert_eq!(
        app.provider.authorize_url.as_str(),
        "https://app.hubspot.com/oauth/authorize"
    );
    assert_eq!(
        app.provider.token_url.as_str(),
        "https://api.hubapi.com/oauth/2026-09/token"
    );
    let others = [&app.provider.introspect_url, &app.provider.revoke_url];
    assert_eq!(
        others.map(|url| url.as_ref().map(url::Url::as_str)),
        [
            Some("https://api.hubapi.com/oauth/2026-09/token/introspect"),
            Some("https://api.hubapi.com/oauth/2026-09/token/revoke"),
        ]
    );
    assert_eq!(app.provider.api_base.as_str(), "https://api.hubapi.com/");
    assert_eq!(app.provider.client_auth, ClientAuth::Post);
    assert_eq!(app.provider.rotation, Rotation::Never);
    assert!(!app.provider.pkce);
    assert_eq!(app.redirect_uri, "http://localhost:8484/oauth/callback");
    assert_eq!(app.client_secrets[0].expose(), "new");
    assert_eq!(app.refresh_policy, RefreshPolicy::Queue);
    assert_eq!(app.keep_fresh, KeepFresh::Used);
    assert!(!app.public_install);
}

#[test]
fn a_budget_is_a_number_of_calls_in_a_time_or_none() {
    let check = |line: &str, budget, max_wait: Option<u64>| {
        let app = app(&format!("{HUBSPOT}{line}"), &[]);
        assert_eq!(app.budget, budget, "{line}");
        assert_eq!(app.max_wait, max_wait.map(Duration::from_secs), "{line}");
    };
    let at_most = |calls, seconds| {
        Setting::AtMost(Limit {
            calls,
            per: Duration::from_secs(seconds),
        })
    };
    check("", Setting::Learnt, None);
    check("budget = \"off\"\n", Setting::Off, None);
    check(
        "budget = \"110/10s\"\nmax_wait = \"0s\"\n",
        at_most(110, 10),
        Some(0),
    );
    check(
        "budget = \"5000 / 1h\"\nmax_wait = \"1m\"\n",
        at_most(5000, 3600),
        Some(60),
    );
}

#[test]
fn hubspot_can_be_pointed_at_the_simulator() {
    let app = app(
        &format!("{HUBSPOT}api_base = \"http://127.0.0.1:9/hub\"\noauth_version = \"v3\"\n"),
        &[],
    );
    assert_eq!(
        app.provider.token_url.as_str(),
        "http://127.0.0.1:9/hub/oauth/v3/token"
    );
    assert_eq!(app.provider.api_base.as_str(), "http://127.0.0.1:9/hub");
}

#[test]
fn the_first_oauth_version_never_puts_a_token_into_a_path() {
    let app = app(
        &format!("{HUBSPOT}oauth_version = \"v1\"\noauth_base = \"https://sim.example\"\n"),
        &[],
    );
    assert_eq!(
        app.provider.token_url.as_str(),
        "https://sim.example/oauth/v1/token"
    );
    assert_eq!(
        (app.provider.introspect_url, app.provider.revoke_url),
        (None, None)
    );
}

#[test]
fn another_provider_is_taken_to_use_up_its_refresh_tokens() {
    let app = app(GENERIC, &[]);
    assert_eq!(app.provider.dialect, Dialect::Generic);
    assert_eq!(app.provider.rotation, Rotation::SingleUse);
    assert_eq!(app.provider.client_auth, ClientAuth::Basic);
    assert!(app.provider.pkce);
    assert_eq!(app.provider.account_claim, "sub");
    assert!(app.scopes.is_empty());
}

#[test]
fn rotation_is_one_of_three() {
    let check = |lines: &str, rotation: Rotation| {
        assert_eq!(
            app(&format!("{GENERIC}{lines}"), &[]).provider.rotation,
            rotation,
            "{lines}"
        );
    };
    check("rotation = \"never\"\n", Rotation::Never);
    check("rotation = \"single_use\"\n", Rotation::SingleUse);
    check("rotation = \"grace\"\n", Rotation::Grace(Duration::from_secs(30)));
    check(
        "rotation = \"grace\"\nrotation_grace = \"2m\"\n",
        Rotation::Grace(Duration::from_secs(120)),
    );
}

#[test]
fn the_redirect_uri_follows_the_public_url_unless_it_is_given() {
    let check = |server: &str, redirect_uri: &str| {
        assert_eq!(
            app(&format!("{server}\n{HUBSPOT}"), &[]).redirect_uri,
            redirect_uri
        );
    };
    check(
        "[server]\nlisten = \"localhost:9000\"",
        "http://localhost:9000/oauth/callback",
    );
    check(
        "[server]\npublic_url = \"https://e.example/grants/\"",
        "https://e.example/grants/oauth/callback",
    );
    let given = app(
        &format!("{HUBSPOT}redirect_uri = \"https://old.example/callback\"\n"),
        &[],
    );
    assert_eq!(given.redirect_uri, "https://old.example/callback");
}

#[test]
fn secrets_are_several_newest_first() {
    let file = |line: &str| format!("[apps.crm]\nclient_id = \"id\"\nscopes = [\"oauth\"]\n{line}\n");
    let check = |line: &str, variables: &[(&str, &str)]| {
        let app = app(&file(line), variables);
        let secrets: Vec<&str> = app
            .client_secrets
            .iter()
            .map(evergrant_domain::ClientSecret::expose)
            .collect();
        assert_eq!(secrets, ["new", "old"], "{line}");
    };
    check("client_secret_file = [\"crm.secret\", \"old.secret\"]", &[]);
    check(
        "client_secret_env = [\"NEW\", \"OLD\"]",
        &[("NEW", "new"), ("OLD", "old\n")],
    );
    check(
        "",
        &[
            ("EVERGRANT_APPS__CRM__CLIENT_SECRET_ENV", "NEW, OLD"),
            ("NEW", "new"),
            ("OLD", "old"),
        ],
    );
}

#[test]
fn the_environment_wins_over_the_file() {
    let config = loaded(
        &format!(
            "[server]\nlisten = \"127.0.0.1:1\"\n[log]\ncalls = \"off\"\n{HUBSPOT}refresh_profile = \"realtime\"\n"
        ),
        &[
            ("EVERGRANT_SERVER__LISTEN", "[::1]:2"),
            ("EVERGRANT_SERVER__TRUSTED_PROXIES", "10.0.0.0/8, ::1"),
            ("EVERGRANT_LOG__CALLS", "all"),
            ("EVERGRANT_METRICS__LISTEN", "0.0.0.0:9484"),
            ("EVERGRANT_COORDINATION__MAX_STALE", "5m"),
            ("EVERGRANT_APPS__CRM__SCOPES", "oauth,crm.objects.contacts.read"),
            ("EVERGRANT_APPS__CRM__PUBLIC_INSTALL", "true"),
            ("EVERGRANT_APPS__CRM__REFRESH_BUFFER", "3m"),
            ("EVERGRANT_URL", "http://elsewhere"),
            ("EVERGRANT_METRICS__CONNECTIONS", "acme, beta"),
            (
                "EVERGRANT_TRACING__OTLP_ENDPOINT",
                "http://collector:4318/v1/traces",
            ),
            ("EVERGRANT_TRACING__SAMPLE_RATIO", "0.25"),
            ("EVERGRANT_LOG", "debug"),
        ],
    );
    assert_eq!(config.server.listen.to_string(), "[::1]:2");
    assert_eq!(config.server.public_url.as_str(), "http://localhost:2/");
    let networks: Vec<String> = config
        .server
        .trusted_proxies
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(networks, ["10.0.0.0/8", "::1/128"]);
    assert_eq!(config.log.calls, LogCalls::All);
    assert_eq!(config.metrics.listen, "0.0.0.0:9484".parse().ok());
    let named: Vec<&str> = config
        .metrics
        .connections
        .iter()
        .map(ConnectionId::as_str)
        .collect();
    assert_eq!(named, ["acme", "beta"]);
    let endpoint = config.tracing.otlp_endpoint.as_ref().map(url::Url::as_str);
    assert_eq!(endpoint, Some("http://collector:4318/v1/traces"));
    assert_eq!(config.tracing.sample_ratio, Some(0.25));
    assert_eq!(config.coordination.max_stale, Duration::from_secs(300));
    assert_eq!(config.apps[0].scopes, ["oauth", "crm.objects.contacts.read"]);
    assert!(config.apps[0].public_install);
    // Only one of profile and buffer may be said, but the environment takes the place of what the file says.
    assert_eq!(
        config.apps[0].refresh_policy,
        RefreshPolicy::Buffer(Duration::from_secs(180))
    );
}

#[test]
fn an_app_can_live_in_the_environment_alone() {
    let secret = folder("");
    let secret = secret.path().join("crm.secret");
    let app = app(
        "",
        &[
            ("EVERGRANT_APPS__CRM__CLIENT_ID", "id"),
            (
                "EVERGRANT_APPS__CRM__CLIENT_SECRET_FILE",
                secret.to_str().expect("a temporary folder in UTF-8"),
            ),
            ("EVERGRANT_APPS__CRM__SCOPES", "oauth"),
        ],
    );
    assert_eq!((app.name.as_str(), app.client_id.as_str()), ("crm", "id"));
}

fn sqlite(path: impl Into<PathBuf>) -> Store {
    Store::Sqlite { path: path.into() }
}

#[test]
fn a_database_is_named_by_its_url_whose_password_is_not_shown() {
    let check = |url: &str, shown: &str| {
        let folder = folder(&format!("[store]\nurl = \"{url}\"\n"));
        let in_file = load_in(folder.path(), &[]);
        let elsewhere = load_in(folder.path(), &[("EVERGRANT_STORE__URL", url)]);
        for config in [in_file, elsewhere] {
            assert_eq!(config.store.to_string(), shown);
            let debug = format!("{config:?}");
            assert!(!debug.contains("canary"), "{debug}");
            let Store::Postgres { url: read } = config.store else {
                panic!("it names a PostgreSQL");
            };
            assert_eq!(read.expose(), url);
        }
    };
    check("postgres://e:canary@db/e", "postgres://db/e");
    check("postgresql://db/e", "postgres://db/e");
    check(
        "postgres://e:c/a@canary@a:1,b:2/e?password=canary",
        "postgres://a:1,b:2/e",
    );
}

#[test]
fn the_password_of_a_database_may_stand_in_a_file_of_its_own() {
    let check = |url: &str, with_password: &str| {
        let folder = folder(&format!(
            "[store]\nurl = \"{url}\"\npassword_file = \"db.password\"\n"
        ));
        let path = folder.path().join("db.password");
        std::fs::write(&path, "can ary&+%\n").expect("a writable folder");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o440)).expect("own file");
        let config = load_in(folder.path(), &[]);
        assert!(!format!("{config:?}").contains("can ary"), "{config:?}");
        let Store::Postgres { url: read } = config.store else {
            panic!("it names a PostgreSQL");
        };
        assert_eq!(read.expose(), with_password);
    };
    check(
        "postgres://e@db/e",
        "postgres://e@db/e?password=can%20ary%26%2B%25",
    );
    check(
        "postgres://e@a:1,b:2/e?sslmode=require",
        "postgres://e@a:1,b:2/e?sslmode=require&password=can%20ary%26%2B%25",
    );
}

#[test]
fn a_way_of_waiting_is_chosen_and_the_password_of_redis_is_not_shown() {
    let mode = |settings: &str, environment: &[(&str, &str)]| {
        let config = load_in(folder(settings).path(), environment);
        let debug = format!("{config:?}");
        assert!(!debug.contains("canary"), "{debug}");
        config.coordination.mode
    };
    let row_lock = "[store]\nurl = \"postgres://db/e\"\n[coordination]\nmode = \"row_lock\"\n";
    assert_eq!(mode(row_lock, &[]), CoordinationMode::RowLock);
    let redis = (
        "EVERGRANT_COORDINATION__REDIS_URL",
        "rediss://me:canary@cache:6380/1",
    );
    let CoordinationMode::Redis { url } = mode("[coordination]\nmode = \"redis\"\n", &[redis]) else {
        panic!("it waits in Redis");
    };
    assert_eq!(url.expose(), redis.1);
    assert_eq!(url.to_string(), "rediss://cache:6380/1");
    // One environment for processes of every mode.
    assert_eq!(mode("", &[redis]), CoordinationMode::Lease);
    assert_eq!(mode(row_lock, &[redis]), CoordinationMode::RowLock);
}

#[test]
fn paths_in_the_file_are_beside_it_and_others_where_the_process_is() {
    let file = "[store]\nurl = \"sqlite://data/e.db\"\n[vault]\nkey_file = \"my.key\"\n";
    let folder = folder(file);
    let config = load_in(folder.path(), &[]);
    assert_eq!(config.store, sqlite(folder.path().join("data/e.db")));
    assert_eq!(config.vault.key_file, folder.path().join("my.key"));
    let check = |url: &str, path: &str| {
        let config = load_in(folder.path(), &[("EVERGRANT_STORE__URL", url)]);
        assert_eq!(config.store, sqlite(path));
    };
    check("sqlite://here.db", "here.db");
    check("sqlite:///var/lib/e.db", "/var/lib/e.db");
}

#[test]
fn a_vault_key_says_where_it_came_from_and_never_what_it_is() {
    let folder = folder("[vault]\nkey_file = \"my.key\"\n");
    let from_file = load_in(folder.path(), &[]).vault.key.expect("a key");
    assert_eq!(from_file.expose(), "a2V5");
    assert_eq!(
        from_file.source(),
        folder.path().join("my.key").display().to_string()
    );

    let from_variable = load_in(folder.path(), &[("EVERGRANT_VAULT__KEY", "b3RoZXI=")])
        .vault
        .key
        .expect("a key");
    assert_eq!(from_variable.expose(), "b3RoZXI=");
    assert_eq!(
        format!("{from_variable:?}"),
        "VaultKeyText(.. from EVERGRANT_VAULT__KEY)"
    );
}

#[test]
fn beyond_loopback_it_speaks_tls_or_stands_behind_a_proxy() {
    let folder = folder(
        "[server]\nlisten = \"0.0.0.0:443\"\ntls = { cert_file = \"crm.secret\", key_file = \"my.key\" }\n",
    );
    let server = load_in(folder.path(), &[]).server;
    let files = TlsFiles {
        cert_file: folder.path().join("crm.secret"),
        key_file: folder.path().join("my.key"),
    };
    assert_eq!(server.tls, Some(files));
    assert_eq!(server.public_url.as_str(), "https://localhost/");
    assert_eq!(server.other_loopback(), None);

    // The environment takes the place of the file's word for TLS.
    let server = load_in(folder.path(), &[("EVERGRANT_SERVER__PLAIN_HTTP", "behind-proxy")]).server;
    assert_eq!(server.tls, None);
}

#[test]
fn the_file_is_looked_for_where_the_environment_says() {
    let home = tempfile::tempdir().expect("a temporary folder");
    let folder = home.path().join(".config/evergrant");
    std::fs::create_dir_all(&folder).expect("a writable folder");
    std::fs::write(folder.join("evergrant.toml"), "[log]\ncalls = \"all\"\n").expect("a writable folder");
    let check = |variable: &str, value: &Path| {
        let value = value.to_str().expect("a temporary folder in UTF-8").to_owned();
        let config = load(None, [(variable.to_owned(), value)]).expect("a sound configuration");
        assert_eq!(config.path, Some(folder.join("evergrant.toml")), "{variable}");
        assert_eq!(config.log.calls, LogCalls::All);
    };
    check("HOME", home.path());
    check("XDG_CONFIG_HOME", &home.path().join(".config"));
}

#[test]
fn without_a_file_defaults_and_environment_do() {
    let nowhere = tempfile::tempdir().expect("a temporary folder");
    let home = nowhere
        .path()
        .to_str()
        .expect("a temporary folder in UTF-8")
        .to_owned();
    let variables = [
        ("HOME".to_owned(), home),
        ("EVERGRANT_LOG__CALLS".to_owned(), "off".to_owned()),
    ];
    let config = load(None, variables).expect("a sound configuration");
    assert_eq!(config.path, None);
    assert_eq!(config.store, sqlite("evergrant.db"));
    assert_eq!(config.log.calls, LogCalls::Off);
}

#[test]
fn the_template_is_sound_as_it_is_written() {
    let folder = folder(template());
    std::fs::rename(folder.path().join("my.key"), folder.path().join("evergrant.key")).expect("own file");
    let config = load_in(folder.path(), &[]);
    assert!(config.vault.key.is_some());
    assert!(config.apps.is_empty());
}

#[test]
fn the_template_is_sound_with_every_setting_switched_on_and_shows_the_defaults() {
    let is_setting = |line: &&str| line.starts_with('#') && !line.starts_with("# ") && line.len() > 1;
    let switched_on = |line| if is_setting(&line) { &line[1..] } else { line };
    let all: Vec<&str> = template().lines().map(switched_on).collect();
    let folder = folder(&all.join("\n"));
    for (from, to) in [
        ("my.key", "evergrant.key"),
        ("old.secret", "other.secret"),
        ("hook.secret", "webhook.secret"),
    ] {
        std::fs::rename(folder.path().join(from), folder.path().join(to)).expect("own file");
    }
    let config = load_in(folder.path(), &[]);
    let names: Vec<&str> = config.apps.iter().map(|app| app.name.as_str()).collect();
    assert_eq!(names, ["crm", "other"]);
    assert_eq!(config.webhooks[0].notices, Notice::ALL);

    std::fs::write(folder.path().join("evergrant.toml"), "").expect("own file");
    let default = load_in(folder.path(), &[]);
    let shown = |config: &Config| {
        format!(
            "{:?}",
            (
                &config.server,
                &config.store,
                &config.vault,
                &config.coordination,
                &config.lifeboat,
                &config.log,
                &config.limits
            )
        )
    };
    assert_eq!(shown(&config), shown(&default));
    let hubspot = app(HUBSPOT, &[]);
    assert_eq!(
        format!("{:?}", config.apps[0].provider),
        format!("{:?}", hubspot.provider)
    );
    let generic = app(GENERIC, &[]);
    assert_eq!(config.apps[1].provider.rotation, generic.provider.rotation);
    assert_eq!(config.apps[1].provider.client_auth, generic.provider.client_auth);
}

#[test]
fn limits_are_numbers_sizes_and_durations() {
    let file = "[limits]\nconnections = 10\nin_flight = 20\nin_flight_per_key = 5\nheader_bytes = \"16KiB\"\n\
        body_bytes = 2048\nheader_timeout = \"5s\"\nbody_timeout = \"7s\"\nupstream_timeout = \"2m\"\n";
    let expected = Limits {
        connections: 10,
        in_flight: 20,
        in_flight_per_key: 5,
        header_bytes: 16 * 1024,
        body_bytes: Some(2048),
        header_timeout: Duration::from_secs(5),
        body_timeout: Duration::from_secs(7),
        upstream_timeout: Duration::from_secs(120),
    };
    assert_eq!(loaded(file, &[]).limits, expected);
    let from_environment = loaded(
        "",
        &[
            ("EVERGRANT_LIMITS__IN_FLIGHT", "3"),
            ("EVERGRANT_LIMITS__BODY_BYTES", "10MiB"),
        ],
    );
    assert_eq!(from_environment.limits.in_flight, 3);
    assert_eq!(from_environment.limits.body_bytes, Some(10 * 1024 * 1024));
}
