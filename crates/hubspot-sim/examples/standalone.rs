//! Runs the simulator on a port of its own, until Ctrl-C: `cargo run -p hubspot-sim --example standalone 9300`.

use std::net::{Ipv4Addr, SocketAddr};

use hubspot_sim::{SimConfig, Simulator};

#[tokio::main]
async fn main() -> std::io::Result<()> {
    let port = std::env::args()
        .nth(1)
        .and_then(|port| port.parse().ok())
        .unwrap_or(0);
    let listen = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let hubspot = Simulator::start(SimConfig {
        listen,
        ..SimConfig::default()
    })
    .await?;
    println!("{}/_sim/", hubspot.base_url());
    tokio::signal::ctrl_c().await?;
    hubspot.shutdown().await;
    Ok(())
}
