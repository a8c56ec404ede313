//! gRPC health (`grpc.health.v1`) of a program that serves: ready at its first SERVING, and each SERVING
//! is a pulse. Anything else, no answer included, is none; its pulse timeout decides then.

use std::time::Duration;

use tokio::time::{sleep, timeout};
use tonic::{Request, transport::Endpoint};
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};
use wardkeep_proto::Error;

use crate::context::Incarnation;

/// Until it is ready it is asked at least this often.
const AT_START: Duration = Duration::from_millis(200);

/// Whom to ask, and how often.
#[derive(Clone, Debug)]
pub(super) struct Probe {
    endpoint: Endpoint,
    service: String,
    pub(super) interval: Duration,
    pub(super) timeout: Duration,
}

impl Probe {
    pub(super) fn new(uri: &str, service: String) -> Result<Self, Error> {
        let endpoint = wardkeep_client::endpoint(uri)?;
        Ok(Self { endpoint, service, interval: Duration::from_secs(1), timeout: Duration::from_millis(500) })
    }

    /// A pulse may take this long to come, where all is well.
    pub(super) fn longest_pause(&self) -> Duration {
        self.interval.saturating_add(self.timeout)
    }

    /// Asks for ever.
    pub(super) async fn run(&self, incarnation: &Incarnation, mut ready: Option<impl FnOnce()>) {
        let mut client = HealthClient::new(self.endpoint.connect_lazy());
        let mut well = true;
        loop {
            sleep(if ready.is_some() { self.interval.min(AT_START) } else { self.interval }).await;
            match self.ask(&mut client).await {
                Ok(()) => {
                    incarnation.heart.pulse();
                    if let Some(ready) = ready.take() {
                        ready();
                    }
                    if !std::mem::replace(&mut well, true) {
                        incarnation.set_status("its health probe succeeds again".to_owned());
                    }
                }
                // That it does not answer at once is no news.
                Err(_) if ready.is_some() => {}
                Err(why) => {
                    well = false;
                    incarnation.set_status(format!("its health probe fails: {why}"));
                }
            }
        }
    }

    async fn ask(&self, client: &mut HealthClient<tonic::transport::Channel>) -> Result<(), String> {
        let request = Request::new(HealthCheckRequest { service: self.service.clone() });
        match timeout(self.timeout, client.check(request)).await {
            Ok(Ok(answer)) => match answer.into_inner().status() {
                ServingStatus::Serving => Ok(()),
                other => Err(other.as_str_name().to_owned()),
            },
            Ok(Err(status)) => Err(Error::from_status(&status).what().to_owned()),
            Err(_) => Err(format!("no answer within {:?}", self.timeout)),
        }
    }
}
