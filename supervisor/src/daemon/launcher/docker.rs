//! The launcher `docker`: a node in a container, which the engine is told to start anew. Killed, ended, frozen
//! or merely mute, the container runs afterwards, and is the same one: image, volumes and networks stay.
//!
//! Whoever reaches the engine's socket is root on its machine. What is said there is little: which container
//! it is, how it is, and that it is to end and to start.

mod deaths;

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    time::Duration,
};

use bollard::{
    API_DEFAULT_VERSION, Docker,
    errors::Error,
    models::{ContainerState, ContainerStateStatusEnum as Status},
    query_parameters::ListContainersOptions,
};
use tokio::{
    net::UnixStream,
    time::{Instant, sleep, timeout},
};

use super::Launch;
pub(super) use deaths::Deaths;

/// Where engines listen, unless told otherwise.
pub const SOCKET: &str = "/var/run/docker.sock";
/// For one question to the engine.
const ASK: Duration = Duration::from_secs(10);
/// How often it is looked whether a container has ended.
const LOOK: Duration = Duration::from_millis(50);
/// Characters of an ID that people know.
const SHORT: usize = 12;

/// Starts its container anew: what was done, or why it failed. Dropped, nothing more is asked.
pub(super) async fn run(launch: Launch, patience: Duration) -> Result<String, String> {
    let begun = Instant::now();
    let Launch { socket, program, .. } = launch;
    let container = program.to_string_lossy().into_owned();
    let ended = timeout(patience, async {
        let engine = Engine::reach(&socket).await?;
        let id = engine.find(&container).await?;
        engine.start_anew(&id).await
    });
    match ended.await {
        Ok(done) => done.map(|done| format!("{done}, in {:.1} s", begun.elapsed().as_secs_f64())),
        Err(_) => Err(format!(
            "container {container}: the engine at {} was not done after {}",
            socket.display(),
            humantime::format_duration(patience)
        )),
    }
}

/// A container engine that answers.
struct Engine {
    docker: Docker,
    socket: PathBuf,
}

impl Engine {
    async fn reach(socket: &Path) -> Result<Self, String> {
        let at = socket.display();
        // Its own connections say no more than that they failed; this one says why.
        drop(UnixStream::connect(socket).await.map_err(|error| {
            let hint = match error.kind() {
                std::io::ErrorKind::NotFound => " (is it mounted here?)",
                std::io::ErrorKind::PermissionDenied => " (is the supervisor's user in the socket's group?)",
                _ => "",
            };
            format!("the container engine at {at} cannot be reached: {error}{hint}")
        })?);
        let docker = Docker::connect_with_unix(&socket.to_string_lossy(), ASK.as_secs(), API_DEFAULT_VERSION)
            .map_err(|error| told(&error))?;
        let docker = docker.negotiate_version().await;
        let docker = docker.map_err(|error| format!("the container engine at {at}: {}", told(&error)))?;
        Ok(Self { docker, socket: socket.to_owned() })
    }

    fn says(&self, about: &str, error: &Error) -> String {
        format!("container {about}: the engine at {} says: {}", self.socket.display(), told(error))
    }

    /// The ID of the container that is meant: by name or ID, or by a label that it alone has.
    async fn find(&self, container: &str) -> Result<String, String> {
        if !container.contains('=') {
            return Ok(container.to_owned());
        }
        let filters = HashMap::from([("label".to_owned(), vec![container.to_owned()])]);
        let options = ListContainersOptions { all: true, filters: Some(filters), ..Default::default() };
        let found = self.docker.list_containers(Some(options)).await;
        let found = found.map_err(|error| self.says(container, &error))?;
        let mut ids = found.into_iter().filter_map(|summary| summary.id);
        match (ids.next(), ids.count()) {
            (Some(id), 0) => Ok(id.chars().take(SHORT).collect()),
            (None, _) => Err(format!("no container has the label {container}")),
            (Some(_), more) => Err(format!(
                "{} containers have the label {container}: which one it is is not said",
                more + 1
            )),
        }
    }

    async fn start_anew(&self, id: &str) -> Result<String, String> {
        let state = self.state(id).await?;
        let paused = state.paused == Some(true);
        let runs = state.running == Some(true);
        let told = |error: &Error| self.says(id, error);
        if runs {
            // Some engines leave a frozen container as it is when it is killed. Thawed, it lives no longer than
            // it takes to ask.
            if paused {
                self.docker.unpause_container(id).await.map_err(|error| told(&error))?;
            }
            match self.docker.kill_container(id, None).await {
                // It has ended by itself meanwhile.
                Ok(()) | Err(Error::DockerResponseServerError { status_code: 409, .. }) => {}
                Err(error) => return Err(told(&error)),
            }
            self.has_ended(id, &state).await?;
        }
        // Where the engine has started it again by itself, it answers that it runs, which is as well.
        self.docker.start_container(id, None).await.map_err(|error| told(&error))?;
        let was = match (runs, paused) {
            (true, true) => "was paused: thawed, killed and started",
            (true, false) => "was killed and started",
            _ => "was started",
        };
        Ok(format!("container {id} {was}"))
    }

    /// Waits until it runs no more, or the engine has started it anew by itself.
    async fn has_ended(&self, id: &str, before: &ContainerState) -> Result<(), String> {
        loop {
            let now = self.state(id).await?;
            let up = matches!(now.status, Some(Status::RUNNING | Status::PAUSED));
            if !up || now.started_at != before.started_at {
                return Ok(());
            }
            sleep(LOOK).await;
        }
    }

    async fn state(&self, id: &str) -> Result<ContainerState, String> {
        let seen = self.docker.inspect_container(id, None).await.map_err(|error| self.says(id, &error))?;
        seen.state.ok_or_else(|| format!("container {id}: the engine does not say how it is"))
    }
}

/// What an engine's error says, on one line.
fn told(error: &Error) -> String {
    let text = match error {
        Error::DockerResponseServerError { message, .. } => message.clone(),
        Error::RequestTimeoutError => format!("no answer within {}", humantime::format_duration(ASK)),
        other => {
            let mut text = other.to_string();
            let mut cause = std::error::Error::source(other);
            while let Some(error) = cause {
                let more = error.to_string();
                if !text.contains(&more) {
                    text = format!("{text}: {more}");
                }
                cause = error.source();
            }
            text
        }
    };
    text.split_whitespace().collect::<Vec<_>>().join(" ").chars().filter(|c| !c.is_control()).collect()
}

#[cfg(test)]
mod tests;
