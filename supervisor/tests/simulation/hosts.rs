//! What runs on the simulated hosts: supervisors, nodes with their wards, a client, an operator. All of it is
//! the code that runs outside.

use std::{
    sync::{Arc, atomic::AtomicBool},
    time::Duration,
};

use tokio::{task::JoinSet, time::sleep};
use tonic::transport::{Channel, Endpoint};
use wardkeep::daemon::{Supervisor, testing::Disk};
use wardkeep_client::{Policy, Replicated};
use wardkeep_node::{
    Backoff, Escalate, GroupSpec, Node, NodeBuilder, Strategy, Ward, WardContext,
    testing::{self, Flaw},
};
use wardkeep_proto::{
    Error,
    error::Bug,
    v1::{self, operator_client::OperatorClient},
};

use super::{
    book::{Ask, Book, Place, Poke, SumMood},
    chance,
    late::late_session,
    net::{Listener, connector},
    sum::{self, SumServer},
};

const BEAT: Duration = Duration::from_millis(200);
/// For an answer to an operator.
const PATIENCE: Duration = Duration::from_secs(5);
/// For a call. More than it takes to find out that a connection is dead, and to try another node.
const DEADLINE: Duration = Duration::from_secs(20);

pub const WARDS: [&str; 4] = ["calm", "flaky", "trio", "sum"];

pub type Ended = Result<(), Box<dyn std::error::Error>>;

/// How long a write to a disk lasts.
fn disk_takes() -> Duration {
    Duration::from_millis(fastrand::u64(0..30))
}

pub async fn supervisor(host: &'static str, disk: Disk, book: Book) -> Ended {
    let (listener, address) = Listener::bind(host).await?;
    book.write(format!("{host} begins"));
    let steward = wardkeep_steward::Config { seed: fastrand::u64(..), ..Default::default() };
    let builder = Supervisor::builder().steward(steward);
    let supervisor = builder.simulated(listener, address, &disk, disk_takes)?;
    supervisor.run_until(std::future::pending()).await?;
    Ok(())
}

pub async fn node(name: &'static str, strategy: Strategy, flaw: Option<Flaw>, book: Book) -> Ended {
    let boot = book.boots(name);
    let (listener, address) = Listener::bind(name).await?;
    let mut builder = groups(name, strategy).into_iter().fold(Node::builder(name), NodeBuilder::group);
    for ward in ["calm", "flaky", "trio"] {
        builder = builder.ward(task((name, ward), boot, &book));
    }
    let told = book.clone();
    builder = builder
        .ward(sum_ward((name, "sum"), &book))
        .machine(name)
        .supervisor("http://sup:7400")
        .advertise(format!("http://{name}:7400"))
        .connector(connector(&book))
        .on_obeyed(move |epoch| told.obeys(name, epoch));
    if let Some(flaw) = flaw {
        builder = builder.flawed(flaw);
    }
    testing::serve(builder, listener, address, std::future::pending()).await?;
    Ok(())
}

fn groups(node: &str, strategy: Strategy) -> Vec<GroupSpec> {
    let group = |name: String| GroupSpec {
        intensity: 4,
        period: Duration::from_secs(10),
        backoff: Backoff { max: Duration::from_secs(2), ..Backoff::default() },
        escalate: Escalate::Quarantine,
        ..GroupSpec::new(name)
    };
    let trio = GroupSpec { strategy, ..group("trio".to_owned()) };
    vec![group(format!("flaky-{node}")), group(format!("sum-{node}")), trio]
}

fn task(place: Place, boot: u64, book: &Book) -> Ward {
    let (book, (node, ward)) = (book.clone(), place);
    let task = Ward::task(ward, move |context| live(place, boot, book.clone(), context));
    let task = task.pulse_timeout(Duration::from_secs(2)).grace(Duration::from_millis(300));
    match ward {
        "flaky" => task.group(format!("flaky-{node}")),
        "trio" => task.group("trio"),
        _ => task,
    }
}

async fn live(place: Place, boot: u64, book: Book, context: WardContext) -> Result<(), Error> {
    let _alive = book.begins(place, boot, context.incarnation());
    if book.is_broken(place) {
        book.excuse(place);
        return Err(Bug::because("it is broken"));
    }
    loop {
        context.pulse();
        tokio::select! {
            biased;
            () = context.cancelled() => return Ok(()),
            () = sleep(BEAT) => {}
        }
        let Some(poke) = book.take_poke(place) else { continue };
        book.write(format!("{place:?} does as it was poked: {poke:?}"));
        match poke {
            Poke::Fail => return Err(Bug::because("it was poked")),
            Poke::Panic => panic!("it was poked"),
            Poke::Hang => std::future::pending().await,
            Poke::Idle => context.cancelled().await,
        }
    }
}

