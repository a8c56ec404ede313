//! Names for the stack of an error that was made by a stripped binary, from the unstripped one.

use std::path::Path;

use serde::Serialize;
use wardkeep_proto::{
    error::symbols::Symbols,
    v1::{Error, Hop},
};

use super::show::short_build;
use crate::cli::{
    args::Format,
    exit::{Exit, Failure},
    out::Out,
    table::Table,
    view::Document,
};

#[derive(Serialize)]
struct Named {
    id: String,
    build_id: String,
    frames: Vec<Frame>,
}

#[derive(Serialize)]
struct Frame {
    address: String,
    function: Option<String>,
}

/// # Errors
/// The error has no addresses; the file cannot be read, or is of another build.
pub(super) fn run(error: &Error, exe: &Path, out: &Out) -> Result<(), Failure> {
    let mut symbols = Symbols::of_file(exe).map_err(Failure::usage)?;
    let hop = hop_of(error, &symbols)
        .map_err(|line| Failure::usage(line.replace("FILE", &exe.display().to_string())))?;
    let frames = hop
        .frames
        .iter()
        .map(|&address| Frame { address: format!("{address:#x}"), function: symbols.name(address) });
    let named = Named { id: error.id.clone(), build_id: hop.build_id.clone(), frames: frames.collect() };
    if named.frames.iter().all(|frame| frame.function.is_none()) {
        let line = format!("{} is of the right build, but is stripped as well", exe.display());
        return Err(Failure::new(Exit::Failed, line));
    }
    match out.format {
        Format::Json | Format::Jsonl => out.json(&Document::new("wardkeep.frames/v1", named)),
        Format::Name => named
            .frames
            .iter()
            .try_for_each(|frame| out.line(frame.function.as_deref().unwrap_or(&frame.address))),
        Format::Table | Format::Wide => {
            let mut table = Table::new(["ADDRESS", "FUNCTION"]);
            for frame in &named.frames {
                table.row([(&frame.address).into(), frame.function.as_deref().unwrap_or("-").into()]);
            }
            out.text(&table.render(out))
        }
    }
}

/// The part of the stack that this file can name.
fn hop_of<'a>(error: &'a Error, symbols: &Symbols) -> Result<&'a Hop, String> {
    let mut known = error.hops.iter().filter(|hop| !hop.frames.is_empty()).peekable();
    let Some(first) = known.peek().copied() else {
        return Err(format!("error {} came without addresses: there is nothing to name", error.id));
    };
    known.find(|hop| hop.build_id == symbols.build_id()).ok_or_else(|| {
        format!(
            "FILE is build {}, but the error was made by build {}: give the unstripped file of that build",
            short_build(symbols.build_id()),
            short_build(&first.build_id)
        )
    })
}
