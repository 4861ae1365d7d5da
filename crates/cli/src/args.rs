//! What can be said on the command line. The help texts are the reference; `docs/reference/cli.md` follows them.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use evergrant_domain::access::Role;
use evergrant_domain::event::EventKind;
use evergrant_domain::{AppName, ConnectionId, Customer};
use http::{HeaderName, HeaderValue, Method};
use hubspot_sim::Rotation;
use url::Url;

use crate::commands::events::since;
use crate::failure::Failure;

/// Keeps OAuth grants alive, and makes API calls that never come back with "token expired".
#[derive(Debug, Parser)]
#[command(name = "evergrant", version, max_term_width = 100, after_help = EXIT_CODES)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) globals: Globals,
    #[command(subcommand)]
    pub(crate) command: Command,
}

const EXIT_CODES: &str = "Exit codes: 0 done, 1 failed, 2 wrong use or configuration, 3 the connection needs reconnecting, \
    4 the provider refuses the app's credentials, 5 provider, store or service unavailable: try later, \
    6 the doctor found another cause.";

/// What every command takes.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Everywhere")]
pub(crate) struct Globals {
    /// The configuration file; else ./evergrant.toml, ~/.config/evergrant/, /etc/evergrant/
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Work over HTTP on this service instead of on the configured store; also `EVERGRANT_URL`
    #[arg(long, global = true, value_name = "URL")]
    pub(crate) server: Option<Url>,
    /// The file with the API key for --server; else the key is taken from `EVERGRANT_API_KEY`
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) api_key_file: Option<PathBuf>,
    /// Print JSON
    #[arg(long, global = true)]
    pub(crate) json: bool,
}

impl Globals {
    /// The service to work on; `None`: the configured store. An empty variable says nothing.
    pub(crate) fn service(&self) -> Result<Option<Url>, Failure> {
        if let Some(server) = &self.server {
            return Ok(Some(server.clone()));
        }
        let variable = std::env::var("EVERGRANT_URL").unwrap_or_default();
        if variable.is_empty() {
            return Ok(None);
        }
        let url = Url::parse(&variable).map_err(|error| Failure::usage(format!("EVERGRANT_URL: {error}")))?;
        Ok(Some(url))
    }
}

/// What can be done.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    #[command(flatten)]
    Local(Local),
    #[command(flatten)]
    Routed(Routed),
}

/// What works on this machine only and knows no `--server`.
#[derive(Debug, Subcommand)]
pub(crate) enum Local {
    /// Show everything at work in a temporary folder: a simulated HubSpot, the service, live traffic
    Demo(Demo),
    /// Write a configuration, a vault key, a store and the first admin API key
    Init(Init),
    /// Run the service
    Serve,
    /// Bring the store's schema up to date, which `serve` does, too
    Migrate(Migrate),
    /// Say what an error answer means and what to do
    #[command(display_order = 90)]
    Explain(Explain),
    /// Run the HubSpot simulator on its own
    #[command(display_order = 91)]
    Sim(Sim),
}

/// What the HTTP API has a route for.
#[derive(Debug, Subcommand)]
pub(crate) enum Routed {
    /// The configured apps
    #[command(subcommand)]
    Apps(Apps),
    /// Connect a customer's account
    Connect(Connect),
    /// The connections and their state
    #[command(subcommand)]
    Connections(Connections),
    /// Print a valid access token
    Token(Token),
    /// Make one API call with a connection's access token
    Call(Call),
    /// Refresh a connection's access token now
    Refresh(Refresh),
    /// Print the link that restores a connection
    Reconnect(Reconnect),
    /// Say what is wrong with connections, why, and what to do
    Doctor(Doctor),
    /// What happened, the newest last
    Events(Events),
    /// API keys
    #[command(subcommand)]
    Keys(Keys),
    /// What webhooks told, and whether it arrived
    #[command(subcommand)]
    Webhooks(Webhooks),
}

