use super::*;

macro_rules! api {
    ($name:literal) => {
        include_str!(concat!("../../fixtures/api/", $name))
    };
}
macro_rules! token {
    ($name:literal) => {
        include_str!(concat!("../../fixtures/token/", $name))
    };
}

fn explained(text: &str) -> Option<Explanation> {
    explain(text, |code| match code {
        "reconnect_required" => Some(("The grant is gone.", "Send the link.")),
        "outcome_unknown" => Some(("Nobody knows.", "Look first.")),
        "forbidden" => Some(("The role is too small.", "Use another key.")),
        _ => None,
    })
}

/// `word` is the problem, where there is one, else the class.
fn check(text: &str, word: &str, status: Option<u16>) {
    let explained = explained(text).unwrap_or_else(|| panic!("nothing found in {text}"));
    let found = explained.problem.as_deref().unwrap_or(explained.class.as_str());
    assert_eq!((found, explained.status), (word, status), "{text}");
    assert!(
        !explained.cause.is_empty() && !explained.action.is_empty(),
        "{text}"
    );
}

#[test]
fn every_fixture_is_explained_from_its_body_alone() {
    check(api!("expired_seconds.json"), "expired", Some(401));
    check(api!("expired_minutes.json"), "expired", Some(401));
    check(api!("expired_days.json"), "expired", Some(401));
    check(api!("malformed_token.json"), "malformed_token", Some(401));
    check(api!("credentials_not_found.json"), "rejected", Some(401));
    check(api!("missing_scopes.json"), "permission_denied", Some(403));
    check(
        api!("missing_scopes_older_key.json"),
        "permission_denied",
        Some(403),
    );
    check(api!("rate_limited_ten_secondly.json"), "rate_limited", Some(429));
    check(api!("rate_limited_daily.json"), "rate_limited", Some(429));
    check(api!("conflict.json"), "client_error", Some(409));
    check(token!("bad_refresh_token.json"), "reconnect_required", None);
    check(
        token!("bad_refresh_token_before_2026.json"),
        "reconnect_required",
        None,
    );
    check(token!("bad_hub.json"), "reconnect_required", None);
    check(token!("invalid_grant_rfc.json"), "reconnect_required", None);
    check(
        token!("mismatch_refresh_token_client.json"),
        "reconnect_required",
        None,
    );
    check(token!("bad_client_id.json"), "app_credentials_rejected", None);
    check(token!("bad_client_secret.json"), "app_credentials_rejected", None);
    check(
        token!("invalid_client_rfc.json"),
        "app_credentials_rejected",
        None,
    );
}

#[test]
fn a_whole_http_answer_is_taken_apart() {
    let answer = format!(
        "HTTP/1.1 429 Too Many Requests\r\nContent-Type: application/json\r\nRetry-After: 7\r\n\r\n{}",
        api!("rate_limited_secondly.json")
    );
    check(&answer, "rate_limited", Some(429));
    let explained = explained(&answer).expect("an answer");
    assert_eq!(explained.retry_after, Some(Duration::from_secs(7)));
    assert!(explained.cause.contains("SECONDLY"), "{}", explained.cause);
    check(
        "HTTP/2 401\nwww-authenticate: Bearer error=\"invalid_token\", error_description=\"The access token expired\"\n",
        "expired",
        Some(401),
    );
    check(
        "HTTP/1.1 502 Bad Gateway\n\n<html>502 Bad Gateway</html>",
        "unavailable",
        Some(502),
    );
    check(
        &format!("HTTP/1.1 503\n\n{}", token!("bad_refresh_token.json")),
        "provider_unavailable",
        Some(503),
    );
}

#[test]
fn exceptions_of_hubspots_clients_are_understood() {
    let body = api!("expired_seconds.json");
    let node = format!(
        "ApiException: HTTP-Code: 401\nMessage: An error occurred.\nBody: {body}\nHeaders: {{\"date\":\"x\"}}"
    );
    check(&node, "expired", Some(401));
    let python = format!(
        "hubspot.crm.contacts.exceptions.UnauthorizedException: (401)\nReason: Unauthorized\nHTTP response headers: HTTPHeaderDict({{'Date': 'x', 'CF-RAY': '123-FRA'}})\nHTTP response body: {body}"
    );
    check(&python, "expired", Some(401));
    check(
        "Client error: `POST https://api.hubapi.com/oauth/v1/token` resulted in a `400 Bad Request` response: {\"status\":\"BAD_REFRESH_TOKEN\",\"message\":\"missing or unknown refresh token\"}",
        "reconnect_required",
        Some(400),
    );
    check(
        "Error: Request failed with status code 403",
        "permission_denied",
        Some(403),
    );
    check(
        "requests.exceptions.HTTPError: 401 Client Error: Unauthorized for url: https://api.hubapi.com/x",
        "rejected",
        Some(401),
    );
}

