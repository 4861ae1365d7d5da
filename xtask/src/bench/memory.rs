//! What the service holds while much passes through it, and while many do not read.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, sleep};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use crate::bench::measure::resident;
use crate::bench::world::{HUGE, World};

/// Clients that ask for 8 MiB and read none of it.
const SLOW_READERS: usize = 2000;

/// 1 GiB down, then 1 GiB up.
pub(crate) fn streams(world: &World) -> Result<()> {
    for (name, pass) in [
        ("1 GiB answer", down as fn(&World) -> Result<()>),
        ("1 GiB call", up),
    ] {
        let before = resident(world.our_pid)?;
        let (passed, most) = while_watching(world, || pass(world))?;
        passed?;
        println!("{name:<44} resident {before:>6.1} MiB before, {most:>6.1} MiB at most while it passes");
    }
    Ok(())
}

/// Twice: what the first ones took must do for the second ones.
pub(crate) fn slow_readers(world: &World) -> Result<()> {
    for turn in ["", ", and once more"] {
        let before = resident(world.our_pid)?;
        let mut readers = Vec::with_capacity(SLOW_READERS);
        for _ in 0..SLOW_READERS {
            let mut reader = world.connect().context("a slow reader (`ulimit -n` of 4096?)")?;
            reader.write_all(world.head("GET", "big.bin", 0).as_bytes())?;
            readers.push(reader);
        }
        let mut most = before;
        for _ in 0..50 {
            sleep(Duration::from_millis(100));
            most = most.max(resident(world.our_pid)?);
        }
        drop(readers);
        sleep(Duration::from_secs(5));
        println!(
            "{:<44} resident {before:>6.1} MiB before, {most:>6.1} MiB at most ({:.0} KiB each), {:>6.1} MiB after they left",
            format!("{SLOW_READERS} that read none of 8 MiB{turn}"),
            (most - before) * 1024.0 / SLOW_READERS as f64,
            resident(world.our_pid)?
        );
    }
    Ok(())
}

/// The work's outcome, and the most that was resident meanwhile.
fn while_watching<T>(world: &World, work: impl FnOnce() -> T) -> Result<(T, f64)> {
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let watching = scope.spawn(|| {
            let mut most = 0.0_f64;
            while !over.load(Ordering::Relaxed) {
                most = most.max(resident(world.our_pid).unwrap_or(0.0));
                sleep(Duration::from_millis(20));
            }
            most
        });
        let outcome = work();
        over.store(true, Ordering::Relaxed);
        let most = watching.join().ok().context("the watcher ended")?;
        Ok((outcome, most))
    })
}

fn down(world: &World) -> Result<()> {
    let mut stream = world.connect()?;
    stream.write_all(world.head("GET", "huge.bin", 0).as_bytes())?;
    let mut buffer = vec![0; 256 * 1024];
    let mut length = 0;
    loop {
        match stream.read(&mut buffer)? {
            0 => break,
            read => length += read as u64,
        }
    }
    ensure!(length > HUGE, "{length} bytes came");
    Ok(())
}

fn up(world: &World) -> Result<()> {
    let mut stream: TcpStream = world.connect()?;
    stream.write_all(world.head("POST", "sink", HUGE).as_bytes())?;
    let piece = vec![0; 256 * 1024];
    let mut left = HUGE;
    while left > 0 {
        stream.write_all(&piece)?;
        left -= piece.len() as u64;
    }
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    ensure!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    Ok(())
}
