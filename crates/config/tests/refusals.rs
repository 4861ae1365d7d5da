//! What is refused, and in which words: file, line, key, reason, and what to do.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use tempfile::TempDir;

/// The smallest app; what a case adds to it begins on line 5.
const APP: &str =
    "[apps.crm]\nclient_id = \"id\"\nclient_secret_file = \"crm.secret\"\nscopes = [\"oauth\"]\n";
/// The same for any other provider; what a case adds to it begins on line 8.
const GENERIC: &str = "[apps.erp]\nprovider = \"generic\"\nclient_id = \"id\"\nclient_secret_file = \"crm.secret\"\n\
    authorize_url = \"https://erp.example/a\"\ntoken_url = \"https://erp.example/t\"\napi_base = \"https://erp.example/\"\n";

fn write(path: &Path, text: &str, mode: u32) {
    std::fs::write(path, text).expect("a writable folder");
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).expect("own file");
}

/// A folder with every file that the cases name.
fn folder() -> TempDir {
    let folder = tempfile::tempdir().expect("a temporary folder");
    for (name, text, mode) in [
        ("evergrant.key", "a2V5\n", 0o600),
        ("open.key", "canary", 0o644),
        ("crm.secret", "canary\n", 0o644),
        ("empty", " \n", 0o600),
        ("two.lines", "canary\ncanary\n", 0o600),
        ("cert.pem", "certificate", 0o644),
        ("hook.secret", "whsec_MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIz\n", 0o600),
        ("open.hook", "canary-canary-canary-canary", 0o644),
        ("short.hook", "canary", 0o600),
        ("strange.hook", "whsec_canary%", 0o600),
    ] {
        write(&folder.path().join(name), text, mode);
    }
    folder
}

/// The file and the variables are refused with exactly these lines, in which `DIR` is the file's folder.
fn check_with(file: &str, variables: &[(&str, &str)], expected: &[&str]) {
    let folder = folder();
    let path = folder.path().join("evergrant.toml");
    write(&path, file, 0o644);
    let variables = variables
        .iter()
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    let error = evergrant_config::load(Some(&path), variables)
        .expect_err(file)
        .to_string();
    let shown = error.replace(
        &format!("{}/evergrant.toml", folder.path().display()),
        "evergrant.toml",
    );
    let shown = shown.replace(&folder.path().display().to_string(), "DIR");
    assert!(!shown.contains("canary"), "a secret is shown: {shown}");
    assert_eq!(shown.lines().collect::<Vec<_>>(), expected, "for\n{file}");
}

fn check(file: &str, expected: &str) {
    check_with(file, &[], &[expected]);
}

fn check_app(addition: &str, expected: &str) {
    check(&format!("{APP}{addition}\n"), expected);
}

fn check_generic(addition: &str, expected: &str) {
    check(&format!("{GENERIC}{addition}\n"), expected);
}

#[test]
fn what_is_no_toml_is_refused_by_line_without_quoting_it() {
    check(
        "[server]\nlisten = canary\n",
        "evergrant.toml:2: string values must be quoted, expected literal string",
    );
    check("[apps.crm]\n[apps.crm]\n", "evergrant.toml:2: duplicate key");
    check(
        "[store]\nurl = \"sqlite://a\"\nurl = \"sqlite://b\"\n",
        "evergrant.toml:3: duplicate key",
    );
}

#[test]
fn an_unknown_key_is_refused_with_what_may_have_been_meant() {
    check(
        "[server]\nlisten = \"127.0.0.1:1\"\nlissten = \"x\"\n",
        "evergrant.toml:3: server.lissten: unknown key: did you mean \"listen\"?",
    );
    check(
        "[servers]\n",
        "evergrant.toml:1: servers: unknown section: did you mean \"server\"?",
    );
    check("colour = 1\n", "evergrant.toml:1: colour: unknown key");
    check_app(
        "client_secret_flie = \"x\"",
        "evergrant.toml:5: apps.crm.client_secret_flie: unknown key: did you mean \"client_secret_file\"?",
    );
    check_app(
        "token_url = \"https://x.example/\"",
        "evergrant.toml:5: apps.crm.token_url: is for provider = \"generic\" only: HubSpot's is known",
    );
    check_generic(
        "oauth_version = \"v3\"",
        "evergrant.toml:8: apps.erp.oauth_version: is for provider = \"hubspot\" only",
    );
}

