//! What is sent beside pictures: commands to the camera, their replies, and statistics.
//!
//! A message is one chunk whose format is a [`Kind`] (0x80 and up), whose width, height and index are 0, whose chunk
//! size is its length, whose two payload CRCs are equal, and whose sequence is the message's number. A reply repeats the
//! number of its command. Receivers older than messages skip them.

use crate::header::{HEADER_LEN, HeaderError, MAGIC, PixelFormat, VERSION};
use byteorder::{ByteOrder, LittleEndian as LE};
use core::fmt;

/// Most payload bytes of a message.
pub const MAX_MESSAGE: usize = 64;
/// Most bytes of a message on the link.
pub const MESSAGE_BUFFER: usize = HEADER_LEN + MAX_MESSAGE;

/// What a message is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// Host to camera: a [`Command`].
    Command = 0x80,
    /// Camera to host: a [`Reply`].
    Reply = 0x81,
    /// Camera to host, unasked: [`Statistics`].
    Statistics = 0x82,
}

impl Kind {
    fn from_code(code: u8) -> Option<Self> {
        [Self::Command, Self::Reply, Self::Statistics].into_iter().find(|k| *k as u8 == code)
    }
}

/// A message, whole and checked; what is in it is for [`Command::decode`], [`Reply::decode`], [`Statistics::decode`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Message {
    /// What it is.
    pub kind: Kind,
    /// As in a frame's header.
    pub session: u8,
    /// Chosen by the sender of a command, repeated by the reply; counts statistics.
    pub number: u32,
    /// Sender's time, µs; wraps.
    pub timestamp_us: u32,
    length: u8,
    bytes: [u8; MAX_MESSAGE],
}

impl Message {
    /// A message of up to [`MAX_MESSAGE`] bytes; what is beyond them is cut.
    fn new(kind: Kind, number: u32, payload: &[u8]) -> Self {
        let payload = &payload[..payload.len().min(MAX_MESSAGE)];
        let mut bytes = [0; MAX_MESSAGE];
        bytes[..payload.len()].copy_from_slice(payload);
        Message { kind, session: 0, number, timestamp_us: 0, length: payload.len() as u8, bytes }
    }

    /// Its content.
    pub fn payload(&self) -> &[u8] {
        &self.bytes[..usize::from(self.length)]
    }

    /// The message as it goes over the link, and its length there.
    pub fn encode(&self) -> ([u8; MESSAGE_BUFFER], usize) {
        let mut b = [0; MESSAGE_BUFFER];
        let payload_crc = crc32fast::hash(self.payload());
        b[..4].copy_from_slice(&MAGIC);
        b[4] = VERSION;
        b[6] = self.kind as u8;
        b[7] = self.session;
        LE::write_u32(&mut b[8..], self.number);
        LE::write_u32(&mut b[12..], self.timestamp_us);
        LE::write_u32(&mut b[20..], u32::from(self.length));
        LE::write_u16(&mut b[24..], u16::from(self.length));
        LE::write_u32(&mut b[28..], payload_crc);
        LE::write_u32(&mut b[32..], payload_crc);
        let crc = crc32fast::hash(&b[..36]);
        LE::write_u32(&mut b[36..], crc);
        b[HEADER_LEN..][..usize::from(self.length)].copy_from_slice(self.payload());
        (b, HEADER_LEN + usize::from(self.length))
    }

    /// Reads the header of a message.
    pub(crate) fn decode_header(b: &[u8; HEADER_LEN]) -> Result<MessageHeader, HeaderError> {
        if b[..4] != MAGIC {
            return Err(HeaderError::Magic);
        }
        if crc32fast::hash(&b[..36]) != LE::read_u32(&b[36..]) {
            return Err(HeaderError::Checksum);
        }
        if b[4] != VERSION {
            return Err(HeaderError::Version(b[4]));
        }
        let kind = Kind::from_code(b[6]).ok_or(HeaderError::Format(b[6]))?;
        let length = LE::read_u32(&b[20..]);
        if length == 0 || length > MAX_MESSAGE as u32 {
            return Err(HeaderError::Length);
        }
        if b[16..20] != [0; 4] {
            return Err(HeaderError::Size);
        }
        let crc = LE::read_u32(&b[32..]);
        if u32::from(LE::read_u16(&b[24..])) != length || b[26..28] != [0; 2] || LE::read_u32(&b[28..]) != crc {
            return Err(HeaderError::Chunking);
        }
        let (number, timestamp_us) = (LE::read_u32(&b[8..]), LE::read_u32(&b[12..]));
        Ok(MessageHeader { kind, session: b[7], number, timestamp_us, length: length as u8, crc })
    }
}

