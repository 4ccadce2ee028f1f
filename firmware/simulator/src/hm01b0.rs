//! HM01B0 on I²C and a parallel port.
//!
//! Sources: openmv/openmv (`drivers/sensors/hm01b0.c`, `hm01b0.h`), sparkfun/SparkFun_HM01B0_Camera_ArduinoLibrary (Himax's
//! scripts with comments), ArmDeveloperEcosystem/hm01b0-library-for-pico (`src/hm01b0.c`), Zephyr (`drivers/video/hm01b0.c`),
//! ArduCAM/RPI-Pico-Cam (`rp2040_hm01b0/arducam/hm01b0_init.h`).

use crate::bus::{BusError, Clock, Faults, Wait};
use crate::picture::{Picture, View, yuv};
use crate::port::{Output, Port, Receiver, Timing};
use crate::rules::{Refusal, Rule, rules};
use core::cell::RefCell;
use embedded_hal::i2c::{ErrorType, I2c, Operation};

/// Most registers that are ever written.
const REGISTERS: usize = 128;

/// Drivers read MODE_SELECT after a reset until it says standby, OpenMV after 1 and every 10 ms, Arm's and Zephyr every
/// 100 ms: so it takes a while.
const RESET_NS: u64 = 20_000_000;
/// What MODE_SELECT reads as meanwhile: no standby.
const BUSY: u8 = 0xFF;

/// OpenMV: "[Def: …]" in its comments.
const DEFAULTS: &[(u16, u8)] = &[(0x2101, 0x3C), (0x2105, 0x01), (0x2106, 0x54), (0x2108, 0x03), (0x2109, 0x04), (0x0202, 0x01)];

const RULES: &[Rule] = rules! {
    Always, "analogue part", "OpenMV, SparkFun, Zephyr, ArduCAM: the same in all":
        0x3044 => [0x0A], 0x3045 => [0x00], 0x3047 => [0x0A], 0x3050 => [0xC0], 0x3051 => [0x42], 0x3052 => [0x50], 0x3053 => [0x00],
        0x3054 => [0x03], 0x3055 => [0xF7], 0x3056 => [0xF8], 0x3057 => [0x29], 0x3058 => [0x1F], 0x3064 => [0x00], 0x3065 => [0x04];
    Always, "black level's targets", "OpenMV, Zephyr: 08, then 00; SparkFun, ArduCAM: 08":
        0x1003 => [0x08, 0x00], 0x1007 => [0x08];
    Always, "black level", "OpenMV, Zephyr: 43, 43; SparkFun, ArduCAM: 40, 32":
        0x1001 => [0x43, 0x40], 0x1002 => [0x43, 0x32], 0x1006 => [0x01], 0x0350 => [0x7F];
    Always, "thresholds of bad pixels", "OpenMV, SparkFun, Zephyr, ArduCAM: the same in all":
        0x1009 => [0xA0], 0x100A => [0x60], 0x100B => [0x90], 0x100C => [0x40];
    Always, "statistics and their windows", "OpenMV, SparkFun, Zephyr, ArduCAM: the same in all":
        0x2000 => [0x07], 0x2003 => [0x00], 0x2004 => [0x1C], 0x2007 => [0x00], 0x2008 => [0x58], 0x200B => [0x00], 0x200C => [0x7A],
        0x200F => [0x00], 0x2010 => [0xB8], 0x2013 => [0x00], 0x2014 => [0x58], 0x2017 => [0x00], 0x2018 => [0x9B];
    Always, "eight bits a pixel", "OpenMV, SparkFun, Zephyr, ArduCAM":
        0x3011 => [0x70];
    Always, "eight lines, and nothing else", "SparkFun: [4:0] keep value as 0x02; Arm 02":
        0x3059 => [0x02];
    Always, "internal oscillator off", "OpenMV, Zephyr":
        0x3067 => [0x00];
    Fresh, "synchronisation where it is, or a row earlier", "OpenMV, Zephyr 00; SparkFun, ArduCAM 01":
        0x1012 => [0x00, 0x01];
    Fresh, "limits of the automatic exposure", "OpenMV, Zephyr; ArduCAM or SparkFun where there are two":
        0x2102 => [0x0A], 0x2103 => [0x03], 0x2104 => [0x05, 0x07], 0x2108 => [0x04, 0x03], 0x2109 => [0x04, 0x03], 0x210B => [0xC0, 0x80],
        0x210D => [0x20], 0x210E => [0x00, 0x03], 0x2150 => [0x00, 0x03];
    Fresh, "what was written takes effect", "OpenMV, SparkFun, Arm, Zephyr, ArduCAM":
        0x0104 => [0x01];
    Fresh, "black level and bad pixels on", "OpenMV, Zephyr: 43, 01; SparkFun, ArduCAM: 43, 00":
        0x1000 => [0x43], 0x1008 => [0x01, 0x00];
    Fresh, "automatic exposure", "OpenMV, Zephyr: 64; ArduCAM: 5F; SparkFun: the default":
        0x2101 => [0x64, 0x5F, 0x3C], 0x2100 => [0x01];
    Fresh, "undivided register clock, MCLK / 8, gated or not", "Arm 08; SparkFun 20; ArduCAM 30; Zephyr 0A; OpenMV 0B":
        0x3060 => [0x08, 0x28, 0x20, 0x30, 0x0A, 0x0B];
};

