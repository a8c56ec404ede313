//! What may be sent how often, and which answers end a race.

use tonic::Code;

/// How many members are asked at once.
///
/// A policy is only a wish: a request that must not be repeated is sent once, whatever the policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Policy {
    /// One member; another only when that one could not be reached or says `UNAVAILABLE`.
    Single,
    /// So many members at once; fewer if fewer are ready. One that cannot be reached or says
    /// `UNAVAILABLE` is replaced by a member not yet asked. 0 counts as 1.
    All(u32),
}

impl Policy {
    pub(crate) fn width(self) -> usize {
        match self {
            Self::Single => 1,
            Self::All(n) => usize::try_from(n.max(1)).unwrap_or(usize::MAX),
        }
    }
}

impl Default for Policy {
    /// Two at once: most of the gain against a slow tail, at twice the load.
    fn default() -> Self {
        Self::All(2)
    }
}

/// A set of gRPC codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Codes(u32);

impl Codes {
    pub(crate) const fn of(codes: &[Code]) -> Self {
        let mut bits = 0;
        let mut i = 0;
        while i < codes.len() {
            bits |= 1 << codes[i] as u32;
            i += 1;
        }
        Self(bits)
    }

    pub(crate) const fn contains(self, code: Code) -> bool {
        self.0 & (1 << code as u32) != 0
    }
}

/// Decided by the request and its caller alone: any replica says the same, so waiting is no use.
/// `NOT_FOUND` and its like are not here: they speak of a replica's state, and replicas may lag.
pub(crate) const FATAL: Codes =
    Codes::of(&[Code::InvalidArgument, Code::Unauthenticated, Code::PermissionDenied]);

/// Deliberate answers about state. When every member gives the same one, that is the answer, and it
/// reaches the caller as one of them gave it.
pub(crate) const UNANIMOUS: Codes =
    Codes::of(&[Code::NotFound, Code::AlreadyExists, Code::FailedPrecondition, Code::OutOfRange]);

/// Which of several failures' codes tells the caller most: the larger the better. What a member
/// found out about the request comes before a fault in it, that before "too busy", and that before
/// "could not be reached".
pub(crate) fn tells(code: Code) -> u8 {
    match code {
        Code::InvalidArgument
        | Code::NotFound
        | Code::AlreadyExists
        | Code::PermissionDenied
        | Code::Unauthenticated
        | Code::FailedPrecondition
        | Code::OutOfRange => 7,
        Code::DataLoss => 6,
        Code::Internal => 5,
        Code::Unknown | Code::Unimplemented => 4,
        Code::Aborted | Code::ResourceExhausted => 3,
        Code::DeadlineExceeded => 2,
        Code::Unavailable => 1,
        Code::Cancelled | Code::Ok => 0,
    }
}
