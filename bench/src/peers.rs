//! Actors under a supervisor, as their libraries' own documentation has it.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering::Relaxed},
};

pub mod ractor {
    use ::ractor::{Actor, ActorCell, ActorProcessingErr, ActorRef, SupervisionEvent};

    use super::*;
    use crate::heal::Patient;

    pub struct Idle;

    impl Actor for Idle {
        type Msg = ();
        type State = ();
        type Arguments = Arc<AtomicUsize>;

        async fn pre_start(&self, _: ActorRef<()>, up: Arc<AtomicUsize>) -> Result<(), ActorProcessingErr> {
            up.fetch_add(1, Relaxed);
            Ok(())
        }
    }

    /// Supervisor and actors, none of which does anything.
    pub async fn idle(many: usize, up: &Arc<AtomicUsize>) -> Vec<ActorCell> {
        let (root, _) = Actor::spawn(None, Idle, Arc::default()).await.expect("a supervisor");
        let mut all = vec![root.get_cell()];
        for _ in 0..many {
            let spawned = Actor::spawn_linked(None, Idle, up.clone(), root.get_cell()).await;
            all.push(spawned.expect("an actor").0.get_cell());
        }
        all
    }

    struct Worker;

    impl Actor for Worker {
        type Msg = ();
        type State = Patient;
        type Arguments = Patient;

        async fn pre_start(&self, _: ActorRef<()>, patient: Patient) -> Result<Patient, ActorProcessingErr> {
            patient.runs();
            Ok(patient)
        }

        async fn handle(
            &self,
            _: ActorRef<()>,
            _: (),
            patient: &mut Patient,
        ) -> Result<(), ActorProcessingErr> {
            patient.crash()
        }
    }

    struct Supervisor;

    impl Actor for Supervisor {
        type Msg = ();
        type State = (Patient, ActorRef<()>);
        type Arguments = Patient;

        async fn pre_start(
            &self,
            myself: ActorRef<()>,
            patient: Patient,
        ) -> Result<Self::State, ActorProcessingErr> {
            let (worker, _) = Actor::spawn_linked(None, Worker, patient.clone(), myself.get_cell()).await?;
            Ok((patient, worker))
        }

        async fn handle(
            &self,
            _: ActorRef<()>,
            _: (),
            state: &mut Self::State,
        ) -> Result<(), ActorProcessingErr> {
            Ok(state.1.cast(())?)
        }

        async fn handle_supervisor_evt(
            &self,
            myself: ActorRef<()>,
            event: SupervisionEvent,
            state: &mut Self::State,
        ) -> Result<(), ActorProcessingErr> {
            if let SupervisionEvent::ActorFailed(..) = event {
                let again = Actor::spawn_linked(None, Worker, state.0.clone(), myself.get_cell()).await?;
                state.1 = again.0;
            }
            Ok(())
        }
    }

    /// Returns what has the actor crash.
    pub async fn heal(patient: Patient) -> impl Fn() {
        let (root, _) = Actor::spawn(None, Supervisor, patient).await.expect("a supervisor");
        move || root.cast(()).expect("it hears")
    }
}

pub mod kameo {
    use std::time::Duration;

    use ::kameo::{
        actor::{Actor, ActorRef, Spawn},
        error::Infallible,
        message::{Context, Message},
    };

    use super::*;
    use crate::heal::Patient;

    pub struct Root;

    impl Actor for Root {
        type Args = ();
        type Error = Infallible;

        async fn on_start((): (), _: ActorRef<Self>) -> Result<Self, Infallible> {
            Ok(Self)
        }
    }

    pub struct Idle;

    impl Actor for Idle {
        type Args = Arc<AtomicUsize>;
        type Error = Infallible;

        async fn on_start(up: Self::Args, _: ActorRef<Self>) -> Result<Self, Infallible> {
            up.fetch_add(1, Relaxed);
            Ok(Self)
        }
    }

    /// Supervisor and actors, none of which does anything.
    pub async fn idle(many: usize, up: &Arc<AtomicUsize>) -> (ActorRef<Root>, Vec<ActorRef<Idle>>) {
        let root = Root::spawn(());
        let mut all = Vec::new();
        for _ in 0..many {
            all.push(Idle::supervise(&root, up.clone()).spawn().await);
        }
        (root, all)
    }

    struct Worker(Patient);

    impl Actor for Worker {
        type Args = Patient;
        type Error = Infallible;

        async fn on_start(patient: Patient, _: ActorRef<Self>) -> Result<Self, Infallible> {
            patient.runs();
            Ok(Self(patient))
        }
    }

    struct Crash;

    impl Message<Crash> for Worker {
        type Reply = ();

        async fn handle(&mut self, _: Crash, _: &mut Context<Self, ()>) {
            self.0.crash()
        }
    }

    /// Returns what has the actor crash.
    pub async fn heal(patient: Patient) -> impl Fn() {
        let root = Root::spawn(());
        let supervised = Worker::supervise(&root, patient).restart_limit(u32::MAX, Duration::from_secs(1));
        let worker = supervised.spawn().await;
        move || {
            let _root = &root;
            worker.tell(Crash).try_send().expect("it hears");
        }
    }
}
