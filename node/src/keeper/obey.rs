//! What a supervisor may command, who may command it, and what it is told of the outcome.

use std::time::Duration;

use wardkeep_proto::{Error, trace, v1, v1::node_message::Kind as Up};

use super::{Keeper, Next};
use crate::{error::NodeError, wire};

impl Keeper {
    pub(super) async fn obey(&mut self, command: v1::Command) -> Next {
        let span = tracing::info_span!("node.command", node = %self.name(), reason = %command.reason, id = command.id);
        if !command.traceparent.is_empty() {
            trace::follow_parent(&span, &command.traceparent);
        }
        let (id, reason) = (command.id, command.reason.clone());
        let (outcome, next) = if command.epoch < self.setup.mandate.epoch() {
            let error = NodeError::OldEpoch { got: command.epoch, highest: self.setup.mandate.epoch() };
            (Err(error.into()), Next::Go)
        } else if !self.welcomed {
            (Err(NodeError::NoMandate.into()), Next::Go)
        } else {
            span.in_scope(|| {
                tracing::info!(kind = command.kind.as_ref().map_or("?", command_name), "{reason}")
            });
            #[cfg(any(test, feature = "testing"))]
            self.setup.hooks.obeyed(command.epoch);
            self.execute(id, command.kind).await
        };
        let error = outcome.err().map(|error: Error| error.at(self.name(), "", 0));
        if let Some(error) = &error {
            span.in_scope(|| self.setup.ledger.write(error));
        }
        self.send(Up::CommandDone(v1::CommandDone { id, error: error.map(Error::into_proto) }));
        next
    }

    async fn execute(&mut self, id: u64, kind: Option<v1::command::Kind>) -> (Result<(), Error>, Next) {
        use v1::command::Kind;
        let host = &mut self.setup.host;
        match kind {
            Some(Kind::Start(start)) => (host.start(start.slot as usize, start.after_incarnation), Next::Go),
            Some(Kind::Stop(stop)) => {
                let grace = wire::to_duration(stop.grace);
                (host.stop(stop.slot as usize, stop.incarnation, grace), Next::Go)
            }
            Some(Kind::Hold(hold)) => {
                let slot = hold.slot as usize;
                let held = match hold.released {
                    true => host.release(slot, hold.incarnation),
                    false => host.hold(slot, hold.incarnation, hold.quarantined),
                };
                self.publish();
                (held, Next::Go)
            }
            Some(Kind::Drain(drain)) => {
                self.drain(drain.on).await;
                (Ok(()), Next::Go)
            }
            Some(Kind::ApplyConfig(apply)) => (self.asked_to_apply(id, apply.dry_run), Next::Go),
            Some(Kind::RestartNode(restart)) => {
                let drain = wire::to_duration(restart.drain_timeout).unwrap_or(Duration::from_secs(10));
                (Ok(()), Next::Restart(drain))
            }
            None => {
                let error =
                    NodeError::Misconfigured("a command this version of the node does not know".into());
                (Err(error.into()), Next::Go)
            }
        }
    }
}

fn command_name(kind: &v1::command::Kind) -> &'static str {
    use v1::command::Kind;
    match kind {
        Kind::Start(_) => "start",
        Kind::Stop(_) => "stop",
        Kind::RestartNode(_) => "restart node",
        Kind::Drain(_) => "drain",
        Kind::Hold(_) => "hold",
        Kind::ApplyConfig(_) => "apply its configuration",
    }
}
