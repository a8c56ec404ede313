//! Lines of the log that say which call they were written in.

use std::fmt;

use serde_json::json;
use tracing::{Event, Metadata, Subscriber};
use tracing_subscriber::{
    fmt::{FmtContext, FormatEvent, FormatFields, format::Writer},
    registry::LookupSpan,
};
use uuid::Uuid;
use wardkeep_proto::{
    context::{self, RequestContext},
    trace,
};

use super::LogFormat;

/// What spans of calls are told by. They are for traces: a log that wanted them would have them made for each call, and
/// would show few.
pub(super) fn is_of_calls(it: &Metadata<'_>) -> bool {
    it.is_span() && it.target() == trace::CALLS
}

/// Of lines that say themselves where they are from.
pub(super) const ERRORS: &str = "wardkeep::error";

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
        let served = call.as_deref().and_then(Served::of);
        let Some(served) = served else { return self.as_usual.format_event(about, writer, event) };
        let mut line = String::new();
        self.as_usual.format_event(about, Writer::new(&mut line), event)?;
        match (self.format, line.strip_prefix('{')) {
            (LogFormat::Json, Some(rest)) => write!(writer, "{{\"serving\":{},{rest}", served.object()),
            _ => writeln!(writer, "{} {}", line.trim_end_matches('\n'), served.fields()),
        }
    }
}

struct Served<'a> {
    method: &'a str,
    ward: &'a str,
    incarnation: u64,
    request: Uuid,
}

impl<'a> Served<'a> {
    fn of(call: &'a RequestContext) -> Option<Self> {
        let (method, ward, incarnation) = call.served()?;
        Some(Self { method, ward, incarnation, request: call.request_id })
    }

    fn object(&self) -> serde_json::Value {
        let Self { method, ward, incarnation, .. } = self;
        json!({ "method": method, "ward": ward, "incarnation": incarnation, "request": self.request.to_string() })
    }

    /// The method is what a peer has sent.
    fn fields(&self) -> String {
        let Self { method, ward, incarnation, request } = self;
        format!("serving={} ward={ward} incarnation={incarnation} request={request}", method.escape_debug())
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io,
        sync::{Arc, Mutex},
    };

    use http::HeaderMap;
    use tokio::time::Instant;
    use tracing_subscriber::EnvFilter;

    use super::{
        super::{lines, subscriber},
        *,
    };

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
        let lines = lines(format, false, move || writer.clone(), EnvFilter::new("info"));
        tracing::subscriber::with_default(subscriber([None, None, Some(lines)]), work);
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
            "within n=5 serving=/a.B/C ward=a \"quoted\" one incarnation=7 request={}",
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
        assert_eq!(line["serving"]["request"], call.request_id.to_string());
        assert_eq!(
            (&line["serving"]["ward"], &line["serving"]["incarnation"]),
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
            assert!(tracing::info_span!(target: trace::CALLS, "ward.call").is_disabled());
            assert!(!tracing::info_span!("mine").is_disabled());
        });
    }
}
