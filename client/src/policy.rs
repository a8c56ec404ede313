//! What may be sent how often, and which answers end a race.

use std::{fmt, time::Duration};

use tonic::Code;

/// How many members are asked, and when.
///
/// A policy is only a wish: a request that must not be repeated is sent once, whatever the policy, and
/// copies are saved where they would do harm (see [`Restraint`](crate::Restraint)).
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum Policy {
    /// One member; another only when that one could not be reached or says `UNAVAILABLE`.
    Single,
    /// So many members at once; fewer if fewer are ready. One that cannot be reached or says
    /// `UNAVAILABLE` is replaced by a member not yet asked. 0 counts as 1.
    All(u32),
    /// One member; the next one each time the delay has passed without a good answer, and at once when
    /// one fails in a way that another need not: not if it gives a deliberate answer (`NOT_FOUND` and its
    /// like), and if it is too busy only within the budget. gRFC A6's hedging.
    Hedged {
        /// Between one copy and the next.
        delay: HedgeDelay,
        /// Copies at most, the first included.
        max_attempts: u32,
    },
    /// As hedged, but the copies know of each other: the node that begins the work says so, and copies
    /// that wait elsewhere are withdrawn. For short delays: what it cuts is the time in queues. After one
    /// has begun, the next copy goes out only when that one takes far longer than usual.
    Tied {
        /// Between one copy and the next, while none has begun.
        delay: HedgeDelay,
        /// Copies at most, the first included; one that was withdrawn is not counted.
        max_attempts: u32,
    },
    /// `of` members at once; the answer is the one that `equal` of them give, byte for byte. Replies are
    /// read to their end, those of server-streaming methods too.
    Quorum {
        /// So many replies must be the same.
        equal: u32,
        /// Of so many.
        of: u32,
    },
}

impl Default for Policy {
    /// Two at once: most of the gain against a slow tail, at twice the load.
    fn default() -> Self {
        Self::All(2)
    }
}

/// When the next copy goes out.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum HedgeDelay {
    /// Always after so long.
    Fixed(Duration),
    /// After the time within which so many percent of the method's attempts were answered lately. Until
    /// enough of them are known: [`HedgeDelay::COLD`].
    Percentile(f64),
}

impl HedgeDelay {
    /// The delay while too few answers are known to tell a percentile.
    pub const COLD: Duration = Duration::from_millis(50);
}

impl Policy {
    /// Why it makes no sense, if it makes none.
    pub(crate) fn fault(self) -> Option<String> {
        match self {
            Self::Quorum { equal, of } if equal == 0 || equal > of => {
                Some(format!("a quorum of {equal} equal replies of {of} cannot be had: want 1 to {of}"))
            }
            Self::Hedged { delay: HedgeDelay::Percentile(p), .. }
            | Self::Tied { delay: HedgeDelay::Percentile(p), .. }
                if !(50.0..100.0).contains(&p) =>
            {
                Some(format!("a hedge delay at percentile {p}: want 50 or more, and less than 100"))
            }
            _ => None,
        }
    }

    /// Members asked at once, and at most.
    pub(crate) fn width(self) -> (usize, usize) {
        let count = |n: u32| usize::try_from(n.max(1)).unwrap_or(usize::MAX);
        match self {
            Self::Single => (1, usize::MAX),
            Self::All(n) => (count(n), usize::MAX),
            Self::Hedged { max_attempts, .. } | Self::Tied { max_attempts, .. } => (1, count(max_attempts)),
            Self::Quorum { of, .. } => (count(of), usize::MAX),
        }
    }
}

/// A set of gRPC codes.
#[derive(Clone, Copy, PartialEq, Eq)]
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

    /// All failures but these.
    pub(crate) const fn all_but(self) -> Self {
        Self(!self.0 & 0x1_fffe)
    }
}

impl fmt::Debug for Codes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries((0..17).map(Code::from_i32).filter(|code| self.contains(*code))).finish()
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

/// Answers of a member that works as it should: they count neither against it nor against its speed.
pub(crate) fn is_answer(code: Code) -> bool {
    FATAL.contains(code) || UNANIMOUS.contains(code) || matches!(code, Code::Ok | Code::Aborted)
}

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
