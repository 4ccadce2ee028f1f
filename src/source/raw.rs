//! Pixels as cameras and video programs lay them out → a frame's payload.

use super::v4l2;
use edge_wire::{FrameInfo, PixelFormat};
use std::fmt;
use std::ops::Deref;
use std::str::FromStr;

/// Order of the bytes of a frame. Planes follow one another without gaps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Layout {
    /// Luma.
    Gray8,
    /// R G B.
    Rgb888,
    /// Y₀ U Y₁ V for two pixels.
    Yuyv,
    /// U Y₀ V Y₁ for two pixels.
    Uyvy,
    /// A plane of luma, a plane of U V for two by two pixels.
    Nv12,
    /// Planes of luma, of U and of V, the latter for two by two pixels.
    Yuv420,
    /// A JPEG file.
    Jpeg,
}

const NAMES: [(&str, Layout); 6] = [
    ("gray8", Layout::Gray8),
    ("rgb888", Layout::Rgb888),
    ("yuyv", Layout::Yuyv),
    ("uyvy", Layout::Uyvy),
    ("nv12", Layout::Nv12),
    ("yuv420", Layout::Yuv420),
];

/// Y′CbCr → R′G′B′ in 16-bit fixed point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Matrix {
    /// Luma of black.
    black: i32,
    luma: i32,
    red_v: i32,
    green_u: i32,
    green_v: i32,
    blue_u: i32,
}

impl Matrix {
    /// BT.601, full range: JFIF (ITU-T T.871), the frame link, `rpicam-vid --codec yuv420`.
    pub const JFIF: Matrix = Matrix::new(0.299, 0.114, true);
    /// BT.601, limited range: what video of standard definition is, and webcams are.
    pub const BT601: Matrix = Matrix::new(0.299, 0.114, false);
    /// BT.709, limited range: what video of high definition is.
    pub const BT709: Matrix = Matrix::new(0.2126, 0.0722, false);
    /// BT.709, full range.
    pub const BT709_FULL: Matrix = Matrix::new(0.2126, 0.0722, true);

    /// From the luma coefficients of red and blue (ITU-R BT.601-7, 2.5.1; BT.709-6, item 3.2). Limited range is luma of
    /// 16 to 235 and chroma of 16 to 240 (2.5.3; item 3.5).
    const fn new(red: f64, blue: f64, full: bool) -> Self {
        const fn fixed(v: f64) -> i32 {
            (v * 65_536.0 + 0.5) as i32
        }
        let green = 1.0 - red - blue;
        let (black, luma, chroma) = if full { (0, 1.0, 1.0) } else { (16, 255.0 / 219.0, 255.0 / 224.0) };
        let (red_v, blue_u) = (2.0 * (1.0 - red) * chroma, 2.0 * (1.0 - blue) * chroma);
        Matrix {
            black,
            luma: fixed(luma),
            red_v: fixed(red_v),
            green_u: fixed(blue_u * blue / green),
            green_v: fixed(red_v * red / green),
            blue_u: fixed(blue_u),
        }
    }

    /// Two pixels that share their chroma, rounded to nearest.
    #[inline]
    fn pair(&self, luma: [u8; 2], u: u8, v: u8) -> [u8; 6] {
        let (u, v) = (i32::from(u) - 128, i32::from(v) - 128);
        let add = [self.red_v * v, -self.green_u * u - self.green_v * v, self.blue_u * u];
        let pixel = |y: u8| add.map(|c| ((self.luma * (i32::from(y) - self.black) + c + (1 << 15)) >> 16).clamp(0, 255) as u8);
        let ([r0, g0, b0], [r1, g1, b1]) = (pixel(luma[0]), pixel(luma[1]));
        [r0, g0, b0, r1, g1, b1]
    }
}

/// Frames of one size and layout.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RawFormat {
    pub(super) layout: Layout,
    pub(super) width: u16,
    pub(super) height: u16,
    /// Bytes from one row of the first plane to the next.
    stride: usize,
    matrix: Matrix,
}