#[test]
fn log_lines_and_bare_messages_are_understood() {
    check(
        r#"{"level":"error","msg":"call failed","response":{"statusCode":401,"body":"{\"status\":\"error\",\"message\":\"The OAuth token used to make this call expired 5 second(s) ago.\",\"category\":\"EXPIRED_AUTHENTICATION\"}"}}"#,
        "expired",
        Some(401),
    );
    check(
        "oauth2: \"invalid_grant\" \"refresh token is invalid\"",
        "reconnect_required",
        None,
    );
    check("connect ETIMEDOUT 104.17.1.1:443", "timeout", None);
    check("getaddrinfo ENOTFOUND api.hubapi.com", "unavailable", None);
    check(
        "The OAuth token used to make this call expired 20705 day(s) ago.",
        "malformed_token",
        None,
    );
    check(
        "2026-11-24 10:00:01 WARN GET /crm/v3/objects/contacts status=429 duration=31ms",
        "rate_limited",
        Some(429),
    );
}

#[test]
fn an_answer_of_evergrant_says_what_it_says_itself() {
    let text = r#"{"type":"urn:evergrant:problem:reconnect_required","title":"t","status":424,"detail":"the grant is gone","code":"reconnect_required","action":"use the link"}"#;
    let explained = explained(text).expect("a problem");
    assert_eq!(explained.problem.as_deref(), Some("reconnect_required"));
    assert_eq!(explained.class, Class::ClientError);
    assert_eq!(
        (explained.cause.as_str(), explained.action.as_str()),
        ("the grant is gone", "use the link")
    );
}

#[test]
fn evergrants_own_words_are_kept() {
    let class = |text: &str, class: Class, status: u16| {
        let explained = explained(text).unwrap_or_else(|| panic!("nothing found in {text}"));
        assert_eq!(
            (explained.class, explained.problem, explained.status),
            (class, None, Some(status)),
            "{text}"
        );
        assert_eq!(explained.action, about(class).action);
    };
    class(
        r#"{"event":"call","class":"rejected_after_refresh","status_code":401}"#,
        Class::RejectedAfterRefresh,
        401,
    );
    class(
        "WARN evergrant: event=\"call\" status_code=401 class=\"static_rejected\"",
        Class::StaticRejected,
        401,
    );
    class(
        &format!(
            "HTTP/1.1 401 Unauthorized\nEvergrant-Class: rejected_after_refresh\n\n{}",
            api!("expired_seconds.json")
        ),
        Class::RejectedAfterRefresh,
        401,
    );
    // A word of somebody else's that is none of ours.
    check(
        r#"{"class":"com.example.ApiException","status":403}"#,
        "permission_denied",
        Some(403),
    );
}

#[test]
fn an_answer_of_evergrant_is_known_by_its_code_alone() {
    let body =
        r#"{"type":"urn:evergrant:problem:reconnect_required","status":424,"code":"reconnect_required"}"#;
    for text in [
        format!("HTTP/1.1 424 Failed Dependency\nEvergrant-Error: reconnect_required\n\n{body}"),
        "HTTP/1.1 424\r\nevergrant-error: reconnect_required\r\n".to_owned(),
        body.to_owned(),
    ] {
        let explained = explained(&text).unwrap_or_else(|| panic!("nothing found in {text}"));
        assert_eq!(explained.problem.as_deref(), Some("reconnect_required"), "{text}");
        assert_eq!(explained.cause, "The grant is gone.", "{text}");
        assert_eq!(explained.help_path(), "/help/errors/reconnect_required");
    }
    check(
        "HTTP/1.1 424\nEvergrant-Error: from_the_future\n",
        "from_the_future",
        Some(424),
    );
}

#[test]
fn a_bare_status_is_enough() {
    check("HTTP 503", "unavailable", Some(503));
    check("503 Service Unavailable", "unavailable", Some(503));
    check("HTTP/1.1 503", "unavailable", Some(503));
    check("http 401", "rejected", Some(401));
}

#[test]
fn what_holds_nothing_is_not_explained_and_nothing_breaks() {
    let deep = "{\"a\":".repeat(5000);
    let umlauts = "ä".repeat(200);
    for text in [
        "",
        "hello",
        "{}",
        "{\"a\":1}",
        "[1,2,3]",
        "1234",
        "ä401ä",
        "v4.401.2",
        &deep,
        &umlauts,
    ] {
        assert_eq!(
            explained(text),
            None,
            "{}",
            text.chars().take(40).collect::<String>()
        );
    }
}

