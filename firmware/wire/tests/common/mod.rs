//! Shared by the integration tests and the fuzz targets.
#![allow(dead_code)] // no test uses all of it

use edge_wire::*;

pub type VecParser = Parser<Vec<u8>, Vec<u8>>;

pub fn parser() -> VecParser {
    Parser::new(vec![0; CHUNK_BUFFER], vec![0; 1 << 16]).unwrap()
}

/// A frame as tests keep it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owned {
    pub info: FrameInfo,
    pub payload: Vec<u8>,
}

impl From<Frame<'_>> for Owned {
    fn from(f: Frame) -> Self {
        Owned { info: f.info, payload: f.payload.to_vec() }
    }
}

impl Owned {
    /// A JPEG frame (any payload will do) that differs from every other of its kind.
    pub fn test(sequence: u32, length: usize) -> Self {
        let mut random = fastrand::Rng::with_seed(u64::from(sequence) ^ ((length as u64) << 32));
        let payload = (0..length).map(|_| random.u8(..)).collect();
        let info = FrameInfo::jpeg(64, 64, length as u32).unwrap();
        Owned { info: FrameInfo { sequence, timestamp_us: sequence.wrapping_mul(33_333), ..info }, payload }
    }

    pub fn packets(&self, chunk_size: u16) -> Vec<Vec<u8>> {
        Chunks::new(self.info, &self.payload, chunk_size).unwrap().map(|c| [&c.header, c.payload].concat()).collect()
    }
}

/// Everything a receiver says about a stream.
#[derive(Debug, Default)]
pub struct Received {
    pub frames: Vec<Owned>,
    pub dropped: Vec<Dropped>,
    pub messages: Vec<Message>,
}

impl Received {
    fn event(&mut self, event: Event) {
        match event {
            Event::Frame(f) => {
                assert_eq!(f.payload.len(), f.info.length as usize);
                f.info.validate().unwrap();
                self.frames.push(f.into());
            }
            Event::Dropped(d) => self.dropped.push(d),
            Event::Message(m) => {
                // Whatever is in it, nothing panics.
                let _ = (Command::decode(&m), Reply::decode(&m), Statistics::decode(&m));
                self.messages.push(m);
            }
        }
    }

    pub fn push(&mut self, parser: &mut VecParser, mut bytes: &[u8]) {
        while let Some(event) = parser.push(&mut bytes) {
            self.event(event);
        }
        assert!(bytes.is_empty());
    }

    pub fn finish(&mut self, parser: &mut VecParser) {
        while let Some(event) = parser.finish() {
            self.event(event);
        }
        let c = parser.counters();
        assert_eq!(c.bytes, c.bytes_accepted + c.bytes_skipped, "{c:?}");
        assert_eq!(c.frames_incomplete + c.frames_corrupted, self.dropped.len() as u64, "{c:?}");
        assert_eq!(c.messages, self.messages.len() as u64, "{c:?}");
        assert_eq!(c.frames_ok, self.frames.len() as u64, "{c:?}");
        assert!(c.frames_ok + c.frames_incomplete + c.frames_corrupted <= c.chunks_stored, "{c:?}");
        assert!(c.bytes_accepted >= (HEADER_LEN as u64 + 1) * (c.chunks_stored + c.chunks_repeated + c.chunks_late + c.messages), "{c:?}");
    }
}

/// Pushes a whole stream in pieces of random length.
pub fn receive(bytes: &[u8], seed: u64) -> (Received, Counters) {
    let (mut parser, mut received) = (parser(), Received::default());
    let mut random = fastrand::Rng::with_seed(seed);
    let longest = 1 << random.u32(0..16);
    let mut rest = bytes;
    while !rest.is_empty() {
        let (piece, later) = rest.split_at(random.usize(1..=longest).min(rest.len()));
        received.push(&mut parser, piece);
        rest = later;
    }
    received.finish(&mut parser);
    (received, parser.counters())
}

/// One fuzz input. Its first 8 bytes choose how the rest is used: as a stream, or as changes to a good stream.
/// No frame may come out that did not go in, whatever the input.
pub fn fuzz(input: &[u8]) {
    let Some((seed, data)) = input.split_first_chunk().map(|(s, d)| (u64::from_le_bytes(*s), d)) else { return };
    let (seed, mutate) = (seed >> 1, seed & 1 == 1);
    if !mutate {
        receive(data, seed);
        return;
    }
    let mut random = fastrand::Rng::with_seed(seed);
    let first = if random.bool() { u32::MAX - 1 } else { random.u32(..) };
    let sent: Vec<Owned> = (0..3).map(|i| Owned::test(first.wrapping_add(i), random.usize(1..200))).collect();
    let chunk_size = random.u16(20..=200);
    let message = Command::SetSize { width: random.u16(..), height: random.u16(..) }.encode(random.u32(..));
    let mut stream = sent.iter().flat_map(|f| f.packets(chunk_size)).flatten().collect::<Vec<u8>>();
    let (bytes, length) = message.encode();
    stream.extend_from_slice(&bytes[..length]);
    let by = random.usize(..stream.len());
    stream.rotate_right(by);
    // Each change is an operation, a place, a length, and a byte.
    for change in data.chunks_exact(4) {
        if stream.is_empty() {
            break;
        }
        let at = usize::from(u16::from_le_bytes([change[1], change[2]])) % stream.len();
        let end = (at + usize::from(change[3])).min(stream.len());
        match change[0] % 5 {
            0 => stream[at] ^= change[3],
            1 => drop(stream.drain(at..end)),
            2 => stream.extend_from_within(at..end),
            3 => stream[at..end].reverse(),
            _ => stream.insert(at, change[3]),
        }
    }
    let (received, _) = receive(&stream, seed);
    for frame in received.frames {
        assert!(sent.contains(&frame), "a frame that nobody sent: {:?}", frame.info);
    }
    assert!(received.messages.iter().all(|m| *m == message), "a message that nobody sent: {:?}", received.messages);
}