/// `evergrant events`
#[derive(Debug, Args)]
pub(crate) struct Events {
    /// Only of this connection
    #[arg(long, value_name = "ID")]
    pub(crate) connection: Vec<ConnectionId>,
    /// Only of this customer's connections
    #[arg(long)]
    pub(crate) customer: Vec<Customer>,
    /// Only of this app and its connections
    #[arg(long)]
    pub(crate) app: Vec<AppName>,
    /// Only of this kind, like `reconnect_required`
    #[arg(long, value_name = "KIND", value_parser = kind)]
    pub(crate) kind: Vec<EventKind>,
    /// From then on: a time like 2026-11-24T18:00:00Z, or how long ago, like 2h
    #[arg(long, value_name = "TIME", value_parser = since)]
    pub(crate) since: Option<jiff::Timestamp>,
    /// At most so many, the newest; 100 where nothing is said, with --since all of them
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) limit: Option<u32>,
    /// Go on with what happens, until Ctrl-C; a stream that breaks off goes on where it stopped
    #[arg(short, long)]
    pub(crate) follow: bool,
}

fn kind(word: &str) -> Result<EventKind, String> {
    EventKind::from_word(word).ok_or_else(|| {
        format!(
            "write one of {}",
            EventKind::ALL.map(EventKind::as_str).join(", ")
        )
    })
}

/// `evergrant webhooks`
#[derive(Debug, Subcommand)]
pub(crate) enum Webhooks {
    /// List deliveries, the newest first
    List {
        /// Only those in this state
        #[arg(long, value_name = "STATE", value_parser = ["pending", "delivered", "dead"])]
        state: Vec<String>,
        /// Only those about this connection
        #[arg(long, value_name = "ID")]
        connection: Vec<ConnectionId>,
    },
    /// Have a delivery sent again
    Resend {
        /// Its id
        id: String,
    },
    /// Send every receiver a test, and say what each answers
    SendTest,
}

/// `evergrant demo`
#[derive(Debug, Args)]
pub(crate) struct Demo {
    /// End after so many seconds of traffic and print a summary; else Ctrl-C does
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub(crate) exit_after: Option<u64>,
}

/// `evergrant init`
#[derive(Debug, Args)]
pub(crate) struct Init {
    /// Where to write; the folder is made if there is none
    #[arg(long, value_name = "FOLDER", default_value = ".")]
    pub(crate) dir: PathBuf,
}

/// `evergrant migrate`
#[derive(Debug, Args)]
pub(crate) struct Migrate {
    /// Change nothing; end with 1 if there is something to do
    #[arg(long)]
    pub(crate) check: bool,
}

/// `evergrant apps`
#[derive(Debug, Subcommand)]
pub(crate) enum Apps {
    /// List the apps: what to register at the provider, and whether it accepts their credentials
    List,
    /// Ask the provider whether it accepts an app's credentials
    Check {
        /// The app's name in the configuration
        app: AppName,
    },
}

/// `evergrant connect`
#[derive(Debug, Args)]
pub(crate) struct Connect {
    /// Which app
    #[arg(long)]
    pub(crate) app: AppName,
    /// Your own reference for the customer
    #[arg(long)]
    pub(crate) customer: Customer,
    /// The connection's id, new or to be reconnected; else one is made
    #[arg(long)]
    pub(crate) id: Option<ConnectionId>,
    /// Only print the link
    #[arg(long)]
    pub(crate) no_browser: bool,
}

/// `evergrant connections`
#[derive(Debug, Subcommand)]
pub(crate) enum Connections {
    /// List connections; a repeated filter means "or", different filters mean "and"
    List(Filters),
    /// Show one connection
    Show {
        /// Which connection
        id: ConnectionId,
    },
    /// Take over connections whose tokens were issued elsewhere, one record a line
    Import(Import),
    /// Write the connections as records of the same form, without their tokens
    Export(Export),
    /// End a connection: its tokens are erased here and its grant revoked at the provider
    Disconnect(Disconnect),
}

/// `evergrant connections import`
#[derive(Debug, Args)]
pub(crate) struct Import {
    /// JSON lines, or CSV with a line of headings where it ends in .csv; `-` for JSON lines on standard input
    pub(crate) file: PathBuf,
    /// Change nothing and ask no provider: say which lines would be refused
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Ask the provider before a line is stored whether its refresh token lives and is of the account that is named: once for each
    /// line, in its turn. With --dry-run, too
    #[arg(long)]
    pub(crate) verify: bool,
    /// What a line is whose id, account or grant is connected already
    #[arg(long, value_enum, default_value = "fail")]
    pub(crate) on_conflict: OnConflict,
    /// Write the refused lines there, one JSON object a line: line, code, reason
    #[arg(long, value_name = "FILE")]
    pub(crate) report: Option<PathBuf>,
}

