//! Bytes → chunks, from any point of a stream and through any damage.

use crate::assembly::{Assembly, Dropped, Frame, Outcome};
use crate::counters::Counters;
use crate::header::{ChunkHeader, HEADER_LEN, HeaderError, MAGIC, MAX_CHUNK};
use crate::message::{Message, MessageHeader};
use core::fmt;

/// Bytes of a chunk buffer that takes every chunk of the format. A few times more saves copies.
pub const CHUNK_BUFFER: usize = HEADER_LEN + MAX_CHUNK as usize;

/// What a parser has to say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event<'a> {
    /// A frame, whole and checked.
    Frame(Frame<'a>),
    /// A frame that will not come.
    Dropped(Dropped),
    /// A message that is no picture.
    Message(Message),
}

/// The chunk buffer cannot hold a header and one byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BufferTooSmall;

impl fmt::Display for BufferTooSmall {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "a chunk buffer has at least {} bytes", HEADER_LEN + 1)
    }
}

impl core::error::Error for BufferTooSmall {}

/// Finds chunks in a stream of bytes and joins them to frames, in two buffers of the caller's: one for the bytes of a
/// chunk, one for the payload of a frame (arrays, slices, vectors). What does not fit them is skipped and counted.
///
/// After damage it searches from the next byte on: nothing intact is lost because of what stood before it.
pub struct Parser<C, F> {
    buffer: C,
    /// Bytes pushed and not yet used: `buffer[start..end]`.
    start: usize,
    end: usize,
    /// Of the chunk at `start`, once read.
    header: Option<Header>,
    assembly: Assembly<F>,
    counters: Counters,
}

enum Step {
    /// Nothing more in what is buffered.
    Starved,
    Frame,
    Dropped(Dropped),
    Message(Message),
}

#[derive(Clone, Copy)]
enum Header {
    Picture(ChunkHeader),
    Message(MessageHeader),
}

impl Header {
    fn decode(bytes: &[u8; HEADER_LEN]) -> Result<Self, HeaderError> {
        match ChunkHeader::decode(bytes) {
            Err(HeaderError::Format(0x80..)) => Message::decode_header(bytes).map(Self::Message),
            picture => picture.map(Self::Picture),
        }
    }

    fn payload_len(&self) -> usize {
        match self {
            Self::Picture(header) => header.payload_len(),
            Self::Message(header) => header.payload_len(),
        }
    }

    fn payload_crc(&self) -> u32 {
        match self {
            Self::Picture(header) => header.payload_crc,
            Self::Message(header) => header.crc,
        }
    }
}

impl<C: AsRef<[u8]> + AsMut<[u8]>, F: AsRef<[u8]> + AsMut<[u8]>> Parser<C, F> {
    /// A parser that knows nothing yet. [`CHUNK_BUFFER`] bytes take every chunk.
    pub fn new(chunk_buffer: C, frame_buffer: F) -> Result<Self, BufferTooSmall> {
        if chunk_buffer.as_ref().len() <= HEADER_LEN {
            return Err(BufferTooSmall);
        }
        let assembly = Assembly::new(frame_buffer);
        Ok(Parser { buffer: chunk_buffer, start: 0, end: 0, header: None, assembly, counters: Counters::default() })
    }

