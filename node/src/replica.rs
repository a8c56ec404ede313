//! The service by which clients withdraw attempts that nobody waits for any more.

use std::sync::Arc;

use tonic::{Request, Response, Status};
use uuid::Uuid;
use wardkeep_proto::{
    Error,
    v1::{self, replica_server},
};

use crate::{calls::Calls, error::NodeError};

/// Attempts that one request may name.
const MOST: usize = 1_024;

/// See the [module](self).
pub(crate) struct Replica(pub(crate) Arc<Calls>);

#[tonic::async_trait]
impl replica_server::Replica for Replica {
    async fn withdraw(
        &self,
        request: Request<v1::WithdrawRequest>,
    ) -> Result<Response<v1::WithdrawReply>, Status> {
        let named = request.into_inner().attempts;
        if named.len() > MOST {
            let what = format!("{} attempts in one request to withdraw; at most {MOST}", named.len());
            return Err(Error::from(NodeError::BadRequest(what)).into());
        }
        let attempts = named.iter().map(|named| {
            // What is no ID is nobody's.
            let id = Uuid::from_slice(&named.call_id).unwrap_or_default();
            self.0.withdraw((id, named.attempt)).message()
        });
        Ok(Response::new(v1::WithdrawReply { attempts: attempts.collect() }))
    }
}
