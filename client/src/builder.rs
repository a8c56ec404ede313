//! Settings of a replicated channel, checked when it is built.

use std::{collections::HashSet, sync::Arc, time::Duration};

use http::Uri;
use tokio::{runtime::Handle, sync::watch};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::Code;
use tower::Service;
use wardkeep_proto::{Error, context::DEFAULT_DEADLINE};

use crate::{
    Inner, Replicated, Shared,
    channel::{BoxError, CONNECT_TIMEOUT, Dialer, endpoint},
    directory::Follower,
    error::ConfigError,
    member::Member,
    methods::Methods,
    policy::{Codes, FATAL, Policy},
    stats::Stats,
    view::Members,
};

/// Most of a request that may be replicated, and of a reply that is read before it is given on.
const MAX_BYTES: usize = 16 << 20;

/// Builds a [`Replicated`] channel.
#[must_use]
pub struct ReplicatedBuilder {
    members: Vec<Member>,
    directory: Option<(String, String)>,
    dialer: Box<dyn FnOnce(Duration, Arc<Stats>) -> Dialer + Send>,
    methods: Methods,
    descriptors: Vec<Vec<u8>>,
    fatal: Codes,
    default_deadline: Duration,
    connect_timeout: Duration,
    max_request_bytes: usize,
    max_reply_bytes: usize,
}

impl Default for ReplicatedBuilder {
    fn default() -> Self {
        Self {
            members: Vec::new(),
            directory: None,
            dialer: Box::new(|timeout, stats| Dialer::new(None, timeout, stats)),
            methods: Methods::default(),
            descriptors: Vec::new(),
            fatal: FATAL,
            default_deadline: DEFAULT_DEADLINE,
            connect_timeout: CONNECT_TIMEOUT,
            max_request_bytes: MAX_BYTES,
            max_reply_bytes: MAX_BYTES,
        }
    }
}

impl ReplicatedBuilder {
    /// The members, if there is no directory; with one, those known before its first view.
    pub fn members(mut self, members: impl IntoIterator<Item = Member>) -> Self {
        self.members = members.into_iter().collect();
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
        let dial = Dialer::dial_with(connector);
        self.dialer = Box::new(|timeout, stats| Dialer::new(Some(dial), timeout, stats));
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

    /// Checks the settings; opens nothing yet, but begins to follow the directory.
    ///
    /// # Errors
    /// An address is none, descriptors cannot be read, a member is listed twice, or a directory is
    /// to be followed outside a tokio runtime.
    pub fn build(mut self) -> Result<Replicated, Error> {
        for descriptors in std::mem::take(&mut self.descriptors) {
            self.methods.read(&descriptors)?;
        }
        let mut names = HashSet::new();
        for member in &self.members {
            endpoint(&member.uri)?;
            if !names.insert(&member.name) {
                return Err(ConfigError::Twice(member.name.clone()).into());
            }
        }
        let directory = match &self.directory {
            Some((uri, service)) => Some((endpoint(uri)?, uri.clone(), service.clone())),
            None => None,
        };
        if directory.is_some() && Handle::try_current().is_err() {
            return Err(ConfigError::NoRuntime.into());
        }
        let (seen, first_view) = watch::channel(directory.is_none());
        let (replicated, dialer) = self.assemble(first_view);
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

    /// Without a directory, and without checks: an address that is none fails the attempts to it.
    pub(crate) fn build_static(self) -> Replicated {
        self.assemble(watch::channel(true).1).0
    }

    fn assemble(self, first_view: watch::Receiver<bool>) -> (Replicated, Dialer) {
        let stats = Arc::new(Stats::default());
        let dialer = (self.dialer)(self.connect_timeout, stats.clone());
        let shared = Shared {
            members: Arc::new(Members::new(dialer.clone(), self.members)),
            first_view,
            view_patience: self.connect_timeout,
            methods: self.methods,
            fatal: self.fatal,
            default_deadline: self.default_deadline,
            max_request_bytes: self.max_request_bytes,
            max_reply_bytes: self.max_reply_bytes,
            stats,
        };
        let inner =
            Inner { shared: Arc::new(shared), tasks: TaskTracker::new(), stop: CancellationToken::new() };
        (Replicated { inner: Arc::new(inner) }, dialer)
    }
}
