//! The 40 bytes before every chunk's payload.

use byteorder::{ByteOrder, LittleEndian as LE};
use core::fmt;

/// Bytes of a chunk's header.
pub const HEADER_LEN: usize = 40;
/// The first bytes of a header. They differ from one another, so that a search never has to step back.
pub const MAGIC: [u8; 4] = [0xED, 0x6E, 0x57, 0x1C];
/// Version of the format.
pub const VERSION: u8 = 1;
/// Most payload bytes of a chunk.
pub const MAX_CHUNK: u16 = 8192;
/// Most chunks of a frame.
pub const MAX_CHUNKS: u16 = 4096;
/// Most payload bytes of a frame: 32 MiB.
pub const MAX_FRAME: u32 = MAX_CHUNK as u32 * MAX_CHUNKS as u32;

/// Bits of [`FrameInfo::flags`].
pub mod flags {
    /// The frames missing before this one were dropped by the sender, whose link was busy.
    pub const OVERRUN: u8 = 1;
}

/// How a payload stores pixels; byte orders are in the crate's documentation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[repr(u8)]
pub enum PixelFormat {
    /// 8 bits of luma.
    Gray8 = 1,
    /// 5, 6 and 5 bits, high byte first.
    Rgb565 = 2,
    /// Y U Y V, two pixels in four bytes.
    Yuv422 = 3,
    /// 8 bits each.
    Rgb888 = 4,
    /// A JPEG file.
    Jpeg = 5,
}

impl PixelFormat {
    /// All of them.
    pub const ALL: [PixelFormat; 5] = [Self::Gray8, Self::Rgb565, Self::Yuv422, Self::Rgb888, Self::Jpeg];

    pub(crate) fn from_code(code: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|f| *f as u8 == code)
    }

    /// Bytes of a pixel; `None` where it varies.
    pub const fn bytes_per_pixel(self) -> Option<u32> {
        match self {
            Self::Gray8 => Some(1),
            Self::Rgb565 | Self::Yuv422 => Some(2),
            Self::Rgb888 => Some(3),
            Self::Jpeg => None,
        }
    }

    /// Name on command lines.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Gray8 => "gray8",
            Self::Rgb565 => "rgb565",
            Self::Yuv422 => "yuv422",
            Self::Rgb888 => "rgb888",
            Self::Jpeg => "jpeg",
        }
    }
}

impl fmt::Display for PixelFormat {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What every chunk says of its frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameInfo {
    /// See [`flags`].
    pub flags: u8,
    /// Of the payload.
    pub format: PixelFormat,
    /// Changes whenever the sender starts anew.
    pub session: u8,
    /// Counts captured frames; wraps.
    pub sequence: u32,
    /// Capture time, µs; wraps.
    pub timestamp_us: u32,
    /// Pixels.
    pub width: u16,
    /// Pixels.
    pub height: u16,
    /// Payload bytes.
    pub length: u32,
}

impl FrameInfo {
    /// A frame of uncompressed pixels; sequence, time, session and flags are 0. Fails on sizes out of range, and on JPEG.
    pub fn raw(format: PixelFormat, width: u16, height: u16) -> Result<Self, HeaderError> {
        let length = format.bytes_per_pixel().and_then(|b| b.checked_mul(u32::from(width) * u32::from(height)));
        Self::checked(format, width, height, length.ok_or(HeaderError::Length)?)
    }

    /// A frame that is a JPEG file of `length` bytes.
    pub fn jpeg(width: u16, height: u16, length: u32) -> Result<Self, HeaderError> {
        Self::checked(PixelFormat::Jpeg, width, height, length)
    }

    fn checked(format: PixelFormat, width: u16, height: u16, length: u32) -> Result<Self, HeaderError> {
        let info = FrameInfo { flags: 0, format, session: 0, sequence: 0, timestamp_us: 0, width, height, length };
        info.validate().map(|()| info)
    }

    /// Checks sizes against one another and the format's limits.
    pub fn validate(&self) -> Result<(), HeaderError> {
        if self.width == 0 || self.height == 0 || (self.format == PixelFormat::Yuv422 && self.width % 2 == 1) {
            return Err(HeaderError::Size);
        }
        let pixels = u64::from(self.width) * u64::from(self.height);
        let exact = self.format.bytes_per_pixel().is_none_or(|b| pixels * u64::from(b) == u64::from(self.length));
        if self.length == 0 || self.length > MAX_FRAME || !exact { Err(HeaderError::Length) } else { Ok(()) }
    }
}

/// One chunk's header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChunkHeader {
    /// The frame it belongs to.
    pub frame: FrameInfo,
    /// Payload bytes of every chunk of the frame but the last.
    pub chunk_size: u16,
    /// Which part it is.
    pub index: u16,
    /// CRC of the frame's payload up to this chunk's end.
    pub frame_crc: u32,
    /// CRC of this chunk's payload.
    pub payload_crc: u32,
}

