//! Drivers on simulated sensors: pictures come out as the registers say, and faults as errors that name their place.

mod common;

use common::{Scene, capture, luma, mode};
use edge_camera::*;
use edge_simulator::{ArduCamSim, Faults, Hm01b0Sim, Ov7670Sim, Receiver, Revision};
use edge_wire::{Banding, Level, PixelFormat, WhiteBalance};
use embedded_hal::i2c::{ErrorKind, NoAcknowledgeSource};
use embedded_hal_mock::eh1::delay::NoopDelay;

fn arducam<'s>(sim: &'s ArduCamSim) -> Result<impl Camera + 's, CameraError> {
    ArduCam::new(sim.i2c(), sim.spi(), sim.delay(NoopDelay::new()), Module::Mini2MpPlus).map(|camera| camera.with_lead(Lead::None))
}

fn ov7670<'s>(sim: &'s Ov7670Sim) -> Result<impl Camera + 's, CameraError> {
    Ov7670::new(sim.i2c(), sim.port(Receiver::Dcmi), sim.delay(NoopDelay::new()))
}

fn hm01b0<'s>(sim: &'s Hm01b0Sim) -> Result<impl Camera + 's, CameraError> {
    Hm01b0::new(sim.i2c(), sim.port(Receiver::Dcmi), sim.delay(NoopDelay::new()))
}

/// The scene as RGB565 of a size, mirrored on request.
fn expected(scene: &Scene, (width, height): (u16, u16), mirror: bool, flip: bool) -> Vec<u8> {
    let (w, h) = (u32::from(width), u32::from(height));
    let at = |x, y| scene.picture().pixel(if mirror { w - 1 - x } else { x }, if flip { h - 1 - y } else { y }, w, h);
    (0..h).flat_map(|y| (0..w).flat_map(move |x| at(x, y).to_be_bytes())).collect()
}

#[test]
fn ov2640_gives_every_mode() {
    let scene = Scene::new(160, 120, 1);
    let pictures = [scene.picture()];
    let sim = ArduCamSim::new(&pictures, 3);
    let mut camera = arducam(&sim).unwrap();
    for (format, sizes) in camera.modes() {
        for size in *sizes {
            camera.configure(mode(*format, *size)).unwrap();
            match format {
                PixelFormat::Jpeg if *size != (160, 120) => {
                    // The simulator has this scene's file in one size; another comes out empty, and is told apart.
                    assert!(matches!(capture(&mut camera), Err(CameraError::Length { found: 0, .. })));
                }
                PixelFormat::Jpeg => {
                    let fifo = capture(&mut camera).unwrap();
                    assert_eq!(fifo[..scene.jpeg.len()], scene.jpeg);
                    assert_eq!(fifo.len(), scene.jpeg.len().next_multiple_of(1024));
                }
                _ => assert_eq!(capture(&mut camera).unwrap(), expected(&scene, *size, false, false), "{size:?}"),
            }
        }
    }
    assert_eq!(camera.modes().iter().map(|(_, sizes)| sizes.len()).sum::<usize>(), 12);
}

#[test]
fn the_small_fifo_takes_what_fits_it() {
    let sim_scene = Scene::new(160, 120, 1);
    let pictures = [sim_scene.picture()];
    let sim = ArduCamSim::new(&pictures, 0);
    let mut camera = ArduCam::new(sim.i2c(), sim.spi(), sim.delay(NoopDelay::new()), Module::Mini2Mp).unwrap();
    for (format, sizes) in camera.modes() {
        for (w, h) in *sizes {
            assert!(format.bytes_per_pixel().is_none_or(|b| b * u32::from(*w) * u32::from(*h) < 384 << 10));
        }
    }
    assert_eq!(camera.configure(mode(PixelFormat::Rgb565, (640, 480))), Err(CameraError::UnsupportedMode));
    assert_eq!(camera.capture(10), Err(CameraError::UnsupportedMode));
    camera.configure(mode(PixelFormat::Rgb565, (352, 288))).unwrap();
    assert_eq!(camera.capture(10), Ok(2 * 352 * 288));
    sim.faults.stuck.set(true);
    assert_eq!(camera.capture(10), Err(CameraError::Timeout));
}