#[test]
fn an_unknown_variable_is_refused_by_its_name() {
    check_with(
        "",
        &[
            ("EVERGRANT_SERVER__LISTN", "x"),
            ("EVERGRANT_URL", "x"),
            ("EVERGRANT_API_KEY", "x"),
        ],
        &["EVERGRANT_SERVER__LISTN: server.listn: unknown key: did you mean \"listen\"?"],
    );
    check_with(
        "",
        &[("EVERGRANT_APP__CRM__CLIENT_ID", "x")],
        &["EVERGRANT_APP__CRM__CLIENT_ID: app: unknown section: did you mean \"apps\"?"],
    );
    check_with(
        "",
        &[("EVERGRANT_SERVER__LISTEN__PORT", "1")],
        &["EVERGRANT_SERVER__LISTEN__PORT: server.listen: must be a text in quotes, not a section"],
    );
}

#[test]
fn a_wrong_type_is_refused_by_both_names() {
    check(
        "server = 1\n",
        "evergrant.toml:1: server: must be a section, not a number",
    );
    check(
        "[server]\nlisten = 8484\n",
        "evergrant.toml:2: server.listen: must be a text in quotes, not a number",
    );
    check_app(
        "optional_scopes = \"a\"",
        "evergrant.toml:5: apps.crm.optional_scopes: must be a list of texts, like [\"a\", \"b\"], not a text",
    );
    check_app(
        "optional_scopes = [1]",
        "evergrant.toml:5: apps.crm.optional_scopes: must hold texts in quotes, not a number",
    );
    check_app(
        "public_install = \"yes\"",
        "evergrant.toml:5: apps.crm.public_install: must be true or false, without quotes",
    );
    check_app(
        "display_name = \"\"",
        "evergrant.toml:5: apps.crm.display_name: is empty",
    );
}

#[test]
fn how_much_history_is_kept_has_bounds() {
    let events = |setting: &str, expected: &str| {
        check(
            &format!("[events]\n{setting}\n"),
            &format!("evergrant.toml:2: events.{expected}"),
        );
    };
    events(
        "keep = 90",
        "keep: 90 has no unit: write \"90s\" for seconds, or m, h, d",
    );
    events(
        "keep = \"1m\"",
        "keep: \"1m\" is out of bounds: at least 1h, at most 3650d",
    );
    events(
        "keep_per_connection = 1",
        "keep_per_connection: \"1\" is out of bounds: at least 10, at most 1000000",
    );
}

#[test]
fn a_duration_needs_a_unit_and_bounds() {
    let max_stale = |value: &str, expected: &str| {
        check(
            &format!("[coordination]\nmax_stale = {value}\n"),
            &format!("evergrant.toml:2: coordination.max_stale: {expected}"),
        );
    };
    let no_unit = "60 has no unit: write \"60s\" for seconds, or m, h, d";
    max_stale("60", no_unit);
    max_stale("\"60\"", no_unit);
    max_stale("\"0s\"", "\"0s\" is out of bounds: at least 1s, at most 1d");
    max_stale("\"90d\"", "\"90d\" is out of bounds: at least 1s, at most 1d");
    for unreadable in ["\"soon\"", "-60", "1.5", "\"1h30m\""] {
        max_stale(
            unreadable,
            "not a duration: write a whole number and its unit, like \"300s\", \"5m\", \"1h\" or \"90d\"",
        );
    }
    max_stale("true", "must be a duration like \"30s\", not true or false");
    check(
        "[server]\ndrain_timeout = \"2h\"\n",
        "evergrant.toml:2: server.drain_timeout: \"2h\" is out of bounds: at least 1s, at most 1h",
    );
    check(
        "[server]\nthreads = 0\n",
        "evergrant.toml:2: server.threads: \"0\" is out of bounds: at least 1, at most 256",
    );
    check_app(
        "refresh_buffer = \"0s\"",
        "evergrant.toml:5: apps.crm.refresh_buffer: \"0s\" is out of bounds: at least 1s, at most 1d",
    );
}

