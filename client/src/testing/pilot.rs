//! What [`crate::race`] and [`crate::field`] do for a call, without sockets and clock: the shell around the pure
//! parts. Everything that is decided is decided by them.

use std::{collections::VecDeque, time::Duration};

use tonic::Code;

use crate::{
    choose::{Candidate, Choice, Labels, choose},
    decide::{Decision, Input, Outcome, Pushback, Race, Rules},
    gate::{self, Level},
    methods::{Plan, Reading},
    policy::{FATAL, Policy},
    restraint::{Brakes, Restraint},
    rules,
    track::{Sample, Track},
    view::{middle, rate},
    window::Window,
};

/// What a channel has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Calls begun.
    pub calls: u64,
    /// Attempts begun.
    pub attempts: u64,
    /// Of those, taken back because another one had begun.
    pub withdrawn: u64,
    /// Calls begun while all of the policy was carried out, while it was hedged, and while all was single.
    pub levels: [u64; 3],
}

struct Member {
    track: Track,
    in_flight: usize,
}

/// A channel to some members, which are numbers.
pub struct Pilot {
    plan: Plan,
    brakes: Brakes,
    window: Window,
    members: Vec<Member>,
    labels: Labels,
    turn: u64,
    pub(super) tally: Tally,
}

/// A call in progress.
pub(super) struct Flight {
    race: Race,
    rules: Rules,
    level: Level,
    paid: usize,
    refused: bool,
    started: Duration,
    allowed: Duration,
    free: VecDeque<usize>,
    sent: Vec<Sent>,
}

impl Flight {
    pub(super) fn is_tied(&self) -> bool {
        self.rules.tied.is_some()
    }
}

struct Sent {
    member: usize,
    at: Duration,
    open: bool,
    good: bool,
}

/// What to do now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    Send {
        attempt: u32,
        member: usize,
    },
    Cancel {
        attempt: u32,
    },
    /// The caller has its reply, or an error. What ran has been cancelled.
    End {
        good: bool,
    },
}

/// What a member says.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Told {
    Answer,
    /// It has no room, and will have some after so long.
    Full(Duration),
    Began,
}

impl Pilot {
    /// A channel with this policy to so many members.
    pub fn new(policy: Policy, restraint: Restraint, members: usize) -> Self {
        let plan =
            Plan { once: None, policy, fatal: None, timeout: None, reading: Reading::Whole, unary: true };
        let member = || Member { track: Track::new(), in_flight: 0 };
        Self {
            plan,
            brakes: Brakes::new(&restraint, None),
            window: Window::new(),
            members: (0..members).map(|_| member()).collect(),
            labels: Labels::default(),
            turn: 0,
            tally: Tally::default(),
        }
    }

    pub(super) fn begin(&mut self, now: Duration, allowed: Duration, orders: &mut Vec<Order>) -> Flight {
        let usual = middle(self.members.iter().filter_map(|it| it.track.known_mean()));
        let candidates: Vec<Candidate<'_>> = (self.members.iter())
            .map(|it| {
                let (class, cost) = rate(&it.track, false, it.in_flight, true, usual, now);
                Candidate { labels: &self.labels, class, cost }
            })
            .collect();
        let Choice { order, equals } = choose(&candidates, self.turn);
        self.turn += 1;
        let utilisation = gate::utilisation(self.members.iter().map(|it| it.track.utilisation(now)));
        let level = self.brakes.call(utilisation, self.plan.policy.width().0);
        self.tally.calls += 1;
        self.tally.levels[level as usize] += 1;
        let window = std::cell::RefCell::new(&mut self.window);
        let percentile = |percent| window.borrow_mut().percentile(now, percent);
        let (rules, most) = rules::of(&self.plan, level, FATAL, percentile);
        let race = Race::new(rules, order.len(), equals.min(most));
        let (free, sent) = (order.into(), Vec::new());
        let mut flight =
            Flight { race, rules, level, paid: 0, refused: false, started: now, allowed, free, sent };
        let decision = flight.race.begin();
        self.obey(now, &mut flight, decision, orders);
        flight
    }