#[test]
fn ov2640_controls() {
    let scene = Scene::new(160, 120, 2);
    let pictures = [scene.picture()];
    let sim = ArduCamSim::new(&pictures, 0);
    let mut camera = arducam(&sim).unwrap();
    camera.configure(mode(PixelFormat::Rgb565, (160, 120))).unwrap();
    for (horizontal, vertical) in [(true, false), (false, true), (true, true), (false, false)] {
        camera.control(Control::Flip { horizontal, vertical }).unwrap();
        assert_eq!(capture(&mut camera).unwrap(), expected(&scene, (160, 120), horizontal, vertical));
    }
    camera.control(Control::Exposure(Level::Manual(0x02A0))).unwrap();
    let exposure =
        u16::from(sim.register(1, 0x45) & 0x3F) << 10 | u16::from(sim.register(1, 0x10)) << 2 | u16::from(sim.register(1, 0x04) & 3);
    assert_eq!((exposure, sim.register(1, 0x13) & 1), (0x02A0, 0));
    camera.control(Control::Gain(Level::Manual(40))).unwrap(); // 2.5×
    assert_eq!((sim.register(1, 0x00), sim.register(1, 0x13) & 4), (0x14, 0));
    camera.control(Control::Exposure(Level::Auto)).unwrap();
    camera.control(Control::Gain(Level::Auto)).unwrap();
    assert_eq!(sim.register(1, 0x13) & 5, 5);
    for rows in [0, 0x02A1] {
        assert_eq!(camera.control(Control::Exposure(Level::Manual(rows))), Err(CameraError::OutOfRange), "a frame has 672 rows");
    }
    assert_eq!(camera.control(Control::Gain(Level::Manual(512))), Err(CameraError::OutOfRange));
    // The flips survive the exposure, which shares a register with them.
    camera.control(Control::Flip { horizontal: true, vertical: true }).unwrap();
    camera.control(Control::Exposure(Level::Manual(7))).unwrap();
    assert_eq!(capture(&mut camera).unwrap(), expected(&scene, (160, 120), true, true));
    camera.control(Control::TestPattern(true)).unwrap();
    let bars = capture(&mut camera).unwrap();
    assert_eq!((&bars[..2], &bars[318..320]), (&[0, 0][..], &[0xFF, 0xFF][..]), "bars, mirrored");
    camera.control(Control::TestPattern(false)).unwrap();
    assert_eq!(capture(&mut camera).unwrap(), expected(&scene, (160, 120), true, true));
}

#[test]
fn ov2640_faults() {
    let scene = Scene::new(160, 120, 3);
    let pictures = [scene.picture()];
    let sim = ArduCamSim::new(&pictures, 0);
    for (stuck, read) in [(0xFF, 0xFF), (0x00, 0x00)] {
        sim.faults.spi_stuck_at.set(Some(stuck));
        assert_eq!(arducam(&sim).err(), Some(CameraError::TestRegister { wrote: 0x55, read }));
    }
    sim.faults.spi_stuck_at.set(None);
    sim.faults.product.set(Some(0x5642));
    assert_eq!(arducam(&sim).err(), Some(CameraError::WrongChip { expected: 0x2640, found: 0x5642 }));
    sim.faults.product.set(None);

    let mut camera = arducam(&sim).unwrap();
    let small = mode(PixelFormat::Rgb565, (160, 120));
    assert_eq!(camera.configure(mode(PixelFormat::Gray8, (160, 120))), Err(CameraError::UnsupportedMode));
    assert_eq!(camera.configure(mode(PixelFormat::Rgb565, (161, 120))), Err(CameraError::UnsupportedMode));
    nak_tests(&sim.faults, &mut camera, small, Some(1), 0xFF);

    camera.configure(small).unwrap();
    sim.faults.short.set(9);
    assert_eq!(capture(&mut camera), Err(CameraError::Length { expected: 38_400, found: 38_399 }));
    sim.faults.short.set(0);
    sim.faults.stuck.set(true);
    assert_eq!(capture(&mut camera), Err(CameraError::Timeout));
    sim.faults.stuck.set(false);
    assert_eq!(capture(&mut camera).unwrap(), scene.rgb565);
    // What is beyond the picture cannot be read.
    assert!(matches!(camera.read(&mut [0]), Err(CameraError::Length { expected: 1, found: 0 })));
    // A sensor that lost its registers makes no pictures until it is set up again.
    sim.faults.brown_out.set(true);
    camera.control(Control::TestPattern(false)).unwrap();
    assert_eq!(capture(&mut camera), Err(CameraError::Timeout));
    camera.configure(small).unwrap();
    assert_eq!(capture(&mut camera).unwrap(), scene.rgb565);
}

