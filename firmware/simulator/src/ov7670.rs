//! OV7670 on SCCB and a parallel port.
//!
//! Sources: Linux (`drivers/media/i2c/ov7670.c`: bits, tables from OmniVision), openmv/openmv (`drivers/sensors/ov7670.c`),
//! adafruit/Adafruit_OV7670 (`src/ov7670.c`), Zephyr (`drivers/video/ov767x.c`). 784 clocks a row and 510 rows a frame were
//! measured in forum.arduino.cc/t/386514.

use crate::bus::{BusError, Clock, Faults, Wait};
use crate::picture::{Picture, View, yuv};
use crate::port::{Output, Port, Receiver, Timing};
use crate::rules::{Refusal, Rule, rules};
use core::cell::RefCell;
use embedded_hal::i2c::{ErrorType, I2c, Operation};

/// Adafruit waits so long after a reset ("Datasheet: tS:RESET = 1 ms"); nobody waits less.
const RESET_NS: u64 = 1_000_000;

const RULES: &[Rule] = rules! {
    Always, "gamma", "Linux, OpenMV: first; Adafruit, Zephyr: second; from 7F on but for one step the same in all":
        0x7A => [0x20], 0x7B => [0x10, 0x1C], 0x7C => [0x1E, 0x28], 0x7D => [0x35, 0x3C], 0x7E => [0x5A, 0x55], 0x7F => [0x69, 0x68],
        0x80 => [0x76], 0x81 => [0x80], 0x82 => [0x88], 0x83 => [0x8F], 0x84 => [0x96], 0x85 => [0xA3], 0x86 => [0xAF],
        0x87 => [0xC4], 0x88 => [0xD7], 0x89 => [0xE8];
    Always, "black level", "Linux, OpenMV, Adafruit, Zephyr: the same in all":
        0xB0 => [0x84], 0xB1 => [0x0C], 0xB2 => [0x0E], 0xB3 => [0x82], 0xB8 => [0x0A];
    Always, "white balance", "Linux, OpenMV: 0A; Adafruit, Zephyr: 14":
        0x43 => [0x0A, 0x14];
    Always, "white balance", "Linux, OpenMV, Adafruit, Zephyr: the same in all":
        0x44 => [0xF0], 0x45 => [0x34], 0x46 => [0x58], 0x47 => [0x28], 0x48 => [0x3A], 0x59 => [0x88], 0x5A => [0x88], 0x5B => [0x44],
        0x5C => [0x67], 0x5D => [0x49], 0x5E => [0x0E], 0x6C => [0x0A], 0x6D => [0x55], 0x6E => [0x11];
    Always, "white balance", "Linux, Adafruit, Zephyr: 9F; OpenMV: 9E":
        0x6F => [0x9F, 0x9E];
    Always, "white balance, gain of green", "Linux, OpenMV":
        0x6A => [0x40];
    Always, "analogue part", "Linux, OpenMV, Adafruit, Zephyr: the same in all":
        0x0E => [0x61], 0x0F => [0x4B], 0x16 => [0x02], 0x21 => [0x02], 0x22 => [0x91], 0x29 => [0x07], 0x33 => [0x0B], 0x35 => [0x0B],
        0x37 => [0x1D], 0x38 => [0x71], 0x39 => [0x2A];
    Always, "exposure by histogram, and most steps of the banding filter", "Linux, OpenMV, Adafruit, Zephyr":
        0x9F => [0x78], 0xA0 => [0x68], 0xA1 => [0x03], 0xA6 => [0xD8, 0xDF], 0xA7 => [0xD8, 0xDF], 0xA8 => [0xF0], 0xA9 => [0x90],
        0xAA => [0x94], 0xA5 => [0x05], 0xAB => [0x07];
    Always, "signs of the matrix", "Linux, OpenMV":
        0x58 => [0x9E];
    Always, "polarities, and the pixel clock between rows", "Linux: each bit of COM10 is an inversion but 20":
        0x15 => [0x00, 0x20];
    Always, "Y U Y V", "Linux, OpenMV, Adafruit":
        0x3A => [0x04];
    Always, "full range; RGB565", "OpenMV, Adafruit, Zephyr: C0, D0":
        0x40 => [0xC0, 0xD0];
    Always, "no RGB444", "Linux, OpenMV, Adafruit, Zephyr":
        0x8C => [0x00];
    Always, "reserved", "Linux, OpenMV, Adafruit: the same in all":
        0x4D => [0x40], 0x4E => [0x20], 0x8D => [0x4F], 0x8E => [0x00], 0x8F => [0x00], 0x90 => [0x00], 0x91 => [0x00];
    Always, "reserved; edges, denoise, correction of pixels", "Linux, OpenMV; Zephyr where there are two":
        0x0D => [0x40, 0x00], 0x3C => [0x78, 0x00], 0x3F => [0x00, 0x04], 0x41 => [0x38], 0x4B => [0x09], 0x4C => [0x00], 0x69 => [0x00],
        0x74 => [0x10, 0x19], 0x75 => [0x05], 0x76 => [0xE1], 0x77 => [0x01], 0xC9 => [0x60], 0xA2 => [0x02];
    Fresh, "gamma and saturation", "Linux C0, C3; OpenMV, Zephyr 40 for RGB":
        0x3D => [0xC0, 0xC3, 0x40];
    Fresh, "no CCIR 656; clock; scale as it is", "Linux 00; 01 (Zephyr 81); 3A, 35":
        0x04 => [0x00], 0x11 => [0x01, 0x81, 0x80, 0x40], 0x70 => [0x3A, 0x20], 0x71 => [0x35, 0x20];
    Fresh, "white balance's gains to begin with", "Linux, OpenMV":
        0x01 => [0x40], 0x02 => [0x60];
    Fresh, "banding found out, and filtered: COM8 20 with COM11 10", "Linux, OpenMV":
        0x3B => [0x12], 0x13 => [0xE7];
    Fresh, "gain ceiling: 16 times for RGB, 32 for YUV", "Linux; OpenMV and Zephyr 128 times for RGB":
        0x14 => [0x38, 0x6A, 0x48];
    Fresh, "exposure's range", "Linux, OpenMV: 95, 33, E3; Adafruit, Zephyr: 75, 63, A5":
        0x24 => [0x95, 0x75], 0x25 => [0x33, 0x63], 0x26 => [0xE3, 0xA5];
};

