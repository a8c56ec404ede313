//! Configuration files, for operators: what has changed, and when its effect is seen.

use tokio::{
    sync::oneshot,
    time::{Instant, timeout_at},
};
use wardkeep_proto::{
    Error,
    v1::{self, ConfigAction},
};

use super::{Api, Msg, SupervisorError, apply, find_ward, who_and_why};

impl Api {
    /// Has a file applied; answers what has changed, before its effect is seen.
    pub(super) async fn apply(&self, request: &v1::ConfigRequest) -> Result<v1::ConfigOutcome, Error> {
        let begun = Instant::now();
        let (cause, actor) = who_and_why(&request.reason, &request.actor);
        let (answer, answered) = oneshot::channel();
        let wanted = apply::Wanted { dry_run: request.dry_run, cause, actor, answer };
        let node = request.node.clone();
        let msg = async {
            if !node.is_empty() {
                return Ok(Some(Msg::ApplyOfNode { node: node.clone(), wanted }));
            }
            let Some(read) = self.config.clone() else { return Ok(None) };
            let read = tokio::task::spawn_blocking(move || read()).await;
            let now = read.unwrap_or_else(|e| Err(format!("the file cannot be read: {e}")));
            now.map(|now| Some(Msg::ApplyOwn { now: Box::new(now), wanted }))
        };
        let late = || {
            let of = if node.is_empty() { "the supervisor" } else { &node };
            let what = format!("the configuration of {of}, to be applied");
            Error::from(SupervisorError::NotSeen { what, waited: begun.elapsed() })
        };
        let made = timeout_at(Self::deadline(begun), async {
            let Some(msg) = msg.await.map_err(SupervisorError::Unfit)? else {
                return Ok(v1::ConfigOutcome { hosted_from_code: true, ..Default::default() });
            };
            self.fleet.send(msg).await.map_err(|_| SupervisorError::ShuttingDown)?;
            // The session it was asked for in has ended.
            answered.await.map_err(|_| SupervisorError::NotAttending(node.clone()))?
        });
        made.await.map_err(|_| late())?
    }

    /// Waits until the wards that were to be restarted, and those that are new, run.
    pub(super) async fn until_applied(
        &self,
        node: &str,
        before: &v1::Fleet,
        outcome: &v1::ConfigOutcome,
    ) -> Result<(), Error> {
        let added =
            |change: &&v1::ConfigChange| change.noun == "ward" && change.action() == ConfigAction::Added;
        let whole = |change: &&v1::ConfigChange| change.key.is_empty();
        let added = outcome.changes.iter().filter(added).filter(whole).map(|change| &change.name);
        let request = |ward: &String| v1::WardRequest {
            node: node.to_owned(),
            ward: ward.clone(),
            ..Default::default()
        };
        let known = |ward: &String| find_ward(before, &request(ward)).map_or(0, |ward| ward.incarnation);
        let restarts = outcome.restarts.iter().map(|ward| (request(ward), known(ward)));
        for (request, incarnation) in restarts.chain(added.map(|ward| (request(ward), 0))) {
            let what = format!("{node}/{} as it is configured now", request.ward);
            let seen = |fleet: &v1::Fleet| {
                let ward = find_ward(fleet, &request);
                let quarantined = |ward: &v1::Ward| ward.state() == v1::WardState::Quarantined;
                match ward {
                    Some(now) if quarantined(&now) => Err(format!("it is quarantined ({})", now.status)),
                    Some(now) if now.state() == v1::WardState::Running && now.incarnation > incarnation => {
                        Ok(Some(()))
                    }
                    // It waits for an operator.
                    Some(now) if now.state() == v1::WardState::Stopped && incarnation == 0 => {
                        Ok(now.spec.is_some_and(|spec| spec.manual_start).then_some(()))
                    }
                    Some(_) => Ok(None),
                    // It comes with the next picture, or somebody has removed it.
                    None => Ok((incarnation > 0).then_some(())),
                }
            };
            self.wait(what, seen).await?;
        }
        Ok(())
    }
}
