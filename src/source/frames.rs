//! A stream of frames, from anything that can be read.

use edge_wire::{CHUNK_BUFFER, Counters, Event, MAX_FRAME, Parser};
use std::io::{ErrorKind, Read};

/// Bytes asked for at a time.
const READ: usize = 1 << 16;

/// Reads a stream to its end and gives what is found in it to `on`, as it comes; stops at `on`'s first error.
/// Damage is skipped and counted. Memory is constant: one frame of the largest size, touched only as far as frames need it.
pub fn read<E: From<std::io::Error>>(mut input: impl Read, mut on: impl FnMut(Event) -> Result<(), E>) -> Result<Counters, E> {
    let mut parser = Parser::new(vec![0; 4 * CHUNK_BUFFER], vec![0; MAX_FRAME as usize]).map_err(std::io::Error::other)?;
    let mut buffer = vec![0; READ];
    loop {
        let mut bytes = match input.read(&mut buffer) {
            Ok(0) => break,
            Ok(n) => &buffer[..n],
            Err(e) if e.kind() == ErrorKind::Interrupted => continue,
            Err(e) => return Err(e.into()),
        };
        while let Some(event) = parser.push(&mut bytes) {
            on(event)?;
        }
    }
    while let Some(event) = parser.finish() {
        on(event)?;
    }
    Ok(parser.counters())
}