#[test]
fn beyond_loopback_nothing_is_served_in_clear_without_a_word() {
    let reason = "can be reached from other machines, and tokens would cross the network in clear: \
        give tls = { cert_file = \"…\", key_file = \"…\" }, \
        or plain_http = \"behind-proxy\" where a proxy in front of it speaks TLS";
    for address in ["0.0.0.0:8484", "[::]:8484", "192.0.2.1:8484"] {
        check(
            &format!("[server]\nlisten = \"{address}\"\n"),
            &format!("evergrant.toml:2: server.listen: {address} {reason}"),
        );
    }
    check_with(
        "",
        &[("EVERGRANT_SERVER__LISTEN", "0.0.0.0:8484")],
        &[&format!(
            "EVERGRANT_SERVER__LISTEN: server.listen: 0.0.0.0:8484 {reason}"
        )],
    );
    check(
        "[server]\nplain_http = \"yes\"\n",
        "evergrant.toml:2: server.plain_http: must be \"behind-proxy\", not \"yes\"",
    );
}

#[test]
fn an_address_that_cannot_be_served_is_refused() {
    for listen in [
        "8484",
        ":8484",
        "example.com:8484",
        "127.0.0.1",
        "localhost:http",
        "127.0.0.1:99999",
    ] {
        check(
            &format!("[server]\nlisten = \"{listen}\"\n"),
            "evergrant.toml:2: server.listen: not an address and a port: \
             write it like \"127.0.0.1:8484\" or \"[::1]:8484\"",
        );
    }
    check(
        "[server]\ntrusted_proxies = [\"10.0.0.1/8\"]\n",
        "evergrant.toml:2: server.trusted_proxies: not a network: write an address and how many of its bits count, \
         like \"10.0.0.0/8\" or \"fd00::/8\"",
    );
}

#[test]
fn tls_needs_two_files_and_a_key_that_is_private() {
    check(
        "[server]\ntls = { cert_file = \"cert.pem\" }\n",
        "evergrant.toml:2: server.tls.key_file: is missing: tls needs cert_file and key_file, both PEM",
    );
    check(
        "[server]\ntls = { cert_file = \"cert.pem\", key_file = \"open.key\" }\n",
        "evergrant.toml:2: server.tls.key_file: DIR/open.key is open to everyone (mode 0644): chmod 600 DIR/open.key",
    );
    check(
        "[server]\nplain_http = \"behind-proxy\"\ntls = { cert_file = \"cert.pem\", key_file = \"evergrant.key\" }\n",
        "evergrant.toml:3: server.tls: tls and plain_http are both given: keep one of them",
    );
}

#[test]
fn a_public_url_that_links_cannot_begin_with_is_refused() {
    let public_url = |url: &str, expected: &str| {
        check(
            &format!("[server]\npublic_url = \"{url}\"\n"),
            &format!("evergrant.toml:2: server.public_url: {expected}"),
        );
    };
    public_url(
        "evergrant.example",
        "\"evergrant.example\" is not a URL: relative URL without a base",
    );
    public_url(
        "http://evergrant.example",
        "\"http://evergrant.example\" would send secrets in clear: plain http is for loopback only, use https",
    );
    public_url(
        "ftp://evergrant.example",
        "\"ftp://evergrant.example\" must begin with https://, or http:// on loopback",
    );
    public_url(
        "https://evergrant.example/?a=b",
        "\"https://evergrant.example/?a=b\" has a query: links are made by adding a path to it",
    );
    public_url(
        "https://evergrant.example/#a",
        "\"https://evergrant.example/#a\" has a fragment (#…), which is never sent: remove it",
    );
    public_url(
        "https://me:canary@evergrant.example",
        "must not hold a user name or password",
    );
}

#[test]
fn a_store_that_this_version_does_not_speak_is_refused_without_showing_its_password() {
    let store = |url: &str, expected: &str| {
        check(
            &format!("[store]\nurl = \"{url}\"\n"),
            &format!("evergrant.toml:2: store.url: {expected}"),
        );
    };
    store(
        "postgres://",
        "names no database: write \"postgres://user:password@host/database\"",
    );
    store(
        "mysql://canary@db",
        "must be \"sqlite://\" and a path, like \"sqlite://evergrant.db\", or \"postgres://user:password@host/database\"",
    );
    store("sqlite://", "names no file: write \"sqlite://evergrant.db\"");
    store(
        "sqlite://a.db?mode=ro",
        "takes no parameters: write \"sqlite://\" and a path",
    );
}