impl RawFormat {
    /// Checks sizes; `stride` 0 means rows without padding.
    pub(super) fn new(layout: Layout, width: u32, height: u32, stride: usize, matrix: Matrix) -> Result<Self, String> {
        let even = match layout {
            Layout::Nv12 | Layout::Yuv420 => width.is_multiple_of(2) && height.is_multiple_of(2),
            Layout::Yuyv | Layout::Uyvy => width.is_multiple_of(2),
            _ => true,
        };
        if !even {
            return Err(format!("{width}×{height} pixels: sides must be even where pixels share their colour"));
        }
        let too_large = || format!("{width}×{height} pixels are no frame: 1×1 to about 11 megapixels");
        let (Ok(w), Ok(h)) = (u16::try_from(width), u16::try_from(height)) else { return Err(too_large()) };
        // The largest payload that it can become.
        FrameInfo::raw(PixelFormat::Rgb888, w, h).map_err(|_| too_large())?;
        let row = usize::from(w)
            * match layout {
                Layout::Gray8 | Layout::Nv12 | Layout::Yuv420 => 1,
                Layout::Yuyv | Layout::Uyvy => 2,
                Layout::Rgb888 => 3,
                Layout::Jpeg => 0,
            };
        let stride = if stride == 0 { row } else { stride };
        if stride < row || stride > 1 << 20 {
            return Err(format!("rows of {stride} bytes do not hold {width} pixels"));
        }
        if layout == Layout::Yuv420 && !stride.is_multiple_of(2) {
            return Err(format!("rows of {stride} bytes cannot be halved for the colour planes"));
        }
        Ok(RawFormat { layout, width: w, height: h, stride, matrix })
    }

    /// Bytes of a frame; the last row's padding may be missing.
    pub(super) fn length(&self) -> usize {
        let (w, h) = (usize::from(self.width), usize::from(self.height));
        match self.layout {
            Layout::Gray8 => self.stride * (h - 1) + w,
            Layout::Rgb888 => self.stride * (h - 1) + 3 * w,
            Layout::Yuyv | Layout::Uyvy => self.stride * (h - 1) + 2 * w,
            Layout::Nv12 => self.stride * (h + h / 2 - 1) + w,
            Layout::Yuv420 => self.stride * h + self.stride / 2 * (h - 1) + w / 2,
            Layout::Jpeg => 0,
        }
    }

    /// Header of the frame that [`convert`] makes; of a JPEG file, `length` is the file's.
    pub(super) fn info(&self, length: usize) -> Result<FrameInfo, String> {
        let made = match self.layout {
            Layout::Jpeg => FrameInfo::jpeg(self.width, self.height, u32::try_from(length).unwrap_or(u32::MAX)),
            Layout::Gray8 => FrameInfo::raw(PixelFormat::Gray8, self.width, self.height),
            _ if self.is_wire_yuv() => FrameInfo::raw(PixelFormat::Yuv422, self.width, self.height),
            _ => FrameInfo::raw(PixelFormat::Rgb888, self.width, self.height),
        };
        made.map_err(|e| format!("{}×{} pixels, {length} bytes: {e}", self.width, self.height))
    }

    /// Whether the frame link's own format is the same.
    fn is_wire_yuv(&self) -> bool {
        self.layout == Layout::Yuyv && self.matrix == Matrix::JFIF
    }
}

/// `LAYOUT:WIDTHxHEIGHT[:full]`.
impl FromStr for RawFormat {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let names = NAMES.map(|(name, _)| name).join(", ");
        let usage = || format!("mjpeg, or LAYOUT:WIDTHxHEIGHT[:full] with a layout of {names}, for example yuv420:640x480");
        let mut words = text.split(':');
        let (name, size, range) = (words.next().unwrap_or_default(), words.next().ok_or_else(usage)?, words.next());
        let layout = NAMES.iter().find(|(n, _)| *n == name).ok_or_else(usage)?.1;
        let (width, height) = size.split_once('x').and_then(|(w, h)| Some((w.parse().ok()?, h.parse().ok()?))).ok_or_else(usage)?;
        let matrix = match (range, words.next()) {
            (None, _) => Matrix::BT601,
            (Some("full"), None) => Matrix::JFIF,
            _ => return Err(usage()),
        };
        RawFormat::new(layout, width, height, 0, matrix)
    }
}

impl fmt::Display for RawFormat {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let name = NAMES.iter().find(|(_, l)| *l == self.layout).map_or("jpeg", |(name, _)| *name);
        write!(f, "{}×{} {name}", self.width, self.height)
    }
}

/// Where raw pixels are.
pub(super) enum Memory {
    /// Here.
    Owned(Vec<u8>),
    /// In a buffer of the driver's, which gets it back when this is dropped.
    Mapped(v4l2::Buffer),
}

impl Deref for Memory {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Memory::Owned(bytes) => bytes,
            Memory::Mapped(buffer) => buffer,
        }
    }
}

