//! The OV2640's registers, and what they make of a scene.
//!
//! Sources: espressif/esp32-camera (`sensors/private_include/ov2640_regs.h`, `ov2640_settings.h`), ArduCAM/Arduino
//! (`ArduCAM/ov2640_regs.h`, `ArduCAM.cpp`), openmv/openmv (`drivers/sensors/ov2640.c`), Linux (`drivers/media/i2c/ov2640.c`:
//! the meaning of bits), Zephyr (`drivers/video/ov2640.c`).

use crate::picture::View;
use crate::rules::{Refusal, Rule, rules};

/// Banks as FF chooses them.
const DSP: usize = 0;
const SENSOR: usize = 1;

/// OpenMV waits so long after a reset before it writes; nobody waits less.
const RESET_NS: u64 = 5_000_000;

/// Sensor bank: 1xx. DSP bank: 0xx.
const RULES: &[Rule] = rules! {
    Always, "window at SVGA", "esp32-camera settings_to_svga; ArduCAM 320x240; OpenMV svga_regs (19, 1A, 03)":
        0x117 => [0x11], 0x118 => [0x43], 0x119 => [0x00, 0x01], 0x11A => [0x4B, 0x97], 0x132 => [0x09];
    Always, "analogue part", "esp32-camera, ArduCAM, Linux, OpenMV, Zephyr: the same in all":
        0x13C => [0x32], 0x12C => [0x0C], 0x133 => [0x78], 0x13A => [0x33], 0x13B => [0xFB], 0x13E => [0x00], 0x143 => [0x11],
        0x116 => [0x10], 0x123 => [0x00], 0x106 => [0x88], 0x107 => [0xC0], 0x14C => [0x00], 0x14A => [0x81], 0x121 => [0x99];
    Always, "analogue part", "esp32-camera, ArduCAM, Linux, OpenMV: the same in all":
        0x15C => [0x00], 0x163 => [0x00], 0x17C => [0x05], 0x120 => [0x80], 0x128 => [0x30], 0x16C => [0x00], 0x16E => [0x00],
        0x170 => [0x02], 0x171 => [0x94], 0x173 => [0xC1];
    Always, "analogue part at SVGA", "esp32-camera settings_to_svga; ArduCAM 320x240":
        0x16D => [0x00], 0x13D => [0x38], 0x139 => [0x92, 0x12], 0x135 => [0xDA], 0x122 => [0x1A], 0x134 => [0xC0], 0x10D => [0x87],
        0x10E => [0x41], 0x137 => [0xC0, 0xC3];
    Always, "rows of 10 and 8.3 ms", "esp32-camera settings_to_svga; ArduCAM 320x240":
        0x14F => [0xCA], 0x150 => [0xA8];
    Always, "colour processing", "esp32-camera, ArduCAM, Linux, OpenMV, Zephyr: the same in all":
        0x02C => [0xFF], 0x02E => [0xDF], 0x076 => [0xFF], 0x042 => [0x20], 0x043 => [0x18], 0x088 => [0x3F], 0x0D7 => [0x03],
        0x0D9 => [0x10], 0x0C8 => [0x08], 0x0C9 => [0x80], 0x0C5 => [0x11], 0x0C6 => [0x51], 0x0BF => [0x80], 0x0B6 => [0x66],
        0x0B8 => [0xA5], 0x0B7 => [0x64], 0x0B9 => [0x7C], 0x0B3 => [0xAF], 0x0B4 => [0x97], 0x0B5 => [0xFF], 0x0B0 => [0xC5],
        0x0B1 => [0x94], 0x0B2 => [0x0F], 0x0C4 => [0x5C], 0x07F => [0x00], 0x0E5 => [0x1F], 0x0DD => [0x7F];
    Always, "colour processing", "esp32-camera, ArduCAM, Linux, OpenMV, Zephyr: the same in all":
        0x041 => [0x24], 0x04C => [0x00], 0x0A4 => [0x00], 0x0A8 => [0x00], 0x0F9 => [0xC0];
    Always, "colour processing", "all: A0; esp32-camera, ArduCAM for JPEG: 80":
        0x033 => [0xA0, 0x80];
    Always, "modules of the DSP", "CTRL2: 3D in all, 35 in ArduCAM 320x240. CTRL3: D0; esp32-camera 50; ArduCAM D5 for JPEG":
        0x086 => [0x3D, 0x35], 0x087 => [0xD0, 0x50, 0xD5];
    Always, "width's upper bit, and nothing else", "Linux TEST_HSIZE_SET":
        0x057 => [0x00, 0x80];
    Always, "window's last bits at SVGA, dummy frames", "Linux COM1_VWIN_LSB_SVGA, COM1_n_DUMMY_FR; OpenMV 8A":
        0x103 => [0x0A, 0x4A, 0x8A, 0xCA];
    Always, "histogram's levels", "esp32-camera, ArduCAM, Linux, OpenMV":
        0x161 => [0x70], 0x162 => [0x80];
    Fresh, "white balance and gamma on", "esp32-camera FD; ArduCAM ED":
        0x0C3 => [0xFD, 0xED];
    Fresh, "clocks", "D3: 82 in all at first, then 00 to 04 or automatic; CLKRC: ArduCAM, Linux 00, esp32-camera 01":
        0x0D3 => [0x82, 0x80, 0x00, 0x02, 0x04], 0x111 => [0x00, 0x01, 0x80];
    Fresh, "drive strength 3x; SVGA", "esp32-camera, ArduCAM, Linux, OpenMV; esp32-camera, ArduCAM":
        0x109 => [0x02], 0x112 => [0x40];
    Always, "E1 for RGB565 and JPEG", "esp32-camera settings_rgb565, settings_jpeg3; ArduCAM OV2640_JPEG, OV2640_QVGA":
        0x0E1 => [0x77];
    Always, "JPEG of a FIFO: HREF as it is; RGB565, high byte first", "ArduCAM OV2640_JPEG, OV2640_QVGA; OpenMV jpeg_regs; Zephyr":
        0x0DA => [0x10, 0x08];
    Fresh, "luma's range", "esp32-camera, ArduCAM, Linux, OpenMV":
        0x124 => [0x40], 0x125 => [0x38], 0x126 => [0x82];
    Fresh, "banding", "Linux, OpenMV: automatic; ArduCAM: automatic, 50 Hz for JPEG":
        0x10C => [0x3A, 0x3C];
    Fresh, "automatic control and its ceiling", "esp32-camera, ArduCAM, Linux, OpenMV":
        0x113 => [0xE5], 0x114 => [0x48];
    Fresh, "white balance", "esp32-camera, ArduCAM, Linux, OpenMV, Zephyr":
        0x0C7 => [0x10];
};

