//! Questions about what programs printed. Each is answered once: at once if there is something, else
//! when there is or its time is up. Lines wait where they are kept, not here: who asks slowly misses
//! some, and is told how many.

use std::time::Duration;

use wardkeep_proto::{
    Error,
    v1::{self, node_message::Kind as Up},
};

use super::Keeper;
use crate::{error::NodeError, wire};

/// Questions that may wait.
const MOST: usize = 64;
const LONGEST_WAIT: Duration = Duration::from_secs(30);
/// Lines and bytes in a message.
const PAGE: (usize, usize) = (500, 64 * 1_024);

/// A question that waits for something to be printed.
pub(super) struct Waiting {
    asked: v1::ReadOutput,
    until: Duration,
}

impl Keeper {
    pub(super) fn asked_for_output(&mut self, asked: v1::ReadOutput) {
        let wait = wire::to_duration(asked.wait).unwrap_or_default().min(LONGEST_WAIT);
        let until = self.now() + wait;
        let there_is = self
            .setup
            .host
            .output(asked.slot as usize)
            .is_none_or(|tail| tail.newest() > asked.after_sequence);
        if there_is || wait.is_zero() || self.waiting.len() >= MOST {
            self.answer(&asked);
        } else {
            self.waiting.push(Waiting { asked, until });
        }
    }

    /// Answers what can or must be answered by now. To be called often.
    pub(super) fn answer_waiting(&mut self) {
        let now = self.now();
        let host = &self.setup.host;
        let due = |waiting: &mut Waiting| {
            let tail = host.output(waiting.asked.slot as usize);
            now >= waiting.until || tail.is_none_or(|tail| tail.newest() > waiting.asked.after_sequence)
        };
        let due: Vec<_> = self.waiting.extract_if(.., due).collect();
        for waiting in due {
            self.answer(&waiting.asked);
        }
    }

    fn answer(&mut self, asked: &v1::ReadOutput) {
        let mut output = v1::Output { id: asked.id, ..Default::default() };
        match self.setup.host.output(asked.slot as usize) {
            Some(tail) => {
                let page = tail.read(asked.after_sequence, asked.newest.into(), PAGE);
                (output.lines, output.dropped, output.newest_sequence) =
                    (page.lines, page.dropped, page.newest);
            }
            None => {
                let what = format!("node {} has no process ward in slot {}", self.name(), asked.slot);
                output.error = Some(Error::from(NodeError::Misconfigured(what)).into_proto());
            }
        }
        self.send(Up::Output(output));
    }
}
