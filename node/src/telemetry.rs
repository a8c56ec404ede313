//! Logs and traces of a process: readable lines on stderr, JSON on request, and OTLP export of both when
//! `OTEL_EXPORTER_OTLP_ENDPOINT` is set.
//!
//! What is exported of the logs is what stderr shows, each line with the trace and the span it was
//! written in; well-formed errors always, whatever `RUST_LOG` says: there they are exceptions as
//! OpenTelemetry's conventions have them. `OTEL_LOGS_EXPORTER=none` and `OTEL_TRACES_EXPORTER=none` turn
//! either off.
//!
//! A line that is written while a call is served says which one. That is read from the call's context when the line
//! is written: spans of calls (target `wardkeep::call`) are made where traces are exported, and else cost nothing.

mod line;

use std::{io::IsTerminal as _, str::FromStr};

use opentelemetry::{
    InstrumentationScope, TraceId,
    logs::{AnyValue, LogRecord as _},
    trace::{SpanId, TraceFlags, TracerProvider as _},
};
use opentelemetry_appender_tracing::layer::OpenTelemetryTracingBridge;
use opentelemetry_otlp::{LogExporter, SpanExporter};
use opentelemetry_sdk::{
    Resource,
    error::OTelSdkResult,
    logs::{BatchLogProcessor, LogProcessor, SdkLogRecord, SdkLoggerProvider},
    propagation::TraceContextPropagator,
    trace::{BatchSpanProcessor, SdkTracerProvider},
};
use tracing::Subscriber;
use tracing_subscriber::{
    EnvFilter, Layer, Registry,
    filter::{FilterExt as _, LevelFilter, filter_fn},
    fmt::{MakeWriter, format::Format},
    layer::SubscriberExt as _,
    util::SubscriberInitExt as _,
};

use line::Line;

const ENDPOINT: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";

/// How log lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object per line.
    Json,
}

impl FromStr for LogFormat {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            other => Err(format!("no log format is called {other:?}; use text or json")),
        }
    }
}

/// Ends export when dropped: what is still to be sent is sent.
#[must_use = "traces and logs are lost when this is dropped too early"]
#[derive(Debug, Default)]
pub struct Telemetry {
    traces: Option<SdkTracerProvider>,
    logs: Option<SdkLoggerProvider>,
}

impl Drop for Telemetry {
    fn drop(&mut self) {
        if let Some(provider) = self.traces.take() {
            let _ = provider.shutdown();
        }
        if let Some(provider) = self.logs.take() {
            let _ = provider.shutdown();
        }
    }
}

/// Sets up this process' logs and traces. `RUST_LOG` filters; the default is `info`, more with
/// `verbose` 1, everything with 2. Export is to the collector that `OTEL_EXPORTER_OTLP_ENDPOINT`
/// names, as `service`. Call it once, within a tokio runtime; a second call changes nothing.
///
/// # Errors
/// One line if the collector's address cannot be used.
pub fn init(service: &str, format: LogFormat, verbose: u8) -> Result<Telemetry, String> {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| {
        EnvFilter::new(match verbose {
            0 => "info,h2=warn,hyper=warn,tonic=warn,tower=warn",
            1 => "debug,h2=info,hyper=info,tonic=info,tower=info",
            _ => "trace",
        })
    });
    let telemetry = Telemetry { traces: span_exporter(service)?, logs: log_exporter(service)? };
    let traces = telemetry.traces.as_ref().map(|provider| {
        opentelemetry::global::set_text_map_propagator(TraceContextPropagator::new());
        // Not the transport's own spans: the exporter's transport would tell of itself for ever.
        let traced = EnvFilter::new("info,h2=off,hyper=off,tonic=off,tower=off,opentelemetry=off");
        tracing_opentelemetry::layer().with_tracer(provider.tracer("wardkeep")).with_filter(traced).boxed()
    });
    let logs = telemetry.logs.as_ref().map(|provider| {
        let errors = filter_fn(|it| it.target() == line::ERRORS).with_max_level_hint(LevelFilter::INFO);
        let others = filter_fn(|it| !is_transport(it.target()) && !line::is_of_calls(it));
        let others = others.with_max_level_hint(LevelFilter::TRACE);
        OpenTelemetryTracingBridge::new(provider).with_filter(errors.or(filter.clone().and(others))).boxed()
    });
    let colour = std::io::stderr().is_terminal()
        && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty())
        && std::env::var_os("TERM").is_none_or(|t| t != "dumb");
    let lines = lines(format, colour, std::io::stderr, filter);
    let _ = subscriber([traces, logs, Some(lines)]).try_init();
    Ok(telemetry)
}

