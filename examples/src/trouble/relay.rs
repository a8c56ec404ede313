//! A service in the middle: it passes every call on to the trouble of another node.

use futures_util::stream::{BoxStream, StreamExt as _};
use tonic::{Request, Response, Status};
use wardkeep_client::{Member, Policy, Replicated};
use wardkeep_proto::Error;

use crate::pb::{TroubleReply, TroubleRequest, trouble_client::TroubleClient, trouble_server::Trouble};

/// Passes every call on to one other node, and its answer back as it came.
#[derive(Clone, Debug)]
pub struct Relay(TroubleClient<Replicated>);

impl Relay {
    /// To the node at this address (`http://host:port`), which errors call by this name.
    ///
    /// # Errors
    /// The address cannot be read.
    pub fn to(name: &str, uri: &str) -> Result<Self, Error> {
        let channel = Replicated::builder().members([Member::new(name, uri)]).policy(Policy::Single);
        Ok(Self(TroubleClient::new(channel.build()?)))
    }
}

#[tonic::async_trait]
impl Trouble for Relay {
    async fn make(&self, request: Request<TroubleRequest>) -> Result<Response<TroubleReply>, Status> {
        self.0.clone().make(request.into_inner()).await
    }

    type MakeStreamStream = BoxStream<'static, Result<TroubleReply, Status>>;

    async fn make_stream(
        &self,
        request: Request<TroubleRequest>,
    ) -> Result<Response<Self::MakeStreamStream>, Status> {
        let replies = self.0.clone().make_stream(request.into_inner()).await?;
        Ok(replies.map(|replies| replies.boxed()))
    }
}
