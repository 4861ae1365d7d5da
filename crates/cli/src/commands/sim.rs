//! `evergrant sim`: the simulated HubSpot on a port of its own.

use std::net::{Ipv4Addr, SocketAddr};

use hubspot_sim::{SimApp, SimConfig, Simulator};
use serde_json::json;

use crate::args::Sim;
use crate::failure::Failure;
use crate::output::{Output, print_line};
use crate::signals;

pub(crate) async fn run(sim: Sim, output: Output) -> Result<(), Failure> {
    let listen = SocketAddr::from((Ipv4Addr::LOCALHOST, sim.port));
    let config = SimConfig {
        seed: sim.seed,
        token_ttl: sim.token_ttl,
        rotation: sim.rotate,
        listen,
        ..SimConfig::default()
    };
    let hubspot = Simulator::start(config)
        .await
        .map_err(|error| Failure::failed(format!("the simulator cannot listen on {listen}: {error}")))?;
    let stop = signals::stop()?;
    let SimApp {
        client_id,
        client_secret,
        ..
    } = SimApp::default();
    let base = hubspot.base_url();
    if output.json {
        // One line: whoever reads it does not wait for the end.
        print_line(json!({"address": base, "client_id": client_id, "client_secret": client_secret}))?;
    } else {
        print_line(format_args!("HubSpot simulator on {base}"))?;
        output.fields(&[
            ("client id", client_id.clone()),
            (
                "client secret",
                format!("{client_secret} (the simulator's own; no secret anywhere else)"),
            ),
            ("consent page", format!("{base}/oauth/authorize")),
            ("control API", format!("{base}/_sim/")),
        ])?;
        print_line(format_args!(
            "\nTo use it, point an app of evergrant.toml at it:\n\n\
             [apps.crm]\nprovider = \"hubspot\"\nclient_id = \"{client_id}\"\nclient_secret_file = \"crm.secret\"  \
             # holds: {client_secret}\nauthorize_url = \"{base}/oauth/authorize\"\noauth_base = \"{base}\"\n\
             api_base = \"{base}\"\nscopes = [\"oauth\", \"crm.objects.contacts.read\", \
             \"crm.objects.contacts.write\"]\n\nCtrl-C ends it."
        ))?;
    }
    stop.await;
    hubspot.shutdown().await;
    Ok(())
}
