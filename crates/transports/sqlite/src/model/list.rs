//! The list: each message with its own state, and nothing done together.

#[derive(Clone, Copy, Debug)]
pub(super) struct New {
    pub(super) key: Option<u8>,
    pub(super) priority: Option<u8>,
    pub(super) delay: u64,
    pub(super) expires: Option<u64>,
    pub(super) failed: u32,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum How {
    Ack,
    Release,
    Retry(u64),
    Reject,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Ready,
    Behind,
    Leased,
    Held,
    Delayed,
}
use State::{Behind, Delayed, Held, Leased, Ready};

#[derive(Clone, Copy, Debug)]
struct Message {
    id: i64,
    key: Option<u8>,
    rank: i64,
    place: i64,
    state: State,
    due: i64,
    expires: Option<i64>,
    received: u32,
    failed: u32,
}

/// The list, and what is known of deliveries.
pub(super) struct Model {
    pub(super) now: i64,
    next: i64,
    messages: Vec<Message>,
    /// Message and number of each delivery there was.
    pub(super) deliveries: Vec<(i64, u32)>,
    pub(super) rejected: u64,
}

impl Model {
    pub(super) fn new(now: i64) -> Self {
        Self { now, next: 1, messages: Vec::new(), deliveries: Vec::new(), rejected: 0 }
    }

    fn take_next(&mut self) -> i64 {
        self.next += 1;
        self.next - 1
    }

    fn in_line(&self, key: Option<u8>, before: i64) -> bool {
        let is = |m: &&Message| m.key == key && m.state != Delayed && m.place < before;
        key.is_some() && self.messages.iter().any(|m| is(&m))
    }

    fn at(&mut self, id: i64) -> &mut Message {
        self.messages.iter_mut().find(|m| m.id == id).unwrap()
    }

    fn remove(&mut self, id: i64) {
        let key = self.at(id).key;
        self.messages.retain(|m| m.id != id);
        self.promote(key);
    }

    fn promote(&mut self, key: Option<u8>) {
        let line = self.messages.iter_mut().filter(|m| key.is_some() && m.key == key && m.state != Delayed);
        if let Some(first) = line.min_by_key(|m| m.place)
            && first.state == Behind
        {
            first.state = Ready;
        }
    }

    /// Under the id that it got: a number may be left out.
    pub(super) fn publish(&mut self, id: i64, new: New) {
        assert!(id >= self.next);
        self.next = id + 1;
        let state = match new.delay {
            0 if self.in_line(new.key, i64::MAX) => Behind,
            0 => Ready,
            _ => Delayed,
        };
        self.messages.push(Message {
            id,
            key: new.key,
            rank: 255 - i64::from(new.priority.unwrap_or(0)),
            place: id,
            state,
            due: self.after(new.delay),
            expires: new.expires.map(|expires| self.after(expires)),
            received: 0,
            failed: new.failed,
        });
    }

    pub(super) fn after(&self, seconds: u64) -> i64 {
        self.now + 1000 * i64::try_from(seconds).unwrap()
    }

    fn wake(&mut self) {
        let now = self.now;
        let is_due = |m: &&Message| matches!(m.state, Leased | Held | Delayed) && m.due <= now;
        let mut due: Vec<_> = self.messages.iter().filter(is_due).map(|m| (m.due, m.id)).collect();
        due.sort_unstable();
        for (_, id) in due {
            let Message { key, place, state, .. } = *self.at(id);
            let (place, before) =
                if state == Delayed { (self.take_next(), i64::MAX) } else { (place, place) };
            let behind = self.in_line(key, before);
            let message = self.at(id);
            message.failed += u32::from(state == Leased);
            message.state = if behind { Behind } else { Ready };
            message.place = place;
        }
    }

    pub(super) fn claim(&mut self, max: usize, any: bool, lease: u64) -> Vec<(i64, u32, u32)> {
        self.wake();
        let mut claimed = Vec::new();
        for state in if any { &[Ready, Behind][..] } else { &[Ready] } {
            while claimed.len() < max {
                let mut waiting: Vec<_> = self.messages.iter().filter(|m| m.state == *state).collect();
                waiting.sort_unstable_by_key(|m| (m.rank, m.place));
                let ids: Vec<_> = waiting.iter().take(max - claimed.len()).map(|m| m.id).collect();
                if ids.is_empty() {
                    break;
                }
                let due = self.after(lease);
                for id in &ids {
                    let message = self.at(*id);
                    (message.state, message.due) = (Leased, due);
                    message.received += 1;
                }
                for id in ids {
                    let Message { expires, received, failed, .. } = *self.at(id);
                    if expires.is_some_and(|expires| expires <= self.now) {
                        self.remove(id);
                    } else {
                        claimed.push((id, received, failed));
                    }
                }
            }
        }
        self.deliveries.extend(claimed.iter().map(|(id, received, _)| (*id, *received)));
        claimed
    }

    fn is_ours(&self, (id, received): (i64, u32)) -> bool {
        let is = |m: &Message| m.id == id && m.received == received && m.state == Leased && m.due > self.now;
        self.messages.iter().any(is)
    }

    pub(super) fn settle(&mut self, delivery: (i64, u32), how: How) -> bool {
        if !self.is_ours(delivery) {
            return false;
        }
        let id = delivery.0;
        let Message { key, place, .. } = *self.at(id);
        let behind = self.in_line(key, place);
        match how {
            How::Ack => self.remove(id),
            How::Reject => {
                self.take_next();
                self.rejected += 1;
                self.remove(id);
            }
            How::Release => self.at(id).state = if behind { Behind } else { Ready },
            How::Retry(after) => {
                let (due, place) =
                    (self.after(after), if key.is_none() && after == 0 { self.take_next() } else { place });
                let message = self.at(id);
                message.failed += 1;
                (message.due, message.place) = (due, place);
                message.state = match (key, after) {
                    (_, 0) => Ready,
                    (Some(_), _) => Held,
                    (None, _) => Delayed,
                };
            }
        }
        true
    }

    pub(super) fn extend(&mut self, delivery: (i64, u32), by: u64) -> bool {
        let ours = self.is_ours(delivery);
        if ours {
            self.at(delivery.0).due = self.after(by);
        }
        ours
    }

    pub(super) fn purge(&mut self) {
        self.wake();
        self.take_next();
        self.messages.retain(|m| !matches!(m.state, Ready | Behind));
    }

    /// Ready, unsettled and delayed ones.
    pub(super) fn depth(&self) -> [u64; 3] {
        let count = |which: &dyn Fn(&Message) -> bool| {
            u64::try_from(self.messages.iter().filter(|m| which(m)).count()).unwrap()
        };
        let later = |m: &Message| m.due > self.now;
        [
            count(&|m| matches!(m.state, Ready | Behind) || !later(m)),
            count(&|m| m.state == Leased && later(m)),
            count(&|m| matches!(m.state, Held | Delayed) && later(m)),
        ]
    }
}
