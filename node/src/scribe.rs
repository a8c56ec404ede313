//! Puts names to the addresses of a stack, on a thread of its own: reading a binary's debug information
//! takes tens of milliseconds the first time, which neither wards nor heartbeats may wait for.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TryRecvError, sync_channel},
    thread::{Builder, JoinHandle},
    time::Duration,
};

use wardkeep_proto::{
    error::{build_id, symbols::Symbols},
    v1,
};

use crate::{ledger::Ledger, text::cut};

/// Debug information that nobody asked for so long is let go: it takes tens of megabytes.
const IDLE: Duration = Duration::from_secs(60);
/// Longest name, in bytes.
const LONGEST: usize = 200;

/// Names the stacks of the ledger's records on their way to the supervisor. Joined when dropped.
pub(crate) struct Scribe {
    /// A message is with the thread.
    busy: bool,
    work: Option<(SyncSender<v1::ErrorRecords>, JoinHandle<()>)>,
    done: Receiver<v1::ErrorRecords>,
}

impl Scribe {
    pub(crate) fn start() -> Self {
        // One message at a time: what comes meanwhile waits in the ledger, which is bounded.
        let (work, inbox) = sync_channel(1);
        let (outbox, done) = sync_channel(1);
        let run = move || {
            let mut symbols = None;
            loop {
                match inbox.recv_timeout(IDLE) {
                    Ok(mut message) => {
                        // Names are a help; the records must get through.
                        if catch_unwind(AssertUnwindSafe(|| name_all(&mut message, &mut symbols))).is_err() {
                            symbols = None;
                        }
                        if outbox.send(message).is_err() {
                            return;
                        }
                    }
                    Err(RecvTimeoutError::Timeout) => symbols = None,
                    Err(RecvTimeoutError::Disconnected) => return,
                }
            }
        };
        // Where no thread can be had, stacks go without names.
        let thread = Builder::new().name("wardkeep-scribe".to_owned()).spawn(run).ok();
        Self { busy: false, work: thread.map(|thread| (work, thread)), done }
    }

    /// One that names nothing, and has no thread.
    #[cfg(any(test, feature = "testing"))]
    pub(crate) fn without_names() -> Self {
        Self { busy: false, work: None, done: sync_channel(1).1 }
    }

    /// Whether a message is on its way through.
    pub(crate) fn is_busy(&self) -> bool {
        self.busy
    }

    /// The next message to the supervisor. Never waits.
    pub(crate) fn next(&mut self, ledger: &Ledger) -> Option<v1::ErrorRecords> {
        match self.done.try_recv() {
            Ok(message) => {
                self.busy = false;
                return Some(message);
            }
            Err(TryRecvError::Empty) if self.busy => return None,
            Err(TryRecvError::Empty) => {}
            // The thread has died, of debug information it could not read: stacks go without names.
            Err(TryRecvError::Disconnected) => (self.busy, self.work) = (false, None),
        }
        let message = ledger.take()?;
        let Some((work, _)) = &self.work else { return Some(message) };
        if message.records.is_empty() {
            return Some(message);
        }
        match work.try_send(message) {
            Ok(()) => {
                self.busy = true;
                None
            }
            Err(refused) => Some(match refused {
                std::sync::mpsc::TrySendError::Full(message)
                | std::sync::mpsc::TrySendError::Disconnected(message) => message,
            }),
        }
    }
}

impl Drop for Scribe {
    fn drop(&mut self) {
        if let Some((work, thread)) = self.work.take() {
            drop(work);
            // One message at most is still being worked on.
            let _ = thread.join();
        }
    }
}

fn name_all(message: &mut v1::ErrorRecords, symbols: &mut Option<Symbols>) {
    let hops = message.records.iter_mut().filter_map(|record| record.hops.last_mut());
    for hop in hops.filter(|hop| !hop.frames.is_empty() && hop.build_id == build_id()) {
        if symbols.is_none() {
            *symbols = Symbols::of_this_process().ok();
        }
        let Some(symbols) = symbols else { return };
        let names: Vec<_> = hop.frames.iter().map(|frame| symbols.name(*frame)).collect();
        // A stripped binary knows none.
        if names.iter().any(Option::is_some) {
            hop.functions = names.into_iter().map(|name| short(name.unwrap_or_default())).collect();
        }
    }
}

fn short(mut name: String) -> String {
    cut(&mut name, LONGEST);
    name
}

#[cfg(test)]
mod tests {
    use wardkeep_proto::error::Bug;

    use super::*;

    #[test]
    fn records_come_out_with_the_names_of_their_functions() {
        let ledger = Ledger::new();
        let mut scribe = Scribe::start();
        ledger.write(&Bug::because("x"));
        let message = loop {
            if let Some(message) = scribe.next(&ledger) {
                break message;
            }
            std::thread::yield_now();
        };
        let hop = message.records[0].hops.last().unwrap();
        assert_eq!(hop.functions.len(), hop.frames.len());
        assert!(hop.functions.iter().any(|name| name.contains("records_come_out_with_the_names")));
        assert!(scribe.next(&ledger).is_none());
    }
}