/// Two refused transactions are tried again, three are an error that names the register; then all is well again.
fn nak_tests(faults: &Faults, camera: &mut impl Camera, mode: Mode, bank: Option<u8>, register: u16) {
    faults.naks.set(2);
    camera.configure(mode).unwrap();
    faults.naks.set(3);
    let Err(CameraError::Register(error)) = camera.configure(mode) else { panic!() };
    assert_eq!((error.bank, error.register, error.tries), (bank, register, 3));
    assert_eq!(error.kind, ErrorKind::NoAcknowledge(NoAcknowledgeSource::Unknown));
    assert_eq!(faults.naks.get(), 0, "no more tries than that");
    camera.configure(mode).unwrap();
    assert!(capture(camera).is_ok());
}

#[test]
fn ov7670_gives_every_mode() {
    let scene = Scene::new(160, 120, 4);
    let sim = Ov7670Sim::new(scene.picture());
    let mut camera = ov7670(&sim).unwrap();
    for (format, sizes) in camera.modes() {
        for size in *sizes {
            camera.configure(mode(*format, *size)).unwrap();
            let (picture, rgb) = (capture(&mut camera).unwrap(), expected(&scene, *size, false, false));
            match format {
                PixelFormat::Rgb565 => assert_eq!(picture, rgb, "{size:?}"),
                _ => assert!(picture.chunks(2).zip(rgb.chunks(2)).all(|(y, p)| (f64::from(y[0]) - luma(p)).abs() <= 3.0), "{size:?}"),
            }
        }
    }
    for (horizontal, vertical) in [(true, false), (false, true)] {
        camera.configure(mode(PixelFormat::Rgb565, (160, 120))).unwrap();
        camera.control(Control::Flip { horizontal, vertical }).unwrap();
        assert_eq!(capture(&mut camera).unwrap(), expected(&scene, (160, 120), horizontal, vertical));
    }
}

#[test]
fn ov7670_controls_and_faults() {
    let scene = Scene::new(160, 120, 5);
    let sim = Ov7670Sim::new(scene.picture());
    sim.faults.product.set(Some(0x7721));
    assert_eq!(ov7670(&sim).err(), Some(CameraError::WrongChip { expected: 0x7673, found: 0x7721 }));
    sim.faults.product.set(None);
    let mut camera = ov7670(&sim).unwrap();
    let small = mode(PixelFormat::Rgb565, (160, 120));
    nak_tests(&sim.faults, &mut camera, small, None, 0x0A);
    camera.control(Control::Exposure(Level::Manual(0x1236))).unwrap();
    let exposure = u16::from(sim.register(0x07) & 0x3F) << 10 | u16::from(sim.register(0x10)) << 2 | u16::from(sim.register(0x04) & 3);
    assert_eq!((exposure, sim.register(0x13) & 1), (0x1236, 0));
    camera.control(Control::Gain(Level::Manual(16))).unwrap();
    assert_eq!((sim.register(0x00), sim.register(0x13) & 4), (0, 0));
    camera.control(Control::TestPattern(true)).unwrap();
    assert_eq!(capture(&mut camera).unwrap()[..4], [0xFF; 4]);
    camera.control(Control::TestPattern(false)).unwrap();
    sim.faults.short.set(1);
    assert_eq!(capture(&mut camera), Err(CameraError::Port(PortError::Short)));
    sim.faults.short.set(0);
    sim.faults.stuck.set(true);
    assert_eq!(capture(&mut camera), Err(CameraError::Timeout));
    sim.faults.stuck.set(false);
    assert_eq!(capture(&mut camera).unwrap(), scene.rgb565);
    assert_eq!(camera.configure(mode(PixelFormat::Jpeg, (160, 120))), Err(CameraError::UnsupportedMode));
    assert_eq!(camera.begin(), Err(CameraError::UnsupportedMode));
}

