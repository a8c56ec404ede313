//! Settings of a replicated channel, checked when it is built.

use std::{collections::HashSet, sync::Arc, time::Duration};

use http::{Request, Response, Uri};
use tokio::{runtime::Handle, sync::watch};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::{Code, body::Body};
use tower::{Layer, Service, ServiceExt as _};
use wardkeep_proto::{Error, context::DEFAULT_DEADLINE};

use crate::{
    Inner, Replicated, Shared,
    budget::Throttle,
    channel::{BoxError, CONNECT_TIMEOUT, Dial, Dialer, Given, Wiring, endpoint, parse},
    choose::Diversity,
    directory::Follower,
    error::ConfigError,
    losers::Losers,
    member::Member,
    methods::Methods,
    observe::Observe,
    policy::{Codes, FATAL, Policy},
    reply::body,
    restraint::{Brakes, Restraint},
    service_config,
    stats::Stats,
    view::Members,
    window::Windows,
};

/// Most of a request that may be replicated, and of a reply that is read before it is given on.
const MAX_BYTES: usize = 16 << 20;

/// Builds a [`Replicated`] channel.
#[must_use]
#[derive(Clone)]
pub struct ReplicatedBuilder {
    members: Vec<(Member, Option<Given>)>,
    directory: Option<(String, String)>,
    dial: Option<Arc<Dial>>,
    methods: Methods,
    descriptors: Vec<Vec<u8>>,
    fatal: Codes,
    default_deadline: Duration,
    connect_timeout: Duration,
    max_request_bytes: usize,
    max_reply_bytes: usize,
    attempt_timeout: Option<Duration>,
    restraint: Restraint,
    diversity: Diversity,
    service_config: Option<String>,
    observer: Option<Arc<dyn Observe>>,
}

impl Default for ReplicatedBuilder {
    fn default() -> Self {
        Self {
            members: Vec::new(),
            directory: None,
            dial: None,
            methods: Methods::default(),
            descriptors: Vec::new(),
            fatal: FATAL,
            default_deadline: DEFAULT_DEADLINE,
            connect_timeout: CONNECT_TIMEOUT,
            max_request_bytes: MAX_BYTES,
            max_reply_bytes: MAX_BYTES,
            attempt_timeout: None,
            restraint: Restraint::default(),
            diversity: Diversity::default(),
            service_config: None,
            observer: None,
        }
    }
}

impl ReplicatedBuilder {
    /// The members, if there is no directory; with one, those known before its first view.
    pub fn members(mut self, members: impl IntoIterator<Item = Member>) -> Self {
        self.members = members.into_iter().map(|member| (member, None)).collect();
        self
    }

    /// Adds a member that is reached through a channel of your own: any tower service that takes gRPC
    /// requests, such as a `tonic::transport::Channel` with your layers around it. The member's address is
    /// for messages only. It stays as it is when a directory is followed too, until its first view.
    pub fn member_over<S, B>(mut self, member: Member, service: S) -> Self
    where
        S: Service<Request<Body>, Response = Response<B>> + Clone + Send + Sync + 'static,
        S::Error: Into<BoxError>,
        S::Future: Send + 'static,
        B: http_body::Body + Send + 'static,
        B::Error: Into<BoxError>,
    {
        let service = service.map_response(|reply: Response<B>| reply.map(body)).map_err(Into::into);
        self.members.push((member, Some(Given::new(service))));
        self
    }

    /// Follows the directory of the supervisor at `uri`: its views replace the members. `service`
    /// is the full name of a gRPC service that the members must offer; empty means all members.
    ///
    /// While the directory is away the last view stays. Calls made before the first view wait for
    /// it, for as long as a connection may take.
    pub fn directory(mut self, uri: &str, service: &str) -> Self {
        self.directory = Some((uri.to_owned(), service.to_owned()));
        self
    }

    /// Opens connections, to members and directory, through this service instead of TCP.
    pub fn connector<C>(mut self, connector: C) -> Self
    where
        C: Service<Uri> + Clone + Send + Sync + 'static,
        C::Response: hyper::rt::Read + hyper::rt::Write + Send + Unpin + 'static,
        C::Error: Into<BoxError>,
        C::Future: Send,
    {
        self.dial = Some(Dialer::dial_with(connector));
        self
    }

    /// The policy of idempotent methods; [`Policy::All`]`(2)` unless set.
    pub fn policy(mut self, policy: Policy) -> Self {
        self.methods.default = policy;
        self
    }

    /// Reads from an encoded `FileDescriptorSet` which methods may be repeated (their
    /// `idempotency_level` is `NO_SIDE_EFFECTS` or `IDEMPOTENT`) and which of them stream. May be
    /// called several times.
    pub fn methods(mut self, encoded_file_descriptor_set: &[u8]) -> Self {
        self.descriptors.push(encoded_file_descriptor_set.to_vec());
        self
    }

