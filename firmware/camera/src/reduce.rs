//! What is sent of what the sensor sees: the middle of it, scaled down by a whole number, perhaps without colour.

use crate::sensor::{Mode, Modes};
use edge_wire::PixelFormat;

/// Most pixels of a sensor's row that is worked on.
pub const MAX_SOURCE_WIDTH: usize = 800;
/// Most pixels of a row that was scaled down.
const MAX_SCALED_WIDTH: usize = MAX_SOURCE_WIDTH / 2;
/// Largest factor: 16 × 16 pixels of 255 fit a u16.
const MAX_FACTOR: u16 = 16;

/// Where a picture comes from: rows of `source`, cut to the middle, each `factor` × `factor` pixels averaged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reduction {
    /// What the sensor puts out.
    pub source: Mode,
    /// Pixels of the picture.
    pub format: PixelFormat,
    /// Pixels.
    pub width: u16,
    /// Pixels.
    pub height: u16,
    /// Sensor pixels per picture pixel, in both directions.
    pub factor: u16,
}

impl Reduction {
    /// The way to a picture that shows most of the scene; of those, the one that reads the fewest pixels. `None` if the
    /// sensor has no way. JPEG pictures are as the sensor makes them.
    pub fn plan(modes: Modes, format: PixelFormat, width: u16, height: u16) -> Option<Self> {
        let mut best: Option<(u64, u64, Reduction)> = None;
        for (from, sizes) in modes {
            for (w, h) in *sizes {
                let source = Mode { format: *from, width: *w, height: *h };
                let Some(factor) = factor(source, format, width, height) else { continue };
                let area = u64::from(*w) * u64::from(*h);
                let shown = u64::from(width) * u64::from(height) * u64::from(factor).pow(2);
                // shown / area > best shown / best area, without fractions
                let better = best.as_ref().is_none_or(|(best_shown, best_area, _)| {
                    (shown * best_area, *best_area) > (best_shown * area, area)
                        || (shown * best_area == best_shown * area && area < *best_area)
                });
                if better {
                    best = Some((shown, area, Reduction { source, format, width, height, factor }));
                }
            }
        }
        best.map(|(_, _, reduction)| reduction)
    }

    /// Bytes of a sensor's row; `None` for JPEG.
    pub(crate) fn row_len(&self) -> Option<usize> {
        let bytes = self.source.format.bytes_per_pixel()?;
        Some(usize::from(self.source.width) * bytes as usize)
    }

    fn left(&self) -> usize {
        let left = usize::from(self.source.width - self.width * self.factor) / 2;
        // YUV 4:2:2 comes in pairs.
        if self.source.format == PixelFormat::Yuv422 { left & !1 } else { left }
    }

    fn top(&self) -> usize {
        usize::from(self.source.height - self.height * self.factor) / 2
    }
}

/// The largest factor that fits, if there is a way at all.
fn factor(source: Mode, format: PixelFormat, width: u16, height: u16) -> Option<u16> {
    use PixelFormat::*;
    if width == 0 || height == 0 {
        return None;
    }
    match (source.format, format) {
        (Jpeg, Jpeg) => return ((width, height) == (source.width, source.height)).then_some(1),
        (Gray8 | Rgb565 | Yuv422, Gray8) | (Rgb565, Rgb565) | (Yuv422, Yuv422) => {}
        _ => return None,
    }
    if usize::from(source.width) > MAX_SOURCE_WIDTH || (format == Yuv422 && width % 2 == 1) {
        return None;
    }
    let fits = (source.width / width).min(source.height / height).min(MAX_FACTOR);
    // Averages of subsampled colour are not worth their code: gray or RGB565 are there for scaled pictures.
    let fits = if format == Yuv422 { fits.min(1) } else { fits };
    (fits > 0).then_some(fits)
}

