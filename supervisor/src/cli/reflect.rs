//! What a server offers, asked through gRPC server reflection: v1, else v1alpha.

use std::collections::BTreeSet;

use http::uri::PathAndQuery;
use prost::Message as _;
use prost_reflect::{DescriptorPool, ServiceDescriptor};
use prost_types::FileDescriptorProto;
use tonic::{Code, Request, Status, client::Grpc};
use tonic_prost::ProstCodec;
use tonic_reflection::pb::v1::{
    ServerReflectionRequest, ServerReflectionResponse, server_reflection_request::MessageRequest,
    server_reflection_response::MessageResponse,
};

use super::{
    connect::{Line, Session},
    exit::Failure,
    resolve,
};

/// The two versions have the same messages.
const V1: &str = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo";
const V1ALPHA: &str = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo";
/// No sane service imports more files than this.
const MOST_FILES: usize = 1_000;

/// A server that can be asked.
pub(crate) struct Reflection<'a> {
    session: &'a Session,
    address: &'a str,
    grpc: Grpc<Line>,
    path: &'static str,
}

impl<'a> Reflection<'a> {
    /// Connects.
    ///
    /// # Errors
    /// Nothing answers at the address.
    pub(crate) async fn open(session: &'a Session, address: &'a str) -> Result<Self, Failure> {
        let grpc = Grpc::new(session.channel(address).await?);
        Ok(Self { session, address, grpc, path: V1 })
    }

    /// Full names of the services offered.
    ///
    /// # Errors
    /// The server cannot be asked.
    pub(crate) async fn services(&mut self) -> Result<Vec<String>, Failure> {
        match self.ask(MessageRequest::ListServices(String::new())).await {
            Ok(MessageResponse::ListServicesResponse(list)) => {
                Ok(list.service.into_iter().map(|s| s.name).collect())
            }
            Ok(_) => Err(self.failure(&strange())),
            Err(status) => Err(self.failure(&status)),
        }
    }

    /// The service, with all it refers to.
    ///
    /// # Errors
    /// Not offered (4), or the server cannot be asked.
    pub(crate) async fn service(&mut self, name: &str) -> Result<ServiceDescriptor, Failure> {
        let request = MessageRequest::FileContainingSymbol(name.to_owned());
        let mut files = match self.files(request).await {
            Err(status) if status.code() == Code::NotFound => {
                let offered = self.services().await?;
                return Err(resolve::not_found("service", name, offered));
            }
            answered => answered.map_err(|status| self.failure(&status))?,
        };
        self.complete(&mut files).await.map_err(|status| self.failure(&status))?;
        let mut pool = DescriptorPool::new();
        let read = pool.add_file_descriptor_protos(files);
        read.map_err(|e| self.failure(&Status::internal(format!("its descriptors are not valid: {e}"))))?;
        pool.get_service_by_name(name).ok_or_else(|| self.failure(&strange()))
    }

    /// Fetches the imports that did not come along.
    async fn complete(&mut self, files: &mut Vec<FileDescriptorProto>) -> Result<(), Status> {
        let mut seen: BTreeSet<String> = files.iter().map(|f| f.name().to_owned()).collect();
        let mut next = 0;
        while let Some(file) = files.get(next) {
            next += 1;
            for import in file.dependency.clone() {
                if !seen.insert(import.clone()) {
                    continue;
                }
                let fetched = match self.files(MessageRequest::FileByFilename(import.clone())).await {
                    Ok(fetched) => fetched,
                    // Servers often leave out what everybody has.
                    Err(status) => match DescriptorPool::global().get_file_by_name(&import) {
                        Some(known) => vec![known.file_descriptor_proto().clone()],
                        None => return Err(status),
                    },
                };
                for file in fetched {
                    let new = file.name() == import || seen.insert(file.name().to_owned());
                    if new && !files.iter().any(|f| f.name() == file.name()) {
                        files.push(file);
                    }
                }
                if files.len() > MOST_FILES {
                    return Err(Status::internal("its descriptors have no end"));
                }
            }
        }
        Ok(())
    }

    async fn files(&mut self, request: MessageRequest) -> Result<Vec<FileDescriptorProto>, Status> {
        let MessageResponse::FileDescriptorResponse(found) = self.ask(request).await? else {
            return Err(strange());
        };
        let decode = |bytes: &Vec<u8>| FileDescriptorProto::decode(bytes.as_slice());
        let files: Result<Vec<_>, _> = found.file_descriptor_proto.iter().map(decode).collect();
        files.map_err(|e| Status::internal(format!("its descriptors are not valid: {e}")))
    }

    async fn ask(&mut self, request: MessageRequest) -> Result<MessageResponse, Status> {
        match self.ask_at(self.path, request.clone()).await {
            Err(status) if status.code() == Code::Unimplemented && self.path == V1 => {
                self.path = V1ALPHA;
                self.ask_at(V1ALPHA, request).await
            }
            answered => answered,
        }
    }

    async fn ask_at(
        &mut self,
        path: &'static str,
        request: MessageRequest,
    ) -> Result<MessageResponse, Status> {
        let message = ServerReflectionRequest { host: String::new(), message_request: Some(request) };
        let mut stream = Request::new(tokio_stream::once(message));
        stream.set_timeout(self.session.timeout);
        let exchange = async {
            self.grpc.ready().await.map_err(|e| Status::from_error(Box::new(e)))?;
            let codec = ProstCodec::<ServerReflectionRequest, ServerReflectionResponse>::default();
            let replies = self.grpc.streaming(stream, PathAndQuery::from_static(path), codec).await?;
            replies.into_inner().message().await
        };
        let reply = tokio::time::timeout(self.session.timeout, exchange)
            .await
            .unwrap_or_else(|_| Err(Status::deadline_exceeded("no answer from server reflection")))?;
        match reply.and_then(|r| r.message_response) {
            Some(MessageResponse::ErrorResponse(error)) => {
                Err(Status::new(Code::from_i32(error.error_code), error.error_message))
            }
            Some(response) => Ok(response),
            None => Err(strange()),
        }
    }

    fn failure(&self, status: &Status) -> Failure {
        let mut failure = Failure::from_status(self.address, status);
        if status.code() == Code::Unimplemented {
            failure.message = format!("{} does not offer server reflection", self.address);
            failure.what = None;
        }
        failure
    }
}

fn strange() -> Status {
    Status::internal("server reflection answered something else than was asked")
}