#[test]
fn a_password_file_is_refused_where_it_is_open_or_not_needed() {
    let check = |url: &str, file: &str, expected: &str| {
        check(
            &format!("[store]\n{url}\npassword_file = \"{file}\"\n"),
            &format!("evergrant.toml:3: store.password_file: {expected}"),
        );
    };
    let database = "url = \"postgres://e@db/e\"";
    check(
        database,
        "open.key",
        "DIR/open.key is open to everyone (mode 0644): chmod 600 DIR/open.key",
    );
    check(database, "empty", "DIR/empty is empty");
    let twice = "there is a password in url, too: keep one of them";
    check("url = \"postgres://e:canary@db/e\"", "evergrant.key", twice);
    check(
        "url = \"postgres://e@db/e?sslmode=require&password=canary\"",
        "evergrant.key",
        twice,
    );
    let no_password = "is for a url that begins with postgres://: SQLite asks for no password";
    check("url = \"sqlite://e.db\"", "evergrant.key", no_password);
    check_with(
        "[store]\npassword_file = \"evergrant.key\"\n",
        &[],
        &[&format!("evergrant.toml:2: store.password_file: {no_password}")],
    );
}

/// Refuses one receiver, whose section begins on line 1.
fn check_webhook(lines: &str, expected: &str) {
    check(&format!("[[webhooks]]\n{lines}"), expected);
}

#[test]
fn a_webhook_needs_an_address_that_may_be_sent_to() {
    const SECRET: &str = "secret_file = \"hook.secret\"\n";
    check_webhook(
        SECRET,
        "evergrant.toml:1: webhooks.url: is missing: where are the notices sent?",
    );
    for (url, why) in [
        ("here", "\"here\" is not a URL: relative URL without a base"),
        (
            "http://hooks.example.com/",
            "\"http://hooks.example.com/\" would send secrets in clear: plain http is for loopback only, use https",
        ),
        (
            "https://u:canary@hooks.example.com/",
            "must not hold a user name or password",
        ),
        (
            "https://169.254.169.254/latest/meta-data",
            "names an address that is link-local, where clouds keep credentials: nothing is sent there",
        ),
        (
            "https://[::ffff:169.254.169.254]/",
            "names an address that is link-local, where clouds keep credentials: nothing is sent there",
        ),
        (
            "https://0.0.0.0/",
            "names an address that is no address of a host: nothing is sent there",
        ),
    ] {
        check_webhook(
            &format!("{SECRET}url = \"{url}\"\n"),
            &format!("evergrant.toml:3: webhooks.url: {why}"),
        );
    }
    let twice = format!("{SECRET}url = \"https://hooks.example.com/\"\n");
    check(
        &format!("[[webhooks]]\n{twice}[[webhooks]]\n{twice}"),
        "evergrant.toml:6: webhooks.url: is there already: give each receiver one section",
    );
}

#[test]
fn a_webhooks_secret_lies_in_a_closed_file_and_is_long_enough() {
    const URL: &str = "url = \"https://hooks.example.com/\"\n";
    check_webhook(
        URL,
        "evergrant.toml:1: webhooks.secret_file: is missing: name a file with the secret that the receiver checks signatures with",
    );
    check_webhook(
        &format!("{URL}secret_file = \"hook.secret\"\nsecret = \"canary\"\n"),
        "evergrant.toml:4: webhooks.secret: a secret does not belong in a configuration: give secret_file",
    );
    for (file, why) in [
        (
            "none",
            "cannot read DIR/none: No such file or directory (os error 2)",
        ),
        (
            "open.hook",
            "DIR/open.hook is open to everyone (mode 0644): chmod 600 DIR/open.hook",
        ),
        (
            "short.hook",
            "DIR/short.hook holds a secret of less than 24 bytes: `openssl rand -base64 32` makes one, to be written behind \"whsec_\"",
        ),
        (
            "strange.hook",
            "DIR/strange.hook holds \"whsec_\" and something that is no base64 behind it",
        ),
    ] {
        check_webhook(
            &format!("{URL}secret_file = \"{file}\"\n"),
            &format!("evergrant.toml:3: webhooks.secret_file: {why}"),
        );
    }
}

