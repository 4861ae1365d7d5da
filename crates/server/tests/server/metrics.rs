//! What a process counts, as Prometheus reads it.

use evergrant_domain::api_answer::Class;
use evergrant_server::MetricsServer;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::harness::{Answer, House, bare, send_to};

/// The names of all that is counted, each with its labels.
fn series(answer: &Answer) -> Vec<String> {
    let text = answer.text();
    let samples = text.lines().filter(|line| !line.starts_with('#'));
    samples
        .map(|line| line.rsplit_once(' ').unwrap().0.to_owned())
        .collect()
}

#[tokio::test]
async fn metrics_are_read_with_a_key_of_their_role_and_name_no_connection() {
    let house = House::build().await;
    house.import("canary-connection", "canary-customer", 1001).await;
    let gateway = house.key(json!({"name": "n", "role": "gateway"})).await;
    let metrics = house.key(json!({"name": "n", "role": "metrics"})).await;
    house
        .get(&gateway, "/gateway/canary-connection/crm/v3/objects/contacts")
        .await
        .expect(200);
    house.get("", "/metrics").await.refused(401, "invalid_api_key");
    house.get(&gateway, "/metrics").await.refused(403, "forbidden");
    let answer = house.get(&metrics, "/metrics").await.expect(200);
    assert_eq!(
        answer.header("content-type"),
        "text/plain; version=0.0.4; charset=utf-8"
    );
    let series = series(&answer);
    for expected in [
        "evergrant_build_info{version=\"0.1.0\"}",
        "evergrant_calls_in_flight",
        "evergrant_calls_total{app=\"crm\",class=\"ok\",code_class=\"2xx\"}",
        "evergrant_call_duration_seconds_bucket{app=\"crm\",le=\"+Inf\"}",
        "evergrant_redemptions_total{app=\"other\",outcome=\"issued\"}",
        "process_cpu_seconds_total",
        "process_resident_memory_bytes",
        "process_open_fds",
        "process_start_time_seconds",
    ] {
        assert!(
            series.iter().any(|name| name == expected),
            "{expected}: {series:?}"
        );
    }
    let mut once = series.clone();
    once.sort_unstable();
    once.dedup();
    assert_eq!(once.len(), series.len(), "each series is there once");
    assert!(!answer.text().contains("canary"), "{}", answer.text());
}

#[tokio::test]
async fn a_listener_of_their_own_needs_no_key_and_answers_nothing_else() {
    let house = House::build().await;
    let server = MetricsServer::bind(house.service.clone(), ([127, 0, 0, 1], 0).into())
        .await
        .unwrap();
    let address = server.address();
    let stop = CancellationToken::new();
    let running = tokio::spawn(server.run(stop.clone()));
    let answer = send_to(address, bare("GET", "/metrics")).await.expect(200);
    assert!(series(&answer).contains(&"evergrant_calls_in_flight".to_owned()));
    let head = send_to(address, bare("HEAD", "/metrics")).await.expect(200);
    assert!(head.body.is_empty());
    for (method, path, status, code) in [
        ("GET", "/healthz", 404, "not_found"),
        ("GET", "/v1/connections", 404, "not_found"),
        ("GET", "/gateway/c1/x", 404, "not_found"),
        ("POST", "/metrics", 405, "method_not_allowed"),
    ] {
        send_to(address, bare(method, path)).await.refused(status, code);
    }
    // A page in a browser may reach it under a name of its own.
    let mut elsewhere = bare("GET", "/metrics");
    elsewhere
        .headers_mut()
        .insert("host", "evil.test".parse().unwrap());
    send_to(address, elsewhere).await.refused(421, "host_not_allowed");
    let taken = MetricsServer::bind(house.service.clone(), address).await;
    let error = taken.err().unwrap().to_string();
    assert!(error.contains("[metrics] listen"), "{error}");
    stop.cancel();
    running.await.unwrap();
}

/// Every word of a text that could be the name of a series of ours.
fn names(text: &str) -> Vec<&str> {
    let is_inside = |letter: char| letter.is_ascii_alphanumeric() || letter == '_' || letter == ':';
    let words = text.split(|letter| !is_inside(letter));
    words.filter(|word| word.starts_with("evergrant_")).collect()
}

