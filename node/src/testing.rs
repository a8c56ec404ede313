//! For tests of your wards, without sleeps: enabled by the feature `testing`.
//!
//! * [`TestContext`]: a ward's context whose heartbeats can be read. For a worker alone.
//! * [`TestNode`]: a whole node in one task of the test: the steward, the sweeper, the stop ladder, all of
//!   them real. In a test with paused time (`#[tokio::test(start_paused = true)]`, tokio's feature
//!   `test-util`) hours pass in milliseconds, and every run is the same.
//! * [`serve`]: a whole node in one task, with its server and its session with a supervisor, over any
//!   transport: for simulations of whole clusters.
//!
//! ```
//! use std::time::Duration;
//! use wardkeep_node::{Node, Ward, testing::TestNode};
//!
//! # let test = async {
//! let worker = Ward::task("worker", |context| async move {
//!     while !context.is_cancelled() {
//!         context.pulse();
//!         tokio::time::sleep(Duration::from_secs(1)).await;
//!     }
//!     Ok(())
//! });
//! let node = Node::builder("test").ward(worker.pulse_timeout(Duration::from_secs(3)));
//! TestNode::run(node, async |node| {
//!     node.runs("worker", 1).await;
//!     // It pulses often enough.
//!     node.stays_so(Duration::from_secs(600)).await;
//! })
//! .await;
//! # };
//! # let mut runtime = tokio::runtime::Builder::new_current_thread();
//! # runtime.enable_all().start_paused(true).build().unwrap().block_on(test);
//! ```

use std::{
    net::{SocketAddr, TcpListener},
    sync::Arc,
    time::Duration,
};

use tokio::{
    sync::{oneshot, watch},
    task::JoinSet,
    time::timeout,
};
use wardkeep_proto::{Error, v1};
use wardkeep_steward::{Cause, Event, WardId};

use crate::{
    NodeBuilder, NodeSnapshot, WardContext,
    context::{Home, Incarnation},
    entrance::Entrance,
    keeper::{self, Order},
    ledger::Ledger,
    node::{Bare, NodeHandle},
    panics, reexec,
    scribe::Scribe,
    server::{self, Listener},
};

/// Longest time, by the test's clock, that something is waited for.
const PATIENCE: Duration = Duration::from_secs(600);

/// A ward's context, and what its owner did with it.
#[derive(Debug)]
pub struct TestContext {
    context: WardContext,
    incarnation: Arc<Incarnation>,
    ledger: Ledger,
}

impl TestContext {
    /// The context of the first incarnation of a ward of this name. To be called in a tokio runtime.
    pub fn new(ward: &str) -> Self {
        let ledger = Ledger::new();
        let runtime = tokio::runtime::Handle::current();
        let home = Home::new("test".into(), runtime, ledger.clone(), Arc::default());
        let incarnation = Incarnation::new(home, ward.into(), 0, 1, None);
        Self { context: WardContext::of_ward(incarnation.clone()), incarnation, ledger }
    }

    /// To be given to the worker.
    pub fn context(&self) -> WardContext {
        self.context.clone()
    }

    /// How often it has pulsed.
    pub fn pulses(&self) -> u64 {
        self.incarnation.heart.totals().pulses
    }

    /// Units of work that it has begun.
    pub fn work_begun(&self) -> u64 {
        self.incarnation.heart.totals().begun
    }

    /// Units of work that have ended, done or not.
    pub fn work_ended(&self) -> u64 {
        self.incarnation.heart.totals().ended
    }

    /// What it says of itself.
    pub fn status(&self) -> String {
        self.incarnation.status().map(|status| status.clone()).unwrap_or_default()
    }

    /// Errors that it has reported since the last call, dropped units of work among them.
    pub fn errors(&self) -> Vec<Error> {
        taken(&self.ledger)
    }

    /// Tells it to stop, as the first step of the stop ladder does.
    pub fn stop(&self) {
        self.incarnation.stop();
    }
}

