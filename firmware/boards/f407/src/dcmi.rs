//! The camera interface (RM0090, section 15) as a [`ParallelPort`]: DMA2's stream 1, channel 1 (table 43) writes one picture to memory.

use core::sync::atomic::{Ordering, compiler_fence};
use edge_camera::{ParallelPort, PortError};
use stm32f4xx_hal::pac::{DCMI, DMA2, RCC};

/// Bytes of the largest picture: 160×120 pixels of two bytes.
pub const PICTURE: usize = 160 * 120 * 2;
/// Words that may still be on the way through both FIFOs when the frame's end is seen.
const IN_FLIGHT: u16 = 8;
const STREAM: usize = 1;
const CHANNEL: u8 = 1;

/// The interface, its stream, and the memory that they fill.
pub struct Port {
    dcmi: DCMI,
    dma: DMA2,
    words: &'static mut [u32; PICTURE / 4],
    length: usize,
    taken: usize,
}

impl Port {
    /// Starts the clocks of both. The pins are the caller's: alternate function 13.
    pub fn new(dcmi: DCMI, dma: DMA2, words: &'static mut [u32; PICTURE / 4]) -> Self {
        // SAFETY: two bits that nobody else sets, before anything else runs.
        let rcc = unsafe { &*RCC::ptr() };
        rcc.ahb1enr().modify(|_, w| w.dma2en().enabled());
        rcc.ahb2enr().modify(|_, w| w.dcmien().enabled());
        // RM0090, 7.3.12: the first access waits for two cycles of the bus; a read is more.
        let _ = rcc.ahb2enr().read();
        Port { dcmi, dma, words, length: 0, taken: 0 }
    }

    fn stop(&mut self) {
        self.dcmi.cr().modify(|_, w| w.capture().disabled().enable().disabled());
        let stream = self.dma.st(STREAM);
        stream.cr().modify(|_, w| w.en().disabled());
        // RM0090, 10.3.17: the stream ends its transfer first, within some cycles of the bus.
        for _ in 0..10_000 {
            if stream.cr().read().en().is_disabled() {
                break;
            }
        }
        self.dma.lifcr().write(|w| w.ctcif1().clear().chtif1().clear().cteif1().clear().cdmeif1().clear().cfeif1().clear());
        self.dcmi.icr().write(|w| w.frame_isc().clear().ovr_isc().clear().err_isc().clear().vsync_isc().clear().line_isc().clear());
        // What was written is read after this.
        compiler_fence(Ordering::SeqCst);
    }
}

impl ParallelPort for Port {
    fn begin(&mut self, length: u32) -> Result<(), PortError> {
        self.stop();
        (self.length, self.taken) = (0, 0);
        let bytes = length as usize;
        if bytes == 0 || bytes > PICTURE || !bytes.is_multiple_of(4) {
            return Err(PortError::TooLarge);
        }
        self.length = bytes;
        let stream = self.dma.st(STREAM);
        // SAFETY: the addresses of the data register and of memory that is this port's alone, and as many words as it has.
        unsafe {
            stream.par().write(|w| w.bits(self.dcmi.dr().as_ptr() as u32));
            stream.m0ar().write(|w| w.bits(self.words.as_mut_ptr() as u32));
            stream.ndtr().write(|w| w.bits(length / 4));
            stream.fcr().write(|w| w.dmdis().disabled().fth().half());
            stream.cr().write(|w| {
                w.chsel().bits(CHANNEL).pl().very_high().msize().bits32().psize().bits32();
                w.minc().incremented().dir().peripheral_to_memory().en().enabled()
            });
        }
        // Data are valid while HREF is high and VSYNC low, at the rising edge of PCLK (OV7670's datasheet, figures 5 and 6).
        self.dcmi.cr().write(|w| {
            w.cm().snapshot().pckpol().rising_edge().hspol().active_low().vspol().active_high();
            w.fcrc().all().edm().bit_width8().enable().enabled()
        });
        self.dcmi.cr().modify(|_, w| w.capture().enabled());
        Ok(())
    }

    fn poll(&mut self) -> Result<bool, PortError> {
        if self.length == 0 {
            return Err(PortError::Short);
        }
        // The frame's end before the stream's: what ends in between is seen as whole.
        let state = self.dcmi.ris().read();
        let flags = self.dma.lisr().read();
        if flags.tcif1().is_complete() {
            compiler_fence(Ordering::SeqCst);
            return Ok(true);
        }
        if state.ovr_ris().is_overrun_occured() || flags.teif1().is_error() {
            self.stop();
            return Err(PortError::Overrun);
        }
        if state.frame_ris().is_frame_captured() && self.dma.st(STREAM).ndtr().read().ndt().bits() > IN_FLIGHT {
            self.stop();
            return Err(PortError::Short);
        }
        Ok(false)
    }

    fn read(&mut self, out: &mut [u8]) -> Result<(), PortError> {
        let left = self.length - self.taken;
        if out.len() > left || !self.dma.lisr().read().tcif1().is_complete() {
            return Err(PortError::Short);
        }
        for (i, byte) in out.iter_mut().enumerate() {
            let at = self.taken + i;
            *byte = self.words[at / 4].to_le_bytes()[at % 4];
        }
        self.taken += out.len();
        Ok(())
    }
}