#[tokio::test]
async fn what_rules_and_dashboard_ask_for_is_there() {
    let house = House::build().await;
    let metrics = house.key(json!({"name": "n", "role": "metrics"})).await;
    let answer = house.get(&metrics, "/metrics").await.expect(200);
    let text = answer.text();
    let families: Vec<(&str, &str)> = text
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '))
        .collect();
    let is_there = |name: &str| {
        families.iter().any(|(family, kind)| match *kind {
            "histogram" => name
                .strip_prefix(family)
                .is_some_and(|suffix| matches!(suffix, "_bucket" | "_sum" | "_count")),
            _ => name == *family,
        })
    };
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    for file in ["deploy/prometheus/rules.yaml", "deploy/grafana/evergrant.json"] {
        let asked = std::fs::read_to_string(root.join(file)).unwrap();
        let names = names(&asked);
        assert!(names.len() > 10, "{file}: {names:?}");
        for name in names {
            assert!(
                is_there(name),
                "{file} asks for {name}, and there is {families:?}"
            );
        }
    }
    // And the page that explains them leaves none out.
    let page = std::fs::read_to_string(root.join("docs/metrics.md")).unwrap();
    for (family, _) in &families {
        assert!(page.contains(family), "docs/metrics.md does not tell of {family}");
    }
}

/// A series of ours, and what is asked of its labels: each with the words that it may be.
type Selector<'a> = (&'a str, Vec<(&'a str, Vec<&'a str>)>);

/// Every series of ours that a text names.
fn selectors(text: &str) -> Vec<Selector<'_>> {
    let mut found = Vec::new();
    for name in names(text) {
        let behind = &text[name.as_ptr().addr() - text.as_ptr().addr() + name.len()..];
        let mut labels = Vec::new();
        if let Some(matchers) = behind.strip_prefix('{') {
            let mut rest = matchers;
            while let Some((label, value)) = rest.split_once('"') {
                let (value, more) = value.split_once('"').unwrap();
                let label = label
                    .trim_start_matches([',', ' '])
                    .trim_end_matches(['=', '!', '~']);
                labels.push((label, value.split('|').collect()));
                rest = more;
                if rest.starts_with('}') {
                    break;
                }
            }
        }
        found.push((name, labels));
    }
    found
}

/// Every query of a dashboard, as Prometheus gets it.
fn queries(dashboard: &Value, found: &mut Vec<String>) {
    match dashboard {
        Value::Object(members) => {
            for (name, value) in members {
                match value {
                    Value::String(text) if matches!(name.as_str(), "expr" | "query") => {
                        found.push(text.clone());
                    }
                    _ => queries(value, found),
                }
            }
        }
        Value::Array(items) => items.iter().for_each(|item| queries(item, found)),
        _ => {}
    }
}

/// What else stands in brackets behind a word of a query: the labels that it groups or joins by.
fn grouped_by(text: &str) -> Vec<&str> {
    let lists = ["by (", "on (", "without ("].into_iter().flat_map(|word| {
        text.match_indices(word)
            .filter_map(move |(at, _)| text[at + word.len()..].split_once(')'))
    });
    lists
        .flat_map(|(labels, _)| labels.split(','))
        .map(str::trim)
        .collect()
}

#[tokio::test]
async fn rules_and_dashboard_ask_by_labels_and_words_that_are_there() {
    /// Prometheus's own.
    const ITS_OWN: [&str; 3] = ["instance", "job", "le"];
    let house = House::build().await;
    let metrics = house.key(json!({"name": "n", "role": "metrics"})).await;
    house.import("c1", "acme", 1001).await;
    // Of everything that has no line before it happened, one.
    for _ in 0..2 {
        house
            .get(&house.admin, "/gateway/c1/crm/v3/objects/contacts")
            .await
            .expect(200);
    }
    let page = house.get(&metrics, "/metrics").await.expect(200).text();
    let there: Vec<_> = page
        .lines()
        .filter(|line| !line.starts_with('#'))
        .flat_map(selectors)
        .collect();
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let read = |file: &str| std::fs::read_to_string(root.join(file)).unwrap();
    let rules = read("deploy/prometheus/rules.yaml");
    let mut asked = Vec::new();
    let dashboard = serde_json::from_str(&read("deploy/grafana/evergrant.json")).unwrap();
    queries(&dashboard, &mut asked);
    assert!(asked.len() > 40, "{asked:?}");
    asked.push(rules);
    let asked = asked.join("\n");
    for (name, labels) in selectors(&asked) {
        let lines: Vec<_> = there.iter().filter(|(there, _)| *there == name).collect();
        for (label, words) in labels {
            if ITS_OWN[..2].contains(&label) {
                continue;
            }
            assert!(!lines.is_empty(), "{name} has no line: {page}");
            let mut values: Vec<&str> = lines
                .iter()
                .flat_map(|(_, labels)| labels.iter().filter(|(there, _)| *there == label))
                .flat_map(|(_, values)| values.iter().copied())
                .collect();
            assert!(!values.is_empty(), "{name} has no label {label}");
            match label {
                // They have a line once they have occurred.
                "class" => values.extend(Class::ALL.map(Class::as_str)),
                "code_class" => {
                    values.extend(["none", "1xx", "2xx", "3xx", "4xx", "5xx", "other", "refused"]);
                }
                _ => {}
            }
            for word in words {
                // Whatever the dashboard's reader has chosen.
                if !word.starts_with('$') {
                    assert!(
                        values.contains(&word),
                        "{name}{{{label}}} is never {word}: {values:?}"
                    );
                }
            }
        }
    }
    let known: Vec<&str> = there
        .iter()
        .flat_map(|(_, labels)| labels.iter().map(|(label, _)| *label))
        .chain(ITS_OWN)
        .collect();
    let grouped = grouped_by(&asked);
    assert!(grouped.len() > 20, "{grouped:?}");
    for label in grouped {
        assert!(known.contains(&label), "nothing has a label {label}");
    }
    // And what the rules record is asked for under the name that it is recorded by.
    let is_inside = |letter: char| letter.is_ascii_alphanumeric() || letter == '_' || letter == ':';
    for word in asked.split(|letter| !is_inside(letter)) {
        if word.starts_with("evergrant:") {
            assert!(
                asked.contains(&format!("record: {word}\n")),
                "nothing records {word}"
            );
        }
    }
}

