//! One trace from a client's call over each attempt into the wards, and the errors in it, as an OTLP
//! collector sees them.
//!
//! Export is set up once per process, from its environment: the test starts itself anew as the
//! process that is traced, and is the collector meanwhile.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    missing_docs,
    clippy::disallowed_methods,
    clippy::print_stdout
)]

mod support;

use std::collections::{BTreeSet, HashMap};

use opentelemetry_proto::tonic::{
    collector::{
        logs::v1::{
            ExportLogsServiceRequest, ExportLogsServiceResponse,
            logs_service_server::{LogsService, LogsServiceServer},
        },
        trace::v1::{
            ExportTraceServiceRequest, ExportTraceServiceResponse,
            trace_service_server::{TraceService, TraceServiceServer},
        },
    },
    common::v1::any_value::Value,
    logs::v1::LogRecord,
    trace::v1::Span,
};
use support::{supervisor::*, *};
use tokio::{net::TcpListener, sync::mpsc};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};
use tracing::Instrument as _;
use wardkeep_client::{Member, Policy, Replicated};
use wardkeep_node::{
    Node, OnPanic, Services,
    server::{Limits, serve},
    telemetry::{self, LogFormat},
};
use wardkeep_proto::v1::operator_client::OperatorClient;

const TRACED: &str = "WARDKEEP_TEST_TRACED";

#[derive(Clone)]
struct Collector(mpsc::Sender<Export>);

enum Export {
    Traces(ExportTraceServiceRequest),
    Logs(ExportLogsServiceRequest),
}

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        self.keep(Export::Traces(request.into_inner())).await?;
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

#[tonic::async_trait]
impl LogsService for Collector {
    async fn export(
        &self,
        request: Request<ExportLogsServiceRequest>,
    ) -> Result<Response<ExportLogsServiceResponse>, Status> {
        self.keep(Export::Logs(request.into_inner())).await?;
        Ok(Response::new(ExportLogsServiceResponse::default()))
    }
}

impl Collector {
    async fn keep(&self, export: Export) -> Result<(), Status> {
        self.0.send(export).await.map_err(|_| Status::unavailable("the test is over"))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_trace_leads_from_the_client_over_every_attempt_into_the_wards_and_the_crash_they_caused() {
    if std::env::var_os(TRACED).is_some() {
        return within(be_traced()).await;
    }
    within(collect()).await;
}

/// Two nodes, one call to both of them, one call that fails, one that panics.
async fn be_traced() {
    let telemetry = telemetry::init("traced", LogFormat::Text, 0).unwrap();
    let mut supervisor = FakeSupervisor::start().await;
    let insides = Insides::default();
    let mut nodes = Vec::new();
    for name in ["a", "b"] {
        let ward = trouble(&insides).on_panic(OnPanic::Restart);
        let node = start(Node::builder(name).supervisor(&supervisor.uri).ward(ward)).await;
        node.running("trouble", 1).await;
        let (session, _) = supervisor.session().await;
        session.welcome(1, PATIENCE).await;
        nodes.push((node, session));
    }
    let member = |i: usize, name: &str| Member::new(name, nodes[i].0.uri());
    let both = Replicated::builder()
        .members([member(0, "a"), member(1, "b")])
        .policy(Policy::All(2))
        .assume_idempotent()
        .build()
        .unwrap();
    let mut client = OperatorClient::new(both);
    // Nobody wins before both have begun.
    let call = client.start_ward(make("gate")).instrument(tracing::info_span!("the client's work"));
    let both_begun = async {
        insides.started.reaches(2).await;
        insides.gate.open();
    };
    let (reply, ()) = tokio::join!(call, both_begun);
    reply.unwrap();
    let one = Replicated::from_static_members([member(0, "a")]);
    let mut client = OperatorClient::new(one);
    let call = client.start_ward(make("internal")).instrument(tracing::info_span!("failing work"));
    let failed = wardkeep_proto::Error::from_status(&call.await.unwrap_err());
    let call = client.start_ward(make("panic")).instrument(tracing::info_span!("doomed work"));
    call.await.unwrap_err();
    let exit = nodes[0].1.exit().await.exit.unwrap();
    println!("\nfailed {}", failed.id());
    println!("traceparent {}", exit.traceparent);
    let error = exit.error.unwrap();
    println!("error-trace {}", error.trace_id);
    println!("panicked {}", error.id);
    for (node, session) in nodes {
        drop(session);
        node.stop().await;
    }
    // Waits until all is sent: not on a thread that the sending needs.
    tokio::task::spawn_blocking(move || drop(telemetry)).await.unwrap();
}

async fn collect() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let (collector, mut exports) = mpsc::channel(64);
    let collector = Collector(collector);
    let service = Services::new()
        .with(TraceServiceServer::new(collector.clone()))
        .with(LogsServiceServer::new(collector))
        .into_service("collector");
    let stop = CancellationToken::new();
    let serving = tokio::task::spawn(serve(listener, service, Limits::default(), stop.clone()));

    let traced = tokio::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "--nocapture"])
        .arg("one_trace_leads_from_the_client_over_every_attempt_into_the_wards_and_the_crash_they_caused")
        .env(TRACED, "1")
        .env("OTEL_EXPORTER_OTLP_ENDPOINT", &endpoint)
        .env("RUST_LOG", "info,h2=debug,hyper=debug,tonic=debug,tower=debug")
        .kill_on_drop(true)
        .output()
        .await
        .unwrap();
    eprintln!("{}", String::from_utf8_lossy(&traced.stderr));
    assert!(traced.status.success());
    let stdout = String::from_utf8(traced.stdout).unwrap();
    let said = stdout.lines().filter_map(|line| line.split_once(' '));
    let said: HashMap<_, _> = said.map(|(key, value)| (key.to_owned(), value.to_owned())).collect();
    assert!(String::from_utf8_lossy(&traced.stderr).contains(" h2::"), "the transport was to tell of itself");
    stop.cancel();
    drop(serving.await.unwrap());

    let mut spans: Vec<Span> = Vec::new();
    let mut logs: Vec<LogRecord> = Vec::new();
    let (mut services, mut told_by) = (Vec::new(), BTreeSet::new());
    while let Some(export) = exports.recv().await {
        let resources: Vec<_> = match export {
            Export::Traces(export) => export
                .resource_spans
                .into_iter()
                .map(|it| {
                    spans.extend(it.scope_spans.into_iter().flat_map(|scope| scope.spans));
                    it.resource
                })
                .collect(),
            Export::Logs(export) => export
                .resource_logs
                .into_iter()
                .map(|it| {
                    let scopes = it.scope_logs.iter().flat_map(|logs| logs.scope.iter());
                    told_by.extend(scopes.map(|scope| scope.name.clone()));
                    logs.extend(it.scope_logs.into_iter().flat_map(|scope| scope.log_records));
                    it.resource
                })
                .collect(),
        };
        let attributes = resources.into_iter().flat_map(|resource| resource.unwrap().attributes);
        services.extend(attributes.filter(|a| a.key == "service.name").map(|a| a.value));
    }
    assert!(services.iter().all(|name| format!("{name:?}").contains("traced")), "{services:?}");
    judge(&spans, &said);
    judge_errors(&logs, &spans, &said);
    // Every line, but for what the transport tells, the exporter's above all.
    assert!(told_by.contains("wardkeep_node::node"), "{told_by:?}");
    assert!(!told_by.iter().any(|target| target.starts_with("h2")), "{told_by:?}");
}

