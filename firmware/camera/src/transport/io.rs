//! Whatever implements `embedded-io`: UARTs, sockets.

use super::Transport;
use embedded_io::{Read, ReadReady, Write, WriteReady};

/// Reads and writes only what is ready.
pub struct Io<T>(pub T);

impl<T: Read + ReadReady + Write + WriteReady> Transport for Io<T> {
    type Error = T::Error;

    fn read(&mut self, bytes: &mut [u8]) -> Result<usize, T::Error> {
        if self.0.read_ready()? { self.0.read(bytes) } else { Ok(0) }
    }

    fn write(&mut self, bytes: &[u8]) -> Result<usize, T::Error> {
        if self.0.write_ready()? { self.0.write(bytes) } else { Ok(0) }
    }
}