/// Linux, OpenMV, Zephyr: matrices of RGB and YUV. STM32 examples (`OV7670_Color_Saturation`): 128ths for more or less colour.
const RGB_MATRIX: [u8; 6] = [0xB3, 0xB3, 0x00, 0x3D, 0xA7, 0xE4];
const YUV_MATRIX: [u8; 6] = [0x80, 0x80, 0x00, 0x22, 0x5E, 0x80];
const SATURATIONS: [u32; 5] = [0x40, 0x66, 0x80, 0x99, 0xC0];

/// First columns at which the picture begins, for each halving. VGA: Linux and OpenMV 158, Adafruit 162. QVGA: Linux 168,
/// OpenMV 172, Adafruit 174. QQVGA: OpenMV 180, Adafruit 186.
const FIRST_COLUMNS: [(u32, u32); 3] = [(158, 162), (168, 174), (180, 186)];
/// Adafruit: hstop = (hstart + 640) % 784.
const ROW_CLOCKS: u32 = 784;
const FRAME_ROWS: u32 = 510;
/// Datasheet, figure 6: rows of VSYNC, and from its end to the first with data.
const VSYNC_ROWS: u32 = 3;
const BACK_ROWS: u32 = 17;

/// The sensor, with one scene in front of it.
pub struct Ov7670Sim<'a> {
    /// What goes wrong.
    pub faults: Faults,
    clock: Clock,
    scene: Picture<'a>,
    state: RefCell<State>,
}

struct State {
    registers: [u8; 256],
    sub_address: u8,
    /// What is written before that is lost.
    busy_until_ns: u64,
}

impl State {
    fn reset(&mut self, now_ns: u64) {
        self.registers = [0; 256];
        // Identification (Linux: detect). Datasheet, table 5: the rest.
        for (register, value) in [(0x0A, 0x76), (0x0B, 0x73), (0x1C, 0x7F), (0x1D, 0xA2)] {
            self.registers[register] = value;
        }
        for (register, value) in [(0x17, 0x11), (0x18, 0x61), (0x32, 0x80), (0x19, 0x03), (0x1A, 0x7B), (0x09, 0x01), (0x11, 0x80)] {
            self.registers[register] = value;
        }
        for (register, value) in [(0x13, 0x8F), (0x14, 0x4A), (0x40, 0xC0), (0x3A, 0x0D), (0x70, 0x3A), (0x71, 0x35), (0x72, 0x11)] {
            self.registers[register] = value;
        }
        self.busy_until_ns = now_ns + RESET_NS;
    }
}

