//! The attempts of one call, as they run.

use std::{
    collections::VecDeque,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use bytes::Bytes;
use futures_util::stream::{FuturesUnordered, StreamExt as _};
use http::Response;
use tokio::{
    sync::oneshot,
    time::{Instant, sleep_until},
};
use tonic::{Code, body::Body};

use crate::{
    Shared,
    attempt::{self, Call, Verdict},
    channel::{BoxFuture, Link},
    decide::{Decision, Input, Outcome, Pushback, Race},
    error::{End, Phase, Report, arose_here},
    gate::Level,
    judge,
    leave::Exit,
    member::{Attempt, Attempts, Ending, Told, Winner},
    methods::SentOnce,
    policy::tells,
    request::Progress,
};

/// An attempt that was begun, seen from the race.
struct Begun {
    link: Arc<Link>,
    at: Instant,
    progress: Arc<Progress>,
    /// Until it was told to end.
    exit: Option<oneshot::Sender<Exit>>,
    /// It was withdrawn in band, and has not ended.
    leaving: bool,
    end: Option<(Duration, Phase, Ended)>,
}

enum Ended {
    With(Verdict),
    /// With an answer, which another attempt has given as well.
    Withdrawn,
    /// Its reply was given to the caller.
    Delivered(Ending),
}

impl Begun {
    fn exit(&mut self, exit: Exit) {
        if let Some(sender) = self.exit.take() {
            // It may have ended in this moment.
            let _ = sender.send(exit);
        }
    }

    /// Begins to withdraw it in band, if that can be done.
    fn leave(&mut self, call: &Call, number: u32, ending: Ending) -> bool {
        // What its member has not seen cannot be withdrawn there.
        let id = call.id.filter(|_| self.progress.phase() > Phase::Connect);
        let Some(answer) = id.and_then(|id| self.link.withdraw(id, number)) else { return false };
        self.exit(Exit::InBand { answer: Box::pin(answer), ending });
        self.leaving = true;
        true
    }
}

type Running = FuturesUnordered<BoxFuture<(u32, Option<Verdict>)>>;

pub(crate) struct Field {
    shared: Arc<Shared>,
    call: Arc<Call>,
    /// Members that may be asked, the next one first.
    free: VecDeque<Arc<Link>>,
    /// Attempt `n` is at `n - 1`.
    begun: Vec<Begun>,
    running: Running,
    /// Answers that differ, for a quorum.
    answers: Vec<Bytes>,
    level: Level,
    once: Option<SentOnce>,
    /// Hedges that were paid for, and not given back.
    paid: usize,
    /// A hedge was due, and not in the budget.
    refused: bool,
    /// The code of the reply that was given to the caller.
    pub(crate) delivered: Code,
    started: Instant,
}

/// What the race is told next.
enum Event {
    Ended(u32, Verdict),
    /// One that was withdrawn is gone.
    Gone(u32),
    Due,
    Began,
    Suspicion,
}

impl Field {
    pub(crate) fn new(
        shared: Arc<Shared>,
        call: Arc<Call>,
        links: Vec<Arc<Link>>,
        level: Level,
        once: Option<SentOnce>,
        started: Instant,
    ) -> Self {
        Self {
            shared,
            call,
            free: links.into(),
            begun: Vec::new(),
            running: FuturesUnordered::new(),
            answers: Vec::new(),
            level,
            once,
            paid: 0,
            refused: false,
            delivered: Code::Ok,
            started,
        }
    }

    /// The reply to deliver; `None` when all failed.
    pub(crate) async fn run(&mut self, mut race: Race) -> Option<Response<Body>> {
        let mut suspicions = self.call.rules.delay.map(|_| self.shared.members.suspicions());
        let mut decision = race.begin();
        loop {
            match decision {
                Decision::Start(n) => (0..n).for_each(|_| self.start()),
                Decision::Again(attempt) => self.again(attempt),
                Decision::Renew { members_of, start } => {
                    let links = members_of.into_iter().filter_map(|n| Some(self.attempt(n)?.link.clone()));
                    let links: Vec<_> = links.collect();
                    self.free.extend(links);
                    (0..start).for_each(|_| self.start());
                }
                Decision::Withdraw(attempts) => attempts.into_iter().for_each(|n| self.withdraw(n)),
                Decision::Wait => {}
                Decision::Deliver(number) => {
                    self.shared.stats.cancelled.fetch_add(race.running() as u64, Relaxed);
                    return self.deliver(number);
                }
                Decision::GiveUp => return None,
            }
            let wake = race.wake_at().map(|at| self.started + at);
            let call = &self.call;
            let event = tokio::select! {
                biased;
                Some(ended) = self.running.next() => match ended {
                    (number, Some(verdict)) => Event::Ended(number, verdict),
                    (number, None) => Event::Gone(number),
                },
                () = call.began.notified(), if call.rules.tied.is_some() => Event::Began,
                () = sleep_until(wake.unwrap_or(self.started)), if wake.is_some() => Event::Due,
                () = changed(&mut suspicions), if wake.is_some() && suspicions.is_some() => Event::Suspicion,
                else => return None,
            };
            decision = self.tell(&mut race, event);
        }
    }

    fn tell(&mut self, race: &mut Race, event: Event) -> Decision {
        let now = self.started.elapsed();
        match event {
            Event::Gone(number) => {
                if let Some(begun) = self.attempt_mut(number) {
                    begun.leaving = false;
                }
                Decision::Wait
            }
            Event::Ended(number, verdict) => {
                let outcome = self.outcome(&verdict);
                self.account(&outcome);
                self.ended(number, Ended::With(verdict));
                let throttled = self.shared.brakes.is_throttled();
                race.step(now, Input::Ended { attempt: number, outcome, throttled })
            }
            Event::Due => {
                let allowed = self.may_copy(race);
                race.step(now, Input::Due { allowed })
            }
            Event::Began => {
                let begun = (1..).zip(&self.begun).find(|(_, b)| b.end.is_none() && b.progress.take_begun());
                let Some((number, _)) = begun else { return Decision::Wait };
                // There may be more.
                self.call.began.notify_one();
                race.step(now, Input::Began(number))
            }
            Event::Suspicion => {
                let at = Instant::now();
                let suspects: Vec<u32> = race.runners().filter(|n| self.is_suspect(*n, at)).collect();
                for attempt in suspects {
                    race.step(now, Input::Suspected(attempt));
                }
                Decision::Wait
            }
        }
    }

    fn is_suspect(&self, number: u32, now: Instant) -> bool {
        self.attempt(number).is_some_and(|begun| begun.link.is_suspect(now))
    }

    /// Whether the copy that is due may go out.
    fn may_copy(&mut self, race: &Race) -> bool {
        let (brakes, stats) = (&self.shared.brakes, &self.shared.stats);
        if brakes.is_throttled() {
            stats.hedges_refused.fetch_add(1, Relaxed);
            return false;
        }
        if race.is_resting() {
            let allowed = brakes.may_hedge(false);
            let counter = if allowed { &stats.rounds } else { &stats.hedges_refused };
            counter.fetch_add(1, Relaxed);
            return allowed;
        }
        if race.is_replacement() {
            return true;
        }
        let now = Instant::now();
        // Whom others have found well goes first.
        if let Some(well) = self.free.iter().position(|link| !link.is_suspect(now)) {
            self.free.swap(0, well);
        }
        // Where all that runs is with members that are ill, and one is not: that is no extra load.
        let well = self.free.front().is_some_and(|link| !link.is_suspect(now));
        let ill = |number| self.attempt(number).is_some_and(|begun| begun.link.is_ill(now));
        let rescue = well && race.runners().all(ill);
        let paid = !rescue && self.level != Level::Single && brakes.may_hedge(self.refused);
        self.paid += usize::from(paid);
        self.refused |= !paid;
        let allowed = rescue || paid;
        let counter = if allowed { &stats.hedges } else { &stats.hedges_refused };
        counter.fetch_add(1, Relaxed);
        allowed
    }

    fn start(&mut self) {
        if let Some(link) = self.free.pop_front() {
            self.send(link);
        }
    }

    /// Sends once more to the member that attempt was sent to.
    fn again(&mut self, attempt: u32) {
        self.shared.stats.transparent.fetch_add(1, Relaxed);
        if let Some(link) = self.attempt(attempt).map(|begun| begun.link.clone()) {
            self.send(link);
        }
    }

    fn send(&mut self, link: Arc<Link>) {
        self.shared.stats.attempts.fetch_add(1, Relaxed);
        let progress = Arc::new(Progress::default());
        let (exit, told) = oneshot::channel();
        self.begun.push(Begun {
            link: link.clone(),
            at: Instant::now(),
            progress: progress.clone(),
            exit: Some(exit),
            leaving: false,
            end: None,
        });
        self.running.push(Box::pin(attempt::run(self.call.clone(), link, self.count(), progress, told)));
    }

    fn withdraw(&mut self, number: u32) {
        self.shared.stats.withdrawn.fetch_add(1, Relaxed);
        if self.paid > 0 {
            self.paid -= 1;
            self.shared.brakes.give_back();
        }
        self.ended(number, Ended::Withdrawn);
        let call = self.call.clone();
        if let Some(begun) = self.attempt_mut(number) {
            let link = begun.link.clone();
            if !begun.leave(&call, number, Ending::Withdrawn) {
                begun.exit(Exit::Reset);
                // What is withdrawn is cancelled, whatever the connection bears: its member is one of ours.
                link.may_cancel(Instant::now(), begun.at.elapsed());
            }
            self.free.push_back(link);
        }
    }

    fn count(&self) -> u32 {
        u32::try_from(self.begun.len()).unwrap_or(u32::MAX)
    }

    fn attempt(&self, number: u32) -> Option<&Begun> {
        self.begun.get(usize::try_from(number).ok()?.checked_sub(1)?)
    }

    fn attempt_mut(&mut self, number: u32) -> Option<&mut Begun> {
        self.begun.get_mut(usize::try_from(number).ok()?.checked_sub(1)?)
    }

    fn ended(&mut self, number: u32, how: Ended) {
        if let Some(begun) = self.attempt_mut(number) {
            begun.end = Some((begun.at.elapsed(), begun.progress.phase(), how));
        }
    }

    fn outcome(&mut self, verdict: &Verdict) -> Outcome {
        match verdict {
            Verdict::Good(_, answer) => Outcome::Good { answer: self.number_of(answer) },
            Verdict::Refused(error, reply, pushback) => {
                let unbegun = judge::is_unbegun(reply) && self.can_be_sent();
                Outcome::Refused { code: error.code(), pushback: *pushback, unbegun }
            }
            Verdict::Lost { never_sent, .. } => {
                Outcome::Lost { never_sent: *never_sent && self.can_be_sent() }
            }
            Verdict::Broken { unprocessed, .. } => {
                Outcome::Broken { unprocessed: *unprocessed && self.can_be_sent() }
            }
            Verdict::Cut(_) => Outcome::Cut,
        }
    }

    fn can_be_sent(&self) -> bool {
        self.call.template.payload.is_at_hand()
    }

    fn number_of(&mut self, answer: &Bytes) -> u32 {
        let known = self.answers.iter().position(|known| known == answer);
        let index = known.unwrap_or_else(|| {
            self.answers.push(answer.clone());
            self.answers.len() - 1
        });
        u32::try_from(index).unwrap_or(u32::MAX)
    }

    /// gRFC A6: what counts for and against further copies.
    fn account(&self, outcome: &Outcome) {
        let fatal = self.call.rules.fatal;
        match outcome {
            Outcome::Good { .. } => self.shared.brakes.ended(true),
            Outcome::Refused { pushback: Some(Pushback::Stop), .. } => self.shared.brakes.ended(false),
            Outcome::Refused { code, .. } if !fatal.contains(*code) => self.shared.brakes.ended(false),
            Outcome::Lost { never_sent: false } | Outcome::Cut => self.shared.brakes.ended(false),
            _ => {}
        }
    }

    fn deliver(&mut self, number: u32) -> Option<Response<Body>> {
        let (attempts, elapsed) = (self.count(), self.started.elapsed());
        let index = usize::try_from(number).ok()?.checked_sub(1)?;
        let begun = self.begun.get_mut(index)?;
        let (took, phase, ended) = begun.end.take()?;
        let (mut reply, ending) = match ended {
            Ended::With(Verdict::Good(reply, _)) => (reply, Ending::Won),
            Ended::With(Verdict::Refused(error, reply, _)) => {
                if arose_here(&error) {
                    error.record();
                }
                (reply, Ending::Failed(error.code()))
            }
            _ => return None,
        };
        begun.end = Some((took, phase, Ended::Delivered(ending)));
        if let Ending::Failed(code) = ending {
            self.delivered = code;
        }
        // From here on it is known which of the others were far too slow.
        let _ = self.call.won_in.set(took);
        begun.link.wins.fetch_add(1, Relaxed);
        let node = begun.link.peer.name.clone();
        let sent_once = self.once.filter(|_| attempts == 1);
        reply.extensions_mut().insert(Winner { node, attempts, elapsed, sent_once });
        reply.extensions_mut().insert(Attempts(self.story().into()));
        Some(reply)
    }

    /// The reply that says it all, where all attempts have failed: when only one member was asked, however often, or
    /// all have said the very same. It is the member's own error, which is known by its ID where the member is.
    pub(crate) fn one_voice(&mut self) -> Option<Response<Body>> {
        let mut heard = Vec::new();
        for (number, begun) in (1..).zip(&self.begun) {
            match &begun.end {
                Some((.., Ended::With(verdict))) => heard.push((number, &begun.link, verdict)),
                Some((.., Ended::Withdrawn)) => {}
                _ => return None,
            }
        }
        let refused = |verdict: &Verdict| matches!(verdict, Verdict::Refused(..));
        // `max_by_key` takes the last of equals; the last that a member has said is how it is now.
        let telling = heard.iter().max_by_key(|(.., verdict)| (tells(verdict.code()), refused(verdict)));
        let &(number, link, Verdict::Refused(error, ..)) = telling? else { return None };
        let same =
            |verdict: &Verdict| refused(verdict) && verdict.error().is_some_and(|e| e.id() == error.id());
        let one = heard.iter().all(|(_, other, _)| Arc::ptr_eq(other, link));
        (one || heard.iter().all(|(.., verdict)| same(verdict))).then(|| self.deliver(number))?
    }

    /// The call's deadline has passed.
    pub(crate) fn expire(&self) {
        self.call.expired.store(true, Relaxed);
    }

    /// What became of each attempt of a call that was answered.
    pub(crate) fn story(&self) -> Vec<Attempt> {
        let tell = |(number, begun): (u32, &Begun)| {
            let (took, phase, ending) = match &begun.end {
                Some((took, phase, ended)) => (*took, *phase, ended.ending()),
                None => (begun.at.elapsed(), begun.progress.phase(), Ending::Cancelled),
            };
            Attempt {
                number,
                node: begun.link.peer.name.clone(),
                started_after: begun.at.saturating_duration_since(self.started),
                took,
                phase,
                ending,
                told: Told(begun.progress.clone()),
            }
        };
        (1..).zip(&self.begun).map(tell).collect()
    }

    /// What became of each attempt of a call that failed.
    pub(crate) fn reports(&self) -> Vec<Report> {
        let report = |(number, begun): (u32, &Begun)| {
            let Begun { link, at, progress, end, .. } = begun;
            let (elapsed, phase, end) = match end {
                Some((elapsed, phase, ended)) => (*elapsed, *phase, self.end(ended)),
                None => (at.elapsed(), progress.phase(), End::Running),
            };
            Report { number, node: link.peer.name.clone(), uri: link.peer.uri.clone(), phase, elapsed, end }
        };
        (1..).zip(&self.begun).map(report).collect()
    }

    fn end(&self, ended: &Ended) -> End {
        match ended {
            Ended::With(
                Verdict::Refused(error, ..)
                | Verdict::Lost { error, .. }
                | Verdict::Broken { error, .. }
                | Verdict::Cut(error),
            ) => End::Failed(error.clone()),
            Ended::With(Verdict::Good(_, answer)) => {
                let number = self.answers.iter().position(|known| known == answer).unwrap_or_default();
                End::Answered(u32::try_from(number).unwrap_or(u32::MAX))
            }
            Ended::Withdrawn => End::Withdrawn,
            Ended::Delivered(_) => End::Running,
        }
    }
}

impl Ended {
    fn ending(&self) -> Ending {
        match self {
            Self::With(Verdict::Good(..)) => Ending::Answered,
            Self::With(verdict) => Ending::Failed(verdict.code()),
            Self::Withdrawn => Ending::Withdrawn,
            Self::Delivered(ending) => *ending,
        }
    }
}

impl Drop for Field {
    /// Cancels what still runs: in band where that can be done, else by a reset. What its connection does not
    /// bear goes on for a while.
    fn drop(&mut self) {
        if self.running.is_empty() {
            return;
        }
        let now = Instant::now();
        let (losers, stats) = (&self.shared.losers, &self.shared.stats);
        let room = losers.room();
        let mut going_on = self.begun.iter().filter(|begun| begun.leaving).count();
        for (number, begun) in (1..).zip(&mut self.begun).filter(|(_, begun)| begun.end.is_none()) {
            if going_on < room && begun.leave(&self.call, number, Ending::Cancelled) {
                going_on += 1;
                continue;
            }
            // Even one that has not left yet may do so in this moment, on another thread.
            let age = now.saturating_duration_since(begun.at);
            if begun.link.may_cancel(now, age) || going_on >= room {
                begun.exit(Exit::Reset);
            } else {
                begun.exit(Exit::Within(losers.grace));
                stats.left_to_finish.fetch_add(1, Relaxed);
                going_on += 1;
            }
        }
        if going_on > 0 && room > 0 {
            let mut rest = std::mem::take(&mut self.running);
            losers.keep(going_on, async move { while rest.next().await.is_some() {} });
        }
    }
}

async fn changed(suspicions: &mut Option<tokio::sync::watch::Receiver<u64>>) {
    if let Some(suspicions) = suspicions
        && suspicions.changed().await.is_ok()
    {
        return;
    }
    std::future::pending().await
}
