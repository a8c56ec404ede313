//! W3C trace context between spans and headers.
//!
//! Uses OpenTelemetry's global propagator: until one is set, headers only pass through.

use http::{HeaderMap, HeaderName, HeaderValue};
use opentelemetry::{
    global,
    propagation::{Extractor, Injector},
    trace::TraceContextExt as _,
};
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt as _;

use crate::context::{self, TRACEPARENT};

/// The target of spans of calls, on both sides. They are for export: logs read from a call's context what they need.
pub const CALLS: &str = "wardkeep::call";

struct Headers<'a>(&'a mut HeaderMap);

impl Injector for Headers<'_> {
    fn set(&mut self, key: &str, value: String) {
        if let (Ok(key), Ok(value)) = (HeaderName::try_from(key), HeaderValue::try_from(value)) {
            self.0.insert(key, value);
        }
    }
}

struct ReadHeaders<'a>(&'a HeaderMap);

impl Extractor for ReadHeaders<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).and_then(|value| value.to_str().ok())
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(HeaderName::as_str).collect()
    }
}

/// Writes the span's trace context into the headers. Without an OpenTelemetry layer, the context
/// of the request being served is passed on as it came.
pub fn inject(span: &Span, headers: &mut HeaderMap) {
    let cx = span.context();
    if cx.span().span_context().is_valid() {
        global::get_text_map_propagator(|p| p.inject_context(&cx, &mut Headers(headers)));
    } else if let Some(parent) = context::current().and_then(|c| c.traceparent.clone())
        && let Ok(value) = HeaderValue::from_str(&parent)
    {
        headers.insert(TRACEPARENT, value);
    }
}

/// Makes the span a child of the trace context in the headers, if there is one.
pub fn follow(span: &Span, headers: &HeaderMap) {
    if span.is_disabled() {
        return;
    }
    let cx = global::get_text_map_propagator(|p| p.extract(&ReadHeaders(headers)));
    if cx.span().span_context().is_valid() {
        // Fails only where no OpenTelemetry layer listens, or the span has begun to be exported.
        let _ = span.set_parent(cx);
    }
}

/// Makes the span a child of this `traceparent`, as events and commands carry it.
pub fn follow_parent(span: &Span, traceparent: &str) {
    if let Ok(value) = HeaderValue::from_str(traceparent) {
        let mut headers = HeaderMap::with_capacity(1);
        headers.insert(TRACEPARENT, value);
        follow(span, &headers);
    }
}

/// The span's `traceparent`, to be carried in events and commands.
pub fn traceparent(span: &Span) -> Option<String> {
    let mut headers = HeaderMap::with_capacity(2);
    inject(span, &mut headers);
    headers.get(TRACEPARENT).and_then(|v| v.to_str().ok()).map(str::to_owned)
}

/// The current span's trace ID (32 hex digits), where an OpenTelemetry layer records it.
pub fn current_trace_id() -> Option<String> {
    let cx = Span::current().context();
    let span = cx.span();
    let id = span.span_context();
    id.is_valid().then(|| id.trace_id().to_string())
}
