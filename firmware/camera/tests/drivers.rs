//! Drivers on simulated sensors: pictures come out as the registers say, and faults as errors that name their place.

mod common;

use common::{Scene, capture, mode};
use edge_camera::*;
use edge_simulator::{ArduCamSim, Faults, Hm01b0Sim, Ov7670Sim};
use edge_wire::{Level, PixelFormat};
use embedded_hal::i2c::{ErrorKind, NoAcknowledgeSource};
use embedded_hal_mock::eh1::delay::NoopDelay;

fn arducam<'s>(sim: &'s ArduCamSim) -> Result<impl Camera + 's, CameraError> {
    ArduCam::new(sim.i2c(), sim.spi(), NoopDelay::new(), Module::Mini2MpPlus)
}

fn ov7670<'s>(sim: &'s Ov7670Sim) -> Result<impl Camera + 's, CameraError> {
    Ov7670::new(sim.i2c(), sim.port(), NoopDelay::new())
}

fn hm01b0<'s>(sim: &'s Hm01b0Sim) -> Result<impl Camera + 's, CameraError> {
    Hm01b0::new(sim.i2c(), sim.port(), NoopDelay::new())
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
                    assert_eq!(fifo.len(), scene.jpeg.len().next_multiple_of(8));
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
    let mut camera = ArduCam::new(sim.i2c(), sim.spi(), NoopDelay::new(), Module::Mini2Mp).unwrap();
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
    camera.control(Control::Exposure(Level::Manual(0xABCD))).unwrap();
    let exposure =
        u16::from(sim.register(1, 0x45) & 0x3F) << 10 | u16::from(sim.register(1, 0x10)) << 2 | u16::from(sim.register(1, 0x04) & 3);
    assert_eq!((exposure, sim.register(1, 0x13) & 1), (0xABCD, 0));
    camera.control(Control::Gain(Level::Manual(40))).unwrap(); // 2.5×
    assert_eq!((sim.register(1, 0x00), sim.register(1, 0x13) & 4), (0x14, 0));
    camera.control(Control::Exposure(Level::Auto)).unwrap();
    camera.control(Control::Gain(Level::Auto)).unwrap();
    assert_eq!(sim.register(1, 0x13) & 5, 5);
    assert_eq!(camera.control(Control::Exposure(Level::Manual(0))), Err(CameraError::OutOfRange));
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

fn luma(pixel: &[u8]) -> f64 {
    let v = u16::from_be_bytes([pixel[0], pixel[1]]);
    let [r, g, b] = [(v >> 11, 31), (v >> 5 & 63, 63), (v & 31, 31)].map(|(v, most)| f64::from(v) * 255.0 / f64::from(most));
    0.299 * r + 0.587 * g + 0.114 * b
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
