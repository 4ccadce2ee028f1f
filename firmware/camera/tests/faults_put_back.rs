//! Faults that the drivers once had, put back on the bus between driver and simulated sensor: each is caught. The numbers are
//! those of the table in firmware/README.md; faults of boards are put back in endtoend/tests/boards.rs.

mod common;

use common::{Scene, capture, mode};
use edge_camera::*;
use edge_simulator::{ArduCamSim, Hm01b0Sim, Ov7670Sim, Receiver, Refusal, Revision};
use edge_wire::{Level, PixelFormat};
use embedded_hal::i2c::{self, I2c};
use embedded_hal::spi::{self, SpiDevice};
use embedded_hal_mock::eh1::delay::NoopDelay;
use std::cell::RefCell;
use std::collections::BTreeSet;

/// What becomes of a value that is written to a register: `None`, and it does not arrive.
type Alter<'f> = &'f dyn Fn(u16, u8) -> Option<u8>;

/// Nothing is changed.
fn as_it_is(_: u16, value: u8) -> Option<u8> {
    Some(value)
}

/// Changes what a driver writes. Registers of the OV2640's sensor bank are 1xx.
struct Altered<'f, B> {
    bus: B,
    alter: Alter<'f>,
    bank: u16,
}

impl<'f, B> Altered<'f, B> {
    fn new(bus: B, alter: Alter<'f>) -> Self {
        Altered { bus, alter, bank: 0 }
    }
}

impl<B: i2c::ErrorType> i2c::ErrorType for Altered<'_, B> {
    type Error = B::Error;
}

impl<B: I2c> I2c for Altered<'_, B> {
    fn transaction(&mut self, address: u8, operations: &mut [i2c::Operation]) -> Result<(), B::Error> {
        let (register, value) = match operations {
            [i2c::Operation::Write([0xFF, bank])] if address == 0x30 => {
                self.bank = u16::from(*bank) << 8;
                return self.bus.transaction(address, operations);
            }
            [i2c::Operation::Write([register, value])] if address != 0x24 => (self.bank | u16::from(*register), *value),
            [i2c::Operation::Write([high, low, value])] => (u16::from_be_bytes([*high, *low]), *value),
            _ => return self.bus.transaction(address, operations),
        };
        let Some(value) = (self.alter)(register, value) else { return Ok(()) };
        let [high, low] = register.to_be_bytes();
        if address == 0x24 { self.bus.write(address, &[high, low, value]) } else { self.bus.write(address, &[low, value]) }
    }
}

impl<B: spi::ErrorType> spi::ErrorType for Altered<'_, B> {
    type Error = B::Error;
}

impl<B: SpiDevice> SpiDevice for Altered<'_, B> {
    fn transaction(&mut self, operations: &mut [spi::Operation<u8>]) -> Result<(), B::Error> {
        match operations {
            [spi::Operation::Write([register @ 0x80..=0xFF, value])] => match (self.alter)(u16::from(*register & 0x7F), *value) {
                Some(value) => self.bus.write(&[*register, value]),
                None => Ok(()),
            },
            _ => self.bus.transaction(operations),
        }
    }
}

/// How a set-up and a picture went.
#[derive(Debug, PartialEq)]
enum Outcome {
    Right,
    /// No picture.
    Failed(CameraError),
    /// The picture is not the scene's.
    WrongPicture,
    /// The picture is right by luck: these registers hold what nobody writes.
    Refused(Vec<Refusal>),
}

fn outcome(picture: Result<Vec<u8>, CameraError>, right: impl Fn(&[u8]) -> bool, refusals: Vec<Refusal>) -> Outcome {
    match picture {
        Err(error) => Outcome::Failed(error),
        Ok(bytes) if !right(&bytes) => Outcome::WrongPicture,
        Ok(_) if !refusals.is_empty() => Outcome::Refused(refusals),
        Ok(_) => Outcome::Right,
    }
}

const SCENE: (u16, u16) = (160, 120);

struct Arducam<'f> {
    revision: Revision,
    lead: Lead,
    format: PixelFormat,
    hung: bool,
    sensor: Alter<'f>,
    chip: Alter<'f>,
    then: &'f [Control],
}

