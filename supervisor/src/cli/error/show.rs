//! One error, laid out for a person.

use wardkeep_proto::v1::{Error, Hop};

use super::view::{ErrorView, HopView};
use crate::cli::{
    exit::Failure,
    human::{length, short_id},
    out::Out,
    table::Table,
    view::moment,
};

pub(super) fn show(error: &Error, out: &Out) -> Result<(), Failure> {
    let view = ErrorView::from(error);
    let mut table = Table::bare();
    let mut row = |key: &str, value: String| {
        if !value.is_empty() {
            table.row([key.into(), value.into()]);
        }
    };
    row("error", view.id.clone());
    row("user sees", format!("\"{}\"", view.user_message));
    row("what", view.what);
    for cause in view.causes {
        row("because", cause);
    }
    let bug = if view.malformed { ": nobody modelled it, so it is a bug" } else { "" };
    row("kind", format!("{}/{}, {}{bug}", view.domain, view.kind, view.code));
    row(
        "when",
        moment(error.occurred_at).map(|at| at.format("%F %T%.3f UTC").to_string()).unwrap_or_default(),
    );
    row("where", place(error));
    row(
        "again",
        match view.retry_after_ms {
            Some(0) => "may help".to_owned(),
            Some(ms) => format!("may help, after {}", length(Some(ms))),
            None => "is no use".to_owned(),
        },
    );
    row("same as", format!("{}  (wardkeep error ls)", view.group_hash));
    row("read on", view.help_url.unwrap_or_default());
    row("request", view.request_id);
    row("trace", view.trace_id);
    row("related", view.related_ids.join(" "));
    row("cut", view.truncated.join(" "));
    out.text(&table.render(out))?;
    out.line("\nSTACK, from the start of the call to where it arose")?;
    out.text(&stack(&view.hops).render(out))?;
    match error.hops.last() {
        Some(origin) => frames(origin, &view.id, out),
        None => Ok(()),
    }
}

/// The stack on the machine where it arose, as far as it is known.
fn frames(origin: &Hop, id: &str, out: &Out) -> Result<(), Failure> {
    if origin.frames.is_empty() {
        return Ok(());
    }
    out.line(&format!("\nFRAMES where it arose, innermost first (build {})", short_build(&origin.build_id)))?;
    if origin.functions.is_empty() {
        let offsets: Vec<_> = origin.frames.iter().map(|frame| format!("{frame:#x}")).collect();
        out.text(&format!("{}\n", offsets.join(" ")))?;
        return out.line(&format!("names: wardkeep error symbolize {} --exe UNSTRIPPED_FILE", short_id(id)));
    }
    let known: Vec<_> = origin.functions.iter().filter(|name| !is_machinery(name)).collect();
    let mut table = Table::bare();
    for name in &known {
        table.row([(*name).into()]);
    }
    out.text(&table.render(out))?;
    let hidden = origin.frames.len() - known.len();
    if hidden > 0 {
        out.line(&format!("({hidden} frames of the runtime and its libraries; all of them: -o json)"))?;
    }
    Ok(())
}

/// Whether a frame tells of nothing but what runs everybody's code.
fn is_machinery(name: &str) -> bool {
    const CRATES: [&str; 22] = [
        "core",
        "std",
        "alloc",
        "tokio",
        "tokio_util",
        "tokio_stream",
        "hyper",
        "hyper_util",
        "h2",
        "tower",
        "tonic",
        "tonic_prost",
        "futures_util",
        "futures_core",
        "http_body_util",
        "tracing",
        "backtrace",
        "wardkeep_proto",
        "wardkeep_client",
        "wardkeep_node",
        "__rustc",
        "?",
    ];
    // The function itself; what was inlined into it stands before it.
    let function = name.rsplit(" < ").next().unwrap_or_default();
    let path = function.trim_start_matches(['<', '&', '*']).trim_start_matches("dyn ");
    match path.split_once("::") {
        Some((krate, _)) => CRATES.contains(&krate),
        None => path.is_empty() || path.starts_with("__") || path.starts_with('?') || !name.contains('('),
    }
}

pub(super) fn short_build(build_id: &str) -> &str {
    build_id.get(..12).unwrap_or(build_id)
}

fn place(error: &Error) -> String {
    let mut parts = vec![format!("machine {}", error.machine)];
    if !error.node.is_empty() {
        parts.push(format!("node {}", error.node));
    }
    if !error.ward.is_empty() {
        parts.push(format!("ward {} incarnation {}", error.ward, error.incarnation));
    }
    parts.join(", ")
}

fn stack(hops: &[HopView]) -> Table {
    let mut table = Table::new(["#", "MACHINE", "NODE/WARD", "ENTERED", "METHOD AND SITES"]);
    for (n, hop) in hops.iter().enumerate() {
        let ward = match (hop.node.as_str(), hop.ward.as_str()) {
            ("", _) => "(caller)".to_owned(),
            (node, "") => node.to_owned(),
            (node, ward) => format!("{node}/{ward}"),
        };
        let entered = hop.entered_at.as_deref().and_then(|at| at.get(11..23)).unwrap_or("-");
        let mut what: Vec<&str> = vec![&hop.method];
        // Of what was not made here, the method called stands for the place.
        what.extend(hop.sites.iter().map(String::as_str).filter(|site| *site != hop.method));
        what.retain(|text| !text.is_empty());
        let what = if what.is_empty() { "-".to_owned() } else { what.join(" at ") };
        table.row([n.to_string().into(), (&hop.machine).into(), ward.into(), entered.into(), what.into()]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_of_libraries_are_told_from_ours() {
        assert!(is_machinery("tokio::runtime::task::raw::poll (tokio/src/runtime/task/raw.rs:12)"));
        assert!(is_machinery("<core::panic::AssertUnwindSafe as core::ops::FnOnce>::call_once"));
        assert!(is_machinery("__rust_try"));
        assert!(is_machinery(""));
        assert!(!is_machinery("unwrap (core/src/option.rs:1) < search::find (search/src/lib.rs:2)"));
        assert!(!is_machinery("<search::Index as std::ops::Drop>::drop"));
        assert!(!is_machinery("main (src/main.rs:3)"));
    }
}