fn taken(ledger: &Ledger) -> Vec<Error> {
    let messages = std::iter::from_fn(|| ledger.take());
    messages.flat_map(|message| message.records).map(Error::from_proto).collect()
}

/// What a test sees of a node's inside, and breaks in it.
#[derive(Clone, Default)]
pub(crate) struct Hooks {
    obeyed: Option<Arc<dyn Fn(u64) + Send + Sync>>,
    flaw: Option<Flaw>,
}

impl Hooks {
    /// A supervisor of this epoch is given authority, or its command is about to be carried out.
    pub(crate) fn obeyed(&self, epoch: u64) {
        if let Some(obeyed) = &self.obeyed {
            obeyed(epoch);
        }
    }

    pub(crate) fn has(&self, flaw: Flaw) -> bool {
        self.flaw == Some(flaw)
    }
}

/// What can be broken in a node, to see that a test notices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Flaw {
    /// It obeys any supervisor, whatever epoch it has obeyed before.
    ForgetsEpochs,
    /// It says that a ward has stopped when it has only been told to.
    HurriesStops,
}

impl NodeBuilder {
    /// Is told the epoch of each supervisor that is given authority, and of each command that is carried out.
    pub fn on_obeyed(mut self, obeyed: impl Fn(u64) + Send + Sync + 'static) -> Self {
        self.hooks.obeyed = Some(Arc::new(obeyed));
        self
    }

    /// Breaks something in it.
    pub fn flawed(mut self, flaw: Flaw) -> Self {
        self.hooks.flaw = Some(flaw);
        self
    }
}

/// Runs a node as outside tests, with its server and its session with a supervisor, but in one task, over
/// any listener and the [connector](NodeBuilder::connector) it was given, and without threads: where time is
/// simulated, every run is the same. Stacks of errors go without names.
///
/// # Errors
/// As [`NodeBuilder::bind`]; and where a node outside tests would restart in place.
pub async fn serve<L: Listener>(
    builder: NodeBuilder,
    listener: L,
    address: SocketAddr,
    shutdown: impl Future<Output = ()>,
) -> Result<(), Error> {
    panics::install_hook();
    let Bare { mut setup, listener, entrance, limits, handle } =
        builder.serve_on(listener, address, reexec::Plan::none())?.into_bare();
    setup.scribe = Scribe::without_names;
    setup.host.hurries = setup.hooks.has(Flaw::HurriesStops);
    let (ending, server_ended) = (setup.ending.clone(), setup.server_ended.clone());
    let mut own = JoinSet::new();
    own.spawn(keeper::beat(setup.probe.clone()));
    own.spawn(async move {
        drop(server::serve(listener, entrance, limits, ending).await);
        server_ended.cancel();
        std::future::pending().await
    });
    let mut keeper = std::pin::pin!(keeper::run(setup));
    let ended = tokio::select! {
        ended = &mut keeper => ended,
        () = shutdown => {
            let (done, _) = oneshot::channel();
            let _ = handle.orders.send(Order::Shutdown(done)).await;
            keeper.await
        }
    };
    own.shutdown().await;
    ended
}

/// A node that runs in the test's own runtime, without a listener and without a supervisor. What it waits
/// for fails the test, with what it saw instead, after ten minutes by the test's clock.
pub struct TestNode {
    handle: NodeHandle,
    snapshots: watch::Receiver<Arc<NodeSnapshot>>,
    entrance: Entrance,
    ledger: Ledger,
    name: Arc<str>,
}

