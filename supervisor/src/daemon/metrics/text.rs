//! Metrics as text, in the two formats that Prometheus reads.

use std::fmt;

use prometheus_client::{
    collector::Collector,
    encoding::{self, DescriptorEncoder, MetricEncoder},
    metrics::MetricType,
    registry::Registry,
};

use super::families::{Family, Value};

/// A format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    /// Text, version 0.0.4.
    Prometheus,
    /// 1.0.0.
    OpenMetrics,
}

impl Format {
    /// The one that an `Accept` header asks for.
    pub(super) fn wanted(accept: &str) -> Self {
        if accept.contains("application/openmetrics-text") { Self::OpenMetrics } else { Self::Prometheus }
    }

    /// Its `Content-Type`.
    pub(super) fn content_type(self) -> &'static str {
        match self {
            Self::Prometheus => encoding::prometheus_text::CONTENT_TYPE,
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

/// Writes them down.
///
/// # Errors
/// A metric is none: a mistake of ours.
pub(super) fn text(families: Vec<Family>, format: Format) -> Result<String, fmt::Error> {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Page(families)));
    let mut out = String::new();
    match format {
        Format::Prometheus => encoding::prometheus_text::encode(&mut out, &registry)?,
        Format::OpenMetrics => encoding::text::encode(&mut out, &registry)?,
    }
    Ok(out)
}

#[derive(Debug)]
struct Page(Vec<Family>);

impl Collector for Page {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        for Family { name, help, series } in &self.0 {
            let Some((_, first)) = series.first() else { continue };
            // The formats differ in where a counter's suffix is to be, so it is theirs to add.
            let (kind, name) = match first {
                Value::Counter(_) => (MetricType::Counter, name.strip_suffix("_total").unwrap_or(name)),
                Value::Gauge(_) => (MetricType::Gauge, *name),
                Value::Histogram(_) => (MetricType::Histogram, *name),
            };
            let mut metric = encoder.encode_descriptor(name, help, None, kind)?;
            for (labels, value) in series {
                if labels.is_empty() {
                    write(&mut metric, value)?;
                } else {
                    let labels: Vec<_> = labels.iter().map(|(key, label)| (*key, label.as_str())).collect();
                    write(&mut metric.encode_family(&labels)?, value)?;
                }
            }
        }
        Ok(())
    }
}

/// Labels beside those of the series: there are none.
type NoMore = [(&'static str, &'static str); 0];

fn write(metric: &mut MetricEncoder<'_>, value: &Value) -> fmt::Result {
    match value {
        Value::Counter(value) => metric.encode_counter::<NoMore, f64, f64>(value, None),
        Value::Gauge(value) => metric.encode_gauge(value),
        Value::Histogram(histogram) => {
            metric.encode_histogram::<NoMore>(histogram.sum(), histogram.count(), &histogram.buckets(), None)
        }
    }
}