const ARDUCAM: Arducam = Arducam {
    revision: Revision::New,
    lead: Lead::Detect,
    format: PixelFormat::Rgb565,
    hung: false,
    sensor: &as_it_is,
    chip: &as_it_is,
    then: &[],
};

impl Arducam<'_> {
    fn outcome(&self) -> Outcome {
        let scene = Scene::new(SCENE.0, SCENE.1, 1);
        let pictures = [scene.picture()];
        let sim = ArduCamSim::with_revision(&pictures, 2, self.revision);
        sim.faults.hung.set(self.hung);
        let picture = || {
            let (i2c, spi) = (Altered::new(sim.i2c(), self.sensor), Altered::new(sim.spi(), self.chip));
            let mut camera = ArduCam::new(i2c, spi, sim.delay(NoopDelay::new()), Module::Mini2Mp)?.with_lead(self.lead);
            camera.configure(mode(self.format, SCENE))?;
            self.then.iter().try_for_each(|control| camera.control(*control))?;
            capture(&mut camera)
        };
        let picture = picture();
        let mut refusals = Vec::new();
        sim.refusals(|r| refusals.push(r));
        let right = |bytes: &[u8]| match self.format {
            PixelFormat::Jpeg => bytes.windows(scene.jpeg.len()).any(|w| w == scene.jpeg),
            _ => bytes == scene.rgb565,
        };
        outcome(picture, right, refusals)
    }
}

fn ov7670(format: PixelFormat, size: (u16, u16), receiver: Receiver, alter: Alter) -> Outcome {
    let scene = Scene::new(size.0, size.1, 2);
    let sim = Ov7670Sim::new(scene.picture());
    let picture = || {
        let mut camera = Ov7670::new(Altered::new(sim.i2c(), alter), sim.port(receiver), sim.delay(NoopDelay::new()))?;
        camera.configure(mode(format, size))?;
        capture(&mut camera)
    };
    let picture = picture();
    let mut refusals = Vec::new();
    sim.refusals(|r| refusals.push(r));
    let right = |bytes: &[u8]| match format {
        PixelFormat::Rgb565 => bytes == scene.rgb565,
        _ => bytes.chunks(2).zip(scene.rgb565.chunks(2)).all(|(y, p)| (f64::from(y[0]) - common::luma(p)).abs() <= 3.0),
    };
    outcome(picture, right, refusals)
}

fn hm01b0(size: (u16, u16), receiver: Receiver, alter: Alter, then: &[Control]) -> Outcome {
    let scene = Scene::new(size.0, size.1, 3);
    let sim = Hm01b0Sim::new(scene.picture());
    let picture = || {
        let mut camera = Hm01b0::new(Altered::new(sim.i2c(), alter), sim.port(receiver), sim.delay(NoopDelay::new()))?;
        camera.configure(mode(PixelFormat::Gray8, size))?;
        then.iter().try_for_each(|control| camera.control(*control))?;
        capture(&mut camera)
    };
    let picture = picture();
    let bars = then.contains(&Control::TestPattern(true));
    let mut refusals = Vec::new();
    // A pattern is no fresh set-up: only what spoils it counts, and that shows.
    sim.refusals(|r| {
        if !bars {
            refusals.push(r)
        }
    });
    let right = |bytes: &[u8]| match bars {
        // White first and black last.
        true => bytes[0] == 255 && bytes[usize::from(size.0) - 1] == 0,
        false => bytes.iter().zip(scene.rgb565.chunks(2)).all(|(y, p)| (f64::from(*y) - common::luma(p)).abs() <= 3.0),
    };
    outcome(picture, right, refusals)
}

/// Writes that arrive with another value.
fn instead(register: u16, was: u8) -> impl Fn(u16, u8) -> Option<u8> {
    move |r, value| Some(if r == register { was } else { value })
}

/// Writes that do not arrive.
fn without(registers: &'static [u16]) -> impl Fn(u16, u8) -> Option<u8> {
    move |r, value| (!registers.contains(&r)).then_some(value)
}