#[tokio::test]
async fn more_connections_calls_and_failures_make_no_more_series() {
    let house = House::build().await;
    let metrics = house.key(json!({"name": "n", "role": "metrics"})).await;
    let round = async |connections: std::ops::Range<u64>| {
        for number in connections {
            let id = format!("c{number}");
            house.import(&id, &format!("customer-{number}"), number).await;
            house
                .get(
                    &house.admin,
                    &format!("/gateway/{id}/crm/v3/objects/contacts/{number}?email=x@y.z"),
                )
                .await
                .expect(404);
            house
                .get(
                    &house.admin,
                    &format!("/gateway/{id}/crm/v3/objects/made-up-{number}"),
                )
                .await;
        }
        series(&house.get(&metrics, "/metrics").await.expect(200))
    };
    let few = round(1001..1003).await;
    let many = round(2001..2031).await;
    assert_eq!(few, many);
    let connections = few.iter().filter(|name| name.contains("connection=")).count();
    assert_eq!(connections, 0);
}

#[tokio::test]
async fn an_app_that_the_provider_refuses_is_shown_as_such_and_the_refusals_are_counted() {
    let house = House::build().await;
    let metrics = house.key(json!({"name": "n", "role": "metrics"})).await;
    house.import("c1", "acme", 1001).await;
    house.sim.set_client_secret("sim-client", "another");
    house
        .post(&house.admin, "/v1/connections/c1/refresh", json!({"force": true}))
        .await
        .refused(424, "app_credentials_rejected");
    let text = house.get(&metrics, "/metrics").await.expect(200).text();
    for sample in [
        r#"evergrant_app_credentials_rejected{app="crm"} 1"#,
        r#"evergrant_app_credentials_rejected{app="other"} 0"#,
        r#"evergrant_redemptions_total{app="crm",outcome="client_refused"} 1"#,
        r#"evergrant_refreshes_total{app="crm",outcome="app_credentials_rejected"} 1"#,
        r#"evergrant_problems_total{code="app_credentials_rejected"} 1"#,
    ] {
        assert!(text.lines().any(|line| line == sample), "{sample}: {text}");
    }
}

#[tokio::test]
async fn what_is_not_counted_but_looked_up_is_shown_beside_it() {
    let house = House::build().await;
    let metrics = house.key(json!({"name": "n", "role": "metrics"})).await;
    house.import("c1", "acme", 1001).await;
    house
        .get("", "/v1/connections")
        .await
        .refused(401, "invalid_api_key");
    let answer = house.get(&metrics, "/metrics").await.expect(200);
    let text = answer.text();
    for sample in [
        r#"evergrant_app_credentials_rejected{app="crm"} 0"#,
        r#"evergrant_connections{app="crm",health="unverified"} 1"#,
        r#"evergrant_connections{app="crm",health="reconnect_required"} 0"#,
        r#"evergrant_connections{app="other",health="healthy"} 0"#,
        r#"evergrant_token_sets_stored_total{app="crm",source="import"} 1"#,
        r#"evergrant_problems_total{code="invalid_api_key"} 1"#,
        r#"evergrant_problems_total{code="overloaded"} 0"#,
        r#"evergrant_store_errors_total{op="land"} 0"#,
        "evergrant_double_redemptions_total 0",
    ] {
        assert!(text.lines().any(|line| line == sample), "{sample}: {text}");
    }
}
