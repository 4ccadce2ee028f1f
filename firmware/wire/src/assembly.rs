//! Chunks → frames: one at a time, the newest.

use crate::counters::Counters;
use crate::header::{ChunkHeader, FrameInfo, MAX_CHUNKS, flags};

/// A chunk whose sequence is behind the newest by at most this much is late; further behind, the sender has begun anew.
const LATE_WINDOW: i32 = 16;

/// A whole frame, as it was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame<'a> {
    /// What its header says.
    pub info: FrameInfo,
    /// `info.length` bytes.
    pub payload: &'a [u8],
}

/// A frame of which something arrived, but not all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Dropped {
    /// What its header says.
    pub info: FrameInfo,
    /// Why.
    pub reason: Reason,
}

/// Why a frame was given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// Chunks had not arrived when a newer frame began, or the input ended.
    Incomplete {
        /// How many.
        missing: u16,
        /// Of how many.
        chunks: u16,
    },
    /// Its chunks, each intact, do not belong together.
    Checksum,
}

/// What a chunk brings about.
pub(crate) enum Outcome {
    /// The frame goes on.
    Pending,
    /// The frame is whole.
    Complete,
    /// The frame is given up, and the chunk used.
    Dropped(Dropped),
    /// Another frame is given up; the chunk must be offered again.
    Displaced(Dropped),
}

pub(crate) struct Assembly<F> {
    buffer: F,
    /// First header of the newest frame, and whether that is still being received.
    newest: Option<ChunkHeader>,
    open: bool,
    /// The input ended, or paused for long, after the newest frame: no chunk of an older one is still on its way.
    settled: bool,
    received: [u32; MAX_CHUNKS as usize / 32],
    missing: u16,
    /// Said by the last chunk.
    frame_crc: u32,
}

impl<F: AsRef<[u8]> + AsMut<[u8]>> Assembly<F> {
    pub fn new(buffer: F) -> Self {
        Assembly { buffer, newest: None, open: false, settled: false, received: [0; _], missing: 0, frame_crc: 0 }
    }

    pub fn capacity(&self) -> usize {
        self.buffer.as_ref().len()
    }

    /// The newest frame, once whole and until the next chunk.
    pub fn frame(&self) -> Option<Frame<'_>> {
        let info = self.newest?.frame;
        Some(Frame { info, payload: self.buffer.as_ref().get(..info.length as usize)? })
    }

    /// Gives up the frame being received. What comes next is not late, whatever its sequence.
    pub fn close(&mut self, counters: &mut Counters) -> Option<Dropped> {
        self.settled = true;
        let newest = self.newest.filter(|_| core::mem::take(&mut self.open))?;
        counters.frames_incomplete += 1;
        Some(Dropped { info: newest.frame, reason: Reason::Incomplete { missing: self.missing, chunks: newest.count() } })
    }

    /// Takes an intact chunk of a frame that fits the buffer.
    pub fn accept(&mut self, header: &ChunkHeader, payload: &[u8], counters: &mut Counters) -> Outcome {
        let same = self.newest.is_some_and(|n| (n.frame, n.chunk_size) == (header.frame, header.chunk_size));
        if !same {
            let ahead =
                self.newest.map(|n| (n.frame.session == header.frame.session, header.frame.sequence.wrapping_sub(n.frame.sequence)));
            if let Some((true, ahead)) = ahead
                && !self.settled
                && (-LATE_WINDOW..0).contains(&(ahead as i32))
            {
                counters.chunks_late += 1;
                return Outcome::Pending;
            }
            if let Some(dropped) = self.close(counters) {
                return Outcome::Displaced(dropped);
            }
            match ahead {
                None => {}
                Some((true, ahead)) if (ahead as i32) > 0 => {
                    let overrun = header.frame.flags & flags::OVERRUN != 0;
                    let gap = if overrun { &mut counters.frames_overrun } else { &mut counters.frames_missed };
                    *gap += u64::from(ahead - 1);
                }
                Some(_) => counters.restarts += 1,
            }
            self.newest = Some(*header);
            self.settled = false;
            self.open = true;
            self.missing = header.count();
            self.received[..usize::from(header.count()).div_ceil(32)].fill(0);
        }
        self.store(header, payload, counters)
    }

    fn store(&mut self, header: &ChunkHeader, payload: &[u8], counters: &mut Counters) -> Outcome {
        let (word, bit) = (&mut self.received[usize::from(header.index / 32)], 1 << (header.index % 32));
        if !self.open || *word & bit != 0 {
            counters.chunks_repeated += 1;
            return Outcome::Pending;
        }
        *word |= bit;
        counters.chunks_stored += 1;
        self.buffer.as_mut()[header.offset()..][..payload.len()].copy_from_slice(payload);
        if header.index + 1 == header.count() {
            self.frame_crc = header.frame_crc;
        }
        self.missing -= 1;
        if self.missing > 0 {
            return Outcome::Pending;
        }
        self.open = false;
        if crc32fast::hash(&self.buffer.as_ref()[..header.frame.length as usize]) == self.frame_crc {
            counters.frames_ok += 1;
            Outcome::Complete
        } else {
            counters.frames_corrupted += 1;
            Outcome::Dropped(Dropped { info: header.frame, reason: Reason::Checksum })
        }
    }
}