/// The payload of [`RawFormat::info`], replacing what `out` holds. Pixels of a plane with fewer colours than luma take
/// the colour of their group; what is missing of `bytes` (fewer than [`RawFormat::length`]) stays black.
pub(super) fn convert(format: &RawFormat, bytes: &[u8], out: &mut Vec<u8>) {
    let &RawFormat { layout, stride, ref matrix, .. } = format;
    let (w, h) = (usize::from(format.width), usize::from(format.height));
    out.clear();
    let mut copy_rows = |row: usize| {
        if stride == row {
            out.extend_from_slice(&bytes[..bytes.len().min(row * h)]);
        } else {
            bytes.chunks(stride).take(h).for_each(|line| out.extend_from_slice(&line[..line.len().min(row)]));
        }
        out.resize(row * h, 0);
    };
    match layout {
        Layout::Jpeg => return out.extend_from_slice(bytes),
        Layout::Gray8 => return copy_rows(w),
        Layout::Rgb888 => return copy_rows(3 * w),
        Layout::Yuyv if format.is_wire_yuv() => return copy_rows(2 * w),
        _ => {}
    }
    out.resize(3 * w * h, 0);
    let (luma, chroma) = bytes.split_at(bytes.len().min(stride * h));
    let (u_plane, v_plane) = chroma.split_at(chroma.len().min(stride / 2 * (h / 2)));
    for (y, (target, line)) in out.chunks_exact_mut(3 * w).zip(luma.chunks(stride)).enumerate() {
        let target = target.as_chunks_mut::<6>().0;
        let colours = y / 2 * if layout == Layout::Nv12 { stride } else { stride / 2 };
        match layout {
            Layout::Yuyv => {
                let pairs = line.as_chunks::<4>().0;
                target.iter_mut().zip(pairs).for_each(|(out, &[y0, u, y1, v])| *out = matrix.pair([y0, y1], u, v));
            }
            Layout::Uyvy => {
                let pairs = line.as_chunks::<4>().0;
                target.iter_mut().zip(pairs).for_each(|(out, &[u, y0, v, y1])| *out = matrix.pair([y0, y1], u, v));
            }
            Layout::Nv12 => {
                let pairs = line.as_chunks::<2>().0.iter().zip(row(chroma, colours).as_chunks::<2>().0);
                target.iter_mut().zip(pairs).for_each(|(out, (&luma, &[u, v]))| *out = matrix.pair(luma, u, v));
            }
            _ => {
                let pairs = line.as_chunks::<2>().0.iter().zip(row(u_plane, colours).iter().zip(row(v_plane, colours)));
                target.iter_mut().zip(pairs).for_each(|(out, (&luma, (&u, &v)))| *out = matrix.pair(luma, u, v));
            }
        }
    }
}

