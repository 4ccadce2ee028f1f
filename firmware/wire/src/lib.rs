//! The frame link between a camera microcontroller and `edge-infer`.
//!
//! A frame (one picture and what is known of it) is sent as one or more *chunks*. A chunk is a header of [`HEADER_LEN`]
//! bytes and its part of the frame's payload. Every header says everything about its frame, so a receiver may begin
//! anywhere, and a link that flips, loses, repeats or reorders bytes or chunks costs frames, never a wrong one.
//!
//! No I/O, no allocation, no panics on any input. The sender's side is [`Encoder`] (payload from a FIFO, chunk by chunk)
//! and [`Chunks`] (payload in memory); the receiver's is [`Parser`]. Transports (UART, USB, SPI, files) only move bytes.
//!
//! # Layout
//! All integers are little-endian.
//!
//! | offset | bytes | field | |
//! |---:|---:|---|---|
//! | 0 | 4 | magic | `ED 6E 57 1C` ([`MAGIC`]) |
//! | 4 | 1 | version | 1 ([`VERSION`]); a receiver skips every other |
//! | 5 | 1 | flags | [`flags`]; unknown bits are sent as 0 and ignored |
//! | 6 | 1 | format | [`PixelFormat`]; or, from 0x80 on, the [`Kind`] of a message that is no picture; a receiver skips what it does not know |
//! | 7 | 1 | session | changes whenever the sender starts anew, as far as it can arrange that; else 0 |
//! | 8 | 4 | sequence | one more for every captured frame, sent or not; wraps to 0 after 2³² − 1 |
//! | 12 | 4 | timestamp | µs since any fixed moment, at the frame's capture; wraps to 0 after 2³² − 1 (71.6 min): see [`Timeline`] |
//! | 16 | 2 | width | pixels, at least 1; even for YUV 4:2:2 |
//! | 18 | 2 | height | pixels, at least 1 |
//! | 20 | 4 | length | payload bytes of the whole frame: width · height · bytes per pixel, or a JPEG file's length |
//! | 24 | 2 | chunk size | payload bytes of every chunk but the last: 1 to 8192 ([`MAX_CHUNK`]); the same for all chunks of a frame |
//! | 26 | 2 | index | of this chunk; it holds the payload from index · chunk size on. At most 4096 chunks ([`MAX_CHUNKS`]) |
//! | 28 | 4 | frame CRC | of the frame's payload from its start to the end of this chunk; the last chunk's covers it all |
//! | 32 | 4 | payload CRC | of this chunk's payload |
//! | 36 | 4 | header CRC | of bytes 0 to 35 |
//! | 40 | | payload | min(chunk size, length − index · chunk size) bytes |
//!
//! The CRC is CRC-32/ISO-HDLC (Ethernet, PNG: polynomial 0x04C11DB7 reflected, initial value and final XOR
//! 0xFFFFFFFF). At these lengths it finds every pattern of up to three wrong bits (Koopman, "32-Bit Cyclic Redundancy
//! Codes for Internet Applications", DSN 2002: Hamming distance 4 up to 91,607 bits); any other damage passes with
//! probability 2⁻³². The header's CRC binds the payload's to the frame it belongs to. The frame CRC catches what
//! no chunk can show: chunks of two frames that claim to be the same one, as after a reset that repeats sequence and time.
//!
//! Pixels are rows from the top, from the left, without padding:
//!
//! | format | bytes per pixel | order |
//! |---|---|---|
//! | [`Gray8`](PixelFormat::Gray8) | 1 | luma |
//! | [`Rgb565`](PixelFormat::Rgb565) | 2 | `RRRRRGGG GGGBBBBB`: high byte first, as OV2640 and OV7670 send it |
//! | [`Yuv422`](PixelFormat::Yuv422) | 2 | Y₀ U Y₁ V for two pixels; BT.601, full range (as in JFIF) |
//! | [`Rgb888`](PixelFormat::Rgb888) | 3 | R G B |
//! | [`Jpeg`](PixelFormat::Jpeg) | | a whole JPEG file of the header's width and height |
//!
//! # Messages
//! [`Message`]s go the same way as pictures: commands to the camera (each answered by a [`Reply`] with its number, and
//! sent again until it is: [`Request`]) and [`Statistics`]. The first byte of a command's payload is its opcode:
//!
//! | opcode | command | then |
//! |---:|---|---|
//! | 0, 1, 2, 3 | ping, start, stop, get statistics | |
//! | 4 | format | u8: [`PixelFormat`] |
//! | 5 | size | u16 width, u16 height |
//! | 6, 7 | exposure, gain | u8: 0 automatic (then 0, 0), 1 manual; u16 value |
//! | 8 | flip | u8: bit 0 left and right, bit 1 up and down |
//! | 9 | test pattern | u8: 0 off, 1 on |
//!
//! A reply is the opcode, a [`Status`], and statistics where they were asked for. Statistics are seven u32 (uptime in ms,
//! captured, sent, dropped, failed, commands, bytes skipped) and one u64 (bytes sent); more may follow in later versions.
//!
//! # Example
//! ```
//! use edge_wire::{Chunks, Event, FrameInfo, Parser, PixelFormat};
//!
//! let pixels = [7; 8 * 6];
//! let info = FrameInfo::raw(PixelFormat::Gray8, 8, 6).unwrap();
//! let mut link = vec![0xFF; 5]; // noise
//! for chunk in Chunks::new(info, &pixels, 32).unwrap() {
//!     link.extend_from_slice(&chunk.header);
//!     link.extend_from_slice(chunk.payload);
//! }
//!
//! let mut parser = Parser::new([0; 128], [0; 64]).unwrap();
//! let mut input = &link[..];
//! let Some(Event::Frame(frame)) = parser.push(&mut input) else { panic!() };
//! assert_eq!(frame.payload, pixels);
//! assert_eq!(parser.counters().bytes_skipped, 5);
//! ```
#![no_std]
#![forbid(unsafe_code)]
#![warn(missing_docs)]

mod assembly;
mod counters;
mod encode;
mod header;
mod message;
mod parse;
mod request;
mod timeline;

pub use assembly::{Dropped, Frame, Reason};
pub use counters::Counters;
pub use encode::{Chunk, Chunks, Encoder};
pub use header::{ChunkHeader, FrameInfo, HEADER_LEN, HeaderError, MAGIC, MAX_CHUNK, MAX_CHUNKS, MAX_FRAME, PixelFormat, VERSION, flags};
pub use message::{Command, Kind, Level, MAX_MESSAGE, MESSAGE_BUFFER, Message, Reply, Statistics, Status};
pub use parse::{BufferTooSmall, CHUNK_BUFFER, Event, Parser};
pub use request::{Action, Request};
pub use timeline::Timeline;
