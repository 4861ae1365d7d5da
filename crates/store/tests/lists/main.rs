//! What a list of 100,000 connections costs, on both databases. It asserts no speed and prints what it measured, so it is not part of
//! the usual run:
//!
//! ```text
//! EVERGRANT_MEASURE_LISTS=1 cargo test -p evergrant-store --all-features --test lists -- --nocapture --test-threads 1
//! ```

#![expect(
    clippy::unwrap_used,
    reason = "a measurement that cannot be made ends its test"
)]

use std::sync::Arc;
use std::time::Duration;

use evergrant_domain::connection::{Account, LastSeen};
use evergrant_domain::event::{Event, EventKind};
use evergrant_domain::redemption::QUIET_TIME;
use evergrant_domain::refresh_policy::Ends;
use evergrant_domain::tally::Tally;
use evergrant_domain::{AccessToken, AccountId, Health, Kind, RefreshToken, Timestamp, TokenSet};
use evergrant_store::contract::{ConnectionFilter, HealthAsked, NewConnection, Sort, SortBy, Usage};
use evergrant_store::{PostgresStore, SqliteStore, Store, Vault, VaultKey};
use test_postgres::Server;
use tokio::time::Instant;

/// Without this in the environment nothing is measured.
const ASKED: &str = "EVERGRANT_MEASURE_LISTS";
const CONNECTIONS: u32 = 100_000;
const NOW: Timestamp = Timestamp::from_millis(1_000_000_000_000);
/// So many are used between two writings of what they were used for.
const USED: u64 = 5_000;

/// The columns that differ between the connections that are made of the first, and what they are; `n` counts them.
fn columns(random: &str, text: &str) -> Vec<(&'static str, String)> {
    let unlike = |column: &str| format!("{column} - ({random}) % 1000000");
    vec![
        ("id", format!("'c' || {text}")),
        ("customer", "'customer-' || ((n * 7919) % 1000003)".to_owned()),
        ("account_id", text.to_owned()),
        (
            "account_domain",
            "'shop-' || ((n * 104729) % 1000003) || '.example'".to_owned(),
        ),
        ("refresh_token_fingerprint", format!("'print-' || {text}")),
        ("created_at", format!("{} + n", NOW.millis() - 200_000_000)),
        ("expires_at", unlike(&NOW.millis().to_string())),
        (
            "last_call_at",
            format!(
                "CASE WHEN n % 3 > 0 THEN {} END",
                unlike(&NOW.millis().to_string())
            ),
        ),
        (
            "last_success_at",
            format!("CASE WHEN n % 1000 <> 1 THEN {} END", NOW.millis()),
        ),
        // One in a thousand has ended.
        (
            "status",
            "CASE WHEN n % 1000 = 0 THEN 'reconnect_required' ELSE 'active' END".to_owned(),
        ),
        (
            "status_reason",
            "CASE WHEN n % 1000 = 0 THEN 'grant_refused' END".to_owned(),
        ),
        (
            "status_since",
            format!(
                "CASE WHEN n % 1000 = 0 THEN {} END",
                unlike(&NOW.millis().to_string())
            ),
        ),
    ]
}

/// A statement that makes the others of the first one, whose columns these are.
fn fill(all: &[String], series: &str, random: &str, text: &str) -> String {
    let unlike = columns(random, text);
    let value = |column: &String| {
        let own = unlike.iter().find(|(name, _)| name == column);
        own.map_or_else(|| format!("c.{column}"), |(_, value)| value.clone())
    };
    format!(
        "{series} INSERT INTO connections ({}) SELECT {} FROM connections c, numbers WHERE c.id = 'first'",
        all.join(", "),
        all.iter().map(value).collect::<Vec<_>>().join(", ")
    )
}

async fn first(store: &impl Store) {
    let new = NewConnection {
        id: "first".parse().unwrap(),
        app: "crm".parse().unwrap(),
        customer: "first".parse().unwrap(),
        kind: Kind::OAuth,
        account: Some(Account {
            id: AccountId::parse("0").unwrap(),
            domain: Some("first.example".into()),
            user: None,
        }),
        tokens: TokenSet {
            access_token: AccessToken::new("a".repeat(300)),
            refresh_token: Some(RefreshToken::new("r".repeat(40))),
            token_type: "bearer".into(),
            scopes: (0..12)
                .map(|number| format!("crm.objects.number-{number}.read"))
                .collect(),
            issued_at: NOW,
            ends: Ends {
                soft: NOW,
                hard: NOW,
                expires: NOW,
            },
            unproven: false,
        },
        labels: vec![("team".into(), "eu".into())],
        event: Event::new(EventKind::Connected, "to be measured"),
    };
    store.create(new, NOW).await.unwrap();
}

fn millis(took: Duration) -> f64 {
    took.as_secs_f64() * 1000.0
}

/// Through all pages: how many, the whole, the longest.
async fn walk(store: &impl Store, filter: &ConnectionFilter) -> (usize, usize, Duration, Duration) {
    let mut filter = filter.clone();
    let (mut pages, mut found, mut whole, mut longest) = (0, 0, Duration::ZERO, Duration::ZERO);
    loop {
        let began = Instant::now();
        let page = store.list(filter.clone()).await.unwrap();
        let took = began.elapsed();
        whole += took;
        longest = longest.max(took);
        pages += 1;
        found += page.len();
        match page.last() {
            Some(last) if page.len() == filter.limit as usize => {
                filter.after = Some((filter.sort.by.key_of(last), last.id.clone()));
            }
            _ => return (pages, found, whole, longest),
        }
    }
}

