//! What a call costs: CPU of the serving process per request, as a ratio to nginx in the same run.
//!
//! Requests per second and latencies on a machine that does other things as well say more about those than about us. CPU time does not,
//! as long as it is compared in turns: each round runs nginx and us, and the ratio is taken round by round. `world` starts and
//! stops the programs, `measure` reads what they cost, `memory` what they hold.

#![expect(clippy::cast_precision_loss, reason = "what is measured is far from exact")]

mod measure;
mod memory;
mod world;

use anyhow::{Result, bail};

use crate::bench::measure::{Load, calls_per_request};
use crate::bench::world::{IDS, World};

const USAGE: &str = "\
cargo xtask bench …   CPU per request of the binary that ships, against nginx; takes about five minutes after the build
  --rounds N    how often each pair is measured (7)
  --seconds N   how long each of the two runs (4)
  --quick       one round of one second, and no memory: whether it runs at all
  --only WORDS  only the pairs that have these in their names
  --binary FILE measures this one instead of building
It needs nginx, wrk, strace and openssl (Debian's packages of these names), and Linux.";

/// How long and how often.
#[derive(Debug, PartialEq, Eq)]
struct Wish {
    rounds: usize,
    seconds: u32,
    quick: bool,
    only: Option<String>,
    binary: Option<String>,
}

/// Runs all of it.
pub(crate) fn run(arguments: &[String]) -> Result<()> {
    if arguments.iter().any(|argument| argument == "--help") {
        println!("{USAGE}");
        return Ok(());
    }
    let wish = wish(arguments)?;
    world::look_for_programs()?;
    let binary = match &wish.binary {
        // It is started in a folder of its own.
        Some(binary) => std::path::absolute(binary)?,
        None => world::build()?,
    };
    let world = World::start(&binary)?;
    println!(
        "{} rounds of {} s for each; CPU of all threads; medians of the ratios of each round, with the smallest and the largest\n",
        wish.rounds, wish.seconds
    );
    println!(
        "{:<44} {:>8} {:>8}  {:>5}  {:>11}  goal",
        "", "nginx us", "ours us", "ratio", "range"
    );
    ratios(&world, &wish)?;
    println!();
    for (name, load, writes, goal) in [
        ("gateway call, 1 KiB", world.call(), 2, " goal 4.30"),
        ("GET token", world.token(), 1, ""),
    ] {
        let (calls, which) = calls_per_request(&world.ours, &load, writes)?;
        println!("{name:<44} {calls:>8.2} system calls each{goal} ({which})");
    }
    if !wish.quick {
        println!();
        memory::streams(&world)?;
        memory::slow_readers(&world)?;
    }
    Ok(())
}

fn ratios(world: &World, wish: &Wish) -> Result<()> {
    let pairs = [
        Pair {
            name: "gateway call, 1 KiB : nginx proxy",
            peer: world.nginx_call(),
            ours: world.call(),
            goal: 1.10,
            per: 1.0,
        },
        Pair {
            name: "GET token : nginx return 200",
            peer: world.nginx_token(),
            ours: world.token(),
            goal: 1.10,
            per: 1.0,
        },
        // As peers are measured, whose token is always the same.
        Pair {
            name: "gateway call of one connection : nginx proxy",
            peer: world.nginx_call(),
            ours: world.call_of_one(),
            goal: 1.10,
            per: 1.0,
        },
        Pair {
            name: "GET token of one connection : nginx",
            peer: world.nginx_token(),
            ours: world.token_of_one(),
            goal: 1.10,
            per: 1.0,
        },
        Pair {
            name: "batch of 64, per token : GET token",
            peer: world.token(),
            ours: world.batch(),
            goal: 0.15,
            per: IDS as f64 / world::BATCHES as f64,
        },
        Pair {
            name: "8 MiB answer : nginx unbuffered",
            peer: world.nginx_large(),
            ours: world.large(),
            goal: 0.35,
            per: 1.0,
        },
        Pair {
            name: "call over TLS to the provider : nginx the same",
            peer: world.nginx_tls(),
            ours: world.tls(),
            goal: f64::NAN,
            per: 1.0,
        },
        Pair {
            name: "call over TLS to the provider : plain",
            peer: world.call(),
            ours: world.tls(),
            goal: f64::NAN,
            per: 1.0,
        },
    ];
    let only = wish.only.as_deref().unwrap_or_default();
    for pair in pairs.iter().filter(|pair| pair.name.contains(only)) {
        pair.measure(wish)?;
    }
    Ok(())
}

/// Two loads that are compared.
struct Pair {
    name: &'static str,
    peer: Load,
    ours: Load,
    goal: f64,
    /// What one request of ours stands for.
    per: f64,
}

impl Pair {
    fn measure(&self, wish: &Wish) -> Result<()> {
        let [mut peers, mut owns, mut ratios] = [const { Vec::new() }; 3];
        self.peer.run(1)?;
        self.ours.run(1)?;
        for round in 0..wish.rounds {
            // Whoever goes first is another one every time.
            let (peer, own);
            if round % 2 == 0 {
                peer = self.peer.cost(wish.seconds)?;
                own = self.ours.cost(wish.seconds)? / self.per;
            } else {
                own = self.ours.cost(wish.seconds)? / self.per;
                peer = self.peer.cost(wish.seconds)?;
            }
            peers.push(peer);
            owns.push(own);
            ratios.push(own / peer);
        }
        let ratio = median(&mut ratios);
        let goal = match self.goal {
            goal if goal.is_nan() => String::from("-"),
            goal if ratio <= goal => format!("{goal:.2}"),
            goal => format!("{goal:.2} MISSED"),
        };
        println!(
            "{:<44} {:>8.2} {:>8.2}  {ratio:>5.2}  {:>5.2}-{:<5.2}  {goal}",
            self.name,
            median(&mut peers),
            median(&mut owns),
            ratios[0],
            ratios[ratios.len() - 1]
        );
        Ok(())
    }
}

/// Sorts, and takes the middle one.
fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    if values.len() % 2 == 1 {
        values[middle]
    } else {
        f64::midpoint(values[middle - 1], values[middle])
    }
}