type Listener = Box<dyn Layer<Registry> + Send + Sync>;

/// Only those that there are: of one that is absent it is not known that it wants nothing.
fn subscriber<const N: usize>(listeners: [Option<Listener>; N]) -> impl Subscriber + Send + Sync {
    tracing_subscriber::registry().with(listeners.into_iter().flatten().collect::<Vec<_>>())
}

/// The log that is read.
fn lines<W>(format: LogFormat, colour: bool, writer: W, filter: EnvFilter) -> Listener
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let layer = tracing_subscriber::fmt::layer().with_writer(writer);
    let layer = match format {
        LogFormat::Text => {
            let layer = layer.with_ansi(colour);
            let line = |usual: Format| Line { as_usual: usual.with_ansi(colour), format };
            layer.map_event_format(line).boxed()
        }
        LogFormat::Json => {
            let layer = layer.json().flatten_event(true);
            layer.map_event_format(|as_usual| Line { as_usual, format }).boxed()
        }
    };
    let all = filter_fn(|it| !line::is_of_calls(it)).with_max_level_hint(LevelFilter::TRACE);
    layer.with_filter(filter.and(all)).boxed()
}

/// Whether this is told by what exports: it would tell of itself for ever.
fn is_transport(target: &str) -> bool {
    ["h2", "hyper", "tonic", "tower", "opentelemetry"].iter().any(|name| {
        target.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with(['_', ':']))
    })
}

/// Whether a signal (`TRACES`, `LOGS`) is exported: there is a collector, and nobody turned it off.
fn is_exported(signal: &str, env: impl Fn(&str) -> Option<String>) -> bool {
    let is = |name: &str, value: &str| env(name).is_some_and(|it| it.trim().eq_ignore_ascii_case(value));
    let endpoint = env(ENDPOINT).is_some_and(|value| !value.is_empty());
    endpoint && !is(&format!("OTEL_{signal}_EXPORTER"), "none") && !is("OTEL_SDK_DISABLED", "true")
}