#[test]
fn a_webhook_names_events_and_apps_that_there_are() {
    const GOOD: &str = "url = \"https://hooks.example.com/\"\nsecret_file = \"hook.secret\"\n";
    check_webhook(
        &format!("{GOOD}events = [\"connection.lost\"]\n"),
        "evergrant.toml:4: webhooks.events: \"connection.lost\" is no event: there are connection.connected, connection.reconnect_required, connection.reconnected, connection.degraded, connection.recovered, connection.account_mismatch, connection.disconnected, app.credentials_rejected, app.credentials_accepted; or write \"*\", \"connection.*\", \"app.*\"",
    );
    check_webhook(
        &format!("{GOOD}events = []\n"),
        "evergrant.toml:4: webhooks.events: names no event: leave it out for all of them",
    );
    check_webhook(
        &format!("{GOOD}apps = [\"crm\"]\n"),
        "evergrant.toml:4: webhooks.apps: \"crm\" is no app of this configuration",
    );
    check_webhook(
        &format!("{GOOD}event = [\"*\"]\n"),
        "evergrant.toml:4: webhooks.event: unknown key: did you mean \"events\"?",
    );
    check(
        "[webhooks]\nurl = \"https://hooks.example.com/\"\n",
        "evergrant.toml:1: webhooks: must be a list of sections: begin each with [[webhooks]]",
    );
}

#[test]
fn metrics_have_an_address_of_their_own_or_none() {
    check(
        "[metrics]\nlisten = \"here\"\n",
        "evergrant.toml:2: metrics.listen: not an address and a port: write it like \"127.0.0.1:8484\" or \"[::1]:8484\"",
    );
    check(
        "[metrics]\nlisten = \"localhost:8484\"\n",
        "evergrant.toml:2: metrics.listen: is the address of [server] listen: metrics are there anyway, for keys of the role metrics",
    );
    check(
        "[metrics]\nlissten = \"localhost:9484\"\n",
        "evergrant.toml:2: metrics.lissten: unknown key: did you mean \"listen\"?",
    );
    check(
        "[metrics]\nconnections = [\"acme\", \"a b\"]\n",
        "evergrant.toml:2: metrics.connections: \"a b\": a connection id is 1 to 128 letters, digits, '.', '_', '~' or '-', and begins with a letter or digit",
    );
    let many = format!("[metrics]\nconnections = [{}]\n", "\"a\",".repeat(101));
    check(
        &many,
        "evergrant.toml:2: metrics.connections: names 101 connections, and each has the series of an app: at most 100",
    );
}

#[test]
fn traces_go_to_an_address_without_a_password_and_a_share_of_them_is_kept() {
    check(
        "[tracing]\notlp_endpoint = \"localhost:4318\"\n",
        "evergrant.toml:2: tracing.otlp_endpoint: must be an http or https address, like \"http://localhost:4318/v1/traces\"",
    );
    check(
        "[tracing]\notlp_endpoint = \"http://me:secret@collector/v1/traces\"\n",
        "evergrant.toml:2: tracing.otlp_endpoint: must not hold a user name or password: OTEL_EXPORTER_OTLP_HEADERS can carry what the collector asks for",
    );
    for ratio in ["1.5", "-0.1", "true", "\"0.5\""] {
        check(
            &format!("[tracing]\nsample_ratio = {ratio}\n"),
            "evergrant.toml:2: tracing.sample_ratio: must be a number from 0 to 1, like 0.1",
        );
    }
}

#[test]
fn a_mode_has_what_it_needs() {
    let mode = |settings: &str, expected: &str| {
        check(
            &format!("[coordination]\n{settings}\n"),
            &format!("evergrant.toml:2: coordination.{expected}"),
        );
    };
    mode(
        "mode = \"row_lock\"",
        "mode: locks rows of PostgreSQL, and the store is an SQLite file: \
         give a store.url that begins with postgres://, or leave it at \"lease\"",
    );
    mode(
        "mode = \"redis\"",
        "mode: needs redis_url, like \"redis://host:6379\", or leave it at \"lease\"",
    );
    mode(
        "mode = \"none\"",
        "mode: must be \"lease\" or \"row_lock\" or \"redis\", not \"none\"",
    );
    for url in ["https://:canary@cache", "redis://:canary@", "canary"] {
        mode(
            &format!("redis_url = \"{url}\"\nmode = \"redis\""),
            "redis_url: must be \"redis://\" or, with TLS, \"rediss://\" and a host, \
             like \"rediss://user:password@host:6379\"",
        );
    }
}