impl TestNode {
    /// Starts it and all its wards, runs the test, and stops the wards as a node does at its end.
    ///
    /// # Panics
    /// If the node is put together wrongly, and where the test panics.
    #[allow(clippy::panic, reason = "this is for tests")]
    pub async fn run<T>(builder: NodeBuilder, test: impl AsyncFnOnce(&Self) -> T) -> T {
        panics::install_hook();
        // Never accepts: calls go through `service`.
        let listener = TcpListener::bind("127.0.0.1:0").map_err(|e| panic!("no loopback: {e}"));
        let node = match listener.map(|listener| builder.listen_on(listener)) {
            Ok(Ok(node)) => node,
            Ok(Err(error)) | Err(error) => panic!("{error}"),
        };
        let Bare { mut setup, entrance, handle, .. } = node.into_bare();
        setup.supervisor = None;
        // There is no server to wait for.
        setup.server_ended.cancel();
        let name = setup.info.name.as_str().into();
        let snapshots = handle.snapshots();
        let node = Self { handle, snapshots, entrance, ledger: setup.ledger.clone(), name };
        let mut beat = JoinSet::new();
        beat.spawn(keeper::beat(setup.probe.clone()));
        let mut keeper = std::pin::pin!(keeper::run(setup));
        let result = tokio::select! {
            ended = &mut keeper => panic!("the node has ended: {ended:?}"),
            result = test(&node) => result,
        };
        let (done, _) = oneshot::channel();
        let _ = node.handle.orders.send(Order::Shutdown(done)).await;
        let _ = keeper.await;
        beat.shutdown().await;
        result
    }

    /// To be given to a generated client: calls go straight to the wards.
    pub fn service(
        &self,
    ) -> impl tower::Service<
        http::Request<tonic::body::Body>,
        Response = http::Response<tonic::body::Body>,
        Error = std::convert::Infallible,
        Future: Send,
    > + Clone
    + Send
    + 'static {
        self.entrance.clone()
    }

    /// To steer it as its program would.
    pub fn handle(&self) -> NodeHandle {
        self.handle.clone()
    }

    /// How it is now.
    pub fn now(&self) -> Arc<NodeSnapshot> {
        self.snapshots.borrow().clone()
    }

    /// Waits until it is as the test wants it.
    ///
    /// # Panics
    /// If that takes longer than ten minutes by the test's clock.
    #[allow(clippy::panic, reason = "this is for tests")]
    pub async fn until(&self, so: impl Fn(&NodeSnapshot) -> bool) -> Arc<NodeSnapshot> {
        let mut snapshots = self.snapshots.clone();
        let seen = timeout(PATIENCE, snapshots.wait_for(|now| so(now))).await;
        match seen {
            Ok(Ok(now)) => now.clone(),
            Ok(Err(_)) => panic!("the node has ended"),
            Err(_) => panic!("it never was so; at last it was {:#?}", self.now()),
        }
    }

    /// Waits until this incarnation of the ward runs.
    pub async fn runs(&self, ward: &str, incarnation: u64) -> v1::Ward {
        let is = |w: &v1::Ward| {
            w.incarnation == incarnation
                && w.state() == v1::WardState::Running
                && w.spec.as_ref().is_some_and(|spec| spec.name == ward)
        };
        let now = self.until(|now| now.wards.iter().any(is)).await;
        now.wards.iter().find(|ward| is(ward)).cloned().unwrap_or_default()
    }

    /// Lets time pass, and fails if a ward is restarted, stopped or started meanwhile.
    ///
    /// # Panics
    /// With the wards as they were and as they are.
    pub async fn stays_so(&self, long: Duration) {
        let states = |now: &NodeSnapshot| -> Vec<_> {
            now.wards.iter().map(|ward| (ward.incarnation, ward.state())).collect()
        };
        let before = self.now();
        tokio::time::sleep(long).await;
        let after = self.now();
        assert!(states(&before) == states(&after), "{:#?}\nbecame\n{:#?}", before.wards, after.wards);
    }

    /// Has the steward stop a ward, as an operator does.
    pub async fn stop_ward(&self, ward: &str) {
        self.ask(Event::StopWard { ward: self.id(ward), cause: Cause::default() }).await;
    }

    /// Has the steward start a ward.
    pub async fn start_ward(&self, ward: &str) {
        self.ask(Event::StartWard { ward: self.id(ward), cause: Cause::default() }).await;
    }

    /// Has the steward restart a ward.
    pub async fn restart_ward(&self, ward: &str) {
        self.ask(Event::RestartWard { ward: self.id(ward), cause: Cause::default() }).await;
    }

    fn id(&self, ward: &str) -> WardId {
        WardId { node: self.name.clone(), ward: ward.into() }
    }

    async fn ask(&self, event: Event) {
        let _ = self.handle.orders.send(Order::Ask(event)).await;
    }

    /// Errors that arose on it since the last call.
    pub fn errors(&self) -> Vec<Error> {
        taken(&self.ledger)
    }
}