/// A message's header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct MessageHeader {
    kind: Kind,
    session: u8,
    number: u32,
    timestamp_us: u32,
    length: u8,
    pub crc: u32,
}

impl MessageHeader {
    pub fn payload_len(&self) -> usize {
        usize::from(self.length)
    }

    pub fn message(&self, payload: &[u8]) -> Message {
        Message { session: self.session, timestamp_us: self.timestamp_us, ..Message::new(self.kind, self.number, payload) }
    }
}

/// A setting that the sensor finds itself, or is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Level {
    /// The sensor's own control loop.
    Auto,
    /// A fixed value. Exposure: rows of the sensor's readout. Gain: sixteenths (16 is 1×).
    Manual(u16),
}

/// What the host may ask of a camera. Every command can be sent again without harm.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Command {
    /// Nothing but a reply.
    Ping,
    /// Stream pictures.
    Start,
    /// Stream no more; a frame that was begun is finished.
    Stop,
    /// Reply with [`Statistics`].
    GetStatistics,
    /// Pixels of the pictures.
    SetFormat(PixelFormat),
    /// Size of the pictures, in pixels.
    SetSize {
        /// At least 1.
        width: u16,
        /// At least 1.
        height: u16,
    },
    /// Exposure time.
    SetExposure(Level),
    /// Analogue gain.
    SetGain(Level),
    /// Mirror images.
    SetFlip {
        /// Left is right.
        horizontal: bool,
        /// Up is down.
        vertical: bool,
    },
    /// Colour bars instead of the scene.
    SetTestPattern(bool),
}

impl Command {
    /// The first byte of its payload.
    pub fn opcode(&self) -> u8 {
        match self {
            Self::Ping => 0,
            Self::Start => 1,
            Self::Stop => 2,
            Self::GetStatistics => 3,
            Self::SetFormat(_) => 4,
            Self::SetSize { .. } => 5,
            Self::SetExposure(_) => 6,
            Self::SetGain(_) => 7,
            Self::SetFlip { .. } => 8,
            Self::SetTestPattern(_) => 9,
        }
    }

    /// The message that carries it.
    pub fn encode(&self, number: u32) -> Message {
        let mut b = [self.opcode(), 0, 0, 0, 0];
        let length = match *self {
            Self::Ping | Self::Start | Self::Stop | Self::GetStatistics => 1,
            Self::SetFormat(format) => {
                b[1] = format as u8;
                2
            }
            Self::SetSize { width, height } => {
                LE::write_u16(&mut b[1..], width);
                LE::write_u16(&mut b[3..], height);
                5
            }
            Self::SetExposure(level) | Self::SetGain(level) => {
                if let Level::Manual(value) = level {
                    b[1] = 1;
                    LE::write_u16(&mut b[2..], value);
                }
                4
            }
            Self::SetFlip { horizontal, vertical } => {
                b[1] = u8::from(horizontal) | u8::from(vertical) << 1;
                2
            }
            Self::SetTestPattern(on) => {
                b[1] = u8::from(on);
                2
            }
        };
        Message::new(Kind::Command, number, &b[..length])
    }

