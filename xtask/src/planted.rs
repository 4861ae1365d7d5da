//! A test of the tester: bugs are planted in a copy of the product, one for each rule that can be taken out, and the simulation
//! must catch each of them.
//!
//! All edits are made at once, each with the right code and the wrong in it, so that the copy is compiled once; which bug is
//! on is said when it runs. An edit whose text is not found exactly once fails: the code has moved on, and `bugs` must follow.

mod bugs;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};

use self::bugs::{BUGS, Bug, EDITS, Edit};
use crate::shell::{self, program};
use crate::trials;

/// Which bug is on.
const VARIABLE: &str = "EVERGRANT_PLANTED";
/// How many runs of a class must be without a violation while none is.
const CLEAN_SEEDS: &str = "40";
/// After how many runs a bug counts as not caught.
const SEEDS: &str = "600";

/// Plants them, compiles once, and runs each. With arguments, only the bugs that are named.
pub(crate) fn run(names: &[String]) -> Result<()> {
    let unknown = names
        .iter()
        .find(|name| !BUGS.iter().any(|bug| bug.name == **name));
    if let Some(unknown) = unknown {
        bail!("there is no planted bug {unknown:?}");
    }
    let simulate = build()?;
    for class in classes() {
        let clean = simulation(&simulate, None, class, &["--seeds", CLEAN_SEEDS])?;
        ensure!(
            clean.caught.is_none(),
            "without any bug a run of {class:?} has a violation:\n{}",
            clean.printed
        );
    }
    let mut missed = Vec::new();
    println!(
        "\n{:<32} {:<16} {:<20} {:>6}  rule",
        "bug", "caught by", "seed", "runs"
    );
    let chosen = |bug: &&Bug| names.is_empty() || names.iter().any(|name| name == bug.name);
    for bug in BUGS.iter().filter(chosen) {
        let outcome = simulation(&simulate, Some(bug.name), bug.class, &["--seeds", SEEDS])?;
        let (by, seed) = match &outcome.caught {
            Some((oracle, seed)) => (oracle.as_str(), format!("{seed} ({})", bug.class)),
            None => ("NOT CAUGHT", String::new()),
        };
        println!(
            "{:<32} {by:<16} {seed:<20} {:>6}  {}",
            bug.name, outcome.runs, bug.rule
        );
        match &outcome.caught {
            None => missed.push(bug.name),
            Some((_, seed)) => {
                let without = simulation(&simulate, None, bug.class, &["--from", seed, "--seeds", "1"])?;
                ensure!(
                    without.caught.is_none(),
                    "that seed shows a violation without the bug, too:\n{}",
                    without.printed
                );
            }
        }
    }
    ensure!(missed.is_empty(), "not caught: {}", missed.join(", "));
    Ok(())
}

/// The classes that any bug is looked for in.
fn classes() -> BTreeSet<&'static str> {
    BUGS.iter().map(|bug| bug.class).collect()
}

/// The simulation of a product with all bugs in it, and none of them on.
fn build() -> Result<PathBuf> {
    let planted = shell::target().join("planted");
    let tree = planted.join("tree");
    copy(&tree)?;
    plant(&tree)?;
    // Among our own builds, where what others wrote is compiled already; the copy's own crates have names of their own there.
    shell::run(
        trials::build_simulation()
            .arg("--manifest-path")
            .arg(tree.join("Cargo.toml"))
            .arg("--target-dir")
            .arg(shell::target()),
    )?;
    // Taken away from where the product's own simulation is looked for.
    let simulate = planted.join("evergrant-simulate");
    fs::rename(trials::simulation_built(), &simulate)?;
    Ok(simulate)
}

/// Copies what git knows, as it is now. What has not changed is not touched, so that little is compiled again.
fn copy(tree: &Path) -> Result<()> {
    let listed = shell::output(program("git").args([
        "ls-files",
        "-z",
        "Cargo.toml",
        "Cargo.lock",
        "crates",
        "xtask",
    ]))?;
    let files: Vec<&str> = listed.split('\0').filter(|file| !file.is_empty()).collect();
    let edited: BTreeSet<&str> = EDITS.iter().map(|edit| edit.file).collect();
    for file in &files {
        let source = shell::root().join(file);
        // Removed, and git not yet told.
        if !source.is_file() || edited.contains(file) {
            continue;
        }
        write(&tree.join(file), &fs::read(source)?)?;
    }
    forget_others(&tree.join("crates"), tree, &files)
}