fn env(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

fn span_exporter(service: &str) -> Result<Option<SdkTracerProvider>, String> {
    if !is_exported("TRACES", env) {
        return Ok(None);
    }
    let exporter = SpanExporter::builder().with_tonic().build().map_err(unusable)?;
    let processor = BatchSpanProcessor::builder(exporter).build();
    let provider = SdkTracerProvider::builder().with_span_processor(processor);
    Ok(Some(provider.with_resource(resource(service)).build()))
}

fn log_exporter(service: &str) -> Result<Option<SdkLoggerProvider>, String> {
    if !is_exported("LOGS", env) {
        return Ok(None);
    }
    let exporter = LogExporter::builder().with_tonic().build().map_err(unusable)?;
    let provider = SdkLoggerProvider::builder()
        .with_log_processor(Exceptions)
        .with_log_processor(BatchLogProcessor::builder(exporter).build());
    Ok(Some(provider.with_resource(resource(service)).build()))
}

fn unusable(why: impl std::fmt::Display) -> String {
    format!("{ENDPOINT}={} cannot be used: {why}", env(ENDPOINT).unwrap_or_default())
}

fn resource(service: &str) -> Resource {
    // OTEL_SERVICE_NAME, where set, wins over ours.
    let name = env("OTEL_SERVICE_NAME").unwrap_or_else(|| service.to_owned());
    Resource::builder().with_service_name(name).build()
}

/// Completes the records of errors: `exception.message`, which a log line has as its text, and the
/// trace of those that were written outside of its spans.
#[derive(Debug)]
struct Exceptions;

impl LogProcessor for Exceptions {
    fn emit(&self, record: &mut SdkLogRecord, _: &InstrumentationScope) {
        let text = |name: &str| {
            let mut values = record.attributes_iter();
            values.find_map(|(key, value)| match value {
                AnyValue::String(text) if key.as_str() == name => Some(text.as_str().to_owned()),
                _ => None,
            })
        };
        if text("exception.type").is_none() {
            return;
        }
        let trace = text("trace").and_then(|trace| TraceId::from_hex(&trace).ok());
        if let Some(trace) = trace.filter(|_| record.trace_context().is_none()) {
            record.set_trace_context(trace, SpanId::INVALID, Some(TraceFlags::SAMPLED));
        }
        if let Some(message) = record.body().cloned() {
            record.add_attribute("exception.message", message);
        }
    }

    fn force_flush(&self) -> OTelSdkResult {
        Ok(())
    }

    fn shutdown_with_timeout(&self, _: std::time::Duration) -> OTelSdkResult {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use opentelemetry::logs::{Logger as _, LoggerProvider as _};

    use super::*;

    #[derive(Clone, Debug, Default)]
    struct Kept(Arc<Mutex<Vec<SdkLogRecord>>>);

    impl LogProcessor for Kept {
        fn emit(&self, record: &mut SdkLogRecord, _: &InstrumentationScope) {
            self.0.lock().unwrap().push(record.clone());
        }

        fn force_flush(&self) -> OTelSdkResult {
            Ok(())
        }
    }

    #[test]
    fn an_error_that_is_written_outside_of_its_spans_is_in_its_trace_all_the_same() {
        let kept = Kept::default();
        let provider = SdkLoggerProvider::builder().with_log_processor(Exceptions);
        let logger = provider.with_log_processor(kept.clone()).build().logger("");
        let trace = "ba25ef77246b64d21b7bc87e125f76b6";
        for kind in [Some("domain/KIND"), None] {
            let mut record = logger.create_log_record();
            record.set_body("it broke".into());
            record.add_attribute("trace", trace);
            kind.into_iter().for_each(|kind| record.add_attribute("exception.type", kind));
            logger.emit(record);
        }
        let kept = kept.0.lock().unwrap();
        assert_eq!(kept[0].trace_context().unwrap().trace_id, TraceId::from_hex(trace).unwrap());
        let message = (opentelemetry::Key::new("exception.message"), AnyValue::from("it broke"));
        assert!(kept[0].attributes_iter().any(|it| *it == message));
        assert_eq!((kept[1].trace_context(), kept[1].attributes_iter().count()), (None, 1));
    }

    #[test]
    fn a_signal_is_exported_where_there_is_a_collector_unless_it_was_turned_off() {
        let told = |signal: &str, vars: &[(&str, &str)]| {
            is_exported(signal, |name| vars.iter().find(|v| v.0 == name).map(|v| v.1.to_owned()))
        };
        let collector = (ENDPOINT, "http://localhost:4317");
        assert!(!told("LOGS", &[]) && !told("LOGS", &[(ENDPOINT, "")]));
        assert!(told("LOGS", &[collector]) && told("TRACES", &[collector]));
        let off = [collector, ("OTEL_LOGS_EXPORTER", "None")];
        assert!(!told("LOGS", &off) && told("TRACES", &off));
        assert!(told("LOGS", &[collector, ("OTEL_LOGS_EXPORTER", "otlp")]));
        assert!(!told("TRACES", &[collector, ("OTEL_SDK_DISABLED", "true")]));
    }

    #[test]
    fn what_exports_is_told_apart_by_its_whole_name() {
        for target in ["h2::codec", "hyper_util::client", "tonic", "tower::buffer", "opentelemetry_sdk"] {
            assert!(is_transport(target), "{target}");
        }
        for target in ["wardkeep::error", "h2o", "towers", "my_tonic"] {
            assert!(!is_transport(target), "{target}");
        }
    }
}