impl ChunkHeader {
    /// How many chunks the frame has.
    pub fn count(&self) -> u16 {
        // At most MAX_CHUNKS: validate().
        self.frame.length.div_ceil(u32::from(self.chunk_size)) as u16
    }

    /// Where the payload goes in the frame's.
    pub fn offset(&self) -> usize {
        usize::from(self.index) * usize::from(self.chunk_size)
    }

    /// Bytes of payload that follow the header.
    pub fn payload_len(&self) -> usize {
        usize::from(self.chunk_size).min(self.frame.length as usize - self.offset())
    }

    /// Checks every field against the format's limits and the others.
    pub fn validate(&self) -> Result<(), HeaderError> {
        self.frame.validate()?;
        let in_range = (1..=MAX_CHUNK).contains(&self.chunk_size)
            && self.frame.length.div_ceil(u32::from(self.chunk_size)) <= u32::from(MAX_CHUNKS)
            && self.index < self.count();
        if in_range { Ok(()) } else { Err(HeaderError::Chunking) }
    }

    /// Writes the header. The fields must be valid for anyone to read it.
    pub fn encode(&self) -> [u8; HEADER_LEN] {
        let mut b = [0; HEADER_LEN];
        let frame = &self.frame;
        b[..4].copy_from_slice(&MAGIC);
        b[4] = VERSION;
        b[5] = frame.flags;
        b[6] = frame.format as u8;
        b[7] = frame.session;
        LE::write_u32(&mut b[8..], frame.sequence);
        LE::write_u32(&mut b[12..], frame.timestamp_us);
        LE::write_u16(&mut b[16..], frame.width);
        LE::write_u16(&mut b[18..], frame.height);
        LE::write_u32(&mut b[20..], frame.length);
        LE::write_u16(&mut b[24..], self.chunk_size);
        LE::write_u16(&mut b[26..], self.index);
        LE::write_u32(&mut b[28..], self.frame_crc);
        LE::write_u32(&mut b[32..], self.payload_crc);
        let crc = crc32fast::hash(&b[..36]);
        LE::write_u32(&mut b[36..], crc);
        b
    }

    /// Reads a header; what it returns is valid.
    pub fn decode(b: &[u8; HEADER_LEN]) -> Result<Self, HeaderError> {
        if b[..4] != MAGIC {
            return Err(HeaderError::Magic);
        }
        if crc32fast::hash(&b[..36]) != LE::read_u32(&b[36..]) {
            return Err(HeaderError::Checksum);
        }
        if b[4] != VERSION {
            return Err(HeaderError::Version(b[4]));
        }
        let header = ChunkHeader {
            frame: FrameInfo {
                flags: b[5],
                format: PixelFormat::from_code(b[6]).ok_or(HeaderError::Format(b[6]))?,
                session: b[7],
                sequence: LE::read_u32(&b[8..]),
                timestamp_us: LE::read_u32(&b[12..]),
                width: LE::read_u16(&b[16..]),
                height: LE::read_u16(&b[18..]),
                length: LE::read_u32(&b[20..]),
            },
            chunk_size: LE::read_u16(&b[24..]),
            index: LE::read_u16(&b[26..]),
            frame_crc: LE::read_u32(&b[28..]),
            payload_crc: LE::read_u32(&b[32..]),
        };
        header.validate().map(|()| header)
    }
}

/// Why bytes are not a header, or a frame cannot be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HeaderError {
    /// Does not begin with [`MAGIC`].
    Magic,
    /// Its CRC is wrong.
    Checksum,
    /// Another version.
    Version(u8),
    /// Another content.
    Format(u8),
    /// Width or height 0, or an odd width for YUV 4:2:2.
    Size,
    /// Payload length 0, above [`MAX_FRAME`], or not what size and format make.
    Length,
    /// Chunk size outside 1 to [`MAX_CHUNK`], more than [`MAX_CHUNKS`] chunks, an index beyond the last, or a chunk of the wrong length.
    Chunking,
}