    /// Reads a command; [`Status::Unsupported`] where the opcode is unknown, [`Status::Malformed`] where its content is wrong.
    pub fn decode(message: &Message) -> Result<Self, Status> {
        let level = |b: &[u8]| match b {
            [0, 0, 0] => Ok(Level::Auto),
            [1, low, high] => Ok(Level::Manual(u16::from_le_bytes([*low, *high]))),
            _ => Err(Status::Malformed),
        };
        let flags = |b: &[u8], most: u8| match b {
            [v] if *v <= most => Ok(*v),
            _ => Err(Status::Malformed),
        };
        let (opcode, rest) = message.payload().split_first().ok_or(Status::Malformed)?;
        let bare = |command| if rest.is_empty() { Ok(command) } else { Err(Status::Malformed) };
        if message.kind != Kind::Command {
            return Err(Status::Malformed);
        }
        match opcode {
            0 => bare(Self::Ping),
            1 => bare(Self::Start),
            2 => bare(Self::Stop),
            3 => bare(Self::GetStatistics),
            4 => flags(rest, u8::MAX).and_then(|code| PixelFormat::from_code(code).map(Self::SetFormat).ok_or(Status::Unsupported)),
            5 => match rest {
                [a, b, c, d] => Ok(Self::SetSize { width: u16::from_le_bytes([*a, *b]), height: u16::from_le_bytes([*c, *d]) }),
                _ => Err(Status::Malformed),
            },
            6 => level(rest).map(Self::SetExposure),
            7 => level(rest).map(Self::SetGain),
            8 => flags(rest, 3).map(|v| Self::SetFlip { horizontal: v & 1 != 0, vertical: v & 2 != 0 }),
            9 => flags(rest, 1).map(|v| Self::SetTestPattern(v != 0)),
            _ => Err(Status::Unsupported),
        }
    }
}

/// How a command went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[repr(u8)]
pub enum Status {
    /// Done.
    Ok = 0,
    /// This camera cannot do that, or does not know the command.
    Unsupported = 1,
    /// It can, but not with this value.
    OutOfRange = 2,
    /// The sensor did not do as it was told.
    SensorFault = 3,
    /// The command's content is wrong.
    Malformed = 4,
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(match self {
            Self::Ok => "done",
            Self::Unsupported => "the camera cannot do that",
            Self::OutOfRange => "the value is out of the camera's range",
            Self::SensorFault => "the sensor did not respond; see the camera's log",
            Self::Malformed => "the camera did not understand the command",
        })
    }
}

/// A camera's answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reply {
    /// Of the command.
    pub opcode: u8,
    /// How it went.
    pub status: Status,
    /// What [`Command::GetStatistics`] asks for.
    pub statistics: Option<Statistics>,
}

impl Reply {
    /// The message that carries it; `number` is the command's.
    pub fn encode(&self, number: u32) -> Message {
        let mut b = [0; 2 + Statistics::LEN];
        (b[0], b[1]) = (self.opcode, self.status as u8);
        let length = match self.statistics {
            Some(statistics) => {
                b[2..].copy_from_slice(&statistics.bytes());
                b.len()
            }
            None => 2,
        };
        Message::new(Kind::Reply, number, &b[..length])
    }

    /// Reads a reply; `None` if the message is none.
    pub fn decode(message: &Message) -> Option<Self> {
        let [opcode, status, rest @ ..] = message.payload() else { return None };
        let all = [Status::Ok, Status::Unsupported, Status::OutOfRange, Status::SensorFault, Status::Malformed];
        let status = all.into_iter().find(|s| *s as u8 == *status).filter(|_| message.kind == Kind::Reply)?;
        let statistics = if rest.is_empty() { None } else { Some(Statistics::from_bytes(rest)?) };
        Some(Reply { opcode: *opcode, status, statistics })
    }
}

/// What a camera did since it started. `captured` = `sent` + `dropped` + those (at most two) that are on their way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Statistics {
    /// Milliseconds; wraps after 49.7 days.
    pub uptime_ms: u32,
    /// Pictures that the sensor took.
    pub captured: u32,
    /// Given to the link whole.
    pub sent: u32,
    /// Not sent, because the link was busy or the stream was stopped.
    pub dropped: u32,
    /// Captures that failed: sensor faults, pictures too large for the buffer.
    pub failed: u32,
    /// Bytes given to the link.
    pub bytes_sent: u64,
    /// Intact commands, repeated ones included.
    pub commands: u32,
    /// Bytes from the host that were no message.
    pub bytes_skipped: u32,
}

impl Statistics {
    const LEN: usize = 36;

    fn bytes(&self) -> [u8; Self::LEN] {
        let mut b = [0; Self::LEN];
        let words = [self.uptime_ms, self.captured, self.sent, self.dropped, self.failed, self.commands, self.bytes_skipped];
        for (at, word) in words.into_iter().enumerate() {
            LE::write_u32(&mut b[4 * at..], word);
        }
        LE::write_u64(&mut b[28..], self.bytes_sent);
        b
    }