fn sum_ward(place: Place, book: &Book) -> Ward {
    let book = book.clone();
    let service = move |_: WardContext| {
        let (book, hangs) = (book.clone(), Arc::new(AtomicBool::new(false)));
        book.unsound(place.0, "its sum", false);
        SumServer(SumMood { book, place, hangs })
    };
    Ward::service(place.1, service)
        .stall_timeout(Duration::from_secs(1))
        .grace(Duration::from_millis(300))
        .group(format!("sum-{}", place.0))
}

// --- the client ---

pub async fn client(book: Book) -> Ended {
    let channel = Replicated::builder()
        .directory("http://sup:7400", sum::NAME)
        .connector(connector(&book))
        .policy_for(sum::ADD, Policy::All(2))
        .default_deadline(DEADLINE)
        .build()?;
    let mut calls = JoinSet::new();
    loop {
        sleep(Duration::from_millis(fastrand::u64(50..600))).await;
        calls.spawn(call(channel.clone(), book.clone()));
        while calls.try_join_next().is_some() {}
    }
}

async fn call(channel: Replicated, book: Book) {
    let began = chance::now();
    let members = channel.members().borrow().clone();
    let ready = members.iter().filter(|member| {
        member.ready && member.offers.iter().any(|offer| offer.service == sum::NAME && offer.ready)
    });
    let sound: Vec<_> =
        ready.filter_map(|member| Some((member.name.clone(), book.sound_since(&member.name)?))).collect();
    let (a, b) = (fastrand::u64(..), fastrand::u64(..));
    let reply = sum::add(channel, a, b).await;
    match &reply {
        Ok(sum) if *sum != a.wrapping_add(b) => {
            book.break_promise(format!("a wrong answer: {a} + {b} = {sum}"));
        }
        Ok(_) => {}
        Err(status) => {
            // Still so, without a break?
            let all_along = sound.iter().find(|(node, since)| book.sound_since(node) == Some(*since));
            if let Some((node, since)) = all_along {
                let (code, what) = (status.code(), status.message());
                book.break_promise(format!(
                    "a call begun at {began:?} failed though {node} was well since {since:?}: {code:?} {what}"
                ));
            }
        }
    }
    book.call_ended(
        &reply.as_ref().map_or_else(|e| format!("{:?}", e.code()), |_| "good".into()),
        reply.is_ok(),
    );
}

// --- the operator ---

pub async fn operator(book: Book) -> Ended {
    loop {
        sleep(Duration::from_millis(50)).await;
        let Some(ask) = book.asked() else { continue };
        let about = match ask {
            Ask::Start(place) | Ask::Stop(place) | Ask::Restart(place) => Some(place),
            _ => None,
        };
        about.into_iter().for_each(|place| book.orders(place));
        let told = tokio::time::timeout(PATIENCE, carry_out(&ask, &book)).await;
        about.into_iter().for_each(|place| book.ordered(place));
        if !matches!(ask, Ask::Look) {
            let told = told.unwrap_or_else(|_| "no answer".to_owned());
            book.write(format!("operator: {ask:?}: {told}"));
        }
    }
}

pub async fn dial(book: &Book) -> Result<Channel, String> {
    let endpoint = Endpoint::from_static("http://sup:7400").connect_timeout(Duration::from_secs(2));
    endpoint.connect_with_connector(connector(book)).await.map_err(|_| "cannot connect".to_owned())
}

async fn carry_out(ask: &Ask, book: &Book) -> String {
    let channel = match dial(book).await {
        Ok(channel) => channel,
        Err(error) => return error,
    };
    let mut operator = OperatorClient::new(channel.clone());
    let ward = |(node, ward): &Place| v1::WardRequest {
        node: (*node).into(),
        ward: (*ward).into(),
        reason: "a simulation".into(),
        detach: true,
        actor: "ana@ops".into(),
    };
    let node = |node: &str| v1::NodeRequest {
        node: node.into(),
        reason: "a simulation".into(),
        detach: true,
        actor: "ana@ops".into(),
        drain_timeout: None,
    };
    let told = match ask {
        Ask::Start(place) => operator.start_ward(ward(place)).await.map(drop),
        Ask::Stop(place) => operator.stop_ward(ward(place)).await.map(drop),
        Ask::Restart(place) => operator.restart_ward(ward(place)).await.map(drop),
        Ask::Drain(name) => operator.drain_node(node(name)).await.map(drop),
        Ask::Undrain(name) => operator.undrain_node(node(name)).await.map(drop),
        Ask::LateSession { node, same_boot } => {
            return late_session(node, *same_boot, operator, channel).await;
        }
        Ask::Look => {
            let fleet = operator.get_fleet(v1::GetFleetRequest {}).await;
            fleet.map(|fleet| book.seen(fleet.into_inner()))
        }
    };
    told.map_or_else(|status| format!("{:?}", status.code()), |()| "taken on".to_owned())
}