    /// A member said something of an attempt, and maybe how busy it is.
    pub(super) fn told(
        &mut self,
        now: Duration,
        flight: &mut Flight,
        attempt: u32,
        (told, load): (Told, Option<f64>),
        orders: &mut Vec<Order>,
    ) {
        let Some(sent) = flight.sent.get_mut(attempt as usize - 1).filter(|sent| sent.open) else { return };
        let member = &mut self.members[sent.member];
        if let Some(load) = load {
            member.track.told_load(now, load);
        }
        let took = now.saturating_sub(sent.at);
        let outcome = match told {
            Told::Began => {
                let decision = flight.race.step(now - flight.started, Input::Began(attempt));
                return self.obey(now, flight, decision, orders);
            }
            Told::Answer => {
                member.track.record(now, Sample::Answered(took));
                if attempt == 1 || flight.rules.delay.is_none() {
                    self.window.record(now, took);
                }
                Outcome::Good { answer: 0 }
            }
            Told::Full(after) => {
                member.track.record(now, Sample::Full(took));
                let pushback = Some(Pushback::After(after));
                Outcome::Refused { code: Code::ResourceExhausted, pushback, unbegun: false }
            }
        };
        (sent.open, member.in_flight) = (false, member.in_flight - 1);
        sent.good = told == Told::Answer;
        let input = Input::Ended { attempt, outcome, throttled: false };
        let decision = flight.race.step(now - flight.started, input);
        self.obey(now, flight, decision, orders);
    }

    /// When something is due.
    pub(super) fn wake_at(&self, flight: &Flight) -> Option<Duration> {
        flight.race.wake_at().map(|at| flight.started + at)
    }

    pub(super) fn due(&mut self, now: Duration, flight: &mut Flight, orders: &mut Vec<Order>) {
        let replaces = flight.race.is_replacement();
        let paid = !replaces && flight.level != Level::Single && self.brakes.may_hedge(flight.refused);
        flight.paid += usize::from(paid);
        flight.refused |= !paid;
        let decision = flight.race.step(now - flight.started, Input::Due { allowed: replaces || paid });
        self.obey(now, flight, decision, orders);
    }

    /// The call's time is up.
    pub(super) fn expire(&mut self, now: Duration, flight: &mut Flight, orders: &mut Vec<Order>) {
        self.cut(now, flight, None, orders);
        orders.push(Order::End { good: false });
    }

    fn obey(&mut self, now: Duration, flight: &mut Flight, decision: Decision, orders: &mut Vec<Order>) {
        match decision {
            Decision::Start(n) => (0..n).for_each(|_| self.send(now, flight, orders)),
            Decision::Withdraw(attempts) => {
                for attempt in attempts {
                    self.tally.withdrawn += 1;
                    if flight.paid > 0 {
                        flight.paid -= 1;
                        self.brakes.give_back();
                    }
                    let sent = &mut flight.sent[attempt as usize - 1];
                    let sample = Sample::of_cut_off(now.saturating_sub(sent.at), None, false);
                    self.members[sent.member].track.record(now, sample);
                    self.members[sent.member].in_flight -= 1;
                    sent.open = false;
                    flight.free.push_back(sent.member);
                    orders.push(Order::Cancel { attempt });
                }
            }
            Decision::Deliver(attempt) => {
                // It may be a refusal that the caller gets as it came.
                let Sent { at, good, .. } = flight.sent[attempt as usize - 1];
                self.cut(now, flight, Some(now.saturating_sub(at)), orders);
                orders.push(Order::End { good });
            }
            Decision::GiveUp => orders.push(Order::End { good: false }),
            Decision::Renew { members_of, start } => {
                let members = members_of.iter().map(|attempt| flight.sent[*attempt as usize - 1].member);
                flight.free.extend(members.collect::<Vec<_>>());
                (0..start).for_each(|_| self.send(now, flight, orders));
            }
            // Connections do not break here.
            Decision::Again(_) | Decision::Wait => {}
        }
    }

    fn send(&mut self, now: Duration, flight: &mut Flight, orders: &mut Vec<Order>) {
        let Some(member) = flight.free.pop_front() else { return };
        self.tally.attempts += 1;
        self.members[member].track.asked(now);
        self.members[member].in_flight += 1;
        flight.sent.push(Sent { member, at: now, open: true, good: false });
        orders.push(Order::Send { attempt: flight.sent.len() as u32, member });
    }

    /// Cancels what runs.
    fn cut(&mut self, now: Duration, flight: &mut Flight, won: Option<Duration>, orders: &mut Vec<Order>) {
        for (attempt, sent) in (1..).zip(&mut flight.sent).filter(|(_, sent)| sent.open) {
            let took = now.saturating_sub(sent.at);
            let to_blame = won.is_none() && took >= flight.allowed / 2;
            let member = &mut self.members[sent.member];
            member.track.record(now, Sample::of_cut_off(took, won, to_blame));
            (sent.open, member.in_flight) = (false, member.in_flight - 1);
            if attempt == 1 && flight.rules.delay.is_some() {
                self.window.record(now, took);
            }
            orders.push(Order::Cancel { attempt });
        }
    }
}