/// What the picture is, and where its columns are.
#[derive(Clone, Copy)]
pub(crate) struct Shape {
    view: View,
    rgb: bool,
    /// Columns of the picture per row, and those at the left that are not the scene's.
    columns: u32,
    lost: u32,
}

impl<'a> Ov7670Sim<'a> {
    /// A sensor after power-on.
    pub fn new(scene: Picture<'a>) -> Self {
        let mut state = State { registers: [0; 256], sub_address: 0, busy_until_ns: 0 };
        state.reset(0);
        state.busy_until_ns = 0;
        Ov7670Sim { faults: Faults::default(), clock: Clock::default(), scene, state: RefCell::new(state) }
    }

    /// Its I²C side.
    pub fn i2c(&self) -> Sccb<'_, 'a> {
        Sccb(self)
    }

    /// Its data lines, wired to a receiver.
    pub fn port(&self, receiver: Receiver) -> Port<'_, Self> {
        Port::new(self, receiver)
    }

    /// Waiting, by which its time passes, and by `also` as well.
    pub fn delay<D>(&self, also: D) -> Wait<'_, D> {
        Wait::new(&self.clock, also)
    }

    /// A register.
    pub fn register(&self, register: u8) -> u8 {
        self.state.borrow().registers[usize::from(register)]
    }

    /// Calls `f` with each register that holds what no public driver writes there.
    pub fn refusals(&self, mut f: impl FnMut(Refusal)) {
        let r = &self.state.borrow().registers;
        Rule::broken(RULES, |register| r[usize::from(register)]).chain(wrong_matrix(r)).for_each(&mut f);
    }

    fn spoilt(r: &[u8; 256]) -> bool {
        Rule::broken(RULES, |register| r[usize::from(register)]).chain(wrong_matrix(r)).any(|refusal| refusal.spoils)
    }

    fn shape(&self) -> Option<Shape> {
        let r = &self.state.borrow().registers;
        let rgb = r[0x12] & 0x05 == 0x04;
        if rgb && (r[0x40] & 0x30 != 0x10 || r[0x8C] & 2 != 0) {
            return None;
        }
        // Linux: COM15 full range; TSLB and COM13 for Y U Y V; COM1 without CCIR 656; COM2 awake.
        let order = rgb || (r[0x3A] & 0x08 == 0 && r[0x3D] & 1 == 0);
        if r[0x40] & 0xC0 != 0xC0 || !order || r[0x04] & 0x40 != 0 || r[0x09] & 0x10 != 0 {
            return None;
        }
        // OpenMV: qvga_regs, qqvga_regs; Adafruit: frame_control.
        let scaled = r[0x0C] & 0x04 != 0;
        let halvings = if scaled { r[0x72] & 3 } else { 0 };
        if scaled && (r[0x72] >> 4 & 3 != halvings || r[0x3E] != 0x18 | halvings || r[0x73] & 0x0F != halvings) {
            return None;
        }
        // Linux: set_hw.
        let first = u32::from(r[0x17]) << 3 | u32::from(r[0x32] & 7);
        let end = u32::from(r[0x18]) << 3 | u32::from(r[0x32] >> 3 & 7);
        let columns = ((end + ROW_CLOCKS - first) % ROW_CLOCKS) >> halvings;
        let (earliest, latest) = *FIRST_COLUMNS.get(usize::from(halvings))?;
        let lost = (earliest.saturating_sub(first) + first.saturating_sub(latest)).div_ceil(1 << halvings);
        let top = u32::from(r[0x19]) << 2 | u32::from(r[0x03] & 3);
        let bottom = u32::from(r[0x1A]) << 2 | u32::from(r[0x03] >> 2 & 3);
        // Rows: Linux 10 to 14 and 480 more, Adafruit 9 to 12.
        if !(9..=14).contains(&top) || bottom != top + 480 {
            return None;
        }
        let (mirror, flip) = (r[0x1E] & 0x20 != 0, r[0x1E] & 0x10 != 0);
        let bars = r[0x71] & 0x80 != 0 && r[0x70] & 0x80 == 0;
        let spoilt = Self::spoilt(r);
        let view = View { width: 640 >> halvings, height: 480 >> halvings, mirror, flip, bars, spoilt };
        Some(Shape { view, rgb, columns, lost })
    }
}