#[test]
fn hm01b0_modes_controls_and_faults() {
    let scene = Scene::new(162, 122, 6);
    let sim = Hm01b0Sim::new(scene.picture());
    sim.faults.product.set(Some(0xFFFF));
    assert_eq!(hm01b0(&sim).err(), Some(CameraError::WrongChip { expected: 0x01B0, found: 0xFFFF }));
    sim.faults.product.set(None);
    let mut camera = hm01b0(&sim).unwrap();
    assert_eq!(camera.begin(), Err(CameraError::UnsupportedMode));
    let near = |gray: &[u8], rgb: &[u8]| gray.iter().zip(rgb.chunks(2)).all(|(y, p)| (f64::from(*y) - luma(p)).abs() <= 3.0);
    for size in camera.modes()[0].1 {
        camera.configure(mode(PixelFormat::Gray8, *size)).unwrap();
        let picture = capture(&mut camera).unwrap();
        assert_eq!(picture.len(), usize::from(size.0) * usize::from(size.1));
        assert!(near(&picture, &expected(&scene, *size, false, false)), "{size:?}");
    }
    camera.control(Control::Flip { horizontal: true, vertical: true }).unwrap();
    assert!(near(&capture(&mut camera).unwrap(), &expected(&scene, (162, 122), true, true)));
    camera.control(Control::Exposure(Level::Manual(0x82))).unwrap();
    assert_eq!((sim.register(0x0202), sim.register(0x0203), sim.register(0x2100)), (0, 0x82, 0));
    assert_eq!(camera.control(Control::Exposure(Level::Manual(0x83))), Err(CameraError::OutOfRange), "longer than the frame");
    camera.control(Control::Gain(Level::Manual(100))).unwrap();
    assert_eq!(sim.register(0x0205), 0x20);
    assert_eq!(camera.control(Control::Gain(Level::Manual(256))), Err(CameraError::OutOfRange));
    camera.control(Control::Exposure(Level::Auto)).unwrap();
    assert_eq!(sim.register(0x2100), 1);
    camera.control(Control::TestPattern(true)).unwrap();
    assert_eq!(capture(&mut camera).unwrap()[..3], [0; 3], "bars, mirrored");
    nak_tests(&sim.faults, &mut camera, mode(PixelFormat::Gray8, (324, 244)), None, 0);
    sim.faults.short.set(1);
    assert_eq!(capture(&mut camera), Err(CameraError::Port(PortError::Short)));
}

#[test]
fn errors_say_where_and_what_to_do() {
    let scene = Scene::new(160, 120, 7);
    let pictures = [scene.picture()];
    let sim = ArduCamSim::new(&pictures, 0);
    sim.faults.naks.set(u32::MAX);
    let error = arducam(&sim).err().unwrap().to_string();
    assert!(error.starts_with("writing register 0xff of bank 1 failed 3 times: "), "{error}");
    assert!(error.ends_with("check the sensor's wiring, power and clock"), "{error}");
}

/// What every sensor refuses, and what each must take.
fn levels(camera: &mut impl Camera, control: fn(i8) -> Control) {
    for level in -2..=2 {
        camera.control(control(level)).unwrap();
    }
    for level in [-128, -3, 3, 127] {
        assert_eq!(camera.control(control(level)), Err(CameraError::OutOfRange), "{level}");
    }
    camera.control(control(0)).unwrap();
}