#[test]
fn a_pasted_token_is_not_repeated() {
    let text = "HTTP/1.1 401 Unauthorized\nAuthorization: Bearer canary-token\n\n{\"status\":\"error\",\"message\":\"canary-token expired\",\"category\":\"INVALID_AUTHENTICATION\"}";
    assert!(!format!("{:?}", explained(text).expect("an answer")).contains("canary"));
}

#[test]
fn a_token_in_a_sentence_of_a_problem_is_not_repeated() {
    let problem = |detail: &str| {
        let text = serde_json::json!({
            "type": "urn:evergrant:problem:reconnect_required", "code": "reconnect_required",
            "detail": detail, "action": "see `evergrant apps check` of Bearer CKx1",
        });
        let explained = explained(&text.to_string()).expect("a problem");
        (explained.cause, explained.action)
    };
    let (cause, action) =
        problem("token CKSECRETaaaBBB111 and tok=CKSECRETaaaBBB222; /v1/connections/c1 of acmeCRM2 stays");
    assert_eq!(cause, "token … and … /v1/connections/c1 of acmeCRM2 stays");
    assert_eq!(action, "see evergrant apps check of Bearer …");
}

#[test]
fn a_token_endpoints_success_is_no_error_and_asks_to_be_kept_away_from_others() {
    let text =
        r#"{"access_token":"CKSECRET","refresh_token":"na1-secret","expires_in":1800,"token_type":"bearer"}"#;
    for text in [text.to_owned(), format!("HTTP/1.1 200 OK\n\n{text}")] {
        check(&text, "ok", None);
        let explained = explained(&text).expect("known");
        assert!(
            explained.action.contains("logs") && !explained.refresh_helps,
            "{explained:?}"
        );
        assert!(!format!("{explained:?}").contains("SECRET"), "{explained:?}");
    }
}

#[test]
fn the_end_of_a_long_log_is_read_too() {
    let filler = "2026-11-30 all is well, id=12345 {\"a\":1}\n".repeat(10_000);
    let error = api!("expired_minutes.json");
    check(&format!("{filler}{error}"), "expired", Some(401));
    check(&format!("{error}{filler}"), "expired", Some(401));
    // What is in the middle of it is not.
    assert!(explained(&format!("{filler}{filler}{error}{filler}{filler}")).is_none());
    // Cut where a character is.
    check(&format!("{}{error}", "ü".repeat(300_000)), "expired", Some(401));
}

#[test]
fn a_refusal_without_a_reason_is_not_called_a_missing_scope() {
    let bare = explained("HTTP/1.1 403 Forbidden\n\nnot for you").expect("a status");
    assert!(
        bare.cause.contains("nothing in this text says for which right"),
        "{bare:?}"
    );
    let named = explained(api!("missing_scopes.json")).expect("an answer");
    assert!(
        named.cause.contains("Missing: ") && named.action.contains("Add the missing scopes"),
        "{named:?}"
    );
    let unnamed = explained("403: {\"category\":\"MISSING_SCOPES\"}").expect("an answer");
    assert!(unnamed.action.contains("Add the missing scopes"), "{unnamed:?}");
}

#[test]
fn an_answer_about_single_fields_is_read_as_a_whole() {
    let text = r#"HTTP/1.1 400 Bad Request

{"status":"error","message":"Property values were not valid: [{\"error\":\"INVALID_EMAIL\"}]","correlationId":"0193a7aa-9999","category":"VALIDATION_ERROR","errors":[{"error":"x","category":"y"}]}"#;
    let explained = explained(text).expect("an answer");
    assert_eq!(
        (explained.code.as_deref(), explained.correlation_id.as_deref()),
        (Some("VALIDATION_ERROR"), Some("0193a7aa-9999"))
    );
}

#[test]
fn every_class_says_what_happened_and_what_to_do() {
    for class in Class::ALL {
        let about = about(class);
        assert!(
            about.cause.ends_with('.') && about.action.ends_with('.'),
            "{}",
            class.as_str()
        );
    }
}

