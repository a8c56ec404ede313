//! Any method of any service: descriptors come from the server itself, the request from JSON, and
//! the reply goes back as JSON. Several nodes can be asked at once where the method may be repeated.

use std::time::Duration;

use http::uri::PathAndQuery;
use prost_reflect::{DynamicMessage, MethodDescriptor, ServiceDescriptor};
use tokio::time::Instant;
use tonic::{Request, Response, Status, client::Grpc};
use wardkeep_client::{HedgeDelay, Member, Policy, Replicated, Restraint, Winner};
use wardkeep_proto::{
    context::NODE,
    v1::{self, WatchDirectoryRequest, directory_client::DirectoryClient},
};

use super::{
    args::{CallArgs, PolicyArg},
    connect::{Session, address},
    dynamic::{DynamicCodec, json, parse},
    exit::{Exit, Failure},
    human::count,
    reflect::Reflection,
    resolve,
};

/// Replies may be so large.
pub(super) const MAX_REPLY_BYTES: usize = 64 << 20;

/// Whom to ask for what.
struct Target {
    members: Vec<Member>,
    service: ServiceDescriptor,
}

/// `call`.
///
/// # Errors
/// No such service or method (4), JSON that does not fit (2), or what the service answered.
pub(crate) async fn run(session: &Session, args: &CallArgs) -> Result<Exit, Failure> {
    let (service, method) = split(&args.method)?;
    let policy = policy(args)?;
    let target = match &args.address {
        Some(given) => at_address(session, &address(given)?, service).await?,
        None => in_directory(session, service).await?,
    };
    let method = find(&target.service, method)?;
    if method.is_client_streaming() {
        let name = method.full_name();
        return Err(Failure::usage(format!("{name} takes a stream of requests, which `call` cannot send")));
    }
    let repeatable = args.idempotent || is_idempotent(&method);
    if policy != Policy::Single && !repeatable {
        return Err(Failure::usage(format!(
            "{} does not say that it may be repeated, so it is not sent to several nodes; \
             pass --idempotent if you know that it may",
            method.full_name()
        )));
    }
    let message = parse(method.input(), &args.json).map_err(Failure::usage)?;
    let path = format!("/{}/{}", target.service.full_name(), method.name());
    let mut builder = Replicated::builder()
        .members(target.members)
        .methods(&method.parent_pool().encode_to_vec())
        .policy(policy)
        // Whoever asks for copies by hand gets them, however busy the nodes are.
        .restraint(Restraint::default().step_down(false))
        .default_deadline(session.timeout)
        .max_reply_bytes(MAX_REPLY_BYTES);
    if repeatable {
        builder = builder.policy_for(&path, policy);
    }
    let channel = builder.build().map_err(|e| Failure::from_status("the service", &e.into()))?;
    send(session, channel, &path, &method, message).await
}

fn split(name: &str) -> Result<(&str, &str), Failure> {
    let name = name.trim_start_matches('/');
    match name.rsplit_once('/') {
        Some((service, method)) if !service.is_empty() && !method.is_empty() => Ok((service, method)),
        _ => Err(Failure::usage(format!("{name:?} is not a method: want SERVICE/METHOD"))),
    }
}

fn policy(args: &CallArgs) -> Result<Policy, Failure> {
    use PolicyArg::{All, Hedged, Quorum, Single, Tied};
    let wanted = args.policy.unwrap_or(if args.copies.is_some_and(|n| n > 1) { All } else { Single });
    let refuse = |what: &str| Err(Failure::usage(what.to_owned()));
    if args.delay.is_some() && !matches!(wanted, Hedged | Tied) {
        return refuse("--delay goes with --policy hedged or tied");
    }
    if args.equal.is_some() && wanted != Quorum {
        return refuse("--equal goes with --policy quorum");
    }
    let n = args.copies.unwrap_or(if wanted == Quorum { 3 } else { 2 });
    let delay = |default| HedgeDelay::Fixed(args.delay.unwrap_or(default));
    Ok(match wanted {
        Single if args.copies.is_some_and(|n| n > 1) => {
            return refuse(&format!("--policy single and -n {n} contradict each other"));
        }
        Single => Policy::Single,
        All => Policy::All(n),
        Hedged => Policy::Hedged { delay: delay(Duration::from_millis(50)), max_attempts: n },
        Tied => Policy::Tied { delay: delay(Duration::from_millis(2)), max_attempts: n },
        Quorum => {
            let equal = args.equal.unwrap_or(n / 2 + 1);
            if equal > n {
                return refuse(&format!("{equal} equal answers cannot come from {n} nodes: raise -n"));
            }
            Policy::Quorum { equal, of: n }
        }
    })
}

fn is_idempotent(method: &MethodDescriptor) -> bool {
    use prost_types::method_options::IdempotencyLevel;
    let options = method.method_descriptor_proto().options.as_ref();
    options.is_some_and(|o| o.idempotency_level() != IdempotencyLevel::IdempotencyUnknown)
}

fn find(service: &ServiceDescriptor, wanted: &str) -> Result<MethodDescriptor, Failure> {
    let methods = || service.methods();
    methods().find(|m| m.name() == wanted).ok_or_else(|| {
        let names = methods().map(|m| m.name().to_owned()).collect();
        resolve::not_found(&format!("method of {}", service.full_name()), wanted, names)
    })
}

