//! What the log says of errors, and whether something panicked.

use std::{
    fmt,
    sync::{
        Arc, Mutex, Once,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
};

use tracing::{
    Event, Subscriber,
    field::{Field, Visit},
    subscriber::DefaultGuard,
};
use tracing_subscriber::{
    Layer,
    layer::{Context, SubscriberExt as _},
};

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Record {
    pub id: String,
    pub malformed: bool,
}

/// The records that were logged on this thread since they were last taken.
pub struct Records {
    seen: Arc<Mutex<Vec<Record>>>,
    _guard: DefaultGuard,
}

impl Records {
    pub fn listen() -> Self {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let listener = tracing_subscriber::registry().with(Listener(seen.clone()));
        Self { seen, _guard: tracing::subscriber::set_default(listener) }
    }

    /// Those of malformed errors.
    pub fn take_malformed(&self) -> Vec<Record> {
        let mut seen = std::mem::take(&mut *self.seen.lock().unwrap());
        seen.retain(|record| record.malformed);
        seen
    }
}

struct Listener(Arc<Mutex<Vec<Record>>>);

impl<S: Subscriber> Layer<S> for Listener {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        if event.metadata().target() == "wardkeep::error" {
            let mut record = Record::default();
            event.record(&mut record);
            self.0.lock().unwrap().push(record);
        }
    }
}

impl Visit for Record {
    fn record_bool(&mut self, field: &Field, value: bool) {
        self.malformed |= field.name() == "malformed" && value;
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == "error.id" {
            self.id = format!("{value:?}");
        }
    }
}

/// Panics in this process so far, those of tasks whose end nobody awaits included.
pub fn panics() -> usize {
    static PANICS: AtomicUsize = AtomicUsize::new(0);
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let usual = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            PANICS.fetch_add(1, SeqCst);
            usual(info);
        }));
    });
    PANICS.load(SeqCst)
}
