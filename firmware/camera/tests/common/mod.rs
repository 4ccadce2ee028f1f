//! Pictures and waiting, shared by the tests.
#![allow(dead_code)] // no test uses all of it

use edge_camera::{Camera, CameraError, Mode};
use edge_simulator::Picture;
use edge_wire::PixelFormat;

/// Noise, so that every misplaced byte shows; and a JPEG file in form.
pub struct Scene {
    pub width: u16,
    pub height: u16,
    pub rgb565: Vec<u8>,
    pub jpeg: Vec<u8>,
}

impl Scene {
    pub fn new(width: u16, height: u16, seed: u64) -> Self {
        let mut random = fastrand::Rng::with_seed(seed);
        let rgb565 = (0..2 * usize::from(width) * usize::from(height)).map(|_| random.u8(..)).collect();
        let mut jpeg = vec![0xFF, 0xD8, 0xFF, 0xE0, 0, 4, 0xFF, 0xD9, 0xFF, 0xDA, 0, 3, 1];
        jpeg.extend((0..random.usize(2000..4000)).map(|_| random.u8(..0xFF)));
        jpeg.extend([0xFF, 0xD9]);
        Scene { width, height, rgb565, jpeg }
    }

    pub fn picture(&self) -> Picture<'_> {
        Picture { width: self.width, height: self.height, rgb565: &self.rgb565, jpeg: &self.jpeg }
    }
}

pub fn mode(format: PixelFormat, (width, height): (u16, u16)) -> Mode {
    Mode { format, width, height }
}

/// One picture, read in pieces.
pub fn capture(camera: &mut impl Camera) -> Result<Vec<u8>, CameraError> {
    camera.begin()?;
    for _ in 0..1000 {
        if let Some(length) = camera.poll()? {
            let mut bytes = vec![0; length as usize];
            bytes.chunks_mut(999).try_for_each(|piece| camera.read(piece))?;
            return Ok(bytes);
        }
    }
    Err(CameraError::Timeout)
}