fn wish(arguments: &[String]) -> Result<Wish> {
    let mut wish = Wish {
        rounds: 7,
        seconds: 4,
        quick: false,
        only: None,
        binary: None,
    };
    let mut words = arguments.iter().map(String::as_str);
    while let Some(word) = words.next() {
        match (word, words.clone().next()) {
            ("--quick", _) => {
                (wish.rounds, wish.seconds, wish.quick) = (1, 1, true);
                continue;
            }
            ("--rounds", Some(number)) => wish.rounds = number.parse()?,
            ("--seconds", Some(number)) => wish.seconds = number.parse()?,
            ("--only", Some(words)) => wish.only = Some(words.to_owned()),
            ("--binary", Some(file)) => wish.binary = Some(file.to_owned()),
            _ => bail!("{USAGE}"),
        }
        words.next();
    }
    if wish.rounds == 0 || wish.seconds == 0 {
        bail!("{USAGE}");
    }
    Ok(wish)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_middle_of_what_was_measured_is_told() {
        assert!((median(&mut [3.0, 1.0, 2.0]) - 2.0).abs() < 1e-9);
        assert!((median(&mut [4.0, 1.0, 2.0, 3.0]) - 2.5).abs() < 1e-9);
    }

    #[test]
    fn a_wish_is_understood_or_refused() {
        let read =
            |words: &[&str]| wish(&words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>()).ok();
        assert_eq!(read(&[]).map(|wish| (wish.rounds, wish.seconds)), Some((7, 4)));
        assert_eq!(
            read(&["--quick"]).map(|wish| (wish.rounds, wish.quick)),
            Some((1, true))
        );
        assert_eq!(
            read(&["--rounds", "3", "--quick"]).map(|wish| wish.rounds),
            Some(1)
        );
        for wrong in [&["--rounds"][..], &["--rounds", "0"], &["--slow"]] {
            assert_eq!(read(wrong), None, "{wrong:?}");
        }
    }
}
