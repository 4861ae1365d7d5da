//! What came of a demo.

use std::time::Duration;

use serde::Serialize;
use serde_json::Value;

use crate::demo::Scenes;
use crate::demo::world::{Customer, World};
use crate::failure::Failure;
use crate::output::{Output, Tone, count, print_line, text};

/// Many callers at one expired token.
#[derive(Debug, Serialize)]
pub(crate) struct Stampede {
    pub(crate) callers: usize,
    /// By the provider, with success.
    pub(crate) answered: usize,
    /// How often the refresh token that stood then was presented, by the simulator's ledger.
    pub(crate) redemptions: u64,
}

/// A grant that its customer took back.
#[derive(Debug, Serialize)]
pub(crate) struct Revoked {
    pub(crate) connection: String,
    pub(crate) reason: String,
    pub(crate) reconnect_url: String,
    /// Calls since then, each answered with why and where to reconnect.
    pub(crate) calls_refused: u64,
}

impl Revoked {
    /// As the service's record says.
    pub(crate) fn of(customer: &Customer, record: &Value) -> Self {
        Self {
            connection: customer.name.to_owned(),
            reason: text(record, "/status_reason"),
            reconnect_url: text(record, "/reconnect_url"),
            calls_refused: 0,
        }
    }
}

/// A mistake, and what the doctor says of it.
#[derive(Debug, Serialize)]
pub(crate) struct Named {
    pub(crate) connection: String,
    pub(crate) planted: &'static str,
    pub(crate) cause: Option<String>,
    /// Whether that is what was planted.
    pub(crate) as_planted: bool,
    pub(crate) action: String,
}

impl Named {
    /// The cause as a word; the doctor may find none.
    pub(crate) fn cause(&self) -> &str {
        self.cause.as_deref().unwrap_or("no cause found")
    }
}

/// The numbers: calls by their answers, redemptions by the simulator's ledger.
#[derive(Debug, Serialize)]
pub(crate) struct Summary {
    seconds: f64,
    portals: usize,
    calls: u64,
    /// Because of a token, while there was a grant.
    failed_calls: u64,
    failed_otherwise: u64,
    /// Repeated by Evergrant after a 401, each counted as one call.
    repeated_calls: u64,
    /// Token sets that ended.
    expiries: u64,
    /// Refresh tokens redeemed.
    redemptions: u64,
    redemptions_per_expiry: Option<f64>,
    /// Presentations of a refresh token that was spent, or while another presentation of it was on its way.
    redeemed_twice: u64,
    stampede: Option<Stampede>,
    revoked: Option<Revoked>,
    /// Mistakes that the doctor was asked about.
    named: Vec<Named>,
    pub(crate) ok: bool,
}

impl Summary {
    pub(crate) fn of(world: &World, elapsed: Duration, scenes: Scenes) -> Self {
        let ledger = world.ledger();
        let sum = |of: fn(&Customer) -> u64| world.customers.iter().map(|customer| of(customer)).sum::<u64>();
        let expiries = world.everybody().map(|customer| customer.tally.expiries()).sum();
        let redemptions = ledger.refreshes_accepted;
        let redeemed_twice = ledger.replays
            + ledger
                .refresh_tokens
                .iter()
                .map(|token| token.overlaps)
                .sum::<u64>();
        let failed_calls = sum(|customer| customer.tally.failed_because_of_token());
        let failed_otherwise = sum(|customer| customer.tally.failed_otherwise());
        let calls = sum(|customer| customer.tally.calls());
        let revoked = scenes.revoked.map(|revoked| Revoked {
            calls_refused: world.leaving().tally.refused_after_revocation(),
            ..revoked
        });
        #[expect(clippy::cast_precision_loss, reason = "a demo does not run for centuries")]
        let redemptions_per_expiry = (expiries > 0).then(|| redemptions as f64 / expiries as f64);
        Self {
            seconds: (elapsed.as_secs_f64() * 10.0).round() / 10.0,
            portals: world.everybody().count(),
            calls,
            failed_calls,
            failed_otherwise,
            repeated_calls: sum(|customer| customer.tally.repeated()),
            expiries,
            redemptions,
            redemptions_per_expiry,
            redeemed_twice,
            stampede: scenes.stampede,
            revoked,
            ok: failed_calls == 0
                && failed_otherwise == 0
                && redeemed_twice == 0
                && scenes.named.iter().all(|named| named.as_planted),
            named: scenes.named,
        }
    }

    pub(crate) fn print(&self, output: Output) -> Result<(), Failure> {
        let good = |number: u64| {
            let tone = if number == 0 { Tone::Good } else { Tone::Bad };
            output.paint(tone, &number.to_string())
        };
        let heading = format!("{:.0} seconds, {} portals", self.seconds, self.portals);
        print_line(format_args!("\n{}", output.paint(Tone::Strong, &heading)))?;
        let ratio = self
            .redemptions_per_expiry
            .map_or_else(|| "–".to_owned(), |ratio| format!("{ratio:.2}"));
        let mut fields = vec![
            ("calls through the gateway", self.calls.to_string()),
            ("failed because of a token", good(self.failed_calls)),
            ("failed otherwise", good(self.failed_otherwise)),
            ("repeated after a 401", self.repeated_calls.to_string()),
            ("token sets that ended", self.expiries.to_string()),
            (
                "refresh tokens redeemed",
                format!("{}, {ratio} for each that ended", self.redemptions),
            ),
            ("redeemed twice", good(self.redeemed_twice)),
        ];
        if let Some(Stampede {
            callers,
            answered,
            redemptions,
        }) = &self.stampede
        {
            fields.push((
                "stampede",
                format!(
                    "{callers} callers at one expired token: {answered} answered, {}",
                    count(*redemptions, "redemption")
                ),
            ));
        }
        if let Some(Revoked {
            connection,
            reason,
            reconnect_url,
            calls_refused,
        }) = &self.revoked
        {
            fields.push((
                "revoked grant",
                format!("{connection}: {reason}, {calls_refused} calls refused with the link"),
            ));
            fields.push(("reconnect link", reconnect_url.clone()));
        }
        for named in &self.named {
            let tone = if named.as_planted { Tone::Good } else { Tone::Bad };
            let cause = output.paint(tone, named.cause());
            fields.push((
                "doctor",
                format!("{}: {}: {cause}", named.connection, named.planted),
            ));
        }
        output.fields(&fields)
    }
}