/// The same error in every form that people paste, as the clients of HubSpot and others print it.
fn forms(status: u16, phrase: &str, body: &str) -> Vec<(&'static str, String)> {
    let headers = r#""cf-ray":"9a1b-FRA","content-type":"application/json","x-hubspot-correlation-id":"h-1""#;
    let escaped = serde_json::to_string(body).expect("a text");
    let exception =
        format!("HTTP-Code: {status}\nMessage: An error occurred.\nBody: {body}\nHeaders: {{{headers}}}");
    let cut: String = body.chars().take(body.len() - 6).collect();
    vec![
        (
            "http",
            format!("HTTP/1.1 {status} {phrase}\r\nDate: x\r\nContent-Type: application/json\r\n\r\n{body}"),
        ),
        (
            "http 2, after a proxy",
            format!(
                "HTTP/1.1 200 Connection established\r\n\r\nHTTP/2 {status} \r\ncontent-type: application/json\r\n\r\n{body}\r\n"
            ),
        ),
        (
            "curl -v",
            format!(
                "*   Trying 104.16.1.1:443...\n* Connected to api.hubapi.com (104.16.1.1) port 443\n> GET /crm/v3/objects/contacts HTTP/2\n> authorization: Bearer canary-token\n> \n* Request completely sent off\n< HTTP/2 {status} \n< content-type: application/json;charset=utf-8\n< content-length: 241\n< \n{{ [241 bytes data]\n* Connection #0 to host api.hubapi.com left intact\n{body}"
            ),
        ),
        (
            "node",
            format!(
                "Error: {exception}\n    at BasicApiResponseProcessor.<anonymous> (/app/node_modules/@hubspot/api-client/lib/codegen/crm/contacts/apis/BasicApi.js:301:23)\n    at process.processTicksAndRejections (node:internal/process/task_queues:95:5)"
            ),
        ),
        (
            "node, inspected",
            format!(
                "ApiException [Error]: {exception}\n    at BasicApiResponseProcessor.<anonymous> (/app/node_modules/@hubspot/api-client/lib/codegen/crm/contacts/apis/BasicApi.js:301:23) {{\n  code: {status},\n  body: {{\n    status: 'error',\n    correlationId: 'c-1'\n  }},\n  headers: {{ 'cf-ray': '9a1b-FRA' }}\n}}"
            ),
        ),
        (
            "node, as JSON",
            format!("{{\"code\":{status},\"body\":{body},\"headers\":{{{headers}}}}}"),
        ),
        (
            "node, logged by pino",
            format!(
                "{{\"level\":50,\"time\":1796000000123,\"err\":{{\"type\":\"ApiException\",\"message\":{},\"stack\":\"Error\",\"code\":{status}}},\"msg\":\"sync failed\"}}",
                serde_json::to_string(&exception).expect("a text")
            ),
        ),
        (
            "python",
            format!(
                "({status})\nReason: {phrase}\nHTTP response headers: HTTPHeaderDict({{'Date': 'Mon, 30 Nov 2026 21:42:04 GMT', 'CF-Ray': '9a1b-FRA', 'x-hubspot-correlation-id': 'h-1'}})\nHTTP response body: {body}\n\n"
            ),
        ),
        (
            "python, a traceback",
            format!(
                "Traceback (most recent call last):\n  File \"/app/sync.py\", line 404, in main\n    return self.get_by_id_with_http_info(contact_id, **kwargs)  # noqa: E501\n  File \"/app/lib/hubspot/crm/contacts/rest.py\", line 195, in GET\n    return self.request(\"GET\", url, _request_timeout=_request_timeout)\nhubspot.crm.contacts.exceptions.UnauthorizedException: ({status})\nReason: {phrase}\nHTTP response headers: HTTPHeaderDict({{'Date': 'x'}})\nHTTP response body: {body}\n"
            ),
        ),
        (
            "php",
            format!(
                "HubSpot\\Client\\Crm\\Contacts\\ApiException: [{status}] Client error: `GET https://api.hubapi.com/crm/v3/objects/contacts/1` resulted in a `{status} {phrase}` response:\n{cut} (truncated...)\n in /app/vendor/hubspot/api-client/codegen/Crm/Contacts/Api/BasicApi.php:512\nStack trace:\n#0 /app/vendor/guzzlehttp/guzzle/src/Middleware.php(113): GuzzleHttp\\Exception\\RequestException::create()"
            ),
        ),
        (
            "ruby",
            format!(
                "Hubspot::Crm::Contacts::ApiError: Error message: the server returns an error\nHTTP status code: {status}\nResponse headers: {{\"date\"=>\"x\", \"cf-ray\"=>\"9a1b-FRA\"}}\nResponse body: {body}\nfrom /app/vendor/bundle/hubspot/api_client.rb:512:in `call_api'"
            ),
        ),
        (
            "go",
            format!("hubspot: unexpected answer: {status} {phrase}\nResponse: {body}"),
        ),
        (
            "logfmt",
            format!(
                "time=2026-11-30T10:00:00Z level=error msg=\"call failed\" path=/crm/v3/objects/contacts status={status} duration=311ms body={escaped}"
            ),
        ),
        (
            "a line of JSON",
            format!(
                "{{\"level\":\"error\",\"msg\":\"call failed\",\"response\":{{\"statusCode\":{status},\"body\":{escaped}}}}}"
            ),
        ),
    ]
}