/// Rows of a frame at SVGA, which no exposure exceeds: esp32-camera's and ArduCAM's longest, (3 + 1) · A8 (5A, 50).
const FRAME_ROWS: u32 = 672;

/// What is written through an index and a data register of the DSP bank: gamma (90, 91), sharpness (92, 93), matrix (96, 97).
const INDEXED: [(u8, &[&[u8]], &str); 3] = [
    (0x90, &[&[0x0E, 0x1A, 0x31, 0x5A, 0x69, 0x75, 0x7E, 0x88, 0x8F, 0x96, 0xA3, 0xAF, 0xC4, 0xD7, 0xE8, 0x20]], "gamma"),
    // esp32-camera and ArduCAM for JPEG; all others.
    (0x92, &[&[0x06, 0xE3, 5, 5, 0, 4, 0, 0, 0, 0, 0, 0, 0], &[0x06, 0xE3, 3, 3, 0, 2, 0, 0, 0, 0, 0, 0, 0]], "sharpness"),
    (0x96, &[&[0x08, 0x19, 0x02, 0x0C, 0x24, 0x30, 0x28, 0x26, 0x02, 0x98, 0x80, 0, 0]], "colour matrix"),
];

/// Values behind an index.
#[derive(Clone, Copy, Default)]
struct Indexed {
    values: [u8; 16],
    next: usize,
}

pub(crate) struct Ov2640 {
    registers: [[u8; 256]; 2],
    indexed: [Indexed; 3],
    /// The digital effects behind BPADDR and BPDATA, which counts up (Linux: SDE indirect register access).
    effects: Indexed,
    bank: usize,
    sub_address: u8,
    /// What is written before that is lost.
    busy_until_ns: u64,
}

impl Ov2640 {
    pub fn new() -> Self {
        let mut sensor = Ov2640 {
            registers: [[0; 256]; 2],
            indexed: Default::default(),
            effects: Indexed::default(),
            bank: DSP,
            sub_address: 0,
            busy_until_ns: 0,
        };
        sensor.reset(0);
        sensor.busy_until_ns = 0;
        sensor
    }

