//! The host's side of a command: sent until it is answered.

use crate::message::{Command, Kind, MESSAGE_BUFFER, Message, Reply};

/// What to do now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action<'a> {
    /// Send these bytes.
    Send(&'a [u8]),
    /// Nothing before this time, unless the reply arrives.
    WaitUntil(u64),
    /// No reply to any of the tries.
    GiveUp,
}

/// One command under way. Times are microseconds of any clock that does not step back.
///
/// Repeats carry the same number, so a camera that did get the first one does not obey twice.
#[derive(Debug, Clone)]
pub struct Request {
    number: u32,
    bytes: [u8; MESSAGE_BUFFER],
    length: usize,
    timeout_us: u64,
    tries: u8,
    due_us: u64,
}

impl Request {
    /// A command to be sent up to `tries` times, `timeout_us` apart.
    pub fn new(command: Command, number: u32, timeout_us: u64, tries: u8) -> Self {
        let (bytes, length) = command.encode(number).encode();
        Request { number, bytes, length, timeout_us, tries, due_us: 0 }
    }

    /// What to do at `now_us`.
    pub fn poll(&mut self, now_us: u64) -> Action<'_> {
        if now_us < self.due_us {
            return Action::WaitUntil(self.due_us);
        }
        if self.tries == 0 {
            return Action::GiveUp;
        }
        self.tries -= 1;
        self.due_us = now_us.saturating_add(self.timeout_us);
        Action::Send(&self.bytes[..self.length])
    }

    /// The reply, if this message is it.
    pub fn reply(&self, message: &Message) -> Option<Reply> {
        (message.kind == Kind::Reply && message.number == self.number).then(|| Reply::decode(message))?
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::Status;

    #[test]
    fn sends_until_the_tries_are_used_up() {
        let mut request = Request::new(Command::Ping, 9, 100, 2);
        let Action::Send(first) = request.poll(5) else { panic!() };
        let first: [u8; 41] = first.try_into().unwrap();
        assert_eq!(request.poll(104), Action::WaitUntil(105));
        assert_eq!(request.poll(105), Action::Send(&first));
        assert_eq!(request.poll(204), Action::WaitUntil(205));
        assert_eq!(request.poll(205), Action::GiveUp);
    }

    #[test]
    fn only_its_own_reply_counts() {
        let request = Request::new(Command::Ping, 9, 100, 2);
        let reply = Reply { opcode: 0, status: Status::Ok, statistics: None };
        assert_eq!(request.reply(&reply.encode(9)), Some(reply));
        assert_eq!(request.reply(&reply.encode(8)), None);
        assert_eq!(request.reply(&Command::Ping.encode(9)), None);
    }
}
