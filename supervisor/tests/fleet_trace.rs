//! What the supervisor decides is part of the trace of the call that led to it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::disallowed_methods, missing_docs)]

mod fleet_support;

use fleet_support::*;
use opentelemetry::trace::TracerProvider as _;
use opentelemetry_sdk::{
    propagation::TraceContextPropagator,
    trace::{InMemorySpanExporter, SdkTracerProvider, SpanData},
};
use tonic::Request;
use tracing_subscriber::layer::SubscriberExt as _;
use wardkeep_proto::v1::{self, command::Kind};

fn record_spans() -> InMemorySpanExporter {
    let exporter = InMemorySpanExporter::default();
    let provider = SdkTracerProvider::builder().with_simple_exporter(exporter.clone()).build();
    opentelemetry::global::set_text_map_propagator(TraceContextPropagator::new());
    let layer = tracing_opentelemetry::layer().with_tracer(provider.tracer("test"));
    let filter = tracing_subscriber::EnvFilter::new("wardkeep=info");
    tracing::subscriber::set_global_default(tracing_subscriber::registry().with(filter).with(layer)).unwrap();
    exporter
}

fn decisions(exporter: &InMemorySpanExporter, trace: &str) -> Vec<SpanData> {
    let spans = exporter.get_finished_spans().unwrap();
    spans
        .into_iter()
        .filter(|span| span.name == "steward.decide" && span.span_context.trace_id().to_string() == trace)
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_decision_belongs_to_the_trace_of_the_call_that_led_to_it() {
    within(async {
        let exporter = record_spans();
        let sup = supervisor(quick()).await;
        let (mut fake, _) = FakeNode::attend(&sup, hello("n", &["w"])).await.unwrap();

        // A call crashed the ward.
        let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
        let exit = v1::Exit {
            kind: v1::ExitKind::Panicked.into(),
            error: Some(v1::Error { id: "01a2".into(), what: "boom".into(), ..Default::default() }),
            traceparent: format!("00-{trace}-00f067aa0ba902b7-01"),
        };
        fake.ended(0, 1, exit).await;
        let command = fake.command().await;
        assert!(matches!(command.kind, Some(Kind::Start(_))));
        assert_eq!(&command.traceparent[3..35], trace);
        let spans = decisions(&exporter, trace);
        assert_eq!(spans.len(), 1, "{spans:?}");
        assert_eq!(spans[0].parent_span_id.to_string(), "00f067aa0ba902b7");
        assert_eq!(command.traceparent[36..52], spans[0].span_context.span_id().to_string());
        let mut events = sup.events().await;
        let told = events.says("restart 1 of").await;
        assert_eq!(&told.traceparent[3..35], trace);

        // An operator's call.
        fake.change(0, 2, v1::WardState::Running).await;
        sup.runs("n", "w", 2).await;
        let trace = "aaaaaaaabbbbbbbbccccccccdddddddd";
        let mut request = Request::new(v1::WardRequest { detach: true, ..of_ward("n", "w") });
        let parent = format!("00-{trace}-00f067aa0ba902b7-01");
        request.metadata_mut().insert("traceparent", parent.parse().unwrap());
        sup.operator.clone().stop_ward(request).await.unwrap();
        for _ in 0..2 {
            let command = fake.command().await;
            assert!(matches!(command.kind, Some(Kind::Stop(_) | Kind::Hold(_))), "{command:?}");
            assert_eq!(&command.traceparent[3..35], trace);
            assert_eq!(command.reason, "ana@ops asked for it: a test");
        }
        assert!(!decisions(&exporter, trace).is_empty());
    })
    .await;
}