/// Takes rows, gives pictures.
pub(crate) struct Reducer {
    plan: Reduction,
    /// Next row of the sensor.
    row: usize,
    /// Bytes of the picture that are done.
    done: usize,
    /// One to three per pixel of the row being summed.
    sums: [u16; 3 * MAX_SCALED_WIDTH],
}

impl Reducer {
    pub fn new(plan: Reduction) -> Self {
        Reducer { plan, row: 0, done: 0, sums: [0; _] }
    }

    /// Takes the next row; whatever is finished by it goes into `picture`.
    pub fn push(&mut self, row: &[u8], picture: &mut [u8]) {
        let plan = self.plan;
        let factor = usize::from(plan.factor);
        let at = self.row.checked_sub(plan.top()).filter(|at| *at < usize::from(plan.height) * factor);
        self.row += 1;
        let (Some(at), Some(bytes), Some(out_bytes)) = (at, plan.source.format.bytes_per_pixel(), plan.format.bytes_per_pixel()) else {
            return;
        };
        let bytes = bytes as usize;
        let length = usize::from(plan.width) * out_bytes as usize;
        let Some(row) = row.get(plan.left() * bytes..).and_then(|r| r.get(..usize::from(plan.width) * factor * bytes)) else { return };
        let Some(out) = picture.get_mut(self.done..self.done + length) else { return };
        let last = at % factor == factor - 1;
        if factor == 1 && plan.source.format == plan.format {
            out.copy_from_slice(row);
        } else if plan.format == PixelFormat::Gray8 {
            let luma = |x: usize| match plan.source.format {
                PixelFormat::Rgb565 => luma([row[2 * x], row[2 * x + 1]]),
                PixelFormat::Yuv422 => row[2 * x],
                _ => row[x],
            };
            if factor == 1 {
                out.iter_mut().enumerate().for_each(|(x, o)| *o = luma(x));
            } else {
                for (x, sum) in self.sums[..length].iter_mut().enumerate() {
                    *sum += (x * factor..(x + 1) * factor).map(|x| u16::from(luma(x))).sum::<u16>();
                    if last {
                        out[x] = average(core::mem::take(sum), factor) as u8;
                    }
                }
            }
        } else {
            // RGB565 from RGB565.
            let pixels = row.as_chunks::<2>().0.chunks_exact(factor);
            for ((sums, pixels), out) in self.sums.as_chunks_mut::<3>().0.iter_mut().zip(pixels).zip(out.as_chunks_mut::<2>().0) {
                for pixel in pixels {
                    let v = u16::from_be_bytes(*pixel);
                    sums[0] += v >> 11;
                    sums[1] += v >> 5 & 63;
                    sums[2] += v & 31;
                }
                if last {
                    let [r, g, b] = core::mem::take(sums).map(|sum| average(sum, factor));
                    *out = (r << 11 | g << 5 | b).to_be_bytes();
                }
            }
        }
        if last {
            self.done += length;
        }
    }

    /// Rows of the sensor that were taken.
    pub fn rows(&self) -> usize {
        self.row
    }
}

/// Rounded.
fn average(sum: u16, factor: usize) -> u16 {
    let pixels = (factor * factor) as u32;
    ((u32::from(sum) + pixels / 2) / pixels) as u16
}