#[test]
fn what_is_pasted_may_have_any_form() {
    let errors: [(u16, &str, &str, &str); 11] = [
        (401, "Unauthorized", api!("expired_seconds.json"), "expired"),
        (
            401,
            "Unauthorized",
            api!("malformed_token.json"),
            "malformed_token",
        ),
        (
            401,
            "Unauthorized",
            api!("credentials_not_found.json"),
            "rejected",
        ),
        (403, "Forbidden", api!("missing_scopes.json"), "permission_denied"),
        (
            429,
            "Too Many Requests",
            api!("rate_limited_ten_secondly.json"),
            "rate_limited",
        ),
        (
            429,
            "Too Many Requests",
            api!("rate_limited_daily.json"),
            "rate_limited",
        ),
        (409, "Conflict", api!("conflict.json"), "client_error"),
        (
            423,
            "Locked",
            r#"{"status":"error","message":"Resource is locked","correlationId":"c-423"}"#,
            "unavailable",
        ),
        (
            477,
            "Migration in Progress",
            r#"{"status":"error","message":"Migration in progress"}"#,
            "unavailable",
        ),
        (
            400,
            "Bad Request",
            token!("bad_refresh_token.json"),
            "reconnect_required",
        ),
        (
            400,
            "Bad Request",
            token!("bad_client_secret.json"),
            "app_credentials_rejected",
        ),
    ];
    for (status, phrase, body, word) in errors {
        let body: serde_json::Value = serde_json::from_str(body).expect("a fixture is JSON");
        for (form, text) in forms(status, phrase, &body.to_string()) {
            let explained = explained(&text).unwrap_or_else(|| panic!("nothing found in {form}: {text}"));
            let found = explained.problem.as_deref().unwrap_or(explained.class.as_str());
            assert_eq!((found, explained.status), (word, Some(status)), "{form}: {text}");
            assert_eq!(
                explained.refresh_helps,
                matches!(word, "expired" | "rejected"),
                "{form}: {text}"
            );
            assert!(explained.documentation_url.starts_with("https://"));
            assert!(!format!("{explained:?}").contains("canary"), "{form}");
        }
    }
}

#[test]
fn scopes_and_limits_are_found_in_every_form_too() {
    let compact = |body: &str| {
        let body: serde_json::Value = serde_json::from_str(body).expect("a fixture is JSON");
        body.to_string()
    };
    for (form, text) in forms(403, "Forbidden", &compact(api!("missing_scopes.json"))) {
        let explained = explained(&text).expect("an error");
        let scopes = ["crm.schemas.deals.read", "crm.objects.deals.read"];
        assert_eq!(explained.missing_scopes, scopes, "{form}: {text}");
    }
    for (form, text) in forms(
        429,
        "Too Many Requests",
        &compact(api!("rate_limited_daily.json")),
    ) {
        let explained = explained(&text).expect("an error");
        assert!(explained.cause.contains("DAILY"), "{form}: {}", explained.cause);
        assert!(
            explained.action.contains("midnight"),
            "{form}: {}",
            explained.action
        );
    }
}

#[test]
fn an_object_as_a_language_prints_it_is_enough() {
    let node = "  code: 401,\n  body: {\n    status: 'error',\n    message: 'The OAuth token used to make this call expired 0 second(s) ago.',\n    correlationId: '019cd9fe-d093-7d4f-99bc-45975fdcf7c6',\n    category: 'EXPIRED_AUTHENTICATION',\n    context: { 'expire time': [Array] }\n  },";
    check(node, "expired", Some(401));
    let found = explained(node).expect("an error");
    assert_eq!(
        found.correlation_id.as_deref(),
        Some("019cd9fe-d093-7d4f-99bc-45975fdcf7c6")
    );
    assert_eq!(found.code.as_deref(), Some("EXPIRED_AUTHENTICATION"));
    check(
        "ApiException({'status': 'error', 'message': \"This app hasn't been granted all required scopes\", 'category': 'MISSING_SCOPES'})",
        "permission_denied",
        Some(403),
    );
    check(
        "{\"status\"=>\"BAD_REFRESH_TOKEN\", \"message\"=>\"missing or unknown refresh token\"}",
        "reconnect_required",
        None,
    );
    let axios = "AxiosError: Request failed with status code 429\n    at settle (/app/node_modules/axios/lib/core/settle.js:19:12) {\n  code: 'ERR_BAD_REQUEST',\n  config: {\n    timeout: 0,\n    headers: Object [AxiosHeaders] {\n      Authorization: 'Bearer canary-token'\n    },\n    url: 'https://api.hubapi.com/crm/v3/objects/contacts'\n  },\n  response: {\n    status: 429,\n    headers: Object [AxiosHeaders] { 'retry-after': '7' },\n    data: {\n      status: 'error',\n      errorType: 'RATE_LIMIT',\n      policyName: 'TEN_SECONDLY_ROLLING'\n    }\n  }\n}";
    check(axios, "rate_limited", Some(429));
    let found = explained(axios).expect("an error");
    assert_eq!(found.retry_after, Some(Duration::from_secs(7)));
    assert!(found.cause.contains("TEN_SECONDLY_ROLLING"), "{}", found.cause);
    assert!(!format!("{found:?}").contains("canary"));
    check(
        "expired, by an object: { category: 'EXPIRED_AUTHENTICATION', context: { 'expire time': [ '1970-01-01T00:00:00Z' ] } }",
        "malformed_token",
        Some(401),
    );
}

