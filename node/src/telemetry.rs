//! Logs and traces of a process: readable lines on stderr, JSON on request, and OTLP export when
//! `OTEL_EXPORTER_OTLP_ENDPOINT` is set.

use std::{io::IsTerminal as _, str::FromStr};

use opentelemetry::trace::TracerProvider as _;
use opentelemetry_otlp::SpanExporter;
use opentelemetry_sdk::{
    Resource,
    propagation::TraceContextPropagator,
    trace::{BatchSpanProcessor, SdkTracerProvider},
};
use tracing_subscriber::{EnvFilter, Layer as _, layer::SubscriberExt as _, util::SubscriberInitExt as _};

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
#[must_use = "traces are lost when this is dropped too early"]
#[derive(Debug, Default)]
pub struct Telemetry {
    provider: Option<SdkTracerProvider>,
}

impl Drop for Telemetry {
    fn drop(&mut self) {
        if let Some(provider) = self.provider.take() {
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
    // Not the transport's own spans: the exporter's transport would tell of itself for ever.
    let traced = EnvFilter::new("info,h2=off,hyper=off,tonic=off,tower=off,opentelemetry=off");
    let provider = exporter()?.map(|exporter| provider(service, exporter));
    let traces = provider.as_ref().map(|provider| {
        opentelemetry::global::set_text_map_propagator(TraceContextPropagator::new());
        tracing_opentelemetry::layer().with_tracer(provider.tracer("wardkeep")).with_filter(traced)
    });
    let lines = match format {
        LogFormat::Text => {
            let colour = std::io::stderr().is_terminal()
                && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty())
                && std::env::var_os("TERM").is_none_or(|t| t != "dumb");
            tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_ansi(colour).boxed()
        }
        LogFormat::Json => {
            tracing_subscriber::fmt::layer().json().flatten_event(true).with_writer(std::io::stderr).boxed()
        }
    };
    let _ = tracing_subscriber::registry().with(traces).with(lines.with_filter(filter)).try_init();
    Ok(Telemetry { provider })
}

fn exporter() -> Result<Option<SpanExporter>, String> {
    const VARIABLE: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";
    let Some(endpoint) = std::env::var(VARIABLE).ok().filter(|value| !value.is_empty()) else {
        return Ok(None);
    };
    SpanExporter::builder()
        .with_tonic()
        .build()
        .map(Some)
        .map_err(|e| format!("{VARIABLE}={endpoint} cannot be used: {e}"))
}

fn provider(service: &str, exporter: SpanExporter) -> SdkTracerProvider {
    // OTEL_SERVICE_NAME, where set, wins over ours.
    let name = std::env::var("OTEL_SERVICE_NAME").unwrap_or_else(|_| service.to_owned());
    SdkTracerProvider::builder()
        .with_span_processor(BatchSpanProcessor::builder(exporter).build())
        .with_resource(Resource::builder().with_service_name(name).build())
        .build()
}