    /// Declares the method at this path (`/pkg.Service/Method`) idempotent, with a policy of its
    /// own. If it is not in the descriptors, it must not stream from the client: its request is
    /// read to the end before it is sent.
    pub fn policy_for(mut self, path: &str, policy: Policy) -> Self {
        self.methods.declare(path, policy);
        self
    }

    /// Sets policies, timeouts and throttling by a JSON service config in the vocabulary of gRFC A6:
    /// `methodConfig` with `name`, `hedgingPolicy` (`maxAttempts`, `hedgingDelay`, `nonFatalStatusCodes`) and
    /// `timeout`; `retryThrottling` with `maxTokens` and `tokenRatio`. A method that it gives a policy by
    /// its full name is declared idempotent; a policy for a service, or for all, holds for those of its
    /// methods that may be repeated. What [`policy_for`](Self::policy_for) says comes first.
    pub fn service_config(mut self, json: &str) -> Self {
        self.service_config = Some(json.to_owned());
        self
    }

    /// How far replication may go.
    pub fn restraint(mut self, restraint: Restraint) -> Self {
        self.restraint = restraint;
        self
    }

    /// Which members the copies of a call go to.
    pub fn diversity(mut self, diversity: Diversity) -> Self {
        self.diversity = diversity;
        self
    }

    /// Is told of each call.
    pub fn observer(mut self, observer: impl Observe) -> Self {
        self.observer = Some(Arc::new(observer));
        self
    }

    /// Declares all methods that are not in the descriptors idempotent; none of them may stream
    /// from the client.
    pub fn assume_idempotent(mut self) -> Self {
        self.methods.assume_idempotent = true;
        self
    }

    /// Codes that end a race at once, because any replica would say the same. Unless set:
    /// `INVALID_ARGUMENT`, `UNAUTHENTICATED` and `PERMISSION_DENIED`, which depend on the request
    /// and its caller alone. `NOT_FOUND`, `ALREADY_EXISTS`, `FAILED_PRECONDITION` and
    /// `OUT_OF_RANGE` speak of a replica's state, and replicas may lag; they reach the caller when
    /// every member asked says the same. `UNIMPLEMENTED` may be an older version's answer.
    pub fn fatal_codes(mut self, codes: impl IntoIterator<Item = Code>) -> Self {
        self.fatal = Codes::of(&codes.into_iter().collect::<Vec<_>>());
        self
    }

    /// The deadline of calls that set none and serve no request with one; 30 s unless set. It spans
    /// the whole call, streaming replies included: calls meant to last set their own `grpc-timeout`.
    pub fn default_deadline(mut self, deadline: Duration) -> Self {
        self.default_deadline = deadline;
        self
    }

    /// The longest that one attempt of a call may take, if the call may be repeated; then the next member
    /// is asked. Not limited unless set.
    pub fn attempt_timeout(mut self, timeout: Duration) -> Self {
        self.attempt_timeout = Some(timeout);
        self
    }

