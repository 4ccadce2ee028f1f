//! What moves bytes. None of them waits, and none knows what it moves.

mod io;
mod spi;
#[cfg(feature = "usb")]
mod usb;

pub use io::Io;
pub use spi::SpiBlocks;
#[cfg(feature = "usb")]
pub use usb::UsbSerial;

/// Both directions of a link.
pub trait Transport {
    /// What can go wrong.
    type Error;
    /// Takes what has arrived, up to the length of `bytes`, without waiting.
    fn read(&mut self, bytes: &mut [u8]) -> Result<usize, Self::Error>;
    /// Gives as many bytes as the link takes now, perhaps none.
    fn write(&mut self, bytes: &[u8]) -> Result<usize, Self::Error>;
}