impl fmt::Display for HeaderError {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::Magic => f.write_str("no chunk begins here"),
            Self::Checksum => f.write_str("the header's CRC is wrong"),
            Self::Version(v) => write!(f, "version {v} of the frame format; this program speaks version {VERSION}"),
            Self::Format(c) => write!(f, "content {c:#04x} is unknown"),
            Self::Size => f.write_str("width and height must be at least 1, and the width of YUV 4:2:2 even"),
            Self::Length => {
                write!(f, "the payload must be what width, height and format make, or a JPEG file, of at most {MAX_FRAME} bytes")
            }
            Self::Chunking => write!(f, "chunks must be of 1 to {MAX_CHUNK} bytes, and at most {MAX_CHUNKS} a frame"),
        }
    }
}

impl core::error::Error for HeaderError {}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes that version 1 must produce and read for ever.
    const GOLDEN: [u8; HEADER_LEN] = [
        0xED, 0x6E, 0x57, 0x1C, 0x01, 0x01, 0x02, 0x2A, 0x78, 0x56, 0x34, 0x12, 0xEF, 0xBE, 0xAD, 0xDE, 0xA0, 0x00, 0x78, 0x00, 0x00, 0x96,
        0x00, 0x00, 0x00, 0x04, 0x25, 0x00, 0x44, 0x33, 0x22, 0x11, 0x88, 0x77, 0x66, 0x55, 0x99, 0x47, 0xD9, 0x42,
    ];

    fn golden() -> ChunkHeader {
        let frame = FrameInfo::raw(PixelFormat::Rgb565, 160, 120).unwrap();
        let frame = FrameInfo { flags: flags::OVERRUN, session: 42, sequence: 0x12345678, timestamp_us: 0xDEADBEEF, ..frame };
        ChunkHeader { frame, chunk_size: 1024, index: 37, frame_crc: 0x11223344, payload_crc: 0x55667788 }
    }

    #[test]
    fn layout_is_as_documented() {
        assert_eq!(golden().encode(), GOLDEN);
        assert_eq!(ChunkHeader::decode(&GOLDEN), Ok(golden()));
        assert_eq!((golden().count(), golden().offset(), golden().payload_len()), (38, 37_888, 512));
    }

    #[test]
    fn every_damaged_bit_is_noticed() {
        for bit in 0..HEADER_LEN * 8 {
            let mut b = GOLDEN;
            b[bit / 8] ^= 1 << (bit % 8);
            assert!(matches!(ChunkHeader::decode(&b), Err(HeaderError::Magic | HeaderError::Checksum)), "bit {bit}");
        }
    }

    fn sealed(mut b: [u8; HEADER_LEN]) -> Result<ChunkHeader, HeaderError> {
        let crc = crc32fast::hash(&b[..36]);
        LE::write_u32(&mut b[36..], crc);
        ChunkHeader::decode(&b)
    }

    #[test]
    fn well_sealed_nonsense_is_refused() {
        let with = |at: usize, value: &[u8]| {
            let mut b = GOLDEN;
            b[at..at + value.len()].copy_from_slice(value);
            sealed(b)
        };
        assert_eq!(with(4, &[2]), Err(HeaderError::Version(2)));
        assert_eq!(with(6, &[0x80]), Err(HeaderError::Format(0x80)));
        assert_eq!(with(16, &[0, 0]), Err(HeaderError::Size));
        assert_eq!(with(20, &[1, 0x96, 0, 0]), Err(HeaderError::Length));
        assert_eq!(with(24, &[0, 0]), Err(HeaderError::Chunking));
        assert_eq!(with(24, &[1, 0]), Err(HeaderError::Chunking));
        assert_eq!(with(24, &[1, 0x20]), Err(HeaderError::Chunking));
        assert_eq!(with(26, &[38, 0]), Err(HeaderError::Chunking));
        assert_eq!(with(5, &[0xFF]).map(|h| h.frame.flags), Ok(0xFF));
    }

    #[test]
    fn frames_out_of_range_cannot_be_described() {
        assert_eq!(FrameInfo::raw(PixelFormat::Yuv422, 3, 2), Err(HeaderError::Size));
        assert_eq!(FrameInfo::raw(PixelFormat::Rgb888, 65_535, 65_535), Err(HeaderError::Length));
        assert_eq!(FrameInfo::raw(PixelFormat::Jpeg, 8, 8), Err(HeaderError::Length));
        assert_eq!(FrameInfo::jpeg(8, 8, 0), Err(HeaderError::Length));
        assert_eq!(FrameInfo::jpeg(8, 8, MAX_FRAME + 1), Err(HeaderError::Length));
        assert!(FrameInfo::jpeg(8, 8, MAX_FRAME).is_ok());
    }
}