#[test]
fn exceptions_of_other_clients_are_understood() {
    check(
        "Faraday::UnauthorizedError: the server responded with status 401",
        "rejected",
        Some(401),
    );
    check(
        "RestClient::Forbidden: 403 Forbidden",
        "permission_denied",
        Some(403),
    );
    check(
        "feign.FeignException$Unauthorized: [401 Unauthorized] during [GET] to [https://api.hubapi.com/x]",
        "rejected",
        Some(401),
    );
    check(
        "System.Net.Http.HttpRequestException: Response status code does not indicate success: 429 (Too Many Requests).",
        "rate_limited",
        Some(429),
    );
    check(
        "oauth2: cannot fetch token: 400 Bad Request\nResponse: {\"status\":\"BAD_CLIENT_ID\",\"message\":\"missing or unknown client id\"}",
        "app_credentials_rejected",
        Some(400),
    );
    check(
        "urllib.error.HTTPError: HTTP Error 403: Forbidden",
        "permission_denied",
        Some(403),
    );
}

#[test]
fn a_failure_without_an_answer_is_no_matter_of_tokens() {
    for (text, word) in [
        (
            "TypeError: fetch failed\n    at node:internal/deps/undici/undici:14976:13 {\n  [cause]: Error: connect ECONNREFUSED 127.0.0.1:443\n}",
            "unavailable",
        ),
        (
            "TypeError: fetch failed\n  [cause]: ConnectTimeoutError: Connect Timeout Error (attempted address: api.hubapi.com:443, timeout: 10000ms)\n    code: 'UND_ERR_CONNECT_TIMEOUT'",
            "timeout",
        ),
        (
            "HTTPConnectionPool(host='api.hubapi.com', port=443): Max retries exceeded with url: /crm/v3/objects/contacts/1 (Caused by NewConnectionError(\"Failed to establish a new connection: [Errno 111] Connection refused\"))\n return self.request(url, _request_timeout=_request_timeout)",
            "unavailable",
        ),
        (
            "urllib3.exceptions.ReadTimeoutError: HTTPSConnectionPool(host='api.hubapi.com', port=443): Read timed out. (read timeout=60)",
            "timeout",
        ),
        (
            "cURL error 28: Operation timed out after 60001 milliseconds",
            "timeout",
        ),
        ("curl: (6) Could not resolve host: api.hubapi.com", "unavailable"),
        (
            "AxiosError: socket hang up {\n  code: 'ECONNRESET',\n  config: { timeout: 0 }\n}",
            "unavailable",
        ),
        ("Net::ReadTimeout with #<TCPSocket:(closed)>", "timeout"),
        (
            "okhttp3.internal.http2.StreamResetException: stream was reset: REFUSED_STREAM",
            "unavailable",
        ),
    ] {
        check(text, word, None);
        assert!(!explained(text).expect("a failure").refresh_helps, "{text}");
    }
}

#[test]
fn what_never_connected_has_sent_nothing_and_says_so() {
    for text in [
        "java.net.UnknownHostException: api.hubapi.com: nodename nor servname provided, or not known\n\tat Sync.run(Sync.java:429)",
        "Get \"https://api.hubapi.com/\": dial tcp: lookup api.hubapi.com: no such host",
        "curl: (35) error:0A000410:SSL routines::sslv3 alert handshake failure",
        "tls: failed to verify certificate: x509: certificate signed by unknown authority",
        "Failed to open TCP connection to api.hubapi.com:443 (execution expired)",
        "TypeError: fetch failed {\n cause: Error: connect ETIMEDOUT 104.18.244.31:443 {\n errno: -110, code: 'ETIMEDOUT' }",
        "urllib3.exceptions.ConnectTimeoutError: Connection to api.hubapi.com timed out. (connect timeout=3)",
        "java.net.SocketTimeoutException: connect timed out",
    ] {
        let explained = explained(text).unwrap_or_else(|| panic!("nothing found in {text}"));
        assert!(
            explained.cause.contains("nothing was sent"),
            "{text}: {explained:?}"
        );
        assert_eq!(explained.status, None, "{text}");
    }
}

