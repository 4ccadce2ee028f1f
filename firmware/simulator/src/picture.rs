//! What is in front of the lens.

/// A still scene, as a sensor of any size sees it.
#[derive(Debug, Clone, Copy)]
pub struct Picture<'a> {
    /// Pixels.
    pub width: u16,
    /// Pixels.
    pub height: u16,
    /// Two bytes per pixel, high byte first.
    pub rgb565: &'a [u8],
    /// What the sensor's JPEG encoder makes of it, of `width` × `height` pixels.
    pub jpeg: &'a [u8],
}

/// White, yellow, cyan, green, magenta, red, blue, black.
const BARS: [u16; 8] = [0xFFFF, 0xFFE0, 0x07FF, 0x07E0, 0xF81F, 0xF800, 0x001F, 0];

impl Picture<'_> {
    /// The pixel at (x, y) of `width` × `height`: the nearest one of the scene.
    pub fn pixel(&self, x: u32, y: u32, width: u32, height: u32) -> u16 {
        let (x, y) = (x * u32::from(self.width) / width, y * u32::from(self.height) / height);
        let at = 2 * (y * u32::from(self.width) + x) as usize;
        match self.rgb565.get(at..at + 2) {
            Some(bytes) => u16::from_be_bytes([bytes[0], bytes[1]]),
            None => 0,
        }
    }
}

/// What a sensor does with the scene.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct View {
    pub width: u32,
    pub height: u32,
    pub mirror: bool,
    pub flip: bool,
    pub bars: bool,
}

impl View {
    pub fn pixel(&self, picture: &Picture, x: u32, y: u32) -> u16 {
        let x = if self.mirror { self.width - 1 - x } else { x };
        let y = if self.flip { self.height - 1 - y } else { y };
        if self.bars { BARS[(x * 8 / self.width) as usize] } else { picture.pixel(x, y, self.width, self.height) }
    }
}

/// Full-range BT.601 luma and differences of a pixel.
pub(crate) fn yuv(pixel: u16) -> [u8; 3] {
    let [r, g, b] = [(pixel >> 11) * 255 / 31, (pixel >> 5 & 63) * 255 / 63, (pixel & 31) * 255 / 31].map(i32::from);
    let byte = |v: i32| (v / 1000).clamp(0, 255) as u8;
    [byte(299 * r + 587 * g + 114 * b), byte(128_000 - 169 * r - 331 * g + 500 * b), byte(128_000 + 500 * r - 419 * g - 81 * b)]
}