#[test]
fn ov2640_colours_and_exposure_as_published() {
    let scene = Scene::new(160, 120, 8);
    let pictures = [scene.picture()];
    let sim = ArduCamSim::new(&pictures, 0);
    let mut camera = arducam(&sim).unwrap();
    camera.configure(mode(PixelFormat::Rgb565, (160, 120))).unwrap();
    for control in [Control::Brightness, Control::Contrast, Control::Saturation, Control::ExposureBias] {
        levels(&mut camera, control);
    }
    assert_eq!(capture(&mut camera).unwrap(), scene.rgb565, "all at their defaults");
    // esp32-camera: brightness_regs, contrast_regs, saturation_regs; enable bits, and the registers from 7 on.
    camera.control(Control::Brightness(2)).unwrap();
    assert_eq!((sim.effects()[0], &sim.effects()[9..11]), (0x04, &[0x40, 0x00][..]));
    camera.control(Control::Brightness(0)).unwrap();
    camera.control(Control::Contrast(-2)).unwrap();
    assert_eq!((sim.effects()[0], &sim.effects()[7..11]), (0x04, &[0x20, 0x18, 0x34, 0x06][..]));
    // Both, and colour: none turns another off.
    camera.control(Control::Brightness(-1)).unwrap();
    camera.control(Control::Saturation(2)).unwrap();
    assert_eq!((sim.effects()[0], &sim.effects()[3..5], &sim.effects()[7..11]), (0x06, &[0x68, 0x68][..], &[0x20, 0x18, 0x24, 0x06][..]));
    // ArduCAM: OV2640_set_Light_Mode.
    camera.control(Control::WhiteBalance(WhiteBalance::Office)).unwrap();
    assert_eq!([0xC7, 0xCC, 0xCD, 0xCE].map(|r| sim.register(0, r)), [0x50, 0x52, 0x41, 0x66]);
    camera.control(Control::WhiteBalance(WhiteBalance::Auto)).unwrap();
    assert_eq!(sim.register(0, 0xC7), 0x10);
    // esp32-camera: ae_levels_regs.
    camera.control(Control::ExposureBias(2)).unwrap();
    assert_eq!([0x24, 0x25, 0x26].map(|r| sim.register(1, r)), [0x58, 0x50, 0x92]);
    // Linux: COM9_AGC_GAIN_*.
    for (times, com9) in [(2, 0x08), (8, 0x48), (128, 0xC8)] {
        camera.control(Control::GainCeiling(times)).unwrap();
        assert_eq!(sim.register(1, 0x14), com9);
    }
    for times in [0, 1, 3, 255] {
        assert_eq!(camera.control(Control::GainCeiling(times)), Err(CameraError::OutOfRange), "{times}");
    }
    // Linux: COM3_BAND_*, COM8_BNDF_EN.
    for (banding, com3, filtered) in
        [(Banding::Hz50, 4, true), (Banding::Hz60, 0, true), (Banding::Auto, 2, true), (Banding::Off, 2, false)]
    {
        camera.control(Control::Banding(banding)).unwrap();
        assert_eq!((sim.register(1, 0x0C) & 6, sim.register(1, 0x13) & 0x20 != 0), (com3, filtered), "{banding:?}");
    }
    camera.control(Control::NightMode(true)).unwrap();
    assert_eq!((sim.register(1, 0x0F), sim.register(1, 0x03)), (0x4B, 0x8A));
    camera.control(Control::NightMode(false)).unwrap();
    assert_eq!(sim.register(1, 0x03), 0x0A);
    camera.control(Control::JpegQuality(63)).unwrap();
    assert_eq!(sim.register(0, 0x44), 63);
    for scale in [0, 1, 64] {
        assert_eq!(camera.control(Control::JpegQuality(scale)), Err(CameraError::OutOfRange));
    }
    camera.control(Control::Standby(true)).unwrap();
    assert_eq!(capture(&mut camera), Err(CameraError::Timeout));
    camera.control(Control::Standby(false)).unwrap();
    assert_eq!(capture(&mut camera).unwrap(), scene.rgb565);
    // A set-up begins anew.
    camera.configure(mode(PixelFormat::Rgb565, (160, 120))).unwrap();
    camera.control(Control::Saturation(1)).unwrap();
    assert_eq!((sim.effects()[0], sim.effects()[9]), (0x02, 0x20));
}