#[test]
fn a_request_that_held_no_token_is_told_from_a_token_that_is_refused() {
    let without = explained(api!("credentials_not_found.json")).expect("an answer");
    assert!(
        without.cause.contains("found no access token in the request"),
        "{without:?}"
    );
    let refused = explained("401 Unauthorized").expect("an answer");
    assert!(!refused.cause.contains("found no access token"), "{refused:?}");
}

#[test]
fn a_token_endpoint_that_refuses_the_request_itself_is_known_without_a_status() {
    check(
        r#"{"error":"invalid_request","error_description":"missing grant_type"}"#,
        "provider_unavailable",
        None,
    );
    assert!(explained(r#"{"error":"invalid_request"}"#).is_none());
}

#[test]
fn what_the_command_line_says_is_evergrants_own() {
    check(
        "evergrant: the connection needs reconnecting: the provider refused the refresh token",
        "reconnect_required",
        None,
    );
}

#[test]
fn an_error_with_its_number_is_a_status_in_other_languages_too() {
    check("Fehler 401: Nicht autorisiert", "rejected", Some(401));
    check(
        "curl: (22) The requested URL returned error: 401",
        "rejected",
        Some(401),
    );
    assert!(explained("error 150 lines were read").is_none());
    assert!(explained("terror401").is_none());
}

#[test]
fn a_page_of_something_in_front_is_told_from_an_answer_of_the_api() {
    let page = "<html>\r\n<head><title>502 Bad Gateway</title></head>\r\n<body class=\"expired\"><center><h1>502 Bad Gateway</h1></center><hr><center>cloudflare</center></body></html>";
    check(page, "unavailable", Some(502));
    assert!(
        explained(page)
            .expect("a page")
            .cause
            .contains("in front of the API")
    );
    check(
        "<!DOCTYPE html><title>api.hubapi.com | 522: Connection timed out</title><span>Error code 522</span>",
        "unavailable",
        Some(522),
    );
    check(
        "<!DOCTYPE html><title>Access denied | api.hubapi.com used Cloudflare to restrict access</title><h1>Error</h1><h2>You are being rate limited</h2>",
        "rate_limited",
        Some(429),
    );
    let blocked = "HTTP/2 403\ncontent-type: text/html\n\n<!DOCTYPE html><title>Attention Required! | Cloudflare</title><h1>Sorry, you have been blocked</h1>";
    check(blocked, "permission_denied", Some(403));
    assert!(explained(blocked).expect("a page").action.contains("firewall"));
}

#[test]
fn lines_of_access_logs_are_understood() {
    check(
        "10.0.0.1 - - [30/Nov/2026:10:00:00 +0000] \"GET /crm/v3/objects/contacts/404 HTTP/1.1\" 429 311 \"-\" \"hubspot-api-client-nodejs; 13.0.0\" rt=0.311",
        "rate_limited",
        Some(429),
    );
    check(
        "[30/Nov/2026:10:00:00 +0000] \"POST /oauth/v1/token HTTP/2.0\" 502 150",
        "unavailable",
        Some(502),
    );
}

#[test]
fn numbers_that_are_no_statuses_are_left_alone() {
    for text in [
        "  File \"/app/http_client.py\", line 404, in main",
        "#0 /app/vendor/guzzlehttp/guzzle/src/Middleware.php(401): GuzzleHttp",
        "    at Object.<anonymous> (/app/node_modules/codegen/BasicApi.js:403:23)",
        "process exited: exit code 137",
        "200 rows of 429 were read",
    ] {
        assert_eq!(explained(text), None, "{text}");
    }
}

#[test]
fn a_date_to_retry_after_is_counted_from_the_answers_own() {
    let answer = "HTTP/1.1 503 Service Unavailable\nDate: Mon, 30 Nov 2026 21:42:00 GMT\nRetry-After: Mon, 30 Nov 2026 21:43:30 GMT\n\n";
    let found = explained(answer).expect("an answer");
    assert_eq!(found.retry_after, Some(Duration::from_secs(90)));
    let python = "(429)\nReason: Too Many Requests\nHTTP response headers: HTTPHeaderDict({'Date': 'Mon, 30 Nov 2026 21:42:00 GMT', 'Retry-After': 'Mon, 30 Nov 2026 21:42:07 GMT'})";
    assert_eq!(
        explained(python).expect("an answer").retry_after,
        Some(Duration::from_secs(7))
    );
}

#[test]
fn what_says_that_it_is_evergrants_is_known_in_every_language() {
    let document = r#"{"type":"urn:evergrant:problem:reconnect_required","title":"The customer must reconnect","status":424,"detail":"The grant is gone for this one","code":"reconnect_required","action":"Send the customer there"}"#;
    for (form, text) in forms(424, "Failed Dependency", document) {
        let found = explained(&text).unwrap_or_else(|| panic!("nothing found in {form}: {text}"));
        assert_eq!(
            found.problem.as_deref(),
            Some("reconnect_required"),
            "{form}: {text}"
        );
        assert!(!found.refresh_helps);
    }
    check(
        "{'code': 424, 'error': 'outcome_unknown'}",
        "outcome_unknown",
        Some(424),
    );
    check(
        "WARN evergrant: event=\"reconnect_required\" connection_id=c1 code=BAD_REFRESH_TOKEN",
        "reconnect_required",
        None,
    );
    check(
        "{\"level\":\"warn\",\"event\":\"token_endpoint_at_rest\",\"app\":\"crm\"}",
        "provider_unavailable",
        None,
    );
    // A word that anybody uses.
    check("status=403 error=forbidden", "permission_denied", Some(403));
}

#[test]
fn nothing_that_could_be_a_token_is_repeated_whatever_it_is_called() {
    let token = "pat-na1-canary00-0000-0000-0000-000000000000";
    let long = "CJSP5qf1canaryKgECAwQYs-gEMTIzNDU2Nzg5MDEyMzQ1Njc4OTAxMjM0NTY3ODkw";
    for token in [token, long] {
        for text in [
            format!(
                "{{\"type\":\"urn:evergrant:problem:from_the_future\",\"detail\":\"it was {token} that came\",\"action\":\"use {token}\",\"provider_correlation_id\":\"{token}\"}}"
            ),
            format!(
                "HTTP/1.1 401\nx-hubspot-correlation-id: {token}\n\n{{\"category\":\"{token}\",\"correlationId\":\"{token}\",\"message\":\"{token}\"}}"
            ),
            format!("HTTP/1.1 429\n\n{{\"errorType\":\"RATE_LIMIT\",\"policyName\":\"{token}\"}}"),
            format!(
                "HTTP/1.1 403\n\n{{\"category\":\"MISSING_SCOPES\",\"context\":{{\"requiredScopes\":[\"{token}\"]}}}}"
            ),
        ] {
            let found = explained(&text).expect("an answer");
            assert!(!format!("{found:?}").contains("canary"), "{found:?}");
        }
    }
}

#[test]
fn a_refresh_helps_where_the_token_may_be_at_fault_and_nowhere_else() {
    let helps = Class::ALL.into_iter().filter(|class| class.refresh_helps());
    assert_eq!(helps.collect::<Vec<_>>(), [Class::Expired, Class::Rejected]);
}

#[test]
fn a_part_of_a_batch_is_no_whole_success() {
    let found =
        explained("HTTP/1.1 207 Multi-Status\n\n{\"status\":\"COMPLETE\",\"numErrors\":1,\"errors\":[]}");
    assert!(found.expect("an answer").cause.contains("part of the batch"));
}

#[test]
fn many_braces_take_no_long_time() {
    for text in [
        "{\"a\":[1,".repeat(30_000),
        "{ 'a': ".repeat(30_000),
        "status: {".repeat(30_000),
    ] {
        drop(explained(&text));
    }
}

proptest::proptest! {
    #[test]
    fn whatever_is_pasted_nothing_breaks_and_no_token_is_repeated(
        before in "(?s).{0,80}",
        name in proptest::sample::select(vec!["category", "message", "error", "correlationId", "policyName", "detail", "action", "code", "x-hubspot-correlation-id", "requiredScopes"]),
        separator in proptest::sample::select(vec![": ", "=", "=>", "\": \"", "\\\": \\\"", ": '", ":[\""]),
        after in "(?s).{0,80}",
        status in 100u16..600,
    ) {
        let token = "CJSP5qf1canaryKgECAwQYs-gEMTIzNDU2Nzg5MDEyMzQ1Njc4OTAxMjM0NTY3ODkw";
        let text = format!("HTTP/1.1 {status} x\n{before}{name}{separator}{token}{after}");
        let found = explained(&text).expect("there is a status");
        proptest::prop_assert!(!format!("{found:?}").contains("canary"), "{:?}", found);
    }
}
