//! One frame on its way out, in as many writes as the transport needs.

use crate::transport::Transport;
use edge_wire::{Encoder, FrameInfo, HEADER_LEN, HeaderError};

/// Writes the chunks of one frame whose payload stays where it is.
pub(crate) struct Sender {
    encoder: Encoder,
    header: [u8; HEADER_LEN],
    /// Of the chunk on its way: header bytes, then payload bytes that are written.
    written: usize,
    /// Where its payload lies.
    start: usize,
    end: usize,
}

impl Sender {
    pub fn new(info: FrameInfo, chunk_size: u16) -> Result<Self, HeaderError> {
        let encoder = Encoder::new(info, chunk_size)?;
        Ok(Sender { encoder, header: [0; HEADER_LEN], written: HEADER_LEN, start: 0, end: 0 })
    }

    /// Whether something other than this frame may be written now.
    pub fn between_chunks(&self) -> bool {
        self.written == HEADER_LEN + self.end - self.start
    }

    /// Begins the next chunk; `false` if there is none.
    pub fn next(&mut self, payload: &[u8]) -> bool {
        let start = self.end;
        let Some(chunk) = payload.get(start..start + self.encoder.next_len()).filter(|c| !c.is_empty()) else { return false };
        let Ok(header) = self.encoder.chunk(chunk) else { return false };
        (self.header, self.written, self.start, self.end) = (header, 0, start, start + chunk.len());
        true
    }

    /// Writes what the transport takes of the chunk; gives how much.
    pub fn write<T: Transport>(&mut self, payload: &[u8], transport: &mut T) -> Result<usize, T::Error> {
        let before = self.written;
        while !self.between_chunks() {
            let rest = match self.written.checked_sub(HEADER_LEN) {
                None => &self.header[self.written..],
                Some(written) => &payload[self.start + written..self.end],
            };
            match transport.write(rest)? {
                0 => break,
                n => self.written += n.min(rest.len()),
            }
        }
        Ok(self.written - before)
    }
}