#[test]
fn without_faults_all_is_right() {
    for revision in [Revision::Old, Revision::New] {
        for format in [PixelFormat::Rgb565, PixelFormat::Jpeg] {
            for hung in [false, true] {
                assert_eq!(Arducam { revision, format, hung, ..ARDUCAM }.outcome(), Outcome::Right, "{revision:?} {format}");
            }
        }
    }
    for receiver in [Receiver::Dcmi, Receiver::EdgeCounter] {
        for size in [(640, 480), (320, 240), (160, 120)] {
            for format in [PixelFormat::Rgb565, PixelFormat::Yuv422] {
                assert_eq!(ov7670(format, size, receiver, &as_it_is), Outcome::Right, "{format} {size:?} {receiver:?}");
            }
        }
        for size in [(324, 324), (324, 244), (162, 122)] {
            assert_eq!(hm01b0(size, receiver, &as_it_is, &[]), Outcome::Right, "{size:?} {receiver:?}");
            assert_eq!(hm01b0(size, receiver, &as_it_is, &[Control::TestPattern(true)]), Outcome::Right, "{size:?} {receiver:?}");
        }
    }
}

#[test]
fn fault_1_pixel_clock() {
    let small = |receiver, com10| ov7670(PixelFormat::Rgb565, SCENE, receiver, &instead(0x15, com10));
    assert_eq!(small(Receiver::Dcmi, 0x20), Outcome::Failed(CameraError::Timeout), "no edge during VSYNC, no frame");
    assert_eq!(small(Receiver::EdgeCounter, 0x00), Outcome::WrongPicture, "edges without data are pixels");
}

#[test]
fn fault_2_first_byte_of_the_fifo() {
    assert_eq!(Arducam { revision: Revision::Old, lead: Lead::None, ..ARDUCAM }.outcome(), Outcome::WrongPicture);
    assert_eq!(Arducam { revision: Revision::New, lead: Lead::OneByte, ..ARDUCAM }.outcome(), Outcome::WrongPicture);
}

#[test]
fn fault_4_jpeg_of_the_fifo() {
    let faulty = Arducam { sensor: &instead(0x0DA, 0x12), format: PixelFormat::Jpeg, ..ARDUCAM };
    assert_eq!(faulty.outcome(), Outcome::Failed(CameraError::Timeout));
}

#[test]
fn fault_5_exposure_steps() {
    assert_eq!(Arducam { sensor: &instead(0x15A, 0x57), ..ARDUCAM }.outcome(), Outcome::WrongPicture);
}

#[test]
fn fault_6_colours_of_the_ov7670() {
    let caught = |alter: Alter| ov7670(PixelFormat::Rgb565, SCENE, Receiver::Dcmi, alter);
    // White balance, black level, gamma: as after a reset, each by itself.
    const MISSING: [u16; 37] = [
        0x43, 0x44, 0x45, 0x46, 0x47, 0x48, 0x59, 0x5A, 0x5B, 0x5C, 0x5D, 0x5E, 0x6A, 0x6C, 0x6D, 0x6E, 0x6F, 0xB1, 0xB2, 0xB3, 0xB8, 0x7A,
        0x7B, 0x7C, 0x7D, 0x7E, 0x7F, 0x80, 0x81, 0x82, 0x83, 0x84, 0x85, 0x86, 0x87, 0x88, 0x89,
    ];
    for missing in MISSING {
        assert_eq!(caught(&|r, value| (r != missing).then_some(value)), Outcome::WrongPicture, "{missing:#x}");
    }
    // YUV's matrix for RGB.
    for (register, yuv) in [(0x4F, 0x80), (0x50, 0x80), (0x52, 0x22), (0x53, 0x5E), (0x54, 0x80)] {
        assert_eq!(caught(&instead(register, yuv)), Outcome::WrongPicture, "{register:#x}");
    }
    // No banding filter; 4 times at most.
    for (register, was) in [(0x13, 0xC7), (0x14, 0x18)] {
        assert!(matches!(caught(&instead(register, was)), Outcome::Refused(_)), "{register:#x}");
    }
}