async fn at_address(session: &Session, address: &str, wanted: &str) -> Result<Target, Failure> {
    let mut server = Reflection::open(session, address).await?;
    let service = server.service(wanted).await?;
    Ok(Target { members: vec![Member::new(address, address)], service })
}

async fn in_directory(session: &Session, wanted: &str) -> Result<Target, Failure> {
    let view = directory(session).await?;
    let offering: Vec<&v1::Member> =
        view.members.iter().filter(|m| m.offers.iter().any(|o| o.service == wanted)).collect();
    if offering.is_empty() {
        let offers = view.members.iter().flat_map(|m| &m.offers);
        return Err(resolve::not_found("service", wanted, offers.map(|o| o.service.clone()).collect()));
    }
    let serves = |m: &&&v1::Member| m.ready && m.offers.iter().any(|o| o.service == wanted && o.ready);
    let info = |m: &&v1::Member| m.node.clone().unwrap_or_default();
    let ready: Vec<v1::NodeInfo> = offering.iter().filter(serves).map(info).collect();
    if ready.is_empty() {
        let names = offering.iter().map(|m| info(m).name).collect();
        let message = format!("none of the nodes that offer {wanted} is ready: {}", resolve::list(names));
        return Err(Failure::new(Exit::Unreachable, message));
    }
    // One node after the other is asked what the service is: any that answers will do.
    let mut last = Failure::new(Exit::Unreachable, format!("no node could be asked about {wanted}"));
    for node in &ready {
        let asked = async { Reflection::open(session, &node.uri).await?.service(wanted).await };
        match asked.await {
            Ok(service) => {
                let members = ready.iter().map(member).collect();
                return Ok(Target { members, service });
            }
            Err(failure) => last = failure,
        }
    }
    if last.exit == Exit::Unreachable {
        last.message
            .push_str("; that is how its node says it can be reached: call from where that address is known");
    }
    Err(last)
}

/// With what tells it from the others: copies go to unlike ones.
fn member(node: &v1::NodeInfo) -> Member {
    let mut member = Member::new(&node.name, &node.uri);
    member.machine = node.machine.clone();
    member.zone = node.zone.clone();
    member.labels = node.labels.clone().into_iter().collect();
    member
}

async fn directory(session: &Session) -> Result<v1::DirectoryView, Failure> {
    let address = &session.supervisor;
    let mut client = DirectoryClient::new(session.channel(address).await?);
    let request = session.request(WatchDirectoryRequest { service: String::new() });
    let first = async {
        let view = client.watch(request).await?.into_inner().message().await?;
        view.map(Response::new)
            .ok_or_else(|| Status::unavailable("the directory ended before its first view"))
    };
    session.answer(address, first).await
}

async fn send(
    session: &Session,
    channel: Replicated,
    path: &str,
    method: &MethodDescriptor,
    message: DynamicMessage,
) -> Result<Exit, Failure> {
    let started = Instant::now();
    let path: PathAndQuery = path.parse().map_err(|_| Failure::usage(format!("{path:?} is not a method")))?;
    let codec = DynamicCodec::new(method.output());
    let mut grpc = Grpc::new(channel).max_decoding_message_size(MAX_REPLY_BYTES);
    let mut request = Request::new(message);
    request.set_timeout(session.timeout);
    let exchange = async {
        grpc.ready().await.map_err(|e| Status::from_error(e.into()))?;
        if method.is_server_streaming() {
            let response = grpc.server_streaming(request, path, codec).await?;
            let told = winner(&response, started);
            let mut stream = response.into_inner();
            while let Some(reply) = stream.message().await? {
                if let Err(failure) = json(&reply, false).and_then(|line| session.out.line(&line)) {
                    return Ok(Response::new(Err(failure)));
                }
            }
            Ok(Response::new(Ok(told)))
        } else {
            let response = grpc.unary(request, path, codec).await?;
            let shown =
                json(response.get_ref(), session.out.terminal).and_then(|text| session.out.line(&text));
            Ok(Response::new(shown.map(|()| winner(&response, started))))
        }
    };
    let told = session.answer(method.full_name(), exchange).await?;
    session.out.progress(&told?);
    Ok(Exit::Ok)
}

/// "answered by scan in 4.1 ms (3 attempts)".
fn winner<T>(response: &Response<T>, started: Instant) -> String {
    let said = response.metadata().get(NODE.as_str()).and_then(|name| name.to_str().ok());
    let Some(winner) = response.extensions().get::<Winner>() else {
        let from = said.map(|node| format!(" by {node}")).unwrap_or_default();
        return format!("answered{from} in {}", millis(started.elapsed()));
    };
    let node = said.unwrap_or(&winner.node);
    let attempts = usize::try_from(winner.attempts).unwrap_or(usize::MAX);
    format!("answered by {node} in {} ({})", millis(winner.elapsed), count(attempts, "attempt"))
}

fn millis(time: Duration) -> String {
    format!("{:.1} ms", time.as_secs_f64() * 1e3)
}