#[test]
fn a_vault_key_is_in_a_file_of_its_own_that_is_private() {
    let key_file = |file: &str, expected: &str| {
        check(
            &format!("[vault]\nkey_file = \"{file}\"\n"),
            &format!("evergrant.toml:2: vault.key_file: {expected}"),
        );
    };
    key_file(
        "open.key",
        "DIR/open.key is open to everyone (mode 0644): chmod 600 DIR/open.key",
    );
    key_file(
        "none.key",
        "cannot read DIR/none.key: No such file or directory (os error 2)",
    );
    key_file("empty", "DIR/empty is empty");
    key_file(".", "cannot read DIR/.: Is a directory (os error 21)");
    check(
        "[vault]\nkey = \"canary\"\n",
        "evergrant.toml:2: vault.key: a key does not belong in this file: \
         give key_file, or EVERGRANT_VAULT__KEY in the environment",
    );
    check_with(
        "",
        &[("EVERGRANT_VAULT__KEY", "")],
        &["EVERGRANT_VAULT__KEY: vault.key: is empty"],
    );
    check_with(
        "",
        &[
            ("EVERGRANT_VAULT__KEY", "canary"),
            ("EVERGRANT_VAULT__KEY_FILE", "x"),
        ],
        &["EVERGRANT_VAULT__KEY_FILE: vault.key_file: key and key_file are both given: keep one of them"],
    );
}

#[test]
fn a_client_secret_is_named_and_can_be_read() {
    let secret = |line: &str, key: &str, expected: &str| {
        check(
            &format!("[apps.crm]\nclient_id = \"id\"\nscopes = [\"oauth\"]\n{line}\n"),
            &format!("evergrant.toml:4: apps.crm.{key}: {expected}"),
        );
    };
    check(
        "[apps.crm]\nclient_id = \"id\"\nscopes = [\"oauth\"]\n",
        "evergrant.toml:1: apps.crm.client_secret_file: is missing: \
         name a file with the secret, or give client_secret_env",
    );
    let file = "client_secret_file";
    secret(
        "client_secret_file = \"none\"",
        file,
        "cannot read DIR/none: No such file or directory (os error 2)",
    );
    secret("client_secret_file = \"empty\"", file, "DIR/empty is empty");
    secret(
        "client_secret_file = [\"crm.secret\", \"empty\"]",
        file,
        "DIR/empty is empty",
    );
    secret(
        "client_secret_file = \"two.lines\"",
        file,
        "DIR/two.lines holds more than one line: a file for each secret",
    );
    secret("client_secret_file = []", file, "names no secret");
    secret("client_secret_file = \"\"", file, "is empty");
    secret(
        "client_secret_env = \"CRM_SECRET\"",
        "client_secret_env",
        "the variable CRM_SECRET is not set",
    );
    check_app(
        "client_secret_env = \"X\"",
        "evergrant.toml:5: apps.crm.client_secret_env: \
         client_secret_file and client_secret_env are both given: keep one of them",
    );
    check_app(
        "client_secret = \"canary\"",
        "evergrant.toml:5: apps.crm.client_secret: a secret does not belong in a configuration: \
         give client_secret_file or client_secret_env",
    );
    check_with(
        "[apps.crm]\nclient_id = \"id\"\nscopes = [\"oauth\"]\nclient_secret_env = \"CRM_SECRET\"\n",
        &[("CRM_SECRET", " ")],
        &["evergrant.toml:4: apps.crm.client_secret_env: the variable CRM_SECRET is empty"],
    );
}