#[cfg(test)]
mod tests {
    use wardkeep_steward::{GroupSpec, Strategy};

    use super::*;
    use crate::{Node, NodeError, Ward};

    const SECOND: Duration = Duration::from_secs(1);

    #[tokio::test(start_paused = true)]
    async fn a_worker_that_stops_pulsing_is_restarted_and_one_that_pulses_is_left_alone() {
        let pulses = |context: WardContext, times: u32| async move {
            for _ in 0..times {
                context.pulse();
                tokio::time::sleep(SECOND).await;
            }
            context.cancelled().await;
            Ok(())
        };
        let lazy = Ward::task("lazy", move |context| pulses(context, 5)).pulse_timeout(3 * SECOND);
        let brisk = Ward::task("brisk", move |context| pulses(context, u32::MAX)).pulse_timeout(3 * SECOND);
        TestNode::run(Node::builder("test").ward(lazy).ward(brisk), async |node| {
            node.runs("lazy", 2).await;
            node.runs("lazy", 3).await;
            assert_eq!(node.runs("brisk", 1).await.restarts, 0);
        })
        .await;
    }

    #[tokio::test(start_paused = true)]
    async fn hours_pass_in_which_nothing_happens() {
        let idle = Ward::task("idle", |context| async move {
            context.cancelled().await;
            Ok(())
        });
        TestNode::run(Node::builder("test").ward(idle), async |node| {
            node.runs("idle", 1).await;
            node.stays_so(3_600 * SECOND).await;
            node.restart_ward("idle").await;
            node.runs("idle", 2).await;
            node.stop_ward("idle").await;
            node.until(|now| now.wards[0].state() == v1::WardState::Stopped).await;
            node.start_ward("idle").await;
            node.runs("idle", 3).await;
        })
        .await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_group_that_gives_up_is_restarted_by_the_group_it_is_in() {
        let crashes_twice = Ward::task("crashes", |context| async move {
            tokio::time::sleep(SECOND).await;
            if context.incarnation() <= 2 {
                return Err(NodeError::Cancelled.into());
            }
            context.cancelled().await;
            Ok(())
        });
        let steady = Ward::task("steady", |context| async move {
            context.cancelled().await;
            Ok(())
        });
        let inner = GroupSpec { intensity: 1, parent: Some("outer".into()), ..GroupSpec::new("inner") };
        let outer = GroupSpec { strategy: Strategy::OneForAll, ..GroupSpec::new("outer") };
        let node = Node::builder("test").group(outer).group(inner);
        let node = node.ward(steady.group("outer")).ward(crashes_twice.group("inner"));
        TestNode::run(node, async |node| {
            node.runs("crashes", 3).await;
            node.runs("steady", 2).await;
            node.stays_so(60 * SECOND).await;
        })
        .await;
    }

    #[tokio::test]
    async fn a_unit_of_work_that_is_dropped_undone_is_written_down_unless_the_ward_stops() {
        let test = TestContext::new("worker");
        test.context().work().done();
        assert_eq!((test.work_begun(), test.work_ended(), test.errors().len()), (1, 1, 0));
        drop(test.context().work());
        let errors = test.errors();
        assert_eq!((errors[0].kind(), errors[0].as_proto().ward.as_str()), ("WORK_DROPPED", "worker"));
        test.context().pulse();
        test.context().set_status("busy");
        assert_eq!((test.pulses(), test.status().as_str()), (1, "busy"));
        test.stop();
        drop(test.context().work());
        assert!(test.errors().is_empty());
    }
}
