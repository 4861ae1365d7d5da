//! A host that answers nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use evergrant_gateway::{NoAnswer, RefusalKind};
use tokio::time::sleep;

use crate::fleet::{Ask, Fleet};
use crate::provider::Provider;

/// A provider that does not work while that is so.
fn broken(broken: &Arc<AtomicBool>, how: Result<u16, NoAnswer>) -> Provider {
    let broken = broken.clone();
    Provider::new(move |_, _| match how {
        _ if !broken.load(Ordering::Relaxed) => Ok((200, vec![], String::new())),
        Ok(status) => Ok((status, vec![], String::new())),
        Err(no_answer) => Err(no_answer),
    })
}

fn write() -> Ask {
    Ask {
        method: "POST",
        ..Ask::default()
    }
}

#[tokio::test(start_paused = true)]
async fn a_host_that_answers_nothing_is_left_alone_and_asked_again_by_one_call_at_a_time() {
    for how in [Ok(503), Err(NoAnswer::NotSent), Err(NoAnswer::TimedOut)] {
        let is_broken = Arc::new(AtomicBool::new(true));
        let fleet = Fleet::of(1, broken(&is_broken, how)).await;
        for _ in 0..20 {
            let _ = fleet.call(write()).await;
            sleep(Duration::from_millis(150)).await;
        }
        let sent = fleet.provider.arrived().len();
        assert_eq!(sent, 20, "{how:?}");
        let refusal = fleet.call(write()).await.unwrap_err();
        let RefusalKind::ProviderSilent { retry_after } = refusal.kind else {
            panic!("{refusal}");
        };
        assert!(retry_after <= Duration::from_secs(30) && refusal.record.attempts == 0);
        assert_eq!(fleet.provider.arrived().len(), sent);
        sleep(Duration::from_secs(2)).await;
        let probes: Vec<_> = (0..3).map(|_| fleet.processes[0].spawn(write())).collect();
        for probe in probes {
            let _ = probe.await.unwrap();
        }
        assert_eq!(fleet.provider.arrived().len(), sent + 1);
        // It is back, and one answer says so.
        is_broken.store(false, Ordering::Relaxed);
        sleep(Duration::from_secs(4)).await;
        for _ in 0..5 {
            assert_eq!(fleet.call(write()).await.unwrap().response.status(), 200);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn one_bad_endpoint_beside_good_ones_closes_nothing() {
    let provider = Provider::new(|call, _| {
        let status = if call.method == "POST" { 502 } else { 200 };
        Ok((status, vec![], String::new()))
    });
    let fleet = Fleet::of(1, provider).await;
    for n in 0..100 {
        let ask = if n % 10 == 0 { Ask::default() } else { write() };
        fleet.call(ask).await.unwrap();
        sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(fleet.provider.arrived().len(), 100);
}

#[tokio::test(start_paused = true)]
async fn what_a_provider_answers_with_an_error_closes_nothing() {
    for status in [400, 404, 429, 500] {
        let fleet = Fleet::of(1, Provider::new(move |_, _| Ok((status, vec![], String::new())))).await;
        for _ in 0..50 {
            fleet.call(write()).await.unwrap();
            sleep(Duration::from_millis(100)).await;
        }
        assert_eq!(fleet.provider.arrived().len(), 50, "{status}");
    }
}
