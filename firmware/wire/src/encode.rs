//! Frames → chunks.

use crate::header::{ChunkHeader, FrameInfo, HEADER_LEN, HeaderError};
use crc32fast::Hasher;

/// Makes the headers of one frame's chunks, for a sender that never holds the whole payload.
///
/// ```
/// # use edge_wire::{Encoder, FrameInfo, PixelFormat};
/// # fn read_fifo(b: &mut [u8]) {}
/// # fn transmit(b: &[u8]) {}
/// let mut encoder = Encoder::new(FrameInfo::raw(PixelFormat::Rgb565, 160, 120)?, 1024)?;
/// let mut buffer = [0; 1024];
/// while encoder.next_len() > 0 {
///     let payload = &mut buffer[..encoder.next_len()];
///     read_fifo(payload);
///     transmit(&encoder.chunk(payload)?);
///     transmit(payload);
/// }
/// # Ok::<(), edge_wire::HeaderError>(())
/// ```
#[derive(Debug, Clone)]
pub struct Encoder {
    next: ChunkHeader,
    running: Hasher,
}

impl Encoder {
    /// Checks the frame and the chunk size.
    pub fn new(frame: FrameInfo, chunk_size: u16) -> Result<Self, HeaderError> {
        let next = ChunkHeader { frame, chunk_size, index: 0, frame_crc: 0, payload_crc: 0 };
        next.validate().map(|()| Encoder { next, running: Hasher::new() })
    }

    /// Payload bytes of the next chunk; 0 after the last.
    pub fn next_len(&self) -> usize {
        if self.next.index < self.next.count() { self.next.payload_len() } else { 0 }
    }

    /// Header of the next chunk. `payload` must have [`Encoder::next_len`] bytes, and follows the header on the link.
    pub fn chunk(&mut self, payload: &[u8]) -> Result<[u8; HEADER_LEN], HeaderError> {
        if payload.is_empty() || payload.len() != self.next_len() {
            return Err(HeaderError::Chunking);
        }
        self.running.update(payload);
        self.next.frame_crc = self.running.clone().finalize();
        self.next.payload_crc = crc32fast::hash(payload);
        let header = self.next.encode();
        self.next.index += 1;
        Ok(header)
    }
}

/// One chunk, to be sent header first.
#[derive(Debug, Clone, Copy)]
pub struct Chunk<'a> {
    /// The encoded header.
    pub header: [u8; HEADER_LEN],
    /// A part of the frame's payload.
    pub payload: &'a [u8],
}

impl Chunk<'_> {
    /// Copies the chunk to the start of `out`; gives its length, or `None` if it does not fit.
    pub fn write_to(&self, out: &mut [u8]) -> Option<usize> {
        let length = HEADER_LEN + self.payload.len();
        let out = out.get_mut(..length)?;
        out[..HEADER_LEN].copy_from_slice(&self.header);
        out[HEADER_LEN..].copy_from_slice(self.payload);
        Some(length)
    }
}

/// The chunks of a frame whose payload is in memory.
#[derive(Debug, Clone)]
pub struct Chunks<'a> {
    encoder: Encoder,
    payload: &'a [u8],
}

impl<'a> Chunks<'a> {
    /// Checks the frame against its payload, and the chunk size.
    pub fn new(frame: FrameInfo, payload: &'a [u8], chunk_size: u16) -> Result<Self, HeaderError> {
        if payload.len() as u64 != u64::from(frame.length) {
            return Err(HeaderError::Length);
        }
        Ok(Chunks { encoder: Encoder::new(frame, chunk_size)?, payload })
    }
}

impl<'a> Iterator for Chunks<'a> {
    type Item = Chunk<'a>;

    fn next(&mut self) -> Option<Chunk<'a>> {
        let (payload, rest) = self.payload.split_at_checked(self.encoder.next_len())?;
        let header = self.encoder.chunk(payload).ok()?;
        self.payload = rest;
        Some(Chunk { header, payload })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{MAX_FRAME, PixelFormat};

    #[test]
    fn what_cannot_be_sent_is_an_error() {
        let info = FrameInfo::raw(PixelFormat::Gray8, 8, 8).unwrap();
        assert_eq!(Chunks::new(info, &[0; 63], 16).err(), Some(HeaderError::Length));
        assert_eq!(Chunks::new(info, &[0; 64], 0).err(), Some(HeaderError::Chunking));
        assert_eq!(Encoder::new(FrameInfo::jpeg(8, 8, MAX_FRAME).unwrap(), 4096).err(), Some(HeaderError::Chunking));
        let mut encoder = Encoder::new(info, 40).unwrap();
        assert_eq!(encoder.chunk(&[0; 39]), Err(HeaderError::Chunking));
        encoder.chunk(&[0; 40]).unwrap();
        encoder.chunk(&[0; 24]).unwrap();
        assert_eq!((encoder.next_len(), encoder.chunk(&[])), (0, Err(HeaderError::Chunking)));
    }

    #[test]
    fn chunks_are_written_only_where_they_fit() {
        let info = FrameInfo::raw(PixelFormat::Gray8, 2, 1).unwrap();
        let chunk = Chunks::new(info, &[1, 2], 2).unwrap().next().unwrap();
        assert_eq!(chunk.write_to(&mut [0; HEADER_LEN + 1]), None);
        let mut out = [0; 50];
        assert_eq!(chunk.write_to(&mut out), Some(42));
        assert_eq!((&out[..40], &out[40..43]), (&chunk.header[..], &[1, 2, 0][..]));
    }
}