#[test]
fn fault_10_undefined_bits_of_the_length() {
    let scene = Scene::new(SCENE.0, SCENE.1, 1);
    let pictures = [scene.picture()];
    let sim = ArduCamSim::new(&pictures, 0);
    let mut camera = ArduCam::new(sim.i2c(), sim.spi(), sim.delay(NoopDelay::new()), Module::Mini2MpPlus).unwrap();
    camera.configure(mode(PixelFormat::Jpeg, SCENE)).unwrap();
    let length = camera.capture(10).unwrap();
    // The same, as it was computed: all 24 bits.
    let mut spi = sim.spi();
    let faulty = [0x44, 0x43, 0x42].into_iter().fold(0, |length, register| {
        let mut bytes = [register, 0];
        spi.transfer_in_place(&mut bytes).unwrap();
        length << 8 | u32::from(bytes[1])
    });
    assert_eq!(length as usize, scene.jpeg.len().next_multiple_of(1024));
    assert!(faulty > 8 << 20, "{faulty} bytes are more than the FIFO has: the driver would refuse every picture");
}

#[test]
fn fault_11_reset_of_the_arduchip() {
    let error = |chip: Alter| Arducam { hung: true, chip, ..ARDUCAM }.outcome();
    let no_answer = Outcome::Failed(CameraError::TestRegister { wrote: 0x55, read: 0 });
    assert_eq!(error(&without(&[0x07])), no_answer, "not reset");
    assert_eq!(error(&instead(0x07, 0x80)), no_answer, "held in reset");
    // Reset, and not waited for.
    let scene = Scene::new(SCENE.0, SCENE.1, 1);
    let pictures = [scene.picture()];
    let sim = ArduCamSim::new(&pictures, 2);
    let hasty = ArduCam::new(sim.i2c(), sim.spi(), NoopDelay::new(), Module::Mini2Mp).err();
    assert_eq!(hasty, Some(CameraError::TestRegister { wrote: 0x55, read: 0 }));
}

#[test]
fn fault_12_exposure_without_bounds() {
    let then = [Control::Exposure(Level::Manual(673))];
    assert_eq!(Arducam { then: &then, ..ARDUCAM }.outcome(), Outcome::Failed(CameraError::OutOfRange));
    // As it was: the value goes to the sensor.
    let long: Alter = &|r, value| Some(if r == 0x110 { (1212 >> 2) as u8 } else { value });
    let then = [Control::Exposure(Level::Manual(184)), Control::Flip { horizontal: false, vertical: false }];
    let longer: Alter = &|r, value| if r == 0x145 { Some(value | 1) } else { long(r, value) };
    assert_eq!(Arducam { then: &then, sensor: longer, ..ARDUCAM }.outcome(), Outcome::WrongPicture);
}

#[test]
fn fault_13_one_window_for_every_size() {
    for size in [(320, 240), (160, 120)] {
        let vga: Alter = &|r, value| {
            Some(match r {
                0x17 => 0x13,
                0x18 => 0x01,
                0x32 => 0xB6,
                _ => value,
            })
        };
        assert_eq!(ov7670(PixelFormat::Rgb565, size, Receiver::Dcmi, vga), Outcome::WrongPicture, "{size:?}");
    }
    // OpenMV's for QVGA, which it crops: 324 columns.
    assert_eq!(ov7670(PixelFormat::Rgb565, (320, 240), Receiver::Dcmi, &instead(0x18, 0x04)), Outcome::WrongPicture);
}

#[test]
fn fault_14_clock_divider() {
    let cycles = |alter: Alter| {
        let scene = Scene::new(SCENE.0, SCENE.1, 3);
        let sim = Hm01b0Sim::new(scene.picture());
        let mut camera = Hm01b0::new(Altered::new(sim.i2c(), alter), sim.port(Receiver::Dcmi), sim.delay(NoopDelay::new())).unwrap();
        camera.configure(mode(PixelFormat::Gray8, (324, 244))).unwrap();
        sim.frame_cycles()
    };
    // MCLK / 8: 30.7 frames a second of 260 rows of 376 clocks at 24 MHz. What was documented, / 4, would be another value.
    assert_eq!(cycles(&as_it_is), 8 * 260 * 376);
    assert_eq!(cycles(&instead(0x3060, 0x09)), 4 * 260 * 376);
}

#[test]
fn fault_15_longest_automatic_exposure() {
    for (size, caught) in [((324, 244), true), ((162, 122), true), ((324, 324), false)] {
        let outcome = hm01b0(size, Receiver::Dcmi, &without(&[0x2105, 0x2106]), &[]);
        assert_eq!(outcome, if caught { Outcome::WrongPicture } else { Outcome::Right }, "{size:?}: 340 rows after a reset");
    }
}

