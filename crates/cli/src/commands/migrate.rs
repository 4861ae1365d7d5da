//! `evergrant migrate`: the store's schema, looked at or brought up to date.

use evergrant::BuildError;
use evergrant_config::Store;
use evergrant_store::contract::Schema;
use evergrant_store::{PostgresStore, SqliteStore};
use serde_json::json;

use crate::args::{Globals, Migrate};
use crate::failure::Failure;
use crate::local;
use crate::output::{Output, print_json, print_line};

pub(crate) async fn run(migrate: &Migrate, globals: &Globals, output: Output) -> Result<(), Failure> {
    let config = local::configuration(globals)?;
    let mut schema = read(&config.store).await?;
    if !migrate.check && schema.found < schema.known {
        // Whoever opens the store brings it up to date.
        local::open(&config).await?.engine().shutdown().await;
        schema = read(&config.store).await?;
    }
    let Schema { found, known } = schema;
    let newer = if schema.is_newer() {
        ", which is newer; this Evergrant may use it as it is"
    } else {
        ""
    };
    if output.json {
        print_json(&json!({"schema_version": found, "schema_version_known": known}))?;
    } else {
        print_line(format_args!(
            "{}: schema version {found} of {known}{newer}",
            config.store
        ))?;
    }
    if found < known {
        return Err(Failure::failed("the store's schema is not up to date")
            .advise("`evergrant migrate` brings it there."));
    }
    Ok(())
}

async fn read(store: &Store) -> Result<Schema, Failure> {
    match store {
        Store::Sqlite { path } => SqliteStore::schema(path).await.map_err(|source| {
            let path = path.clone();
            BuildError::Open { path, source }.into()
        }),
        Store::Postgres { url } => PostgresStore::schema(url.expose())
            .await
            .map_err(|error| BuildError::OpenPostgres(error).into()),
    }
}
