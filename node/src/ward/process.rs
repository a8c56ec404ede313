//! Process wards: an external program in a process group of its own. Stopping one sends the stop
//! signal to the whole group, then SIGKILL.

use std::{io, process::ExitStatus, sync::Arc, time::Duration};

use futures_util::{FutureExt as _, future::FusedFuture};
use nix::sys::signal::Signal;
use tokio::{process::Child, time::timeout};
use wardkeep_proto::v1;

use super::{Ended, Program, Shared, StopSignal, guard::Group, ordered_to_stop, output, sd_notify};
use crate::{context::Incarnation, error::NodeError};

/// After SIGKILL the kernel ends a process at once, unless it hangs in the kernel itself.
const REAP_PATIENCE: Duration = Duration::from_secs(2);
/// For what a program printed last. Who has left its group may hold its output open for ever.
const LAST_WORDS: Duration = Duration::from_millis(200);

pub(super) async fn run(
    program: Arc<Program>,
    incarnation: Arc<Incarnation>,
    mut stop: StopSignal,
    Shared { guard, seat, tail, .. }: Shared,
    ready: impl FnOnce() + Send,
) -> Ended {
    let cannot_start = |source| {
        let error = NodeError::CannotStart { program: program.name(), source };
        Ended::new(v1::ExitKind::StartFailed).because(error.into())
    };
    let mut socket = match sd_notify::Socket::open() {
        Ok(socket) => socket,
        Err(source) => return cannot_start(source),
    };
    let tail = tail.unwrap_or_default();
    let (mut child, group) = match guard.start(program.command(Some(&socket))) {
        Ok(started) => started,
        Err(source) => return cannot_start(source),
    };
    let _seated = seat.take(group.id().as_raw());
    let output = futures_util::future::join(
        output::read(child.stdout.take(), v1::OutputStream::Stdout, &incarnation, &tail),
        output::read(child.stderr.take(), v1::OutputStream::Stderr, &incarnation, &tail),
    );
    let mut output = std::pin::pin!(output.map(drop).fuse());
    let (mut ready, mut listening) = (Some(ready), true);
    let probed_ready = if program.probe.is_some() { ready.take() } else { None };
    let probing = async {
        if let Some(probe) = &program.probe {
            probe.run(&incarnation, probed_ready).await;
        }
    };
    let mut probing = std::pin::pin!(probing.fuse());
    if !program.notify
        && let Some(ready) = ready.take()
    {
        ready();
    }
    let grace = loop {
        tokio::select! {
            status = child.wait() => {
                // Grandchildren that outlived the leader go with it.
                drop(group);
                if !output.is_terminated() {
                    let _ = timeout(LAST_WORDS, &mut output).await;
                }
                return ended(&program, status);
            }
            said = socket.next(), if listening => match said {
                Ok(said) => heed(said, &incarnation, &mut ready, program.probe.is_some()),
                Err(error) => {
                    tracing::warn!(ward = %incarnation.ward, %error, "notifications can no longer be read");
                    listening = false;
                }
            },
            () = &mut output => {}
            () = &mut probing => {}
            grace = ordered_to_stop(&mut stop) => break grace,
        }
    };
    incarnation.stop();
    stop_group(&program, child, group, grace, output).await
}

/// What it says of its health is not asked for where a probe does.
fn heed(
    said: Vec<sd_notify::Message>,
    incarnation: &Incarnation,
    ready: &mut Option<impl FnOnce()>,
    probed: bool,
) {
    use sd_notify::Message;
    for message in said {
        match message {
            Message::Ready => {
                if let Some(ready) = ready.take() {
                    ready();
                }
            }
            Message::Pulse if probed => {}
            Message::Pulse => incarnation.heart.pulse(),
            Message::Status(text) => incarnation.set_status(text),
            Message::Stopping => incarnation.set_status("stopping".to_owned()),
        }
    }
}

async fn stop_group(
    program: &Program,
    mut child: Child,
    group: Group,
    grace: Duration,
    mut output: impl FusedFuture<Output = ()> + Unpin,
) -> Ended {
    if program.stops_children {
        group.signal_leader(program.stop_signal);
    } else {
        group.signal(program.stop_signal);
    }
    let ended_well = {
        let patience = tokio::time::sleep(grace);
        let mut patience = std::pin::pin!(patience);
        loop {
            tokio::select! {
                _ = child.wait() => break true,
                () = &mut output, if !output.is_terminated() => {}
                () = &mut patience => break false,
            }
        }
    };
    // The rest of the group, or all of it.
    group.signal(Signal::SIGKILL);
    if ended_well || timeout(REAP_PATIENCE, child.wait()).await.is_ok() {
        if !output.is_terminated() {
            let _ = timeout(LAST_WORDS, &mut output).await;
        }
        return Ended::new(v1::ExitKind::Stopped);
    }
    let rest = async move {
        drop(child.wait().await);
        drop(group);
    };
    Ended { rest: Some(Box::pin(rest)), ..Ended::new(v1::ExitKind::Abandoned) }
}

fn ended(program: &Program, status: io::Result<ExitStatus>) -> Ended {
    match status {
        Ok(status) if status.success() => Ended::new(v1::ExitKind::Done),
        Ok(status) => {
            let error = NodeError::ProgramEnded { program: program.name(), status: status.to_string() };
            Ended::new(v1::ExitKind::Failed).because(error.into())
        }
        Err(e) => {
            let error = NodeError::ProgramEnded { program: program.name(), status: e.to_string() };
            Ended::new(v1::ExitKind::Failed).because(error.into())
        }
    }
}