#[test]
fn fault_16_reset_of_the_hm01b0() {
    // As it was: 1 ms, and on. The chip is not ready, and what is written is lost.
    struct Ready<B>(B);
    impl<B: i2c::ErrorType> i2c::ErrorType for Ready<B> {
        type Error = B::Error;
    }
    impl<B: I2c> I2c for Ready<B> {
        fn transaction(&mut self, address: u8, operations: &mut [i2c::Operation]) -> Result<(), B::Error> {
            if let [i2c::Operation::Write([0x01, 0x00]), i2c::Operation::Read([value])] = operations {
                *value = 0;
                return Ok(());
            }
            self.0.transaction(address, operations)
        }
    }
    let scene = Scene::new(SCENE.0, SCENE.1, 3);
    let sim = Hm01b0Sim::new(scene.picture());
    let mut camera = Hm01b0::new(Ready(sim.i2c()), sim.port(Receiver::Dcmi), sim.delay(NoopDelay::new())).unwrap();
    camera.configure(mode(PixelFormat::Gray8, (162, 122))).unwrap();
    assert_eq!(capture(&mut camera), Err(CameraError::Timeout));
    // A chip that never gets ready is an error, not a wait without end.
    let mut camera = Hm01b0::new(sim.i2c(), sim.port(Receiver::Dcmi), NoopDelay::new()).unwrap();
    assert_eq!(camera.configure(mode(PixelFormat::Gray8, (162, 122))), Err(CameraError::Timeout));
}

#[test]
fn fault_17_test_pattern() {
    let pattern = [Control::TestPattern(true)];
    for (register, on) in [(0x2100, 1), (0x1000, 0x43), (0x1008, 0x01)] {
        assert_eq!(hm01b0((324, 244), Receiver::Dcmi, &instead(register, on), &pattern), Outcome::WrongPicture, "{register:#x}");
    }
}

#[test]
fn fault_18_tables_of_the_hm01b0() {
    const MISSING: [u16; 24] = [
        0x1003, 0x1007, 0x3044, 0x3047, 0x3050, 0x3051, 0x3052, 0x3054, 0x3055, 0x3056, 0x3057, 0x3058, 0x3065, 0x1001, 0x1002, 0x0350,
        0x1006, 0x1009, 0x100A, 0x100B, 0x100C, 0x2000, 0x2004, 0x3011,
    ];
    for missing in MISSING {
        let outcome = hm01b0((162, 122), Receiver::Dcmi, &|r, value| (r != missing).then_some(value), &[]);
        // 1003 may be 00 as well: OpenMV and Zephyr leave it at that.
        assert_eq!(outcome, if missing == 0x1003 { Outcome::Right } else { Outcome::WrongPicture }, "{missing:#x}");
    }
}

/// Every register that a driver writes, one at a time, with another value: caught, but for those that are named.
fn every_register(outcome: impl Fn(Alter) -> Outcome, unguarded: &[u16]) {
    let written = RefCell::new(BTreeSet::new());
    assert_eq!(
        outcome(&|r, value| {
            written.borrow_mut().insert(r);
            Some(value)
        }),
        Outcome::Right
    );
    let written = written.into_inner();
    let flipped = |at: u16, bits: u8| outcome(&|r, value| Some(if r == at { value ^ bits } else { value }));
    let escapes = |at: &u16| [0x05, 0x0A].into_iter().all(|bits| flipped(*at, bits) == Outcome::Right);
    let escaped: Vec<u16> = written.iter().copied().filter(escapes).collect();
    assert_eq!(escaped, unguarded, "of {} registers; hexadecimal: {escaped:x?}", written.len());
}

#[test]
fn every_register_of_the_ov2640() {
    // Any JPEG quality will do.
    every_register(|sensor| Arducam { sensor, ..ARDUCAM }.outcome(), &[0x044]);
}

#[test]
fn every_register_of_the_ov7670() {
    every_register(|alter| ov7670(PixelFormat::Rgb565, SCENE, Receiver::Dcmi, alter), &[]);
}

#[test]
fn every_register_of_the_hm01b0() {
    // Any value resets it, and the automatic exposure may begin anywhere.
    every_register(|alter| hm01b0((162, 122), Receiver::Dcmi, alter, &[]), &[0x0103, 0x0202, 0x0203]);
}