/// Each failure is one record, in the trace of the call that failed and in the span of the ward's part.
fn judge_errors(logs: &[LogRecord], spans: &[Span], said: &HashMap<String, String>) {
    let text = |record: &LogRecord, key: &str| -> Option<String> {
        let value = record.attributes.iter().find(|it| it.key == key)?.value.clone()?.value?;
        if let Value::StringValue(text) = value { Some(text) } else { None }
    };
    let server = opentelemetry_proto::tonic::trace::v1::span::SpanKind::Server as i32;
    for (which, work, kind, what) in [
        ("failed", "failing work", "grpc.status/INTERNAL", "secret"),
        ("panicked", "doomed work", "wardkeep.bug/PANIC", "panicked: asked to"),
    ] {
        let id = Some(said[which].clone());
        let records: Vec<_> = logs.iter().filter(|log| text(log, "error.id") == id).collect();
        let [record] = records[..] else { panic!("{which}: {records:#?}") };
        let root = spans.iter().find(|span| span.name == work).unwrap();
        let call = spans.iter().find(|span| span.kind == server && span.trace_id == root.trace_id).unwrap();
        assert_eq!((&record.trace_id, &record.span_id), (&call.trace_id, &call.span_id), "{which}");
        assert_eq!(record.severity_text, "ERROR");
        assert_eq!(record.body.clone().unwrap().value, Some(Value::StringValue(what.to_owned())));
        assert_eq!(text(record, "exception.type").as_deref(), Some(kind));
        assert_eq!(text(record, "exception.message").as_deref(), Some(what));
        assert!(text(record, "exception.stacktrace").unwrap().contains("/wardkeep.v1.Operator/StartWard"));
        assert!(text(record, "group").unwrap().starts_with("g1-"));
    }
}

fn judge(spans: &[Span], said: &HashMap<String, String>) {
    let hex = |id: &[u8]| id.iter().map(|b| format!("{b:02x}")).collect::<String>();
    let named =
        |name: &str| spans.iter().find(|s| s.name == name).unwrap_or_else(|| panic!("{name}: {spans:#?}"));
    let by_id: HashMap<_, _> = spans.iter().map(|s| (s.span_id.clone(), s)).collect();
    let is_below = |span: &Span, root: &Span| {
        let mut span = span;
        loop {
            if span.span_id == root.span_id {
                return true;
            }
            match by_id.get(&span.parent_span_id) {
                Some(parent) => span = parent,
                None => return false,
            }
        }
    };
    // The name of a ward's span is the method; its kind says that it is the server's side.
    let server = opentelemetry_proto::tonic::trace::v1::span::SpanKind::Server as i32;
    let calls: Vec<_> =
        spans.iter().filter(|s| s.kind == server && s.name == "/wardkeep.v1.Operator/StartWard").collect();

    let root = named("the client's work");
    let attempts: Vec<_> = calls.iter().filter(|call| call.trace_id == root.trace_id).collect();
    assert_eq!(attempts.len(), 2, "each attempt is part of the trace");
    assert!(attempts.iter().all(|call| is_below(call, root)));
    assert_ne!(attempts[0].parent_span_id, attempts[1].parent_span_id, "each attempt has a span");

    let doomed = named("doomed work");
    assert_ne!(doomed.trace_id, root.trace_id);
    let call = calls.iter().find(|call| call.trace_id == doomed.trace_id).unwrap();
    assert!(is_below(call, doomed));
    let crash = format!("00-{}-{}-01", hex(&doomed.trace_id), hex(&call.span_id));
    assert_eq!(said["traceparent"], crash, "the crash names the call that caused it");
    assert_eq!(said["error-trace"], hex(&doomed.trace_id));
    // Nothing of the transport's own, the exporter's above all.
    let foreign: Vec<_> =
        spans.iter().filter(|s| format!("{:?}", s.attributes).contains("\"h2::")).map(|s| &s.name).collect();
    assert!(foreign.is_empty(), "{foreign:?}");
}
