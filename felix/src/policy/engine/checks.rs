//! What the thread reads back: slow checks that find what somebody else has changed, and answers to who asks for the
//! kernel's own word. Both read on a thread of their own; whoever has something to write is served meanwhile.

use std::time::{Duration, Instant};

use brindle_felix_core::policy::active::{EndpointId, Interface};
use tokio::sync::oneshot;

use super::{CHECK, Engine};
use crate::policy::{
    driver::DriveError,
    handle::Verified,
    readback::{Look, Reading},
};

/// A check that takes long is followed by a pause so many times as long.
const REST: u32 = 20;
/// Readings that writes have overtaken before a question is answered by one on the thread itself.
const OVERTAKEN: u32 = 3;

type Question = (EndpointId, oneshot::Sender<Verified>);

/// Who waits for the kernel's own word about a workload.
#[derive(Default)]
pub(super) struct Questions {
    asked: Vec<Question>,
    /// Those the reading under way is for: it began after they were asked.
    reading: Vec<Question>,
    /// Readings for them that came too late, in a row.
    overtaken: u32,
}

impl Questions {
    pub(super) fn ask(&mut self, id: EndpointId, who: oneshot::Sender<Verified>) {
        self.asked.push((id, who));
    }
}

fn answer_all(who: Vec<Question>, why: &str) {
    for (_, who) in who {
        // Who has gone away needs no answer.
        drop(who.send(Err(why.to_owned())));
    }
}

impl Engine {
    /// A reading has ended. It answers the questions it is for if it shows what was last written, before anything is
    /// mended.
    pub(super) fn looked(&mut self, answer: Option<(Result<Reading, DriveError>, Duration)>, since: u64) {
        let asked = std::mem::take(&mut self.questions.reading);
        match answer {
            Some((Ok(reading), took)) => {
                self.look_took = took;
                let adopted = self.driver.adopt(reading, since);
                self.found |= adopted;
                if adopted && self.settled() {
                    self.tell(asked);
                    return;
                }
                self.questions.overtaken += u32::from(!asked.is_empty());
            }
            Some((Err(e), _)) => {
                // What stands in the way of writing shows when it is done again by ourselves.
                self.check_now = true;
                answer_all(asked, &e.to_string());
                return;
            }
            None => {
                self.check_now = true;
                self.questions.overtaken = OVERTAKEN;
            }
        }
        // Once more, before those who came later.
        self.questions.asked.splice(0..0, asked);
    }

    /// Begins to read for those who ask for the kernel's own word, once all that is known has been written. `last`:
    /// whoever cannot be helped is told why. Whether the kernel was read at once and lacks anything.
    pub(super) fn verify(&mut self, last: bool) -> bool {
        self.questions.asked.retain(|(_, who)| !who.is_closed());
        if self.questions.asked.is_empty() {
            return false;
        }
        let deltas = self.calculation.flush();
        self.learn(deltas);
        if !self.settled() {
            if last {
                let known = self.mode_problem.as_ref().or(self.problem.as_ref());
                let why =
                    known.map_or("policy is not in force yet: the resources are not known", String::as_str);
                answer_all(std::mem::take(&mut self.questions.asked), why);
            }
            return false;
        }
        // A reading that began before the question may not show what it is about.
        if self.look.is_some() {
            return false;
        }
        if self.questions.overtaken < OVERTAKEN && self.begin_look(Instant::now()) {
            self.questions.reading = std::mem::take(&mut self.questions.asked);
            return false;
        }
        let asked = std::mem::take(&mut self.questions.asked);
        match self.driver.read_again() {
            Ok(()) => {
                self.found = true;
                self.tell(asked)
            }
            Err(e) => {
                self.check_now = true;
                answer_all(asked, &e.to_string());
                false
            }
        }
    }

    /// Answers with what has just been read. Whether the kernel lacks anything.
    fn tell(&mut self, asked: Vec<Question>) -> bool {
        if asked.is_empty() {
            return false;
        }
        self.questions.overtaken = 0;
        let device = |id: &EndpointId| match self.model.endpoints.get(id).map(|e| &e.interface) {
            Some(Interface::Name(device)) => Some(device.clone()),
            _ => None,
        };
        let devices: Vec<Option<String>> = asked.iter().map(|(id, _)| device(id)).collect();
        let known: Vec<&str> = devices.iter().flatten().map(String::as_str).collect();
        let layouts = self.layouts();
        let lacking = self.driver.lacking(&layouts, &known);
        let any = lacking.iter().any(|lines| !lines.is_empty());
        let mut lacking = lacking.into_iter();
        for ((id, who), device) in asked.into_iter().zip(devices) {
            let answer = match device {
                None => vec![format!("{id} is not known to policy")],
                Some(_) => lacking.next().unwrap_or_default(),
            };
            // Who has gone away needs no answer.
            drop(who.send(Ok(answer)));
        }
        any
    }

    /// Begins a check when one is due. `true`: reading cannot be left to another thread; the next write reads first.
    pub(super) fn check(&mut self, now: Instant) -> bool {
        let due = self.look.is_none() && self.check_at.is_some_and(|t| t <= now);
        // Whoever writes without a pause overtakes every reading.
        let overdue = due && now.duration_since(self.compared) > self.settings.refresh + CHECK;
        if due && !overdue && !self.check_now && self.begin_look(now) {
            return false;
        }
        let must = due || std::mem::take(&mut self.check_now);
        if must {
            self.driver.doubt();
        }
        must
    }

    /// `false`: what is in the kernel is not known well enough to be compared, or there is no thread to be had.
    fn begin_look(&mut self, now: Instant) -> bool {
        let families = self.driver.families().to_vec();
        let writes = self.driver.writes();
        self.look = self.driver.reader().and_then(|(nf, mode)| Look::begin(nf, mode, families, writes));
        if self.look.is_some() {
            self.check_at = Some(now + self.pause());
        }
        self.look.is_some()
    }

    pub(super) fn pause(&self) -> Duration {
        self.check_pause.max(self.look_took * REST).min(self.settings.refresh)
    }
}
