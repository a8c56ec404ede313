//! What keeps a peer's reply from panicking tonic, and nothing else.

use std::task::{Context, Poll};

use futures_util::{TryFutureExt as _, future::MapOk};
use http::{Request, Response};
use http_body::Frame;
use http_body_util::BodyExt as _;
use tonic::body::Body;
use tower::Service;
use wardkeep_proto::error::remove_bad_details;

/// A channel from whose replies status details that are no base64 are removed: tonic 0.14 panics on them,
/// and a session should not die of what its peer sends. For callers that read statuses themselves; see
/// [`WellFormed`](crate::WellFormed) for well-formed errors.
#[derive(Clone, Debug)]
pub struct Checked<S>(pub S);

type Check = fn(Response<Body>) -> Response<Body>;

impl<S> Service<Request<Body>> for Checked<S>
where
    S: Service<Request<Body>, Response = Response<Body>>,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = MapOk<S::Future, Check>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        self.0.call(request).map_ok(check as Check)
    }
}

fn check(mut response: Response<Body>) -> Response<Body> {
    remove_bad_details(response.headers_mut());
    response.map(|body| {
        Body::new(body.map_frame(|mut frame: Frame<_>| {
            if let Some(trailers) = frame.trailers_mut() {
                remove_bad_details(trailers);
            }
            frame
        }))
    })
}

#[cfg(test)]
mod tests {
    use http::{HeaderMap, HeaderValue};
    use tonic::{Code, client::Grpc};
    use tonic_prost::ProstCodec;
    use wardkeep_proto::v1;

    use super::*;

    /// Ends a call with details that are no base64, in its head or in its trailers.
    fn spoilt(in_head: bool) -> Response<Body> {
        let mut map = HeaderMap::new();
        map.insert("grpc-status", HeaderValue::from_static("5"));
        map.insert("grpc-status-details-bin", HeaderValue::from_static("AAAA="));
        let mut response = Response::new(Body::empty());
        if in_head {
            *response.headers_mut() = map;
        } else {
            let trailers = http_body_util::Empty::<bytes::Bytes>::new()
                .map_err(|never| match never {})
                .with_trailers(async { Some(Ok::<_, tonic::Status>(map)) });
            response = Response::new(Body::new(trailers));
        }
        response.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
        response
    }

    #[tokio::test]
    async fn details_that_are_no_base64_do_not_panic_the_caller() {
        for in_head in [true, false] {
            let service =
                tower::service_fn(move |_| async move { Ok::<_, std::convert::Infallible>(spoilt(in_head)) });
            let mut grpc = Grpc::new(Checked(service));
            grpc.ready().await.unwrap();
            let codec = ProstCodec::<v1::GetFleetRequest, v1::Fleet>::default();
            let path = http::uri::PathAndQuery::from_static("/a.B/C");
            let request = tonic::Request::new(v1::GetFleetRequest {});
            let status = grpc.unary(request, path, codec).await.unwrap_err();
            assert_eq!(status.code(), Code::NotFound, "in the head: {in_head}");
        }
    }
}
