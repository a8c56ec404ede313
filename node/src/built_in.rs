//! Services of a process itself, beside or without wards: health, reflection, a supervisor's API.

use std::{collections::HashMap, convert::Infallible, sync::Arc};

use arc_swap::ArcSwap;
use http::{Request, Response};
use tokio::time::Instant;
use tonic::{Status, body::Body, server::NamedService};
use tower::Service;
use tracing::Instrument as _;
use wardkeep_proto::{
    Error,
    context::{self, RequestContext},
    trace,
};

use crate::{
    entrance::{Entrance, Way},
    error::NodeError,
    ledger::Ledger,
    panics::Contained,
    ward::BoxedService,
    wellform,
};

/// A set of services behind one entrance: calls get their context and trace, panics are contained,
/// unknown services are refused with a well-formed error.
#[derive(Default)]
pub struct Services {
    ways: HashMap<String, Way>,
    ledger: Option<Ledger>,
}

impl Services {
    /// None yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a tonic server.
    #[must_use]
    #[allow(clippy::should_implement_trait, reason = "nobody adds sets of services with `+`")]
    pub fn with<S>(mut self, service: S) -> Self
    where
        S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>
            + NamedService
            + Clone
            + Send
            + Sync
            + 'static,
        S::Future: Send + 'static,
    {
        self.ways.insert(S::NAME.to_owned(), Way::BuiltIn(Arc::new(service)));
        self
    }

    /// Adds server reflection in both versions that clients in the field speak.
    ///
    /// # Errors
    /// A descriptor set that cannot be read.
    pub fn reflecting(self, descriptors: &[&'static [u8]]) -> Result<Self, Error> {
        let builder = || {
            descriptors
                .iter()
                .chain([&tonic_health::pb::FILE_DESCRIPTOR_SET])
                .fold(tonic_reflection::server::Builder::configure(), |builder, encoded| {
                    builder.register_encoded_file_descriptor_set(encoded)
                })
        };
        let unreadable = |e: tonic_reflection::server::Error| {
            NodeError::Misconfigured(format!("a descriptor set given for reflection cannot be read: {e}"))
        };
        let v1 = builder().build_v1().map_err(unreadable)?;
        let v1alpha = builder().build_v1alpha().map_err(unreadable)?;
        Ok(self.with(v1).with(v1alpha))
    }

    /// Errors that arise in them are written down here as well as logged.
    #[must_use]
    pub fn recording(mut self, ledger: Ledger) -> Self {
        self.ledger = Some(ledger);
        self
    }

    pub(crate) fn into_ways(self) -> HashMap<String, Way> {
        self.ways
    }

    /// The tower service to be served by [`crate::server::serve`]. `name` signs its refusals.
    pub fn into_service(
        self,
        name: &str,
    ) -> impl Service<Request<Body>, Response = Response<Body>, Error = Infallible, Future: Send + 'static>
    + Clone
    + Send
    + 'static {
        let ledger = self.ledger.unwrap_or_else(Ledger::of_nobody);
        let ways = Arc::new(ArcSwap::from_pointee(self.ways));
        Entrance::new(name.into(), ways, Default::default(), ledger, Default::default())
    }
}

/// A call to a service of the process itself.
pub(crate) async fn call(
    node: Arc<str>,
    ledger: Ledger,
    service: BoxedService,
    request: Request<Body>,
) -> Response<Body> {
    let mut context = RequestContext::from_headers(request.uri().path(), request.headers(), Instant::now());
    context.enter(node.clone(), "", 0);
    context.recorder = Some(ledger.recorder(node.clone(), "".into(), 0));
    let span = tracing::debug_span!(target: trace::CALLS, "call", otel.name = %context.method, otel.kind = "server",
        rpc.system = "grpc");
    trace::follow(&span, request.headers());
    let handler = context::scope(context.clone(), Contained::new(service.serve(request)));
    match handler.instrument(span.clone()).await {
        Ok(mut response) => {
            let origin = wellform::Origin { node: &node, ward: "", incarnation: 0, ledger: &ledger };
            let adopt = || wellform::headers(response.headers_mut(), origin);
            span.in_scope(|| context::sync_scope(context, adopt));
            response
        }
        Err(panic) => {
            let panic = panic.at(&node, "", 0);
            ledger.write(&panic);
            Status::from(panic).into_http()
        }
    }
}