    /// What it saw so far.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// Takes bytes off the front of `input` until there is an event; `None` once all are taken. Call it until then.
    pub fn push(&mut self, input: &mut &[u8]) -> Option<Event<'_>> {
        loop {
            match self.step() {
                Step::Frame => return self.assembly.frame().map(Event::Frame),
                Step::Dropped(dropped) => return Some(Event::Dropped(dropped)),
                Step::Message(message) => return Some(Event::Message(message)),
                Step::Starved if input.is_empty() => return None,
                Step::Starved => self.fill(input),
            }
        }
    }

    /// The input has ended, or paused for so long that what is missing will not come: gives up what waits for more
    /// bytes. Call it until it returns `None`; the parser is then ready for a new stream, and keeps its counters.
    pub fn finish(&mut self) -> Option<Event<'_>> {
        loop {
            match self.step() {
                Step::Frame => return self.assembly.frame().map(Event::Frame),
                Step::Dropped(dropped) => return Some(Event::Dropped(dropped)),
                Step::Message(message) => return Some(Event::Message(message)),
                Step::Starved if self.start == self.end => return self.assembly.close(&mut self.counters).map(Event::Dropped),
                Step::Starved => {
                    // A chunk cut short: there may be whole ones behind its header.
                    self.counters.chunks_corrupted += u64::from(self.header.is_some());
                    self.skip(1);
                }
            }
        }
    }

    fn step(&mut self) -> Step {
        while let Some(header) = self.find_header() {
            let length = HEADER_LEN + header.payload_len();
            let Some(payload) = self.buffer.as_ref()[self.start..self.end].get(HEADER_LEN..length) else { break };
            if crc32fast::hash(payload) != header.payload_crc() {
                self.counters.chunks_corrupted += 1;
                self.skip(1);
                continue;
            }
            let header = match header {
                Header::Picture(header) => header,
                Header::Message(header) => {
                    let message = header.message(payload);
                    self.counters.messages += 1;
                    self.used(length);
                    return Step::Message(message);
                }
            };
            let outcome = self.assembly.accept(&header, payload, &mut self.counters);
            if let Outcome::Displaced(dropped) = outcome {
                return Step::Dropped(dropped);
            }
            self.used(length);
            match outcome {
                Outcome::Complete => return Step::Frame,
                Outcome::Dropped(dropped) => return Step::Dropped(dropped),
                Outcome::Pending | Outcome::Displaced(_) => {}
            }
        }
        Step::Starved
    }

    /// Moves `start` to the next header, and reads it if it is all there.
    fn find_header(&mut self) -> Option<Header> {
        while self.header.is_none() {
            let bytes = &self.buffer.as_ref()[self.start..self.end];
            let begins = |at: &usize| bytes[*at..].iter().zip(MAGIC).all(|(a, b)| *a == b);
            let at = (0..bytes.len()).find(begins).unwrap_or(bytes.len());
            let header = bytes[at..].first_chunk().map(Header::decode);
            self.skip(at);
            match header? {
                Ok(header) if self.fits(&header) => self.header = Some(header),
                Err(HeaderError::Magic | HeaderError::Checksum) => {
                    self.counters.headers_corrupted += 1;
                    self.skip(1);
                }
                _ => {
                    self.counters.headers_refused += 1;
                    self.skip(1);
                }
            }
        }
        self.header
    }

    fn fits(&self, header: &Header) -> bool {
        let frame = match header {
            Header::Picture(header) => header.frame.length as usize,
            Header::Message(_) => 0,
        };
        HEADER_LEN + header.payload_len() <= self.buffer.as_ref().len() && frame <= self.assembly.capacity()
    }

    /// An intact chunk has been taken.
    fn used(&mut self, bytes: usize) {
        self.counters.bytes_accepted += bytes as u64;
        self.start += bytes;
        self.header = None;
    }

    fn skip(&mut self, bytes: usize) {
        self.header = self.header.filter(|_| bytes == 0);
        self.start += bytes;
        self.counters.bytes_skipped += bytes as u64;
    }

    /// Moves input to the buffer. What is buffered is less than a chunk, so there is always room after moving it to the front.
    fn fill(&mut self, input: &mut &[u8]) {
        let buffer = self.buffer.as_mut();
        if self.start == self.end || self.end == buffer.len() {
            buffer.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        let (taken, rest) = input.split_at(input.len().min(buffer.len() - self.end));
        buffer[self.end..][..taken.len()].copy_from_slice(taken);
        self.end += taken.len();
        self.counters.bytes += taken.len() as u64;
        *input = rest;
    }
}