#[test]
fn the_first_byte_of_a_fifo_is_found_out() {
    let scene = Scene::new(160, 120, 9);
    let pictures = [scene.picture()];
    for (revision, lead) in [(Revision::Old, Lead::OneByte), (Revision::New, Lead::None)] {
        let sim = ArduCamSim::with_revision(&pictures, 3, revision);
        let mut camera = ArduCam::new(sim.i2c(), sim.spi(), sim.delay(NoopDelay::new()), Module::Mini2Mp).unwrap();
        assert_eq!(camera.lead(), Lead::Detect);
        camera.configure(mode(PixelFormat::Jpeg, (160, 120))).unwrap();
        assert!(capture(&mut camera).unwrap().windows(scene.jpeg.len()).any(|w| w == scene.jpeg), "it does not matter for JPEG");
        assert_eq!(camera.lead(), Lead::Detect);
        sim.faults.stuck.set(true);
        assert_eq!(camera.configure(mode(PixelFormat::Rgb565, (160, 120))), Err(CameraError::Timeout), "nothing to find out from");
        assert_eq!(camera.begin().and_then(|()| camera.poll()), Err(CameraError::UnsupportedMode));
        sim.faults.stuck.set(false);
        for _ in 0..2 {
            camera.configure(mode(PixelFormat::Rgb565, (160, 120))).unwrap();
            assert_eq!(camera.lead(), lead);
            for _ in 0..3 {
                assert_eq!(capture(&mut camera).unwrap(), scene.rgb565, "{revision:?}");
            }
        }
    }
}