async fn measure(what: &str, store: &impl Store) {
    println!("\n{what}, {CONNECTIONS} connections");
    for by in SortBy::ALL {
        for descending in [false, true] {
            let filter = ConnectionFilter {
                sort: Sort { by, descending },
                limit: 1000,
                ..ConnectionFilter::default()
            };
            let (pages, found, whole, longest) = walk(store, &filter).await;
            assert_eq!(found, CONNECTIONS as usize, "each of them once");
            println!(
                "  all by {:12} {}: {pages} pages in {:7.0} ms, the longest {:6.1} ms",
                by.as_str(),
                if descending { "down" } else { "up  " },
                millis(whole),
                millis(longest)
            );
        }
    }
    let asked = |health| HealthAsked {
        any_of: vec![health],
        now: NOW,
        quiet_time: QUIET_TIME,
    };
    let mut filters = vec![];
    for health in [
        Health::Healthy,
        Health::ReconnectRequired,
        Health::Unverified,
        Health::Degraded,
    ] {
        let filter = ConnectionFilter {
            healths: Some(asked(health)),
            ..ConnectionFilter::default()
        };
        filters.push((format!("health {}", health.as_str()), filter));
    }
    for q in ["customer-", "c77777", "shop-31337", "nothing like it"] {
        let filter = ConnectionFilter {
            q: Some(q.into()),
            ..ConnectionFilter::default()
        };
        filters.push((format!("q {q:?}"), filter));
    }
    for (name, filter) in filters {
        for by in [SortBy::Created, SortBy::StatusSince, SortBy::LastCallAt] {
            let sort = Sort {
                by,
                descending: by != SortBy::Created,
            };
            let filter = ConnectionFilter {
                sort,
                limit: 100,
                ..filter.clone()
            };
            let began = Instant::now();
            let found = store.list(filter).await.unwrap().len();
            println!(
                "  a page with {name:26} by {:12}: {found:3} found in {:6.1} ms",
                by.as_str(),
                millis(began.elapsed())
            );
        }
    }
    let began = Instant::now();
    store
        .count_connections(evergrant_domain::access::Limits::default(), QUIET_TIME, NOW)
        .await
        .unwrap();
    println!("  counted by health in {:6.1} ms", millis(began.elapsed()));
    let (mut least, mut most) = (Duration::MAX, Duration::ZERO);
    for round in 0..8_u64 {
        let usage = (0..USED).map(|number| Usage {
            connection: format!("c{}", number * 19 + round + 1).parse().unwrap(),
            app: "crm".parse().unwrap(),
            last: LastSeen {
                call_at: Some(NOW.after(Duration::from_secs(60 * (round + 1)))),
                ..LastSeen::default()
            },
            tally: Tally::default(),
        });
        let usage = usage.collect();
        let began = Instant::now();
        store.note_usage(usage, NOW).await.unwrap();
        least = least.min(began.elapsed());
        most = most.max(began.elapsed());
    }
    println!(
        "  the use of {USED} written in {:.0} to {:.0} ms",
        millis(least),
        millis(most)
    );
}

#[tokio::test]
async fn lists_in_sqlite() {
    if std::env::var_os(ASKED).is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("evergrant.db");
    let vault = Arc::new(Vault::new(VaultKey::generate()));
    let store = SqliteStore::open(&path, vault).await.unwrap();
    first(&store).await;
    let sql = rusqlite::Connection::open(&path).unwrap();
    let all: Vec<String> = sql
        .prepare("SELECT name FROM pragma_table_info('connections')")
        .unwrap()
        .query_map([], |row| row.get(0))
        .unwrap()
        .collect::<Result<_, _>>()
        .unwrap();
    let series = format!(
        "WITH RECURSIVE numbers(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < {})",
        CONNECTIONS - 1
    );
    sql.execute_batch(&fill(&all, &series, "abs(random())", "n"))
        .unwrap();
    measure("SQLite", &store).await;
}

#[tokio::test]
async fn lists_in_postgres() {
    if std::env::var_os(ASKED).is_none() {
        return;
    }
    let server = Server::shared();
    let database = server.database();
    let vault = Arc::new(Vault::new(VaultKey::generate()));
    let store = PostgresStore::open(&server.url(&database), vault).await.unwrap();
    first(&store).await;
    let columns =
        "SELECT string_agg(column_name, ' ' ORDER BY ordinal_position) FROM information_schema.columns
                    WHERE table_name = 'connections' AND table_schema = current_schema()";
    let all: Vec<String> = server
        .sql(&database, columns)
        .split_whitespace()
        .map(str::to_owned)
        .collect();
    let series = format!(
        "WITH numbers AS (SELECT n::bigint FROM generate_series(1, {}) n)",
        CONNECTIONS - 1
    );
    let statement = fill(&all, &series, "(random() * 1000000)::bigint", "n::text");
    server.sql(&database, &statement);
    server.sql(&database, "ANALYZE");
    measure("PostgreSQL", &store).await;
}
