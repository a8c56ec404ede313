//! Lines of the log that say which call they were written in.

use std::fmt::{self, Write as _};

use serde_json::json;
use tracing::{Event, Metadata, Subscriber};
use tracing_subscriber::{
    fmt::{FmtContext, FormatEvent, FormatFields, format::Writer},
    registry::LookupSpan,
};
use wardkeep_proto::context::{self, RequestContext};

use super::LogFormat;

/// What spans of calls are told by. They are for traces: a log that wanted them would have them made for each call, and
/// would show few.
pub(super) fn is_of_calls(it: &Metadata<'_>) -> bool {
    it.is_span() && it.target() == CALLS
}

const CALLS: &str = "wardkeep::call";
/// Whose lines say themselves where they are from.
const ERRORS: &str = "wardkeep::error";

/// As the format within has it, and the call that the line was written in, if it was in one.
pub(super) struct Line<F> {
    pub(super) as_usual: F,
    pub(super) format: LogFormat,
}

impl<S, N, F> FormatEvent<S, N> for Line<F>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
    F: FormatEvent<S, N>,
{
    fn format_event(
        &self,
        about: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let call = context::current().filter(|_| event.metadata().target() != ERRORS);
        let Some(call) = call else { return self.as_usual.format_event(about, writer, event) };
        let mut line = String::new();
        self.as_usual.format_event(about, Writer::new(&mut line), event)?;
        match (self.format, line.strip_prefix('{')) {
            (LogFormat::Json, Some(rest)) => write!(writer, "{{\"call\":{},{rest}", object(&call)),
            _ => writeln!(writer, "{} {}", line.trim_end_matches('\n'), fields(&call)),
        }
    }
}

fn object(call: &RequestContext) -> serde_json::Value {
    let mut object =
        json!({ "method": &*call.method, "request": call.request_id.to_string(), "attempt": call.attempt });
    if let Some((ward, incarnation)) = call.ward() {
        (object["ward"], object["incarnation"]) = (ward.into(), incarnation.into());
    }
    object
}

fn fields(call: &RequestContext) -> String {
    let mut fields = format!("call={} request={} attempt={}", call.method, call.request_id, call.attempt);
    if let Some((ward, incarnation)) = call.ward() {
        let _ = write!(fields, " ward={ward} incarnation={incarnation}");
    }
    fields
}

#[cfg(test)]
mod tests {
    use std::{
        io,
        sync::{Arc, Mutex},
    };

    use http::HeaderMap;
    use tokio::time::Instant;
    use tracing_subscriber::{Registry, layer::SubscriberExt as _};

    use super::*;

    #[derive(Clone, Default)]
    struct Written(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Written {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// What is written while this is done.
    fn written(format: LogFormat, work: impl FnOnce()) -> String {
        let written = Written::default();
        let writer = written.clone();
        let filter = tracing_subscriber::EnvFilter::new("info");
        let lines = super::super::lines(format, false, move || writer.clone(), filter);
        tracing::subscriber::with_default(Registry::default().with(lines), work);
        String::from_utf8(written.0.lock().unwrap().clone()).unwrap()
    }

    fn call() -> RequestContext {
        let mut call = RequestContext::from_headers("/a.B/C", &HeaderMap::new(), Instant::now());
        call.enter("n", "a \"quoted\" one", 7);
        call
    }

    #[test]
    fn a_line_that_is_written_in_a_call_says_which_one_and_others_are_as_ever() {
        let call = call();
        let text = written(LogFormat::Text, || {
            tracing::info!("before");
            context::sync_scope(call.clone(), || tracing::info!(n = 5, "within"));
            context::sync_scope(call.clone(), || tracing::warn!(target: ERRORS, "an error"));
        });
        let lines: Vec<_> = text.lines().collect();
        assert!(lines[0].ends_with("tests: before") && lines[2].ends_with("error: an error"), "{text}");
        let within = format!(
            "within n=5 call=/a.B/C request={} attempt=1 ward=a \"quoted\" one incarnation=7",
            call.request_id
        );
        assert!(lines[1].ends_with(&within), "{text}");
    }

    #[test]
    fn so_does_one_in_json() {
        let call = call();
        let text = written(LogFormat::Json, || {
            let span = tracing::info_span!("mine", x = 1);
            span.in_scope(|| context::sync_scope(call.clone(), || tracing::info!(n = 5, "within")));
        });
        let line: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(line["call"]["request"], call.request_id.to_string());
        assert_eq!(
            (&line["call"]["ward"], &line["call"]["incarnation"]),
            (&"a \"quoted\" one".into(), &7.into())
        );
        assert_eq!(
            (&line["message"], &line["n"], &line["span"]["x"]),
            (&"within".into(), &5.into(), &1.into())
        );
    }

    #[test]
    fn a_log_alone_wants_no_spans_of_calls() {
        written(LogFormat::Text, || {
            assert!(tracing::info_span!(target: CALLS, "ward.call").is_disabled());
            assert!(!tracing::info_span!("mine").is_disabled());
        });
    }
}
