//! The ends of containers as their engines tell them, so that nobody has to wait until a node has been away for long. What
//! is not told, because the engine was not reached say, is found out by that all the same.

use std::{
    collections::{BTreeSet, HashMap},
    path::{Path, PathBuf},
    time::Duration,
};

use bollard::query_parameters::EventsOptions;
use futures_util::{
    StreamExt as _,
    future::BoxFuture,
    stream::{self, BoxStream, FuturesUnordered, SelectAll},
};
use tokio::time::{sleep, timeout};

use super::{super::Launch, ASK, Engine, SHORT};
use crate::daemon::launcher::How;

/// What the engine gets to start a container anew by itself, if that is how it was made.
const ENGINES_TURN: Duration = Duration::from_secs(1);
/// Between attempts to reach an engine: the first pause, doubled each time, and the longest.
const PAUSES: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// Ends that may be looked into at a time. Of more it is not told.
const MOST: usize = 1_024;

/// A container has ended.
struct Death {
    id: String,
    /// All it may be called in a [`Launch`].
    names: Vec<String>,
    code: String,
}

/// See the [module](self).
#[derive(Default)]
pub(in crate::daemon::launcher) struct Deaths {
    told: SelectAll<BoxStream<'static, (PathBuf, Death)>>,
    looks: FuturesUnordered<BoxFuture<'static, Option<(String, String)>>>,
}

impl Deaths {
    /// From now on of these nodes' containers.
    pub(in crate::daemon::launcher) fn follow(&mut self, launches: &[Launch]) {
        let sockets: BTreeSet<_> = launches.iter().filter(|it| is_docker(it)).map(|it| &it.socket).collect();
        self.told = stream::select_all(sockets.into_iter().map(|socket| deaths(socket.clone()).boxed()));
    }

    /// Waits for a container that has failed and that its engine leaves so: its node, and how it ended. Pending where
    /// none is followed; cancel safe.
    pub(in crate::daemon::launcher) async fn next(&mut self, launches: &[Launch]) -> (String, String) {
        loop {
            tokio::select! {
                Some((socket, death)) = self.told.next() => {
                    for node in nodes(launches, &socket, &death.names) {
                        if self.looks.len() < MOST {
                            let look = stays_down(socket.clone(), death.id.clone(), death.code.clone());
                            self.looks.push(Box::pin(async { look.await.map(|how| (node, how)) }));
                        }
                    }
                }
                Some(found) = self.looks.next() => if let Some(found) = found {
                    return found;
                },
                else => return std::future::pending().await,
            }
        }
    }
}

fn is_docker(launch: &Launch) -> bool {
    matches!(launch.how, How::Docker { .. })
}

/// The nodes that may have been in a container with these names.
fn nodes(launches: &[Launch], socket: &Path, names: &[String]) -> BTreeSet<String> {
    let of_engine = launches.iter().filter(|launch| is_docker(launch) && launch.socket == socket);
    let named = of_engine.flat_map(|launch| names.iter().filter_map(|name| launch.node_in(name)));
    // A node that has an entry of its own is in no container of an entry for many.
    let is_meant = |launch: Launch| names.iter().any(|name| *name == launch.program.to_string_lossy());
    named.filter(|node| Launch::find(launches, node).is_some_and(is_meant)).collect()
}

/// All that an engine tells, for as long as anyone listens.
fn deaths(socket: PathBuf) -> impl futures_util::Stream<Item = (PathBuf, Death)> {
    let connections = stream::unfold((socket, PAUSES.0), |(socket, pause)| async move {
        let engine = timeout(ASK, Engine::reach(&socket)).await;
        let (pause, told) = match engine {
            Ok(Ok(engine)) => (PAUSES.0, engine.deaths().boxed()),
            Ok(Err(why)) => {
                tracing::debug!(?pause, "ends of containers are not told: {why}");
                sleep(pause).await;
                ((2 * pause).min(PAUSES.1), stream::empty().boxed())
            }
            Err(_) => (pause, stream::empty().boxed()),
        };
        let of = socket.clone();
        // The engine has ended, or begins anew.
        let then = stream::once(sleep(PAUSES.0)).filter_map(|()| async { None });
        Some((told.map(move |death| (of.clone(), death)).chain(then), (socket, pause)))
    });
    connections.flatten()
}

impl Engine {
    fn deaths(self) -> impl futures_util::Stream<Item = Death> {
        let only = |what: &str| vec![what.to_owned()];
        let filters =
            HashMap::from([("type".to_owned(), only("container")), ("event".to_owned(), only("die"))]);
        let options = EventsOptions { filters: Some(filters), ..Default::default() };
        let events = self.docker.events(Some(options)).take_while(|event| std::future::ready(event.is_ok()));
        events.filter_map(|event| async {
            let actor = event.ok()?.actor?;
            let (id, mut attributes) = (actor.id?, actor.attributes.unwrap_or_default());
            let code = attributes.remove("exitCode").unwrap_or_default();
            // It was told to end, and did.
            (code != "0").then(|| {
                let short: String = id.chars().take(SHORT).collect();
                let own = [Some(id.clone()), Some(short), attributes.remove("name")].into_iter().flatten();
                let labels = attributes.into_iter().map(|(key, value)| format!("{key}={value}"));
                Death { names: own.chain(labels).collect(), id, code }
            })
        })
    }
}

/// How it ended, if its engine does not start it again by itself.
async fn stays_down(socket: PathBuf, id: String, code: String) -> Option<String> {
    sleep(ENGINES_TURN).await;
    let engine = timeout(ASK, Engine::reach(&socket)).await.ok()?.ok()?;
    // One that was removed is nobody's.
    let state = engine.state(&id).await.ok()?;
    let short: String = id.chars().take(SHORT).collect();
    let memory = if state.oom_killed == Some(true) { ", out of memory" } else { "" };
    (state.running == Some(false)).then(|| format!("in container {short}, exit code {code}{memory}"))
}