/// `evergrant connections export`
#[derive(Debug, Args)]
pub(crate) struct Export {
    /// Where to; JSON lines, or CSV where it ends in .csv; `-` for standard output
    pub(crate) file: PathBuf,
    /// Write the tokens, too, in clear: whoever has the file has your customers' grants. Works on the configured store alone
    #[arg(long)]
    pub(crate) include_secrets: bool,
}

/// What becomes of a record that is here already.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum OnConflict {
    /// It is refused.
    Fail,
    /// It is passed over.
    Skip,
    /// It replaces what is stored where the token there ends before its own, and is passed over otherwise.
    Newer,
}

/// The filters of `evergrant connections list`.
#[derive(Debug, Args)]
pub(crate) struct Filters {
    /// Of this app
    #[arg(long)]
    pub(crate) app: Vec<AppName>,
    /// Of this customer
    #[arg(long)]
    pub(crate) customer: Vec<Customer>,
    /// Of this account, by its id at the provider
    #[arg(long)]
    pub(crate) account: Vec<String>,
    /// In this status
    #[arg(long, value_parser = ["active", "reconnect_required", "disconnected"])]
    pub(crate) status: Vec<String>,
    /// In this health
    #[arg(long, value_parser = ["healthy", "degraded", "reconnect_required", "ambiguous", "unverified"])]
    pub(crate) health: Vec<String>,
    /// Whose id, customer or account contains this
    #[arg(short, long)]
    pub(crate) query: Option<String>,
}

/// `evergrant connections disconnect`
#[derive(Debug, Args)]
pub(crate) struct Disconnect {
    /// Which connection
    pub(crate) id: ConnectionId,
    /// Whether the provider is told to forget the grant; auto: where no other connection shares it
    #[arg(long, value_enum, default_value = "auto")]
    pub(crate) revoke: Revoke,
    /// Erase its history too
    #[arg(long)]
    pub(crate) purge: bool,
}

/// Whether a grant is revoked at the provider.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum Revoke {
    Auto,
    Always,
    Never,
}

impl Revoke {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Always => "always",
            Self::Never => "never",
        }
    }
}

/// `evergrant token`
#[derive(Debug, Args)]
pub(crate) struct Token {
    /// Which connection
    pub(crate) id: ConnectionId,
    /// How long it should still live; at most half a lifetime is granted
    #[arg(long, value_name = "SECONDS")]
    pub(crate) min_ttl: Option<u32>,
}

/// `evergrant call`
#[derive(Debug, Args)]
pub(crate) struct Call {
    /// Which connection
    pub(crate) id: ConnectionId,
    /// GET, POST, …
    #[arg(value_parser = method)]
    pub(crate) method: Method,
    /// Path and query at the provider, like '/crm/v3/objects/contacts?limit=1'
    #[arg(value_parser = path)]
    pub(crate) path: String,
    /// The body: as it is, @FILE, or - for standard input; JSON unless -H says otherwise
    #[arg(short, long, value_name = "BODY")]
    pub(crate) data: Option<String>,
    /// One more header, like 'Accept: text/csv'
    #[arg(short = 'H', long = "header", value_name = "NAME: VALUE", value_parser = header)]
    pub(crate) headers: Vec<(HeaderName, HeaderValue)>,
    /// Show status and headers of the answer on standard error
    #[arg(short, long)]
    pub(crate) include: bool,
}

fn method(text: &str) -> Result<Method, String> {
    let valid = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphabetic());
    let method = valid.then(|| text.to_ascii_uppercase().parse().ok()).flatten();
    method.ok_or_else(|| "write GET, POST, PATCH, PUT or DELETE".to_owned())
}

fn path(text: &str) -> Result<String, String> {
    if text.starts_with("https://") || text.starts_with("http://") {
        return Err(
            "write the path alone, from its first / on: the app's configuration names the host".to_owned(),
        );
    }
    Ok(text.to_owned())
}

fn header(text: &str) -> Result<(HeaderName, HeaderValue), String> {
    let (name, value) = text.split_once(':').ok_or("write 'Name: value'")?;
    let name: HeaderName = name
        .trim()
        .parse()
        .map_err(|_| format!("{name:?} is no header name"))?;
    let value = value
        .trim()
        .parse()
        .map_err(|_| format!("the value of {name} cannot be sent"))?;
    if name == http::header::AUTHORIZATION {
        return Err("Evergrant itself puts the access token on the call: leave Authorization out".to_owned());
    }
    Ok((name, value))
}