#[test]
fn ov7670_colours_and_exposure_as_published() {
    let scene = Scene::new(160, 120, 10);
    let sim = Ov7670Sim::new(scene.picture());
    let mut camera = ov7670(&sim).unwrap();
    let small = mode(PixelFormat::Rgb565, (160, 120));
    assert_eq!(camera.control(Control::Saturation(0)), Err(CameraError::UnsupportedMode), "whose matrix?");
    camera.configure(small).unwrap();
    for control in [Control::Brightness, Control::Contrast, Control::Saturation, Control::ExposureBias] {
        levels(&mut camera, control);
    }
    assert_eq!(capture(&mut camera).unwrap(), scene.rgb565, "all at their defaults");
    for level in -2..=2 {
        camera.control(Control::Saturation(level)).unwrap();
        assert_eq!(capture(&mut camera).unwrap(), scene.rgb565, "a matrix of its format at {level}");
    }
    // STM32 examples: OV7670_Color_Saturation, for YUV.
    camera.configure(mode(PixelFormat::Yuv422, (160, 120))).unwrap();
    camera.control(Control::Saturation(-2)).unwrap();
    assert_eq!([0x4F, 0x50, 0x51, 0x52, 0x53, 0x54].map(|r| sim.register(r)), [0x40, 0x40, 0x00, 0x11, 0x2F, 0x40]);
    camera.configure(small).unwrap();
    camera.control(Control::Brightness(-1)).unwrap();
    camera.control(Control::Contrast(2)).unwrap();
    assert_eq!((sim.register(0x55), sim.register(0x56)), (0x98, 0x60));
    camera.control(Control::WhiteBalance(WhiteBalance::Home)).unwrap();
    assert_eq!((sim.register(0x13) & 2, sim.register(0x01), sim.register(0x02)), (0, 0x96, 0x40));
    camera.control(Control::WhiteBalance(WhiteBalance::Auto)).unwrap();
    assert_eq!((sim.register(0x13), sim.register(0x01), sim.register(0x02)), (0xE7, 0x40, 0x60));
    // Upper and lower limits move, and stay a byte's.
    for (level, limits) in [(1, [0xA5, 0x43, 0xF4]), (2, [0xB5, 0x53, 0xF5]), (-2, [0x75, 0x13, 0xC1])] {
        camera.control(Control::ExposureBias(level)).unwrap();
        assert_eq!([0x24, 0x25, 0x26].map(|r| sim.register(r)), limits, "{level}");
    }
    for (times, com9) in [(4, 0x18), (16, 0x38), (32, 0x48), (128, 0x68)] {
        camera.control(Control::GainCeiling(times)).unwrap();
        assert_eq!(sim.register(0x14), com9);
    }
    // Linux: COM11_HZAUTO, COM11_50HZ, COM8_BFILT.
    for (banding, com11, filtered) in
        [(Banding::Hz50, 8, true), (Banding::Hz60, 0, true), (Banding::Auto, 16, true), (Banding::Off, 16, false)]
    {
        camera.control(Control::Banding(banding)).unwrap();
        assert_eq!((sim.register(0x3B) & 0x18, sim.register(0x13) & 0x20 != 0), (com11, filtered), "{banding:?}");
    }
    camera.control(Control::NightMode(true)).unwrap();
    assert_eq!(sim.register(0x3B), 0xD2);
    camera.control(Control::NightMode(false)).unwrap();
    assert_eq!(sim.register(0x3B), 0x12);
    assert_eq!(camera.control(Control::JpegQuality(10)), Err(CameraError::UnsupportedControl));
    camera.control(Control::Standby(true)).unwrap();
    assert_eq!(capture(&mut camera), Err(CameraError::Timeout));
    camera.control(Control::Standby(false)).unwrap();
    assert_eq!(capture(&mut camera).unwrap(), scene.rgb565);
}

#[test]
fn hm01b0_exposure_as_published_and_no_colours() {
    let scene = Scene::new(162, 122, 11);
    let sim = Hm01b0Sim::new(scene.picture());
    let mut camera = hm01b0(&sim).unwrap();
    camera.configure(mode(PixelFormat::Gray8, (162, 122))).unwrap();
    // OpenMV: set_gainceiling, set_brightness.
    camera.control(Control::GainCeiling(2)).unwrap();
    assert_eq!((sim.register(0x2108), sim.register(0x2109)), (1, 1));
    assert_eq!(camera.control(Control::GainCeiling(32)), Err(CameraError::OutOfRange));
    for (level, target) in [(-2, 60), (-1, 80), (0, 100), (1, 127)] {
        camera.control(Control::ExposureBias(level)).unwrap();
        assert_eq!(sim.register(0x2101), target);
    }
    for level in [2, 127, -3, -128] {
        assert_eq!(camera.control(Control::ExposureBias(level)), Err(CameraError::OutOfRange), "{level}");
    }
    for control in [Control::Saturation(0), Control::WhiteBalance(WhiteBalance::Auto), Control::JpegQuality(9), Control::NightMode(false)] {
        assert_eq!(camera.control(control), Err(CameraError::UnsupportedControl));
    }
    // What was set by hand is there again after the test pattern.
    camera.control(Control::Gain(Level::Manual(32))).unwrap();
    camera.control(Control::TestPattern(true)).unwrap();
    assert_eq!((sim.register(0x0205), sim.register(0x1000)), (0, 0));
    camera.control(Control::TestPattern(false)).unwrap();
    assert_eq!((sim.register(0x0205), sim.register(0x2100), sim.register(0x1000), sim.register(0x1008)), (0x10, 0, 0x43, 1));
    camera.control(Control::Standby(true)).unwrap();
    assert_eq!(capture(&mut camera), Err(CameraError::Timeout));
    camera.control(Control::Standby(false)).unwrap();
    assert!(capture(&mut camera).is_ok());
}
