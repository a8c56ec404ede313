//! What a process ward's program printed.

use serde::Serialize;
use tonic::Request;
use wardkeep_proto::v1::{OutputLine, OutputStream, WardKind, WardOutput, WatchOutputRequest};

use super::{
    args::{Format, LogsArgs},
    connect::Session,
    exit::{Exit, Failure},
    out::Out,
    resolve,
    view::{Document, LineView, moment, rfc3339},
};

#[derive(Serialize)]
struct Output {
    ward: String,
    /// Lines that were not kept until they could be read.
    dropped: u64,
    lines: Vec<LineView>,
}

/// `ward logs`: the lines kept, and with `-f` those to come.
///
/// # Errors
/// The supervisor cannot be asked, or went away; no such ward; it is no process ward; its node is away.
pub(crate) async fn run(session: &Session, args: &LogsArgs) -> Result<Exit, Failure> {
    let mut operator = session.operator().await?;
    let fleet = session.fleet(&mut operator).await?;
    let ward = resolve::ward(&fleet, &args.ward)?;
    let path = resolve::path(ward);
    if ward.spec.as_ref().is_some_and(|spec| spec.kind() != WardKind::Process) {
        let node = &ward.node;
        return Err(Failure::usage(format!(
            "{path} is no process ward and has no output of its own: what it logs is in the log of node {node}"
        )));
    }
    let request = WatchOutputRequest {
        node: ward.node.clone(),
        ward: resolve::short_name(ward).to_owned(),
        follow: args.follow,
        newest: args.limit.unwrap_or(0),
    };
    let out = &session.out;
    if args.follow {
        // No deadline goes with the request: it would end the stream.
        let answer = session.answer(&session.supervisor, operator.watch_output(Request::new(request)));
        let mut stream = answer.await?;
        loop {
            let next = stream.message().await;
            let Some(page) = next.map_err(|status| Failure::from_status(&session.supervisor, &status))?
            else {
                let gone = format!("the supervisor at {} ended the stream", session.supervisor);
                return Err(Failure::new(Exit::Unreachable, gone));
            };
            show(&page, out)?;
        }
    }
    let request = session.request(request);
    let collect = async {
        let mut stream = operator.watch_output(request).await?.into_inner();
        let mut pages = Vec::new();
        while let Some(page) = stream.message().await? {
            pages.push(page);
        }
        Ok(tonic::Response::new(pages))
    };
    let pages = session.answer(&session.supervisor, collect).await?;
    if out.format == Format::Json {
        let lines = pages.iter().flat_map(|page| &page.lines).map(LineView::from).collect();
        let dropped = pages.iter().map(|page| page.dropped).sum();
        out.json(&Document::new("wardkeep.output/v1", Output { ward: path, dropped, lines }))?;
    } else {
        pages.iter().try_for_each(|page| show(page, out))?;
    }
    Ok(Exit::Ok)
}

fn show(page: &WardOutput, out: &Out) -> Result<(), Failure> {
    if page.dropped > 0 {
        // For programs the gap in the sequence says so.
        out.progress(&format!("({} lines before these are not kept any more)", page.dropped));
    }
    let mut text = String::new();
    for line in &page.lines {
        match out.format {
            Format::Json | Format::Jsonl => {
                // Documents that follow each other are lines, whatever stdout is.
                let lines = Out { format: Format::Jsonl, ..*out };
                lines.json(&Document::new("wardkeep.output_line/v1", LineView::from(line)))?;
            }
            Format::Name => text.push_str(&format!("{}\n", harmless(line, out))),
            Format::Table | Format::Wide => text.push_str(&told(line, out)),
        }
    }
    out.text(&text)
}

fn told(line: &OutputLine, out: &Out) -> String {
    let at = if out.format == Format::Wide {
        rfc3339(line.at).unwrap_or_default()
    } else {
        moment(line.at).map(|at| at.format("%H:%M:%S%.3fZ").to_string()).unwrap_or_default()
    };
    let stream = match line.stream() {
        OutputStream::Stdout => "out",
        OutputStream::Stderr => "err",
        OutputStream::Unspecified => "?",
    };
    let cut = if line.cut { "…" } else { "" };
    format!("{at} #{} {stream} {}{cut}\n", line.incarnation, harmless(line, out))
}

/// What a program prints does not drive the operator's terminal.
fn harmless(line: &OutputLine, out: &Out) -> String {
    let dangerous = |c: char| c.is_control() && c != '\t';
    if out.terminal || out.format != Format::Name {
        line.text.chars().map(|c| if dangerous(c) { '\u{fffd}' } else { c }).collect()
    } else {
        line.text.clone()
    }
}
