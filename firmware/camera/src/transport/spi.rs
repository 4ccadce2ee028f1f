//! An SPI link on which the host is the master: both sides exchange blocks of a fixed length.
//!
//! The master clocks a block whenever it likes (or when a line says that there is data); what is not used is 0, which the
//! host's parser skips, for no header begins with it. The board gives each finished block to [`SpiBlocks::exchange`],
//! from its DMA's interrupt or its loop.

use super::Transport;
use core::convert::Infallible;

/// Blocks of `N` bytes, one being filled and one being clocked.
pub struct SpiBlocks<const N: usize> {
    out: [u8; N],
    filled: usize,
    arrived: [u8; N],
    unread: core::ops::Range<usize>,
}

impl<const N: usize> Default for SpiBlocks<N> {
    fn default() -> Self {
        SpiBlocks { out: [0; N], filled: 0, arrived: [0; N], unread: 0..0 }
    }
}

impl<const N: usize> SpiBlocks<N> {
    /// Takes the block that the master sent and replaces it with the next one to send. Bytes of an earlier block that
    /// nobody read are lost, as on a UART; commands are sent again.
    pub fn exchange(&mut self, block: &mut [u8; N]) {
        self.arrived = *block;
        self.unread = 0..N;
        block[..self.filled].copy_from_slice(&self.out[..self.filled]);
        block[self.filled..].fill(0);
        self.filled = 0;
    }

    /// Whether the next block has anything in it: for the line that tells the master.
    pub fn has_data(&self) -> bool {
        self.filled > 0
    }
}

impl<const N: usize> Transport for SpiBlocks<N> {
    type Error = Infallible;

    fn read(&mut self, bytes: &mut [u8]) -> Result<usize, Infallible> {
        let length = bytes.len().min(self.unread.len());
        bytes[..length].copy_from_slice(&self.arrived[self.unread.start..][..length]);
        self.unread.start += length;
        Ok(length)
    }

    fn write(&mut self, bytes: &[u8]) -> Result<usize, Infallible> {
        let length = bytes.len().min(N - self.filled);
        self.out[self.filled..][..length].copy_from_slice(&bytes[..length]);
        self.filled += length;
        Ok(length)
    }
}
