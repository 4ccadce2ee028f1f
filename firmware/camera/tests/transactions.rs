//! What goes over the buses, byte by byte.

mod common;

use common::mode;
use edge_camera::*;
use edge_wire::{Level, PixelFormat};
use embedded_hal::i2c::{ErrorKind, NoAcknowledgeSource};
use embedded_hal_mock::eh1::delay::NoopDelay;
use embedded_hal_mock::eh1::i2c::{Mock as I2c, Transaction as I};
use embedded_hal_mock::eh1::spi::{Mock as Spi, Transaction as S};

const OV2640: u8 = 0x30;
const HM01B0: u8 = 0x24;

struct NoPort;

impl ParallelPort for NoPort {
    fn begin(&mut self, _: u32) -> Result<(), PortError> {
        Err(PortError::TooLarge)
    }
    fn poll(&mut self) -> Result<bool, PortError> {
        Ok(false)
    }
    fn read(&mut self, _: &mut [u8]) -> Result<(), PortError> {
        Err(PortError::Overrun)
    }
}

fn spi(exchanges: &[(&[u8], &[u8])]) -> Vec<S<u8>> {
    exchanges
        .iter()
        .flat_map(|(out, back)| {
            let inner = if back.is_empty() { S::write_vec(out.to_vec()) } else { S::transfer_in_place(out.to_vec(), back.to_vec()) };
            [S::transaction_start(), inner, S::transaction_end()]
        })
        .collect()
}

const TEST_REGISTER: [(&[u8], &[u8]); 4] =
    [(&[0x80, 0x55], &[]), (&[0x00, 0x00], &[0x00, 0x55]), (&[0x80, 0xAA], &[]), (&[0x00, 0x00], &[0x00, 0xAA])];

fn probe() -> Vec<I> {
    vec![
        I::write(OV2640, vec![0xFF, 0x01]),
        I::write(OV2640, vec![0x0A]),
        I::read(OV2640, vec![0x26]),
        I::write(OV2640, vec![0x0B]),
        I::read(OV2640, vec![0x41]),
    ]
}

#[test]
fn arducam_probes_its_fifo_and_sensor_with_stops_between_write_and_read() {
    let (mut spi, mut i2c) = (Spi::new(&spi(&TEST_REGISTER)), I2c::new(&probe()));
    ArduCam::new(i2c.clone(), spi.clone(), NoopDelay::new(), Module::Mini2Mp).map(|_| ()).unwrap();
    spi.done();
    i2c.done();
}

#[test]
fn a_read_that_is_refused_is_tried_again_from_its_address_on() {
    let nak = ErrorKind::NoAcknowledge(NoAcknowledgeSource::Data);
    let mut transactions = probe();
    transactions.splice(
        1..3,
        [
            I::write(OV2640, vec![0x0A]),
            I::read(OV2640, vec![0]).with_error(nak),
            I::write(OV2640, vec![0x0A]).with_error(nak),
            I::write(OV2640, vec![0x0A]),
            I::read(OV2640, vec![0x26]),
        ],
    );
    let mut i2c = I2c::new(&transactions);
    Ov2640::new(i2c.clone(), NoopDelay::new()).probe().unwrap();
    i2c.done();
}

#[test]
fn ov2640_exposure_is_spread_over_three_registers() {
    let mut i2c = I2c::new(&[
        I::write(OV2640, vec![0xFF, 0x01]),
        I::write(OV2640, vec![0x13]),
        I::read(OV2640, vec![0xE5]),
        I::write(OV2640, vec![0x13, 0xE4]),
        I::write(OV2640, vec![0x45]),
        I::read(OV2640, vec![0xC0]),
        I::write(OV2640, vec![0x45, 0xC1]),
        I::write(OV2640, vec![0x10, 0x2C]),
        I::write(OV2640, vec![0x04]),
        I::read(OV2640, vec![0xA8]),
        I::write(OV2640, vec![0x04, 0xAA]),
    ]);
    Ov2640::new(i2c.clone(), NoopDelay::new()).control(Control::Exposure(Level::Manual(0x4B2))).unwrap();
    i2c.done();
}