/// The first value of the matrix that is neither the format's nor that with more or less colour.
fn wrong_matrix(r: &[u8; 256]) -> Option<Refusal> {
    let matrix = if r[0x12] & 0x04 != 0 { RGB_MATRIX } else { YUV_MATRIX };
    let scaled = |scale: u32| matrix.map(|v| ((u32::from(v) * scale) >> 7).min(255) as u8);
    let fits = SATURATIONS.into_iter().any(|scale| scaled(scale) == r[0x4F..0x55]);
    let at = r[0x4F..0x55].iter().zip(matrix).position(|(is, should)| *is != should).unwrap_or(0);
    (!fits).then_some(Refusal {
        register: 0x4F + at as u16,
        value: r[0x4F + at],
        what: "the colour matrix of the other format, or of none",
        source: "Linux ov7670_fmt_rgb565, ov7670_fmt_yuv422; OpenMV, Zephyr: the same",
        spoils: true,
    })
}

impl Output for Ov7670Sim<'_> {
    type Frame = Shape;

    fn faults(&self) -> &Faults {
        &self.faults
    }

    fn frame(&self) -> Option<(Shape, Timing)> {
        let shape = self.shape()?;
        let Shape { view, columns, .. } = shape;
        let scale = 640 / view.width;
        let gated = self.state.borrow().registers[0x15] & 0x20 != 0;
        let (frame_signal, first) = (VSYNC_ROWS.div_ceil(scale), (VSYNC_ROWS + BACK_ROWS).div_ceil(scale));
        let (row, total) = (2 * ROW_CLOCKS / scale, FRAME_ROWS.div_ceil(scale));
        Some((shape, Timing { row, active: 2 * columns, total, frame_signal, first, rows: view.height, gated }))
    }

    fn byte(&self, shape: &Shape, at: u32) -> u8 {
        let Shape { view, rgb, columns, lost } = *shape;
        let pixel = |at: u32| {
            let (x, y) = (at % columns, at / columns);
            if x < lost || x >= view.width { 0 } else { view.pixel(&self.scene, x - lost, y) }
        };
        if rgb {
            return pixel(at / 2).to_be_bytes()[(at & 1) as usize];
        }
        match at % 4 {
            0 | 2 => yuv(pixel(at / 2))[0],
            1 => yuv(pixel(at / 2))[1],
            _ => yuv(pixel(at / 2 - 1))[2],
        }
    }
}

/// I²C.
pub struct Sccb<'s, 'a>(&'s Ov7670Sim<'a>);

impl ErrorType for Sccb<'_, '_> {
    type Error = BusError;
}

impl I2c for Sccb<'_, '_> {
    fn transaction(&mut self, address: u8, operations: &mut [Operation]) -> Result<(), BusError> {
        let (state, faults, now_ns) = (&mut *self.0.state.borrow_mut(), &self.0.faults, self.0.clock.now_ns());
        if address != 0x21 || operations.len() != 1 || faults.nak() {
            return Err(BusError);
        }
        match &mut operations[0] {
            Operation::Write([register]) => state.sub_address = *register,
            Operation::Write([_, _]) if now_ns < state.busy_until_ns => {}
            Operation::Write([0x12, value]) if *value & 0x80 != 0 => state.reset(now_ns),
            // Identification and averages cannot be written.
            Operation::Write([0x0A | 0x0B | 0x1C | 0x1D | 0x05 | 0x06 | 0x08, _]) => {}
            Operation::Write([register, value]) => state.registers[usize::from(*register)] = *value,
            Operation::Read([value]) => {
                *value = match (state.sub_address, faults.product.get()) {
                    (0x0A, Some(product)) => (product >> 8) as u8,
                    (0x0B, Some(product)) => product as u8,
                    (register, _) => state.registers[usize::from(register)],
                }
            }
            _ => return Err(BusError),
        }
        Ok(())
    }
}
