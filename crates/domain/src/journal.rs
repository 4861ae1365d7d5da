//! HubSpot's webhooks journal, as far as it tells of uninstalls: what is asked for, and what the answers mean.
//!
//! HubSpot pushes no webhook when an app is uninstalled; it writes a journal, kept for three days, that the app itself reads.
//!
//! Source: HubSpot, "Webhooks journal" (2026-03); its event type `4-1916193` is an uninstall. Members that we do not know are
//! passed over.

use serde_json::Value;
use url::Url;

use crate::id::AccountId;
use crate::time::Timestamp;

/// What a token for reading it must be asked for with: it is the app's own, of no account.
pub const SCOPES: [&str; 3] = [
    "developer.webhooks_journal.read",
    "developer.webhooks_journal.subscriptions.read",
    "developer.webhooks_journal.subscriptions.write",
];

/// Where subscriptions are made, below the API base.
pub const SUBSCRIPTIONS: &str = "webhooks-journal/subscriptions/2026-03";

/// The subscription to uninstalls, as JSON.
pub const SUBSCRIPTION: &str =
    r#"{"subscriptionType":"APP_LIFECYCLE_EVENT","eventTypeId":"4-1916193","properties":[]}"#;

/// Where the page behind this position is asked for, below the API base; `None`: the earliest that is kept.
///
/// The provider's own word for a position becomes one segment of the path, whatever is in it.
pub fn next_page(position: Option<&str>) -> String {
    const JOURNAL: &str = "webhooks-journal/journal/2026-03";
    match position {
        None => format!("{JOURNAL}/earliest"),
        Some(position) => {
            let position: String = url::form_urlencoded::byte_serialize(position.as_bytes()).collect();
            format!("{JOURNAL}/offset/{}/next", position.replace('+', "%20"))
        }
    }
}

/// What asking for the next page comes to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NextPage {
    /// It is there.
    At {
        /// Where it lies, to be fetched without credentials.
        url: Url,
        /// What it is behind.
        position: String,
    },
    /// There is none yet.
    NotYet,
    /// The position is not known any more: it is past what is kept.
    PositionLost,
    /// The token is not taken.
    TokenRefused,
    /// The app may not read the journal: it lacks the scopes, or the account of its developer does.
    Forbidden,
    /// No answer that says anything: later.
    Unclear,
}

/// Reads an answer to asking for the next page.
pub fn read_next(status: u16, body: &[u8]) -> NextPage {
    match status {
        200 => page_at(body).unwrap_or(NextPage::Unclear),
        204 => NextPage::NotYet,
        400 | 404 | 410 => NextPage::PositionLost,
        401 => NextPage::TokenRefused,
        403 => NextPage::Forbidden,
        _ => NextPage::Unclear,
    }
}

fn page_at(body: &[u8]) -> Option<NextPage> {
    let answer: Value = serde_json::from_slice(body).ok()?;
    let position = match answer.get("currentOffset")? {
        Value::String(position) if !position.is_empty() => position.clone(),
        Value::Number(position) => position.to_string(),
        _ => return None,
    };
    let url = Url::parse(answer.get("url")?.as_str()?).ok()?;
    Some(NextPage::At { url, position })
}

/// An uninstall that a page tells of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Uninstalled {
    /// In which account.
    pub account: AccountId,
    /// When.
    pub at: Timestamp,
}

/// Reads the uninstalls of a page. `time` reads RFC 3339, which nothing here does; numbers are milliseconds since the epoch.
///
/// # Errors
///
/// Where it is no page at all. An entry that cannot be read is passed over: the next redemption finds out what it would have said.
pub fn read_page(
    body: &[u8],
    time: impl Fn(&str) -> Option<Timestamp>,
) -> Result<Vec<Uninstalled>, &'static str> {
    let page: Value = serde_json::from_slice(body).map_err(|_| "no JSON")?;
    let events = page
        .get("journalEvents")
        .and_then(Value::as_array)
        .ok_or("no journalEvents")?;
    let uninstalled = |event: &Value| {
        if event.get("action")?.as_str()? != "APP_UNINSTALL" {
            return None;
        }
        let account = match event.get("portalId")? {
            Value::String(account) => account.clone(),
            Value::Number(account) => account.to_string(),
            _ => return None,
        };
        let at = match event.get("occurredAt")? {
            Value::String(text) => time(text)?,
            Value::Number(millis) => Timestamp::from_millis(millis.as_i64()?),
            _ => return None,
        };
        Some(Uninstalled {
            account: AccountId::parse(&account).ok()?,
            at,
        })
    };
    Ok(events.iter().filter_map(uninstalled).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_page_is_asked_for_behind_the_last_whatever_its_name() {
        assert_eq!(next_page(None), "webhooks-journal/journal/2026-03/earliest");
        assert_eq!(
            next_page(Some("0190-ab")),
            "webhooks-journal/journal/2026-03/offset/0190-ab/next"
        );
        assert_eq!(
            next_page(Some("../x?y/z #")),
            "webhooks-journal/journal/2026-03/offset/..%2Fx%3Fy%2Fz%20%23/next"
        );
    }

    #[test]
    fn each_answer_has_its_next_step() {
        let page = br#"{"url":"https://files.example.com/p1?sig=x","expiresAt":"2026-11-30T10:00:00Z","currentOffset":"o1","more":1}"#;
        assert_eq!(
            read_next(200, page),
            NextPage::At {
                url: Url::parse("https://files.example.com/p1?sig=x").expect("a literal URL"),
                position: "o1".into()
            }
        );
        for nonsense in [
            "",
            "[]",
            "{}",
            r#"{"url":"x","currentOffset":"o"}"#,
            r#"{"url":"https://a.b/"}"#,
        ] {
            assert_eq!(
                read_next(200, nonsense.as_bytes()),
                NextPage::Unclear,
                "{nonsense}"
            );
        }
        assert_eq!(read_next(204, b""), NextPage::NotYet);
        assert_eq!(read_next(404, b""), NextPage::PositionLost);
        assert_eq!(read_next(401, b""), NextPage::TokenRefused);
        assert_eq!(read_next(403, b""), NextPage::Forbidden);
        for status in [301, 423, 429, 500, 503] {
            assert_eq!(read_next(status, page), NextPage::Unclear, "{status}");
        }
    }

    #[test]
    fn uninstalls_are_read_from_a_page_and_everything_else_is_passed_over() {
        let time = |text: &str| (text == "noon").then(|| Timestamp::from_millis(12));
        let page = br#"{"offset":"o1","publishedAt":"noon","journalEvents":[
            {"type":"app_lifecycle_event","action":"APP_UNINSTALL","portalId":1001,"occurredAt":"noon"},
            {"type":"app_lifecycle_event","action":"APP_INSTALL","portalId":1001,"occurredAt":"noon"},
            {"action":"APP_UNINSTALL","portalId":"1002","occurredAt":17},
            {"action":"APP_UNINSTALL","portalId":1003,"occurredAt":"nonsense"},
            {"action":"APP_UNINSTALL","occurredAt":17},
            {"portalId":1004}, 7]}"#;
        let uninstalled = |account: &str, millis| Uninstalled {
            account: AccountId::parse(account).expect("a literal id"),
            at: Timestamp::from_millis(millis),
        };
        assert_eq!(
            read_page(page, time),
            Ok(vec![uninstalled("1001", 12), uninstalled("1002", 17)])
        );
        assert_eq!(read_page(b"<html>", time), Err("no JSON"));
        assert_eq!(read_page(b"{}", time), Err("no journalEvents"));
    }
}