    /// How long opening a connection may take; 2 s unless set.
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = timeout;
        self
    }

    /// The largest request that may be replicated, in bytes; 16 MiB unless set. Larger ones fail
    /// with `RESOURCE_EXHAUSTED`. Requests that are sent once are not limited here.
    pub fn max_request_bytes(mut self, bytes: usize) -> Self {
        self.max_request_bytes = bytes;
        self
    }

    /// The most of a reply that is read before it wins, in bytes; 16 MiB unless set. Each attempt
    /// may hold so much.
    pub fn max_reply_bytes(mut self, bytes: usize) -> Self {
        self.max_reply_bytes = bytes;
        self
    }

    /// These settings as a tower layer over channels of your own: members and directory that were set are
    /// left out.
    ///
    /// # Errors
    /// Descriptors or the service config cannot be read, or a policy makes no sense.
    pub fn into_layer(mut self) -> Result<Replicate, Error> {
        (self.members, self.directory) = (Vec::new(), None);
        let throttle = self.check()?;
        Ok(Replicate { settings: self, throttle })
    }

    /// Checks the settings; opens nothing yet, but begins to follow the directory.
    ///
    /// # Errors
    /// An address is none, descriptors or the service config cannot be read, a policy makes no sense, a
    /// member is listed twice, or a directory is to be followed outside a tokio runtime.
    pub fn build(mut self) -> Result<Replicated, Error> {
        let throttle = self.check()?;
        let directory = match &self.directory {
            Some((uri, service)) => Some((endpoint(uri)?, uri.clone(), service.clone())),
            None => None,
        };
        if directory.is_some() && Handle::try_current().is_err() {
            return Err(ConfigError::NoRuntime.into());
        }
        let (seen, first_view) = watch::channel(directory.is_none());
        let (replicated, dialer) = self.assemble(first_view, throttle);
        if let Some((endpoint, uri, service)) = directory {
            let members = replicated.inner.shared.members.clone();
            let channel = Follower::guard(dialer.channel(&endpoint), &uri);
            let follower = Follower { channel, uri, service, members, seen };
            let inner = &replicated.inner;
            inner.tasks.spawn(follower.follow(inner.stop.clone()));
        }
        replicated.inner.tasks.close();
        Ok(replicated)
    }

    /// Checks the settings and reads what is to be read.
    fn check(&mut self) -> Result<Option<Throttle>, ConfigError> {
        for descriptors in std::mem::take(&mut self.descriptors) {
            self.methods.read(&descriptors)?;
        }
        let mut throttle = None;
        if let Some(json) = self.service_config.take() {
            let config = service_config::parse(&json).map_err(ConfigError::ServiceConfig)?;
            self.methods.configure(config.methods);
            throttle = config.throttle;
        }
        if let Some(fault) = self.methods.policies().find_map(Policy::fault) {
            return Err(ConfigError::Policy(fault));
        }
        for path in self.methods.in_vain() {
            tracing::warn!(method = path, "its requests are a stream: it is sent once, whatever its policy");
        }
        let mut names = HashSet::new();
        for (member, given) in &self.members {
            if given.is_none() {
                parse(&member.uri)?;
            }
            if !names.insert(&member.name) {
                return Err(ConfigError::Twice(member.name.clone()));
            }
        }
        Ok(throttle)
    }

    /// Without a directory, and without checks: an address that is none fails the attempts to it.
    pub(crate) fn build_static(self) -> Replicated {
        self.assemble(watch::channel(true).1, None).0
    }

    fn assemble(self, first_view: watch::Receiver<bool>, throttle: Option<Throttle>) -> (Replicated, Dialer) {
        let stats = Arc::new(Stats::default());
        let dialer = Dialer::new(self.dial, self.connect_timeout, stats.clone());
        let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
        let losers = Losers::new(tasks.clone(), stop.clone(), self.restraint.loser_grace);
        let wiring = Wiring::new(dialer.clone(), stats.clone(), self.restraint, losers.clone());
        let shared = Shared {
            members: Arc::new(Members::new(wiring, self.diversity, self.members)),
            first_view,
            view_patience: self.connect_timeout,
            methods: self.methods,
            fatal: self.fatal,
            default_deadline: self.default_deadline,
            max_request_bytes: self.max_request_bytes,
            max_reply_bytes: self.max_reply_bytes,
            attempt_timeout: self.attempt_timeout,
            stats,
            windows: Windows::new(),
            brakes: Brakes::new(&self.restraint, throttle),
            rounds: self.restraint.rounds,
            losers,
            observer: self.observer,
        };
        let inner = Inner { shared: Arc::new(shared), tasks, stop };
        (Replicated { inner: Arc::new(inner) }, dialer)
    }
}

/// The settings of a [`Replicated`] channel as a tower layer: over members, each with a channel of your own
/// to it.
///
/// ```
/// use tower::Layer as _;
/// use wardkeep_client::{Member, Policy, Replicated, endpoint};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), wardkeep_proto::Error> {
/// let layer = Replicated::builder()
///     .methods(wardkeep_proto::FILE_DESCRIPTOR_SET)
///     .policy(Policy::All(2))
///     .into_layer()?;
/// let own = |uri: &str| Ok::<_, wardkeep_proto::Error>((Member::new(uri, uri), endpoint(uri)?.connect_lazy()));
/// let channel = layer.layer(vec![own("http://10.0.0.1:7500")?, own("http://10.0.0.2:7500")?]);
/// # drop(channel);
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Replicate {
    settings: ReplicatedBuilder,
    throttle: Option<Throttle>,
}

impl std::fmt::Debug for Replicate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Replicate")
    }
}

impl<S, B> Layer<Vec<(Member, S)>> for Replicate
where
    S: Service<Request<Body>, Response = Response<B>> + Clone + Send + Sync + 'static,
    S::Error: Into<BoxError>,
    S::Future: Send + 'static,
    B: http_body::Body + Send + 'static,
    B::Error: Into<BoxError>,
{
    type Service = Replicated;

    fn layer(&self, channels: Vec<(Member, S)>) -> Replicated {
        let over = |builder: ReplicatedBuilder, (member, service)| builder.member_over(member, service);
        let builder = channels.into_iter().fold(self.settings.clone(), over);
        builder.assemble(watch::channel(true).1, self.throttle).0
    }
}