/// `evergrant refresh`
#[derive(Debug, Args)]
pub(crate) struct Refresh {
    /// Which connection
    pub(crate) id: ConnectionId,
    /// Even if its token set is younger than a minute
    #[arg(long)]
    pub(crate) force: bool,
}

/// `evergrant reconnect`
#[derive(Debug, Args)]
pub(crate) struct Reconnect {
    /// Which connection
    pub(crate) id: ConnectionId,
    /// How many days the link works; 7 where nothing is said
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=30))]
    pub(crate) days: Option<u16>,
}

/// `evergrant doctor`
#[derive(Debug, Args)]
pub(crate) struct Doctor {
    /// Which connection; without one, all that the filters name
    #[arg(conflicts_with_all = ["customer", "account", "app"])]
    pub(crate) id: Option<ConnectionId>,
    /// Those of this customer
    #[arg(long)]
    pub(crate) customer: Vec<Customer>,
    /// Those of this account, by its id at the provider
    #[arg(long)]
    pub(crate) account: Vec<String>,
    /// Those of this app
    #[arg(long)]
    pub(crate) app: Vec<AppName>,
}

/// `evergrant explain`
#[derive(Debug, Args)]
pub(crate) struct Explain {
    /// A file with an HTTP answer, a JSON error, the text of an exception or a log line; - is standard input
    #[arg(default_value = "-")]
    pub(crate) file: PathBuf,
}

/// `evergrant keys`
#[derive(Debug, Subcommand)]
pub(crate) enum Keys {
    /// Make an API key; it is shown once
    Create(CreateKey),
    /// List the API keys, revoked and expired ones too
    List,
    /// Revoke an API key; it is refused everywhere within a second
    Revoke {
        /// The key's id, like key_…
        id: String,
    },
}

/// `evergrant keys create`
#[derive(Debug, Args)]
pub(crate) struct CreateKey {
    /// What people call it
    #[arg(long)]
    pub(crate) name: String,
    /// gateway: calls; tokens: also access tokens and connecting; support: records, refresh, links; metrics; admin: all
    #[arg(long, value_parser = role)]
    pub(crate) role: Role,
    /// Only for this app; repeated: for any of them
    #[arg(long)]
    pub(crate) app: Vec<AppName>,
    /// Only for this customer; repeated: for any of them
    #[arg(long)]
    pub(crate) customer: Vec<Customer>,
    /// Only for this connection; repeated: for any of them
    #[arg(long)]
    pub(crate) connection: Vec<ConnectionId>,
    /// How long it works, like 90d or 12h; for good where nothing is said
    #[arg(long, value_name = "DURATION", value_parser = evergrant_config::duration::parse)]
    pub(crate) expires: Option<Duration>,
    /// The lane that its calls take
    #[arg(long, value_parser = ["interactive", "sync", "backfill"])]
    pub(crate) lane: Option<String>,
    /// How many seconds its calls may wait for budget
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(0..=60))]
    pub(crate) max_wait: Option<u32>,
}

fn role(word: &str) -> Result<Role, String> {
    Role::from_word(word).ok_or_else(|| format!("write one of {}", Role::ALL.map(Role::as_str).join(", ")))
}

/// `evergrant sim`
#[derive(Debug, Args)]
pub(crate) struct Sim {
    /// The port on 127.0.0.1; 0 picks a free one
    #[arg(long, default_value_t = 0)]
    pub(crate) port: u16,
    /// How long access tokens live, like 30m or 60s
    #[arg(long, value_name = "DURATION", default_value = "30m", value_parser = evergrant_config::duration::parse)]
    pub(crate) token_ttl: Duration,
    /// What becomes of a refresh token that was redeemed: never (it stays), always (it is dead), grace or grace:SECONDS
    #[arg(long, default_value = "never")]
    pub(crate) rotate: Rotation,
    /// Decides every token and code
    #[arg(long, default_value_t = 0)]
    pub(crate) seed: u64,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_definitions_contradict_each_other_nowhere() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_call_cannot_bring_its_own_token() {
        let call = |header: &str| {
            Cli::try_parse_from(["evergrant", "call", "acme", "get", "/x", "-H", header])
                .map(|cli| cli.command)
        };
        assert!(call("authorization: Bearer x").is_err());
        assert!(call("no colon").is_err());
        let Ok(Command::Routed(Routed::Call(call))) = call("Accept: text/csv") else {
            panic!("a good header is refused")
        };
        assert_eq!(
            (call.method, call.headers[0].1.as_bytes()),
            (Method::GET, &b"text/csv"[..])
        );
    }
}