/// BT.601 luma, full range, of RGB565 widened to 8 bits per channel.
fn luma(pixel: [u8; 2]) -> u8 {
    let v = u32::from(u16::from_be_bytes(pixel));
    let (r, g, b) = (v >> 11, v >> 5 & 63, v & 31);
    let (r, g, b) = (r << 3 | r >> 2, g << 2 | g >> 4, b << 3 | b >> 2);
    ((77 * r + 150 * g + 29 * b + 128) >> 8) as u8
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use PixelFormat::*;
    use std::vec;
    use std::vec::Vec;

    const MODES: Modes = &[(Rgb565, &[(160, 120), (320, 240), (352, 288)]), (Jpeg, &[(160, 120)])];

    fn run(plan: Reduction, source: &[u8]) -> Vec<u8> {
        let mut reducer = Reducer::new(plan);
        let length = usize::from(plan.width) * usize::from(plan.height) * plan.format.bytes_per_pixel().unwrap() as usize;
        let mut picture = vec![0xEE; length];
        source.chunks(plan.row_len().unwrap()).for_each(|row| reducer.push(row, &mut picture));
        picture
    }

    #[test]
    fn the_most_of_the_scene_then_the_fewest_pixels() {
        let plan = |format, w, h| Reduction::plan(MODES, format, w, h).map(|p| (p.source.width, p.factor));
        assert_eq!(plan(Gray8, 160, 120), Some((160, 1)));
        assert_eq!(plan(Rgb565, 120, 120), Some((160, 1)));
        assert_eq!(plan(Gray8, 96, 96), Some((352, 3)));
        assert_eq!(plan(Gray8, 224, 224), Some((320, 1)));
        assert_eq!(plan(Jpeg, 160, 120), Some((160, 1)));
        assert_eq!(plan(Jpeg, 120, 120), None);
        assert_eq!(plan(Gray8, 353, 1), None);
        assert_eq!(plan(Gray8, 0, 1), None);
        assert_eq!(plan(Yuv422, 160, 120), None);
    }

    #[test]
    fn gray_averages_equal_a_direct_computation() {
        let mut random = fastrand::Rng::with_seed(3);
        for (from, w, h, factor) in [(Rgb565, 20, 13, 2), (Gray8, 17, 9, 3), (Yuv422, 22, 10, 3), (Rgb565, 9, 9, 1), (Gray8, 40, 40, 16)] {
            let source = Mode { format: from, width: w, height: h };
            let plan = Reduction { source, format: Gray8, width: w / factor, height: h / factor, factor };
            let bytes = from.bytes_per_pixel().unwrap() as usize;
            let input: Vec<u8> = (0..usize::from(w) * usize::from(h) * bytes).map(|_| random.u8(..)).collect();
            let (left, top, factor) = (plan.left(), plan.top(), usize::from(factor));
            let expected: Vec<u8> = (0..usize::from(plan.height))
                .flat_map(|y| (0..usize::from(plan.width)).map(move |x| (x, y)))
                .map(|(x, y)| {
                    let block = (0..factor * factor).map(|i| {
                        let at = (top + y * factor + i / factor) * usize::from(w) + left + x * factor + i % factor;
                        f64::from(if from == Rgb565 { luma([input[2 * at], input[2 * at + 1]]) } else { input[bytes * at] })
                    });
                    (block.sum::<f64>() / (factor * factor) as f64 + 0.5).floor() as u8
                })
                .collect();
            assert_eq!(run(plan, &input), expected, "{plan:?}");
        }
    }

    #[test]
    fn colours_average_by_channel() {
        let source = Mode { format: Rgb565, width: 4, height: 2 };
        let plan = Reduction { source, format: Rgb565, width: 2, height: 1, factor: 2 };
        let pixel = |r: u16, g: u16, b: u16| (r << 11 | g << 5 | b).to_be_bytes();
        let rows = [
            pixel(31, 0, 1),
            pixel(0, 63, 2),
            pixel(1, 1, 1),
            pixel(1, 1, 1),
            pixel(0, 0, 3),
            pixel(0, 0, 4),
            pixel(2, 1, 1),
            pixel(1, 1, 1),
        ];
        assert_eq!(run(plan, rows.as_flattened()), [pixel(8, 16, 3), pixel(1, 1, 1)].as_flattened());
    }

    #[test]
    fn white_is_white_and_gray_is_gray() {
        assert_eq!((luma([0xFF, 0xFF]), luma([0, 0])), (255, 0));
        assert_eq!(luma((16u16 << 11 | 32 << 5 | 16).to_be_bytes()), 131);
    }
}
