//! Counts the instructions of the hot paths under callgrind, which no other work on the machine can move, and compares
//! them with `bench/counts.json`: `cargo run --release --bin counts`. With `--update` it keeps
//! what it has counted.
#![forbid(unsafe_code)]

mod work;

use std::{env, error::Error, fs, path::Path, process::Command};

use clap::Parser;
use wardkeep_measure::counts::{self, Counts};

/// Compares counts of instructions with those that are kept.
#[derive(Parser)]
struct Args {
    /// Keeps what is counted, whatever it was before.
    #[arg(long)]
    update: bool,
    /// Does this piece of work: what runs under callgrind.
    #[arg(long, hide = true)]
    run: Option<String>,
}

fn main() -> Result<(), Box<dyn Error>> {
    let args = Args::parse();
    if let Some(name) = args.run {
        let piece = work::PIECES.iter().find(|piece| piece.name == name).ok_or("no such work")?;
        return (piece.run)();
    }
    let folder = tempfile::tempdir()?;
    let mut now = Counts::new();
    for piece in work::PIECES {
        let out = folder.path().join(piece.name);
        now.insert(piece.name.to_owned(), count(piece, &out)?);
    }
    if args.update {
        counts::keep(&now)?;
    }
    let (lines, well) = counts::compare(&counts::kept()?, &now);
    let text = lines.join("\n");
    if well {
        // What this program is for.
        #[allow(clippy::print_stdout)]
        {
            println!("{text}");
        }
        return Ok(());
    }
    Err(format!(
        "a hot path takes over {} % more instructions than {} says; if that is meant, run it with --update\n{text}",
        counts::LEEWAY,
        counts::file().file_name().unwrap_or_default().display(),
    )
    .into())
}

/// Runs a piece of work under callgrind. Only what happens within the function it names is counted.
fn count(piece: &work::Piece, out: &Path) -> Result<u64, Box<dyn Error>> {
    let mut command = Command::new("valgrind");
    command.args(["--tool=callgrind", "--quiet", &format!("--toggle-collect={}", piece.within)]);
    command.arg(format!("--callgrind-out-file={}", out.display()));
    command.arg(env::current_exe()?).args(["--run", piece.name]);
    let ran = command.output().map_err(|error| format!("valgrind does not start: {error}"))?;
    let said = String::from_utf8_lossy(&ran.stderr);
    if !ran.status.success() {
        return Err(format!("{} failed under valgrind: {said}", piece.name).into());
    }
    let total = counts::total(&fs::read_to_string(out)?);
    total.ok_or_else(|| format!("{}: {} was never called (inlined?)", piece.name, piece.within).into())
}
