//! One trace from a client's call over each attempt into the wards, as an OTLP collector sees it.
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

use std::collections::HashMap;

use opentelemetry_proto::tonic::{
    collector::trace::v1::{
        ExportTraceServiceRequest, ExportTraceServiceResponse,
        trace_service_server::{TraceService, TraceServiceServer},
    },
    trace::v1::Span,
};
use support::{supervisor::*, *};
use tokio::{io::AsyncBufReadExt as _, net::TcpListener, sync::mpsc};
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
struct Collector(mpsc::Sender<ExportTraceServiceRequest>);

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        self.0.send(request.into_inner()).await.map_err(|_| Status::unavailable("the test is over"))?;
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_trace_leads_from_the_client_over_every_attempt_into_the_wards_and_the_crash_they_caused() {
    if std::env::var_os(TRACED).is_some() {
        return within(be_traced()).await;
    }
    within(collect()).await;
}

/// Two nodes, one call to both of them, one call that panics.
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
    let call = client.start_ward(make("panic")).instrument(tracing::info_span!("doomed work"));
    call.await.unwrap_err();
    let exit = nodes[0].1.exit().await.exit.unwrap();
    println!("\ntraceparent {}", exit.traceparent);
    println!("error-trace {}", exit.error.unwrap().trace_id);
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
    let service =
        Services::new().with(TraceServiceServer::new(Collector(collector))).into_service("collector");
    let stop = CancellationToken::new();
    let serving = tokio::task::spawn(serve(listener, service, Limits::default(), stop.clone()));

    let mut traced = tokio::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "--nocapture"])
        .arg("one_trace_leads_from_the_client_over_every_attempt_into_the_wards_and_the_crash_they_caused")
        .env(TRACED, "1")
        .env("OTEL_EXPORTER_OTLP_ENDPOINT", &endpoint)
        .stdout(std::process::Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut lines = tokio::io::BufReader::new(traced.stdout.take().unwrap()).lines();
    let mut said = HashMap::new();
    while let Some(line) = lines.next_line().await.unwrap() {
        if let Some((key, value)) = line.split_once(' ') {
            said.insert(key.to_owned(), value.to_owned());
        }
    }
    assert!(traced.wait().await.unwrap().success());
    stop.cancel();
    drop(serving.await.unwrap());

    let mut spans: Vec<Span> = Vec::new();
    let mut services = Vec::new();
    while let Some(export) = exports.recv().await {
        for resource in export.resource_spans {
            let attributes = resource.resource.unwrap().attributes;
            services.extend(attributes.into_iter().filter(|a| a.key == "service.name").map(|a| a.value));
            spans.extend(resource.scope_spans.into_iter().flat_map(|scope| scope.spans));
        }
    }
    assert!(format!("{services:?}").contains("traced"), "{services:?}");
    judge(&spans, &said);
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
