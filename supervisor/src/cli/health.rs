//! A container's probe over `grpc.health.v1`: one line, and an exit code.

use serde::Serialize;
use tonic::{Code, Request};
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};

use super::{
    args::HealthArgs,
    connect::{Session, address},
    exit::{Exit, Failure},
    view::Document,
};

#[derive(Serialize)]
struct Health<'a> {
    address: &'a str,
    service: &'a str,
    status: &'a str,
}

/// 0 serving, 1 not serving, 4 unknown service, 5 unreachable, 124 no answer in time.
///
/// # Errors
/// The server cannot be reached, or does not know.
pub(crate) async fn run(session: &Session, args: &HealthArgs) -> Result<Exit, Failure> {
    let address = args.address.as_deref().map(address).transpose()?;
    let address = address.as_deref().unwrap_or(&session.supervisor);
    let mut client = HealthClient::new(session.channel(address).await?);
    let mut request = Request::new(HealthCheckRequest { service: args.service.clone() });
    request.set_timeout(session.timeout);
    let checked = session.answer(address, async {
        client.check(request).await.map_err(|status| match status.code() {
            Code::Unimplemented => tonic::Status::unimplemented(format!("{address} has no health service")),
            _ => status,
        })
    });
    let status = checked.await?.status();
    let (word, exit) = match status {
        ServingStatus::Serving => ("serving", Exit::Ok),
        ServingStatus::NotServing => ("not serving", Exit::Failed),
        ServingStatus::Unknown | ServingStatus::ServiceUnknown => ("unknown", Exit::Failed),
    };
    if session.out.format.is_json() {
        let body = Health { address, service: &args.service, status: &word.replace(' ', "_") };
        session.out.json(&Document::new("wardkeep.health/v1", body))?;
    } else {
        session.out.line(word)?;
    }
    Ok(exit)
}