#[test]
fn a_capture_is_started_polled_and_read_in_bursts() {
    // The sensor's registers are simulated here; the FIFO's bus is not.
    let sim = edge_simulator::ArduCamSim::new(&[], 0);
    let exchanges: [(&[u8], &[u8]); 9] = [
        (&[0x81, 0x00], &[]), // one picture per capture
        (&[0x84, 0x01], &[]), // clear the flag
        (&[0x84, 0x30], &[]), // both pointers to the start
        (&[0x84, 0x02], &[]), // capture
        (&[0x41, 0x00], &[0x00, 0x00]),
        (&[0x41, 0x00], &[0x00, 0x08]), // done
        (&[0x42, 0x00], &[0x00, 0x08]), // 38,408 bytes
        (&[0x43, 0x00], &[0x00, 0x96]),
        (&[0x44, 0x00], &[0x00, 0x00]),
    ];
    let mut transactions = spi(&[&TEST_REGISTER[..], &exchanges].concat());
    for piece in [[1, 2, 3], [4, 5, 6]] {
        transactions.extend([S::transaction_start(), S::write(0x3C), S::read_vec(piece.to_vec()), S::transaction_end()]);
    }
    let mut spi = Spi::new(&transactions);
    let mut camera = ArduCam::new(sim.i2c(), spi.clone(), NoopDelay::new(), Module::Mini2Mp).unwrap();
    camera.configure(mode(PixelFormat::Rgb565, (160, 120))).unwrap();
    camera.begin().unwrap();
    assert_eq!((camera.poll(), camera.poll()), (Ok(None), Ok(Some(38_400))));
    let mut bytes = [0; 6];
    bytes.chunks_mut(3).for_each(|piece| camera.read(piece).unwrap());
    assert_eq!(bytes, [1, 2, 3, 4, 5, 6]);
    spi.done();
}

#[test]
fn hm01b0_has_sixteen_bit_addresses_and_repeated_starts() {
    let mut i2c = I2c::new(&[
        I::write_read(HM01B0, vec![0x00, 0x00], vec![0x01]),
        I::write_read(HM01B0, vec![0x00, 0x01], vec![0xB0]),
        // configure()
        I::write_read(HM01B0, vec![0x00, 0x00], vec![0x01]),
        I::write_read(HM01B0, vec![0x00, 0x01], vec![0xB0]),
        I::write(HM01B0, vec![0x01, 0x03, 0x00]),
        I::write(HM01B0, vec![0x01, 0x00, 0x00]),
        I::write(HM01B0, vec![0x30, 0x59, 0x02]),
        I::write(HM01B0, vec![0x30, 0x60, 0x28]),
        I::write(HM01B0, vec![0x03, 0x83, 0x03]),
        I::write(HM01B0, vec![0x03, 0x87, 0x03]),
        I::write(HM01B0, vec![0x03, 0x90, 0x03]),
        I::write(HM01B0, vec![0x30, 0x10, 0x01]),
        I::write(HM01B0, vec![0x03, 0x40, 0x00]),
        I::write(HM01B0, vec![0x03, 0x41, 0x84]),
        I::write(HM01B0, vec![0x03, 0x42, 0x00]),
        I::write(HM01B0, vec![0x03, 0x43, 0xD7]),
        I::write(HM01B0, vec![0x21, 0x00, 0x01]),
        I::write(HM01B0, vec![0x01, 0x04, 0x01]),
        I::write(HM01B0, vec![0x01, 0x00, 0x01]),
    ]);
    let mut camera = Hm01b0::new(i2c.clone(), NoPort, NoopDelay::new()).unwrap();
    camera.configure(mode(PixelFormat::Gray8, (162, 122))).unwrap();
    assert_eq!(camera.begin(), Err(CameraError::Port(PortError::TooLarge)));
    i2c.done();
}