    /// Linux: "all registers are set to factory default values".
    pub fn reset(&mut self, now_ns: u64) {
        (self.registers, self.indexed, self.effects) = ([[0; 256]; 2], Default::default(), Indexed::default());
        // Linux: PID_OV2640, MANUFACTURER_ID. Datasheet: the DSP is bypassed, and its port held in reset.
        for (register, value) in [(0x0A, 0x26), (0x0B, 0x42), (0x1C, 0x7F), (0x1D, 0xA2)] {
            self.registers[SENSOR][register] = value;
        }
        self.registers[DSP][0x05] = 0x01;
        self.registers[DSP][0xE0] = 0x04;
        (self.bank, self.busy_until_ns) = (DSP, now_ns + RESET_NS);
    }

    pub fn select(&mut self, register: u8) {
        self.sub_address = register;
    }

    pub fn write(&mut self, register: u8, value: u8, now_ns: u64) {
        if now_ns < self.busy_until_ns {
            return;
        }
        match (register, self.bank) {
            (0xFF, _) => self.bank = usize::from(value & 1),
            (0x12, SENSOR) if value & 0x80 != 0 => self.reset(now_ns),
            // Identification cannot be written.
            (0x0A | 0x0B | 0x1C | 0x1D, SENSOR) => {}
            (register, bank) => {
                self.registers[bank][usize::from(register)] = value;
                if bank == DSP {
                    self.write_indexed(register, value);
                }
            }
        }
    }

    fn write_indexed(&mut self, register: u8, value: u8) {
        let (to, index) = match register {
            0x7C | 0x7D => (&mut self.effects, register == 0x7C),
            0x90..=0x93 | 0x96 | 0x97 => {
                let at = INDEXED.iter().position(|(index, ..)| *index == register & 0xFE).unwrap_or(0);
                (&mut self.indexed[at], register & 1 == 0)
            }
            _ => return,
        };
        if index {
            to.next = usize::from(value);
        } else if let Some(place) = to.values.get_mut(to.next) {
            *place = value;
            to.next += 1;
        }
    }

    /// What is behind BPADDR.
    pub fn effects(&self) -> [u8; 16] {
        self.effects.values
    }

    pub fn read(&self, product: Option<u16>) -> u8 {
        match (self.sub_address, self.bank, product) {
            (0xFF, bank, _) => bank as u8,
            (0x0A, SENSOR, Some(product)) => (product >> 8) as u8,
            (0x0B, SENSOR, Some(product)) => product as u8,
            (register, bank, _) => self.registers[bank][usize::from(register)],
        }
    }

    pub fn register(&self, bank: u8, register: u8) -> u8 {
        self.registers[usize::from(bank & 1)][usize::from(register)]
    }