#[test]
fn an_app_says_who_it_is_and_what_it_asks_for() {
    check(
        "[apps.CRM]\nclient_id = \"id\"\nclient_secret_file = \"crm.secret\"\nscopes = [\"oauth\"]\n",
        "evergrant.toml:1: apps.CRM: an app name is 1 to 64 lower-case letters, digits or '_', \
         and begins with a letter",
    );
    check(
        "apps.crm = 1\n",
        "evergrant.toml:1: apps.crm: must be a section, not a number",
    );
    let no_scopes = "HubSpot installs no app without scopes: list what the app asks for";
    let app = "[apps.crm]\nclient_id = \"id\"\nclient_secret_file = \"crm.secret\"\n";
    check(app, &format!("evergrant.toml:1: apps.crm.scopes: {no_scopes}"));
    check(
        &format!("{app}scopes = []\n"),
        &format!("evergrant.toml:4: apps.crm.scopes: {no_scopes}"),
    );
    check(
        &format!("{app}scopes = [\"oauth contacts\"]\n"),
        "evergrant.toml:4: apps.crm.scopes: \"oauth contacts\" is no scope: \
         one name an item, without spaces and quotes",
    );
    check_app(
        "provider = \"salesforce\"",
        "evergrant.toml:5: apps.crm.provider: must be \"hubspot\" or \"generic\", not \"salesforce\"",
    );
    check_app(
        "keep_fresh = \"sometimes\"",
        "evergrant.toml:5: apps.crm.keep_fresh: must be \"off\" or \"used\" or \"always\", not \"sometimes\"",
    );
    check_app(
        "refresh_profile = \"queue\"\nrefresh_buffer = \"3m\"",
        "evergrant.toml:6: apps.crm.refresh_buffer: \
         refresh_profile and refresh_buffer are both given: keep one of them",
    );
    for wrong in [
        "110",
        "0/10s",
        "-1/10s",
        "110/0s",
        "110/2d",
        "110/10",
        "on",
        "5000000000/1s",
    ] {
        check_app(
            &format!("budget = \"{wrong}\""),
            &format!(
                "evergrant.toml:5: apps.crm.budget: \"{wrong}\" is no budget: \
                 write calls and the time for them, like \"110/10s\" (from 1s to 1d), or \"off\""
            ),
        );
    }
    check_app(
        "max_wait = \"61s\"",
        "evergrant.toml:5: apps.crm.max_wait: \"61s\" is out of bounds: at least 0s, at most 1m",
    );
    check_app(
        "oauth_version = \"v2\"",
        "evergrant.toml:5: apps.crm.oauth_version: \"v2\" is no version of HubSpot's OAuth API: \
         write a dated one like \"2026-09\", or v3, v1",
    );
}

#[test]
fn a_redirect_uri_that_hubspot_does_not_register_is_refused() {
    let reason = "cannot be registered: HubSpot takes https, or http on \"localhost\" only";
    check_app(
        "redirect_uri = \"http://127.0.0.1:8484/oauth/callback\"",
        &format!(
            "evergrant.toml:5: apps.crm.redirect_uri: \"http://127.0.0.1:8484/oauth/callback\" {reason}"
        ),
    );
    check(
        &format!("{APP}[server]\npublic_url = \"http://127.0.0.1:8484\"\n"),
        &format!(
            "evergrant.toml:1: apps.crm.redirect_uri: \"http://127.0.0.1:8484/oauth/callback\" {reason} \
             (it follows from server.public_url)"
        ),
    );
    check_app(
        "return_urls = [\"https://*.example.com/\"]",
        "evergrant.toml:5: apps.crm.return_urls: \"https://*.example.com/\" has a * that is not at its end",
    );
    check_app(
        "return_urls = [\"https://example.com/?next=*\"]",
        "evergrant.toml:5: apps.crm.return_urls: \"https://example.com/?next=*\" has a * in its query: \
         end the path with it",
    );
    check_app(
        "support_url = \"javascript:alert(1)\"",
        "evergrant.toml:5: apps.crm.support_url: \"javascript:alert(1)\" \
         must begin with https://, http:// or mailto:",
    );
}

#[test]
fn a_provider_is_spoken_to_in_clear_on_loopback_only() {
    let reason = "would send secrets in clear: plain http is for loopback only, use https";
    for key in ["api_base", "authorize_url", "oauth_base"] {
        check_app(
            &format!("{key} = \"http://localhost.example/\""),
            &format!("evergrant.toml:5: apps.crm.{key}: \"http://localhost.example/\" {reason}"),
        );
    }
    for key in ["revoke_url", "introspect_url"] {
        check_generic(
            &format!("{key} = \"http://erp.example/\""),
            &format!("evergrant.toml:8: apps.erp.{key}: \"http://erp.example/\" {reason}"),
        );
    }
}