/// The sensor, with one scene in front of it.
pub struct Hm01b0Sim<'a> {
    /// What goes wrong.
    pub faults: Faults,
    clock: Clock,
    scene: Picture<'a>,
    state: RefCell<State>,
}

struct State {
    /// Address and value of what was written; all else reads as its default.
    registers: [Option<(u16, u8)>; REGISTERS],
    /// What is written before that is lost.
    busy_until_ns: u64,
}

impl<'a> Hm01b0Sim<'a> {
    /// A sensor after power-on.
    pub fn new(scene: Picture<'a>) -> Self {
        let state = RefCell::new(State { registers: [None; REGISTERS], busy_until_ns: 0 });
        Hm01b0Sim { faults: Faults::default(), clock: Clock::default(), scene, state }
    }

    /// Its I²C side.
    pub fn i2c(&self) -> Cci<'_, 'a> {
        Cci(self)
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
    pub fn register(&self, register: u16) -> u8 {
        let product = self.faults.product.get().unwrap_or(0x01B0).to_be_bytes();
        let state = self.state.borrow();
        let written = state.registers.iter().flatten().find(|(r, _)| *r == register).map(|(_, value)| *value);
        let default = || DEFAULTS.iter().find(|(r, _)| *r == register).map_or(0, |(_, value)| *value);
        match register {
            0 | 1 => product[usize::from(register)],
            0x0100 if self.clock.now_ns() < state.busy_until_ns => BUSY,
            _ => written.unwrap_or_else(default),
        }
    }

    fn pair(&self, register: u16) -> u32 {
        u32::from(self.register(register)) << 8 | u32::from(self.register(register + 1))
    }

    /// Calls `f` with each register that holds what no public driver writes there.
    pub fn refusals(&self, f: impl FnMut(Refusal)) {
        self.broken().for_each(f);
    }

    fn broken(&self) -> impl Iterator<Item = Refusal> + '_ {
        let refusal = |register: u16, what, source| Refusal { register, value: self.register(register), what, source, spoils: true };
        // OpenMV, Zephyr: MAX_INTG = FRAME_LENGTH − 2; SparkFun: 0C78 of 0C7A.
        let longest = self.pair(0x0340).saturating_sub(2);
        let automatic = self.register(0x2100) & 1 != 0;
        let too_long = if automatic { self.pair(0x2105) > longest } else { self.pair(0x0202) > longest };
        let at = if automatic { 0x2106 } else { 0x0203 };
        let pattern = self.register(0x0601) & 1 != 0;
        let corrected = pattern && (automatic || [0x1000, 0x1008, 0x0205].into_iter().any(|r| self.register(r) != 0));
        // Clocks of a row: OpenMV, Zephyr 178; SparkFun, ArduCAM 177; Arm D7 for QQVGA. Rows of a frame: Arm 158, 104, 80; OpenMV
        // and Zephyr 109, 104, 84; SparkFun C7A; ArduCAM 17A.
        let row = ![0x178, 0x177, 0x0D7].contains(&self.pair(0x0342));
        let frame = ![0x158, 0x109, 0x104, 0x084, 0x080, 0xC7A, 0x17A].contains(&self.pair(0x0340));
        let extra = [
            row.then(|| refusal(0x0343, "another length of a row", "OpenMV, SparkFun, Arm, Zephyr, ArduCAM")),
            frame.then(|| refusal(0x0341, "another length of a frame", "OpenMV, SparkFun, Arm, Zephyr, ArduCAM")),
            too_long.then(|| refusal(at, "an exposure longer than a frame", "OpenMV, Zephyr, SparkFun: frame length - 2")),
            corrected.then(|| refusal(0x0601, "a test pattern that is corrected away", "SparkFun hm01b0_walking1s_01.h")),
        ];
        Rule::broken(RULES, |r| self.register(r)).chain(extra.into_iter().flatten())
    }