    pub fn refusals(&self) -> impl Iterator<Item = Refusal> + '_ {
        let register = |at: u16| self.register((at >> 8) as u8, at as u8);
        let [dsp, sensor] = &self.registers;
        let refusal = |register: u16, what, source| Refusal {
            register: 0x100 | register,
            value: sensor[usize::from(register)],
            what,
            source,
            spoils: true,
        };
        // Exposure by steps, and by hand, is at most a frame.
        let steps = |limit: u8, rows: u8| (u32::from(limit) + 1) * u32::from(rows);
        let automatic = sensor[0x13] & 0x21 == 0x21;
        let too_many =
            automatic && (steps(sensor[0x5A] >> 4, sensor[0x4F]) > FRAME_ROWS || steps(sensor[0x5A] & 15, sensor[0x50]) > FRAME_ROWS);
        let rows = u32::from(sensor[0x45] & 0x3F) << 10 | u32::from(sensor[0x10]) << 2 | u32::from(sensor[0x04] & 3);
        let too_long = sensor[0x13] & 1 == 0 && rows > FRAME_ROWS;
        // The offset of rows goes with the vertical flip (OpenMV: set_vflip).
        let torn = (sensor[0x04] >> 6 & 1) != (sensor[0x04] >> 4 & 1);
        // Linux names every bit of REG04 but one.
        let unknown = sensor[0x04] & 0x04 != 0;
        // XOFFL, YOFFL and VHYX with HSIZE and VSIZE: a window within the array's 800×600.
        let x = u32::from(dsp[0x53]) | u32::from(dsp[0x55] & 7) << 8;
        let y = u32::from(dsp[0x54]) | u32::from(dsp[0x55] >> 4 & 7) << 8;
        let w = 4 * (u32::from(dsp[0x51]) | u32::from(dsp[0x55] >> 3 & 1) << 8 | u32::from(dsp[0x57] >> 7) << 9);
        let h = 4 * (u32::from(dsp[0x52]) | u32::from(dsp[0x55] >> 7) << 8);
        let outside = x + w > 800 || y + h > 600;
        let behind = INDEXED.iter().zip(&self.indexed).filter_map(move |((register, allowed, what), is)| {
            let fits = allowed.iter().any(|values| is.values.starts_with(values) && is.next == values.len());
            let source = "esp32-camera, ArduCAM, Linux, OpenMV, Zephyr";
            (!fits).then_some(Refusal { register: u16::from(*register), value: is.values[0], what, source, spoils: true })
        });
        // No effects after a set-up, and neutral values for the colours.
        let effects = self.effects.values;
        let neutral = effects[0] == 0 && effects[3..5] == [0x48; 2];
        let extra = [
            unknown.then(|| refusal(0x04, "a bit without a name", "Linux REG04")),
            outside.then(|| Refusal {
                register: 0x51,
                value: dsp[0x51],
                what: "a window beyond the array",
                source: "Linux HSIZE_SET",
                spoils: true,
            }),
            (!neutral).then(|| Refusal {
                register: 0x7C,
                value: effects[0],
                what: "effects",
                source: "Linux BPADDR, BPDATA",
                spoils: false,
            }),
            too_many.then(|| refusal(0x5A, "more steps of exposure than a frame has", "esp32-camera settings_to_svga, ArduCAM: 23")),
            too_long.then(|| refusal(0x10, "an exposure longer than a frame", "esp32-camera set_aec_value: at most 1200 at UXGA")),
            torn.then(|| refusal(0x04, "vertical flip without its row offset", "OpenMV set_vflip")),
        ];
        Rule::broken(RULES, register).chain(extra.into_iter().flatten()).chain(behind)
    }

    /// What the registers make of the scene, and whether it is JPEG; `None` if no picture comes out.
    pub fn view(&self) -> Option<(View, bool)> {
        let [dsp, sensor] = &self.registers;
        // Linux: HSIZE, VSIZE, VHYX, TEST, ZMOW, ZMOH, ZMHH and CTRLI, in pixels / 4 and halvings.
        let (halvings_v, halvings_h) = (dsp[0x50] >> 3 & 3, dsp[0x50] & 3);
        let width = (u32::from(dsp[0x5A]) | u32::from(dsp[0x5C] & 3) << 8) * 4;
        let height = (u32::from(dsp[0x5B]) | u32::from(dsp[0x5C] >> 2 & 1) << 8) * 4;
        let in_w = ((u32::from(dsp[0x51]) | u32::from(dsp[0x55] >> 3 & 1) << 8 | u32::from(dsp[0x57] >> 7) << 9) * 4) >> halvings_h;
        let in_h = ((u32::from(dsp[0x52]) | u32::from(dsp[0x55] >> 7) << 8) * 4) >> halvings_v;
        // The array at 800×600, awake, the DSP on, nothing in reset, enough pixels to scale down from.
        let svga = sensor[0x12] & 0x70 == 0x40 && (dsp[0xC0], dsp[0xC1]) == (100, 75);
        let on = sensor[0x09] & 0x10 == 0 && dsp[0x05] & 1 == 0 && dsp[0xE0] == 0 && dsp[0x86] & 0x20 != 0;
        if !svga || !on || width == 0 || height == 0 || in_w < width || in_h < height {
            return None;
        }
        // esp32-camera: IMAGE_MODE. With HREF as VSYNC a FIFO that stores while HREF is high stores no JPEG file.
        let jpeg = dsp[0xDA] & 0x10 != 0;
        if (jpeg && dsp[0xDA] & 0x02 != 0) || (!jpeg && dsp[0xDA] & 0x0C != 0x08) {
            return None;
        }
        let (mirror, flip, bars) = (sensor[0x04] & 0x80 != 0, sensor[0x04] & 0x40 != 0, sensor[0x12] & 2 != 0);
        let spoilt = self.refusals().any(|r| r.spoils);
        Some((View { width, height, mirror, flip, bars, spoilt }, jpeg))
    }
}