/// What is not in the repository any more must not be compiled into a crate's tests or binaries.
fn forget_others(folder: &Path, tree: &Path, files: &[&str]) -> Result<()> {
    let Ok(entries) = fs::read_dir(folder) else {
        return Ok(());
    };
    for entry in entries {
        let path = entry?.path();
        if path.is_dir() {
            forget_others(&path, tree, files)?;
        } else if let Some(name) = path.strip_prefix(tree)?.to_str()
            && !files.contains(&name)
        {
            fs::remove_file(&path)?;
        }
    }
    Ok(())
}

fn write(path: &Path, contents: &[u8]) -> Result<()> {
    if fs::read(path).is_ok_and(|there| there == contents) {
        return Ok(());
    }
    let folder = path.parent().context("a file is in a folder")?;
    fs::create_dir_all(folder)?;
    fs::write(path, contents).with_context(|| format!("cannot write {}", path.display()))
}

fn plant(tree: &Path) -> Result<()> {
    let mut moved_on = Vec::new();
    for file in EDITS.iter().map(|edit| edit.file).collect::<BTreeSet<_>>() {
        let mut text = fs::read_to_string(shell::root().join(file))?;
        for edit in EDITS.iter().filter(|edit| edit.file == file) {
            if text.matches(edit.find).count() == 1 {
                text = text.replace(edit.find, &switched(edit));
            } else {
                moved_on.push(format!("{file}:\n{}", edit.find));
            }
        }
        write(&tree.join(file), text.as_bytes())?;
    }
    ensure!(
        moved_on.is_empty(),
        "the code has moved on, and xtask/src/planted/bugs.rs must follow; not found exactly once:\n\n{}",
        moved_on.join("\n\n")
    );
    for bug in BUGS {
        ensure!(
            EDITS.iter().any(|edit| edit.replace.contains(bug.name)),
            "no edit plants {:?}",
            bug.name
        );
    }
    Ok(())
}

/// The edit with `on!(bug)` spelled out: whether that bug is on, asked once.
fn switched(edit: &Edit) -> String {
    let mut code = String::new();
    let mut rest = edit.replace;
    while let Some((before, after)) = rest.split_once("on!(") {
        let (bug, after) = after.split_once(')').unwrap_or((after, ""));
        code.push_str(before);
        code.push_str("::std::convert::identity({ static ON: ::std::sync::OnceLock<bool> = ::std::sync::OnceLock::new(); *ON.get_or_init(|| ::std::env::var(\"");
        code.push_str(VARIABLE);
        code.push_str("\").is_ok_and(|bug| bug == \"");
        code.push_str(bug);
        code.push_str("\")) })");
        rest = after;
    }
    code + rest
}

/// What a number of runs came to.
struct Outcome {
    /// By which oracle, at which seed.
    caught: Option<(String, String)>,
    runs: u64,
    printed: String,
}

fn simulation(simulate: &Path, bug: Option<&str>, class: &str, seeds: &[&str]) -> Result<Outcome> {
    let mut command = Command::new(simulate);
    command.args(["--scenario", class]).args(seeds);
    match bug {
        Some(bug) => command.env(VARIABLE, bug),
        None => command.env_remove(VARIABLE),
    };
    let output = command.output().context("cannot run the simulation")?;
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    let lines: Vec<&str> = printed.lines().collect();
    let caught = lines.windows(2).find_map(|pair| {
        let (seed, _) = pair[0].strip_prefix("seed ")?.split_once(':')?;
        let oracle = pair[1].trim().split(' ').next()?;
        Some((oracle.to_owned(), seed.to_owned()))
    });
    let runs = lines
        .iter()
        .find_map(|line| line.split_once(" seeds, ")?.0.parse().ok())
        .with_context(|| {
            format!(
                "the simulation did not end well:\n{printed}{}",
                String::from_utf8_lossy(&output.stderr)
            )
        })?;
    Ok(Outcome {
        caught,
        runs,
        printed,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_edit_has_its_place_and_every_bug_an_edit() {
        for edit in EDITS {
            let text = fs::read_to_string(shell::root().join(edit.file)).unwrap();
            assert_eq!(
                text.matches(edit.find).count(),
                1,
                "in {}: {}",
                edit.file,
                edit.find
            );
        }
        for bug in BUGS {
            assert!(
                EDITS.iter().any(|edit| edit.replace.contains(bug.name)),
                "{} is planted nowhere",
                bug.name
            );
        }
    }
}