    fn from_bytes(b: &[u8]) -> Option<Self> {
        // A later version may append.
        let b = b.get(..Self::LEN)?;
        let word = |at: usize| LE::read_u32(&b[4 * at..]);
        Some(Statistics {
            uptime_ms: word(0),
            captured: word(1),
            sent: word(2),
            dropped: word(3),
            failed: word(4),
            commands: word(5),
            bytes_skipped: word(6),
            bytes_sent: LE::read_u64(&b[28..]),
        })
    }

    /// The message that carries them.
    pub fn encode(&self, number: u32) -> Message {
        Message::new(Kind::Statistics, number, &self.bytes())
    }

    /// Reads statistics, from a message of their own or a reply; `None` if there are none in it.
    pub fn decode(message: &Message) -> Option<Self> {
        match message.kind {
            Kind::Statistics => Self::from_bytes(message.payload()),
            Kind::Reply => Reply::decode(message)?.statistics,
            Kind::Command => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    extern crate std;
    use std::vec::Vec;

    fn commands() -> Vec<Command> {
        let mut all = std::vec![Command::Ping, Command::Start, Command::Stop, Command::GetStatistics];
        all.extend(PixelFormat::ALL.map(Command::SetFormat));
        for level in [Level::Auto, Level::Manual(0), Level::Manual(65_535)] {
            all.extend([Command::SetExposure(level), Command::SetGain(level)]);
        }
        for on in [false, true] {
            all.extend([Command::SetFlip { horizontal: on, vertical: !on }, Command::SetTestPattern(on)]);
        }
        all.push(Command::SetSize { width: 160, height: 0x1234 });
        all
    }

    #[test]
    fn commands_come_back() {
        for command in commands() {
            let message = command.encode(7);
            assert_eq!((message.number, Command::decode(&message)), (7, Ok(command)));
            // A byte more or less is never another command.
            for length in [message.payload().len() - 1, message.payload().len() + 1] {
                let other = Message { length: length as u8, ..message };
                assert_eq!(Command::decode(&other), Err(Status::Malformed), "{command:?}");
            }
        }
        assert_eq!(Command::decode(&Message::new(Kind::Command, 0, &[10])), Err(Status::Unsupported));
        assert_eq!(Command::decode(&Message::new(Kind::Command, 0, &[4, 99])), Err(Status::Unsupported));
        assert_eq!(Command::decode(&Message::new(Kind::Reply, 0, &[0])), Err(Status::Malformed));
    }

    #[test]
    fn replies_and_statistics_come_back() {
        let statistics = Statistics { captured: 5, sent: 3, dropped: 2, bytes_sent: 1 << 40, bytes_skipped: 9, ..Statistics::default() };
        for statistics in [None, Some(statistics)] {
            let reply = Reply { opcode: 3, status: Status::OutOfRange, statistics };
            let message = reply.encode(u32::MAX);
            assert_eq!((Reply::decode(&message), Statistics::decode(&message)), (Some(reply), statistics));
        }
        assert_eq!(Statistics::decode(&statistics.encode(1)), Some(statistics));
        assert_eq!(Reply::decode(&Command::SetTestPattern(true).encode(1)), None);
        assert_eq!(Reply::decode(&Message::new(Kind::Reply, 1, &[0, 5])), None);
        assert_eq!(Reply::decode(&Message::new(Kind::Reply, 1, &[0, 0, 1])), None);
    }

    /// Recorded once; receivers rely on it.
    #[test]
    fn the_layout_is_fixed() {
        let message = Message { session: 3, timestamp_us: 0x0403_0201, ..Command::SetSize { width: 160, height: 120 }.encode(0x11) };
        let (bytes, length) = message.encode();
        assert_eq!(length, 45);
        assert_eq!(bytes[..20], [0xED, 0x6E, 0x57, 0x1C, 1, 0, 0x80, 3, 0x11, 0, 0, 0, 1, 2, 3, 4, 0, 0, 0, 0]);
        assert_eq!(bytes[20..28], [5, 0, 0, 0, 5, 0, 0, 0]);
        assert_eq!(bytes[28..32], bytes[32..36]);
        assert_eq!(bytes[40..45], [5, 160, 0, 120, 0]);
    }
}