fn row(plane: &[u8], from: usize) -> &[u8] {
    plane.get(from..).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metadata::Color;
    use crate::source::pixels;
    use edge_wire::Frame;

    fn format(layout: Layout, width: u32, height: u32, stride: usize, matrix: Matrix) -> RawFormat {
        RawFormat::new(layout, width, height, stride, matrix).unwrap()
    }

    fn converted(format: &RawFormat, bytes: &[u8]) -> Vec<u8> {
        let mut out = vec![1, 2, 3];
        convert(format, bytes, &mut out);
        out
    }

    /// Bytes without a pattern.
    fn noise(length: usize) -> Vec<u8> {
        (0..length as u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 23) as u8).collect()
    }

    #[test]
    fn every_colour_is_the_standards_rounded() {
        // Kr and Kb, and whether the range is full, of ITU-R BT.601 and BT.709.
        for (matrix, kr, kb, full) in [
            (Matrix::JFIF, 0.299, 0.114, true),
            (Matrix::BT601, 0.299, 0.114, false),
            (Matrix::BT709, 0.2126, 0.0722, false),
            (Matrix::BT709_FULL, 0.2126, 0.0722, true),
        ] {
            for y in 0..=255u8 {
                for u in (0..=255).step_by(3) {
                    for v in (0..=255).step_by(3) {
                        let (ey, eu, ev) = if full {
                            (f64::from(y) / 255.0, (f64::from(u) - 128.0) / 255.0, (f64::from(v) - 128.0) / 255.0)
                        } else {
                            ((f64::from(y) - 16.0) / 219.0, (f64::from(u) - 128.0) / 224.0, (f64::from(v) - 128.0) / 224.0)
                        };
                        let (r, b) = (ey + 2.0 * (1.0 - kr) * ev, ey + 2.0 * (1.0 - kb) * eu);
                        let g = (ey - kr * r - kb * b) / (1.0 - kr - kb);
                        let made = matrix.pair([y, y], u, v);
                        for (exact, made) in [r, g, b].map(|v| (v * 255.0).clamp(0.0, 255.0)).into_iter().zip(&made[3..]) {
                            assert!((exact - f64::from(*made)).abs() < 0.51, "{matrix:?} {y} {u} {v}: {exact} {made}");
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn full_range_equals_the_frame_links_format() {
        let (w, h) = (38, 10);
        let bytes = noise(2 * w * h);
        let info = FrameInfo::raw(PixelFormat::Yuv422, w as u16, h as u16).unwrap();
        let wanted = pixels::decode(&Frame { info, payload: &bytes }, Color::Rgb).unwrap().data;
        // The same samples in another order.
        let swapped: Vec<u8> = bytes.as_chunks::<2>().0.iter().flat_map(|&[a, b]| [b, a]).collect();
        assert_eq!(converted(&format(Layout::Uyvy, 38, 10, 0, Matrix::JFIF), &swapped), wanted);
        let same = format(Layout::Yuyv, 38, 10, 0, Matrix::JFIF);
        assert_eq!((same.info(0).unwrap(), converted(&same, &bytes)), (info, bytes));
    }

    #[test]
    fn planes_and_padding_give_the_pixels_of_packed_rows() {
        let (w, h) = (16usize, 6usize);
        let (luma, u, v) = (noise(w * h), noise(w / 2 * h / 2), noise(w * h).split_off(w * h * 3 / 4));
        let at = |plane: &[u8], x: usize, y: usize| plane[y / 2 * (w / 2) + x / 2];
        let packed: Vec<u8> = (0..h)
            .flat_map(|y| (0..w).step_by(2).map(move |x| (x, y)))
            .flat_map(|(x, y)| [luma[y * w + x], at(&u, x, y), luma[y * w + x + 1], at(&v, x, y)])
            .collect();
        for matrix in [Matrix::BT601, Matrix::BT709] {
            let wanted = converted(&format(Layout::Yuyv, 16, 6, 0, matrix), &packed);
            assert_eq!(wanted.len(), 3 * w * h);
            for padding in [0, 6] {
                let padded = |plane: &[u8], row: usize, padding: usize| -> Vec<u8> {
                    plane.chunks(row).flat_map(|r| [r, &vec![0xEE; padding]].concat()).collect()
                };
                let planar = [padded(&luma, w, padding), padded(&u, w / 2, padding / 2), padded(&v, w / 2, padding / 2)].concat();
                let f = format(Layout::Yuv420, 16, 6, w + padding, matrix);
                assert_eq!(converted(&f, &planar), wanted);
                // The last padding may be missing.
                assert_eq!(f.length(), planar.len() - padding / 2);
                assert_eq!(converted(&f, &planar[..f.length()]), wanted);
                let uv: Vec<u8> = u.iter().zip(&v).flat_map(|(u, v)| [*u, *v]).collect();
                let semi = [padded(&luma, w, padding), padded(&uv, w, padding)].concat();
                let f = format(Layout::Nv12, 16, 6, w + padding, matrix);
                assert_eq!(converted(&f, &semi[..f.length()]), wanted);
                let f = format(Layout::Yuyv, 16, 6, 2 * w + padding, matrix);
                assert_eq!(converted(&f, &padded(&packed, 2 * w, padding)[..f.length()]), wanted);
                let f = format(Layout::Gray8, 16, 6, w + padding, matrix);
                assert_eq!(converted(&f, &padded(&luma, w, padding)[..f.length()]), luma);
            }
        }
    }

    #[test]
    fn short_frames_are_black_not_panics_and_headers_fit() {
        for (_, layout) in NAMES {
            for (w, h, padding) in [(2, 2, 0), (16, 6, 4), (64, 2, 0)] {
                let f = format(layout, w, h, 3 * w as usize + padding, Matrix::BT601);
                let whole = noise(f.length());
                for length in 0..=whole.len() {
                    let made = converted(&f, &whole[..length]);
                    assert_eq!(made.len(), f.info(0).unwrap().length as usize, "{f} {length}");
                }
            }
        }
    }

    #[test]
    fn formats_are_what_they_say() {
        let f: RawFormat = "yuv420:640x480".parse().unwrap();
        assert_eq!((f.length(), f.matrix), (640 * 480 * 3 / 2, Matrix::BT601));
        assert_eq!("nv12:64x2:full".parse::<RawFormat>().unwrap().matrix, Matrix::JFIF);
        for bad in [
            "",
            "yuv420",
            "yuv420:",
            "yuv420:640",
            "yuv420:641x480",
            "yuv420:640x481",
            "jpeg:64x64",
            "rgb888:0x4",
            "rgb888:9999x9999",
            "gray8:70000x1",
            "nv12:4x4:half",
            "nv12:4x4:full:x",
            "gray8:-1x4",
        ] {
            assert!(bad.parse::<RawFormat>().is_err(), "{bad}");
        }
    }
}
