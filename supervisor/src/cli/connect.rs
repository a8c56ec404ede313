//! The way to a server: opened at once, so that "nothing answers there" is known for what it is,
//! and with a deadline on everything.

use std::time::Duration;

use tonic::{
    Request, Response, Status,
    transport::{Channel, Endpoint},
};
use wardkeep_client::Checked;
use wardkeep_proto::{
    machine_name,
    v1::{Fleet, GetFleetRequest, operator_client::OperatorClient},
};

use super::{
    args::{DEFAULT_SUPERVISOR, Global},
    call::MAX_REPLY_BYTES,
    exit::{Exit, Failure},
    out::Out,
};

/// A connection opens within this, or the server counts as unreachable.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// The server's own deadline passes first, so that what it says of it arrives.
const GRACE: Duration = Duration::from_millis(250);

/// To a server.
pub(crate) type Line = Checked<Channel>;

/// What every command has at hand.
#[derive(Clone, Debug)]
pub(crate) struct Session {
    /// Where results go.
    pub(crate) out: Out,
    /// The supervisor's address.
    pub(crate) supervisor: String,
    /// How long an answer or an effect may take.
    pub(crate) timeout: Duration,
}

impl Session {
    /// From the global options.
    ///
    /// # Errors
    /// The supervisor's address is none.
    pub(crate) fn new(global: &Global) -> Result<Self, Failure> {
        let supervisor = global.supervisor.as_deref().unwrap_or(DEFAULT_SUPERVISOR);
        Ok(Self { out: Out::new(global.output), supervisor: address(supervisor)?, timeout: global.timeout })
    }

    /// Connects to the supervisor.
    ///
    /// # Errors
    /// Nothing answers there.
    pub(crate) async fn operator(&self) -> Result<OperatorClient<Line>, Failure> {
        // A large fleet is more than tonic's 4 MiB.
        let client = OperatorClient::new(self.channel(&self.supervisor).await?);
        Ok(client.max_decoding_message_size(MAX_REPLY_BYTES))
    }

    /// Connects to any server.
    ///
    /// # Errors
    /// Nothing answers at the address.
    pub(crate) async fn channel(&self, address: &str) -> Result<Line, Failure> {
        let timeout = self.timeout.min(CONNECT_TIMEOUT);
        let endpoint = Endpoint::from_shared(address.to_owned())
            .map_err(|_| Failure::usage(format!("{address} is not an address: want http://HOST:PORT")))?
            .connect_timeout(timeout)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(Duration::from_secs(10))
            .keep_alive_timeout(Duration::from_secs(10))
            .keep_alive_while_idle(true);
        // A listener that accepts and then says nothing must not hold us.
        match tokio::time::timeout(timeout + GRACE, endpoint.connect()).await {
            Ok(connected) => connected.map(Checked).map_err(|e| Failure::unreachable(address, &e)),
            Err(_) => Err(Failure::new(
                Exit::Unreachable,
                format!(
                    "cannot reach {address}: no connection within {}",
                    humantime::format_duration(timeout)
                ),
            )),
        }
    }

    /// A request to the supervisor, with its deadline.
    pub(crate) fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request.set_timeout(self.timeout);
        request
    }

    /// Waits for an answer, within `--timeout`.
    ///
    /// # Errors
    /// The server's error, or that there was no answer.
    pub(crate) async fn answer<T>(
        &self,
        address: &str,
        call: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Result<T, Failure> {
        match tokio::time::timeout(self.timeout.saturating_add(GRACE), call).await {
            Ok(Ok(response)) => Ok(response.into_inner()),
            Ok(Err(status)) => Err(Failure::from_status(address, &status)).map_err(|f| self.in_time(f)),
            Err(_) => {
                Err(self.in_time(Failure::new(Exit::Timeout, format!("no answer from {address} in time"))))
            }
        }
    }

    /// Says how long was waited.
    fn in_time(&self, mut failure: Failure) -> Failure {
        if failure.exit == Exit::Timeout && failure.id.is_none() {
            let waited = humantime::format_duration(self.timeout);
            failure.message = format!("{} (--timeout is {waited})", failure.message);
        }
        failure
    }

    /// Asks the supervisor for the whole picture.
    ///
    /// # Errors
    /// Nothing answers, or not in time.
    pub(crate) async fn fleet(&self, operator: &mut OperatorClient<Line>) -> Result<Fleet, Failure> {
        let request = self.request(GetFleetRequest {});
        let mut fleet = self.answer(&self.supervisor, operator.get_fleet(request)).await?;
        fleet.nodes.sort_by(|a, b| name_of(a).cmp(name_of(b)));
        // Wards of a node stay in their start order.
        fleet.wards.sort_by(|a, b| a.node.cmp(&b.node));
        Ok(fleet)
    }
}

/// A node's name.
pub(crate) fn name_of(node: &wardkeep_proto::v1::Node) -> &str {
    node.info.as_ref().map(|i| i.name.as_str()).unwrap_or_default()
}

/// Who asks: `user@machine`.
pub(crate) fn actor() -> String {
    let set = |key: &&str| std::env::var(key).ok().filter(|name| !name.is_empty());
    // Where no login was (a container, a unit of systemd), the user still has a number.
    let user = ["USER", "LOGNAME", "USERNAME"].iter().find_map(set);
    let user = user.unwrap_or_else(|| format!("uid {}", nix::unistd::getuid()));
    format!("{user}@{}", machine_name())
}

/// Completes and checks an address: `host:port` means `http://host:port`.
///
/// # Errors
/// It cannot be one, or asks for what is not offered.
pub(crate) fn address(text: &str) -> Result<String, Failure> {
    let bad =
        |why: &str| Failure::usage(format!("{text:?} is not an address ({why}): want http://HOST:PORT"));
    let full = if text.contains("://") { text.to_owned() } else { format!("http://{text}") };
    let uri: http::Uri = full.parse().map_err(|e: http::uri::InvalidUri| bad(&e.to_string()))?;
    match uri.scheme_str() {
        Some("http") => {}
        Some("https") => return Err(bad("TLS is not supported yet")),
        _ => return Err(bad("unknown scheme")),
    }
    if uri.host().is_none_or(str::is_empty) {
        return Err(bad("no host"));
    }
    let host_and_port = uri.authority().map(|a| a.as_str());
    if uri.port_u16().is_none() && host_and_port != uri.host() {
        return Err(bad("the port is not a number up to 65535"));
    }
    if !matches!(uri.path(), "" | "/") || uri.query().is_some() {
        return Err(bad("no path can follow the port"));
    }
    Ok(full.trim_end_matches('/').to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_completed_and_checked() {
        assert_eq!(address("127.0.0.1:7400").unwrap(), "http://127.0.0.1:7400");
        assert_eq!(address("http://h:1/").unwrap(), "http://h:1");
        for bad in ["", "https://h:1", "ftp://h", "http://", "http://h:1/path", "a b", "http://h:99999999"] {
            assert_eq!(address(bad).unwrap_err().exit, Exit::Usage, "{bad}");
        }
    }
}