    /// Cycles of MCLK for a frame: OpenMV's get_vt_pix_clk and SparkFun's "vt_sys_div -> div by 8/4/2/1".
    pub fn frame_cycles(&self) -> u32 {
        (8 >> (self.register(0x3060) & 3)) * self.pair(0x0340) * self.pair(0x0342)
    }

    fn write(&self, register: u16, value: u8) {
        let now_ns = self.clock.now_ns();
        let state = &mut *self.state.borrow_mut();
        if now_ns < state.busy_until_ns {
            return;
        }
        match register {
            // Identification and counters cannot be written (OpenMV: "Read only registers").
            0x0000..=0x0006 => return,
            0x0103 => {
                *state = State { registers: [None; REGISTERS], busy_until_ns: now_ns + RESET_NS };
                return;
            }
            _ => {}
        }
        let slot = state.registers.iter_mut().find(|r| r.is_none_or(|(r, _)| r == register));
        *slot.expect("a driver writes fewer registers") = Some((register, value));
    }

    fn view(&self) -> Option<View> {
        let r = |register| self.register(register);
        // Streaming (OpenMV: HIMAX_MODE_STREAMING), on eight lines (Arm: 02; 42 is four, 22 one).
        if r(0x0100) != 0x01 || r(0x3059) & 0x62 != 0x02 {
            return None;
        }
        let (mut width, mut height) = (324, if r(0x3010) & 1 != 0 { 244 } else { 324 });
        if r(0x0383) == 3 && r(0x0387) == 3 && r(0x0390) & 3 == 3 {
            (width, height) = (width / 2, height / 2);
        }
        let (mirror, flip) = (r(0x0101) & 1 != 0, r(0x0101) & 2 != 0);
        let (bars, spoilt) = (r(0x0601) & 1 != 0, self.broken().any(|refusal| refusal.spoils));
        // A frame has more rows and a row more clocks than the picture.
        let fits = self.pair(0x0340) > height && self.pair(0x0342) > width;
        fits.then_some(View { width, height, mirror, flip, bars, spoilt })
    }
}

impl Output for Hm01b0Sim<'_> {
    type Frame = View;

    fn faults(&self) -> &Faults {
        &self.faults
    }

    /// SparkFun: LINE_LENGTH and FRAME_LENGTH in pixel clocks and rows, bit 5 of 3060 "gated_clock".
    fn frame(&self) -> Option<(View, Timing)> {
        let view = self.view()?;
        let (row, total, gated) = (self.pair(0x0342), self.pair(0x0340), self.register(0x3060) & 0x20 != 0);
        Some((view, Timing { row, active: view.width, total, frame_signal: 1, first: 2, rows: view.height, gated }))
    }

    fn byte(&self, view: &View, at: u32) -> u8 {
        yuv(view.pixel(&self.scene, at % view.width, at / view.width))[0]
    }
}

/// I²C.
pub struct Cci<'s, 'a>(&'s Hm01b0Sim<'a>);

impl ErrorType for Cci<'_, '_> {
    type Error = BusError;
}

impl I2c for Cci<'_, '_> {
    fn transaction(&mut self, address: u8, operations: &mut [Operation]) -> Result<(), BusError> {
        if address != 0x24 || self.0.faults.nak() {
            return Err(BusError);
        }
        match operations {
            [Operation::Write([high, low, value])] => self.0.write(u16::from_be_bytes([*high, *low]), *value),
            [Operation::Write([high, low]), Operation::Read([value])] => *value = self.0.register(u16::from_be_bytes([*high, *low])),
            _ => return Err(BusError),
        }
        Ok(())
    }
}