#[test]
fn another_provider_says_where_it_is_and_what_it_does_with_refresh_tokens() {
    let missing = "is missing: provider = \"generic\" needs authorize_url, token_url and api_base";
    check_with(
        "[apps.erp]\nprovider = \"generic\"\nclient_id = \"id\"\nclient_secret_file = \"crm.secret\"\n",
        &[],
        &["authorize_url", "token_url", "api_base"]
            .map(|key| format!("evergrant.toml:1: apps.erp.{key}: {missing}"))
            .each_ref()
            .map(String::as_str),
    );
    check_generic(
        "rotation_grace = \"30s\"",
        "evergrant.toml:8: apps.erp.rotation_grace: means something with rotation = \"grace\" only",
    );
    check_generic(
        "rotation = \"sometimes\"",
        "evergrant.toml:8: apps.erp.rotation: must be \"never\" or \"grace\" or \"single_use\", not \"sometimes\"",
    );
    check_generic(
        "client_auth = \"jwt\"",
        "evergrant.toml:8: apps.erp.client_auth: must be \"basic\" or \"post\", not \"jwt\"",
    );
}

#[test]
fn everything_wrong_is_told_at_once_in_the_order_of_the_file() {
    check_with(
        "[server]\nlisten = 1\n[vault]\nkey_file = \"empty\"\n[apps.crm]\nclient_id = \"\"\nscope = [\"oauth\"]\n",
        &[("EVERGRANT_LOG__CALLS", "some")],
        &[
            "evergrant.toml:2: server.listen: must be a text in quotes, not a number",
            "evergrant.toml:4: vault.key_file: DIR/empty is empty",
            "evergrant.toml:5: apps.crm.client_secret_file: is missing: \
             name a file with the secret, or give client_secret_env",
            "evergrant.toml:5: apps.crm.scopes: HubSpot installs no app without scopes: list what the app asks for",
            "evergrant.toml:6: apps.crm.client_id: is empty",
            "evergrant.toml:7: apps.crm.scope: unknown key: did you mean \"scopes\"?",
            "EVERGRANT_LOG__CALLS: log.calls: must be \"off\" or \"failures\" or \"all\", not \"some\"",
        ],
    );
}

#[test]
fn a_file_that_was_named_has_to_be_there() {
    let error =
        evergrant_config::load(Some(Path::new("/nowhere/evergrant.toml")), []).expect_err("no such file");
    assert_eq!(
        error.to_string(),
        "/nowhere/evergrant.toml: cannot be read: No such file or directory (os error 2); `evergrant init` writes one"
    );
}

#[test]
fn limits_that_limit_nothing_or_everything_are_refused() {
    let check_limit = |setting: &str, expected: &str| {
        check(
            &format!("[limits]\n{setting}\n"),
            &format!("evergrant.toml:2: limits.{expected}"),
        );
    };
    check_limit(
        "connections = 0",
        "connections: \"0\" is out of bounds: at least 1, at most 1000000",
    );
    check_limit("in_flight = -1", "in_flight: must be a whole number, not \"-1\"");
    check_limit(
        "in_flight_per_key = true",
        "in_flight_per_key: must be a whole number, not true or false",
    );
    check_limit(
        "header_bytes = \"64kb\"",
        "header_bytes: must be a number of bytes, like 65536 or \"64KiB\", not \"64kb\"",
    );
    check_limit(
        "header_bytes = \"1MiB\"",
        "header_bytes: \"1MiB\" is out of bounds: at least 1024, at most 131072",
    );
    check_limit(
        "body_bytes = \"99999999999999999999\"",
        "body_bytes: must be a number of bytes, like 65536 or \"64KiB\", not \"99999999999999999999\"",
    );
    check_limit(
        "header_timeout = \"0s\"",
        "header_timeout: \"0s\" is out of bounds: at least 1s, at most 1h",
    );
    check_limit(
        "upstream_timeout = 30",
        "upstream_timeout: 30 has no unit: write \"30s\" for seconds, or m, h, d",
    );
}
