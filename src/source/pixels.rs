//! A frame's payload ↔ a picture. Layouts are `edge-wire`'s.

use crate::image::{self as picture, DecodeOptions, Picture, jpeg};
use crate::metadata::Color;
use edge_wire::{Frame, FrameInfo, PixelFormat};
use image::codecs::png::{CompressionType, FilterType, PngEncoder};
use image::{ExtendedColorType, ImageEncoder, codecs::jpeg::JpegEncoder};
use std::borrow::Cow;

/// Most pixels of a JPEG frame: a few kilobytes can promise any number, and a decoder takes some ten bytes for each.
pub const MAX_JPEG_PIXELS: u64 = 24 << 20;

/// Decodes a frame.
pub fn decode(frame: &Frame, options: impl Into<DecodeOptions>) -> Result<Picture, String> {
    let options = options.into();
    let color = options.color;
    let FrameInfo { format, width, height, .. } = frame.info;
    let (width, height) = (u32::from(width), u32::from(height));
    picture::check_size(width, height)?;
    let payload = frame.payload;
    let rgb = match format {
        PixelFormat::Jpeg => return picture::decode_jpeg(payload, (width, height), options, MAX_JPEG_PIXELS),
        // Of a grey picture nothing needs computing; YUV has its luma in every second byte.
        PixelFormat::Gray8 if color == Color::Gray => return whole(frame, payload.to_vec(), 1),
        PixelFormat::Yuv422 if color == Color::Gray => return whole(frame, payload.iter().copied().step_by(2).collect(), 1),
        PixelFormat::Gray8 => repeat(payload),
        PixelFormat::Rgb888 => payload.to_vec(),
        PixelFormat::Rgb565 => converted(payload, from_565),
        PixelFormat::Yuv422 => converted(payload, from_yuyv),
    };
    let picture = whole(frame, rgb, 3)?;
    Ok(if color == Color::Gray { picture.into_luma() } else { picture })
}

/// A JPEG frame as a file that every program reads: with Huffman tables, which USB cameras leave out.
fn jpeg_file(payload: &[u8]) -> Cow<'_, [u8]> {
    match jpeg::layout(payload) {
        Ok(layout) => jpeg::with_tables(payload, &layout),
        // It was no picture, and stays none.
        Err(_) => Cow::Borrowed(payload),
    }
}

/// A picture of the frame's size, if that is what the data is.
fn whole(frame: &Frame, data: Vec<u8>, channels: usize) -> Result<Picture, String> {
    let (width, height) = (u32::from(frame.info.width), u32::from(frame.info.height));
    if data.len() as u64 != u64::from(width) * u64::from(height) * channels as u64 {
        return Err(short(frame));
    }
    Ok(Picture { width, height, data, channels })
}

/// RGB of grey pixels.
fn repeat(luma: &[u8]) -> Vec<u8> {
    let mut rgb = vec![0; 3 * luma.len()];
    rgb.as_chunks_mut().0.iter_mut().zip(luma).for_each(|(rgb, &v)| *rgb = [v; 3]);
    rgb
}

/// Every group of `N` bytes as `M`; a loop over slices, which iterators that flatten are not.
fn converted<const N: usize, const M: usize>(payload: &[u8], f: impl Fn([u8; N]) -> [u8; M]) -> Vec<u8> {
    let groups = payload.as_chunks().0;
    let mut out = vec![0; M * groups.len()];
    out.as_chunks_mut().0.iter_mut().zip(groups).for_each(|(out, group)| *out = f(*group));
    out
}

fn short(frame: &Frame) -> String {
    format!("{} bytes are not {}×{} pixels of {}", frame.payload.len(), frame.info.width, frame.info.height, frame.info.format)
}

/// A frame as a file, and its name's extension: JPEG as it came, pixels as PNG.
pub fn to_file(frame: &Frame) -> Result<(Vec<u8>, &'static str), String> {
    if frame.info.format == PixelFormat::Jpeg {
        return Ok((jpeg_file(frame.payload).into_owned(), "jpg"));
    }
    let gray = frame.info.format == PixelFormat::Gray8;
    let picture = decode(frame, if gray { Color::Gray } else { Color::Rgb })?;
    let kind = if gray { ExtendedColorType::L8 } else { ExtendedColorType::Rgb8 };
    let mut file = Vec::new();
    PngEncoder::new_with_quality(&mut file, CompressionType::Fast, FilterType::Adaptive)
        .write_image(&picture.data, picture.width, picture.height, kind)
        .map_err(|e| e.to_string())?;
    Ok((file, "png"))
}

/// A frame as a JPEG file of this quality, 1 to 100; one that is such a file stays as it is.
pub fn to_jpeg<'a>(frame: &Frame<'a>, quality: u8) -> Result<Cow<'a, [u8]>, String> {
    if frame.info.format == PixelFormat::Jpeg {
        return Ok(jpeg_file(frame.payload));
    }
    encode(&decode(frame, Color::Rgb)?, PixelFormat::Jpeg, quality).map(|(_, file)| Cow::Owned(file))
}

/// Encodes a picture: luma for [`PixelFormat::Gray8`], RGB for the others. `quality` is JPEG's, 1 to 100.
pub fn encode(picture: &Picture, format: PixelFormat, quality: u8) -> Result<(FrameInfo, Vec<u8>), String> {
    let channels = if format == PixelFormat::Gray8 { 1 } else { 3 };
    if picture.channels != channels {
        return Err(format!("{format} is made of {channels} channels, this picture has {}", picture.channels));
    }
    let payload = match format {
        PixelFormat::Gray8 | PixelFormat::Rgb888 => picture.data.clone(),
        PixelFormat::Rgb565 => converted(&picture.data, to_565),
        PixelFormat::Yuv422 => converted(&picture.data, to_yuyv),
        PixelFormat::Jpeg => {
            let mut file = Vec::new();
            JpegEncoder::new_with_quality(&mut file, quality)
                .encode(&picture.data, picture.width, picture.height, ExtendedColorType::Rgb8)
                .map_err(|e| e.to_string())?;
            file
        }
    };
    Ok((describe((picture.width, picture.height), format, payload.len())?, payload))
}

/// What a frame's header says of a picture of this width and height whose payload has `length` bytes.
pub fn describe((width, height): (u32, u32), format: PixelFormat, length: usize) -> Result<FrameInfo, String> {
    let side = |v: u32| u16::try_from(v).map_err(|_| format!("{width}×{height} pixels are too many for a frame"));
    let (width, height) = (side(width)?, side(height)?);
    let info = match format {
        PixelFormat::Jpeg => FrameInfo::jpeg(width, height, u32::try_from(length).unwrap_or(u32::MAX)),
        _ => FrameInfo::raw(format, width, height),
    };
    info.map_err(|e| format!("{width}×{height} pixels as {format}: {e}; scale it down with --size, or choose another --format"))
}

/// The nearest of 32 or 64 levels.
fn to_565([r, g, b]: [u8; 3]) -> [u8; 2] {
    let level = |v: u8, most: u16| (u16::from(v) * most + 127) / 255;
    (level(r, 31) << 11 | level(g, 63) << 5 | level(b, 31)).to_be_bytes()
}

/// The high bits again below the low ones, so that white is 255.
fn from_565(bytes: [u8; 2]) -> [u8; 3] {
    let v = u16::from_be_bytes(bytes);
    let (r, g, b) = (v >> 11, v >> 5 & 63, v & 31);
    [r << 3 | r >> 2, g << 2 | g >> 4, b << 3 | b >> 2].map(|v| v as u8)
}

/// BT.601 full range (ITU-T T.871, JFIF) in 16-bit fixed point, rounded to nearest. The two pixels share their mean chroma.
fn to_yuyv(rgb: [u8; 6]) -> [u8; 4] {
    let [r0, g0, b0, r1, g1, b1] = rgb.map(i32::from);
    let chroma = |v: i32| (((v + (1 << 16)) >> 17) + 128).clamp(0, 255) as u8;
    let (r, g, b) = (r0 + r1, g0 + g1, b0 + b1);
    let u = chroma(-11_058 * r - 21_710 * g + 32_768 * b);
    let v = chroma(32_768 * r - 27_439 * g - 5_329 * b);
    [picture::luma([rgb[0], rgb[1], rgb[2]]), u, picture::luma([rgb[3], rgb[4], rgb[5]]), v]
}

fn from_yuyv([y0, u, y1, v]: [u8; 4]) -> [u8; 6] {
    let (u, v) = (i32::from(u) - 128, i32::from(v) - 128);
    let add = [91_881 * v, -22_554 * u - 46_802 * v, 116_130 * u].map(|c| (c + (1 << 15)) >> 16);
    let value = |y: u8, c: i32| (i32::from(y) + c).clamp(0, 255) as u8;
    let ([r0, g0, b0], [r1, g1, b1]) = (add.map(|c| value(y0, c)), add.map(|c| value(y1, c)));
    [r0, g0, b0, r1, g1, b1]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn colours() -> Picture {
        let data = (0..64u32 * 32).flat_map(|i| [(i % 64) * 4, (i / 64) * 8, (i * 37) % 256].map(|v| v as u8)).collect();
        Picture { width: 64, height: 32, data, channels: 3 }
    }

    /// A picture whose pixels come in equal pairs, so that sharing chroma loses nothing.
    fn pairs() -> Picture {
        let mut p = colours();
        p.data.as_chunks_mut::<6>().0.iter_mut().for_each(|p| p.copy_within(..3, 3));
        p
    }

    fn there_and_back(p: &Picture, format: PixelFormat) -> Picture {
        let (info, payload) = encode(p, format, 95).unwrap();
        decode(&Frame { info, payload: &payload }, Color::Rgb).unwrap()
    }

    fn worst(a: &Picture, b: &Picture) -> u8 {
        a.data.iter().zip(&b.data).map(|(a, b)| a.abs_diff(*b)).max().unwrap()
    }

    #[test]
    fn each_format_loses_what_it_must_and_no_more() {
        assert_eq!(there_and_back(&colours(), PixelFormat::Rgb888), colours());
        // Half a level of 32, and how far replicated bits stand from even levels.
        assert!(worst(&there_and_back(&colours(), PixelFormat::Rgb565), &colours()) <= 5);
        assert!(worst(&there_and_back(&pairs(), PixelFormat::Yuv422), &pairs()) <= 2);
        let flat = Picture { data: [200, 60, 30].repeat(64 * 32), ..colours() };
        assert!(worst(&there_and_back(&flat, PixelFormat::Jpeg), &flat) <= 3);
    }

    #[test]
    fn grey_survives_yuv_exactly_and_565_is_stable() {
        let grey = Picture { width: 256, height: 1, data: (0..=255).flat_map(|v| [v; 3]).collect(), channels: 3 };
        assert_eq!(there_and_back(&grey, PixelFormat::Yuv422), grey);
        for v in 0..=u16::MAX {
            assert_eq!(to_565(from_565(v.to_be_bytes())), v.to_be_bytes());
        }
    }

    #[test]
    fn byte_orders_are_as_documented() {
        assert_eq!(to_565([255, 0, 0]), [0xF8, 0]);
        assert_eq!(to_565([0, 0, 255]), [0, 0x1F]);
        assert_eq!(from_565([0x07, 0xE0]), [0, 255, 0]);
        // Red: Y 76, U 85, V 255 (JFIF).
        assert_eq!(to_yuyv([255, 0, 0, 0, 0, 0]), [76, 106, 0, 192]);
        assert_eq!(to_yuyv([255, 0, 0, 255, 0, 0]), [76, 85, 76, 255]);
        assert_eq!(from_yuyv([76, 85, 76, 255]), [254, 0, 0, 254, 0, 0]);
    }

    #[test]
    fn grey_frames_feed_colour_networks_and_the_reverse() {
        let info = FrameInfo::raw(PixelFormat::Gray8, 2, 1).unwrap();
        assert_eq!(decode(&Frame { info, payload: &[7, 9] }, Color::Rgb).unwrap().data, [7, 7, 7, 9, 9, 9]);
        let info = FrameInfo::raw(PixelFormat::Rgb888, 1, 1).unwrap();
        assert_eq!(decode(&Frame { info, payload: &[8, 8, 8] }, Color::Gray).unwrap().data, [8]);
        // Every format gives the same luma: BT.601.
        for (format, most) in [(PixelFormat::Rgb888, 0), (PixelFormat::Yuv422, 0), (PixelFormat::Jpeg, 2), (PixelFormat::Rgb565, 5)] {
            let green = Picture { width: 16, height: 16, data: [0, 255, 0].repeat(256), channels: 3 };
            let (info, payload) = encode(&green, format, 100).unwrap();
            let grey = decode(&Frame { info, payload: &payload }, Color::Gray).unwrap();
            assert!(
                grey.channels == 1 && grey.data.len() == 256 && grey.data.iter().all(|v| v.abs_diff(150) <= most),
                "{format}: {grey:?}"
            );
        }
    }

    /// As USB cameras send it: without Huffman tables. What is saved or shown must have them.
    #[test]
    fn frames_without_huffman_tables_are_read_and_saved_with_them() {
        let whole = encode(&colours(), PixelFormat::Jpeg, 90).unwrap().1;
        let mut bare = whole.clone();
        while let Some(at) = bare.windows(2).position(|w| w == [0xFF, 0xC4]) {
            let length = usize::from(u16::from_be_bytes([bare[at + 2], bare[at + 3]]));
            bare.drain(at..at + 2 + length);
        }
        let frame = |payload| Frame { info: FrameInfo::jpeg(64, 32, 1).unwrap(), payload };
        let expected = decode(&frame(&whole), Color::Rgb).unwrap();
        assert_eq!(decode(&frame(&bare), Color::Rgb).unwrap(), expected);
        for file in [to_file(&frame(&bare)).unwrap().0, to_jpeg(&frame(&bare), 80).unwrap().into_owned()] {
            assert_eq!(image::load_from_memory(&file).unwrap().into_rgb8().into_raw(), expected.data);
        }
    }

    #[test]
    fn frames_that_lie_are_errors() {
        let jpeg = encode(&colours(), PixelFormat::Jpeg, 90).unwrap().1;
        let info = |w, h, n: usize| FrameInfo::jpeg(w, h, n as u32).unwrap();
        let other_size = decode(&Frame { info: info(32, 64, jpeg.len()), payload: &jpeg }, Color::Rgb);
        assert!(other_size.unwrap_err().contains("has 64×32"));
        // 64 million pixels in a file of a few bytes: refused by its size, and by a header that lies about it, before memory is taken.
        let mut bomb = jpeg.clone();
        let sof = bomb.windows(2).position(|w| w == [0xFF, 0xC0]).unwrap();
        bomb[sof + 5..sof + 9].copy_from_slice(&[0x20, 0, 0x20, 0]);
        assert!(decode(&Frame { info: info(64, 32, bomb.len()), payload: &bomb }, Color::Rgb).unwrap_err().contains("has 8192×8192"));
        assert!(decode(&Frame { info: info(8192, 8192, bomb.len()), payload: &bomb }, Color::Rgb).unwrap_err().contains("at most"));
        assert!(decode(&Frame { info: info(64, 32, 100), payload: &jpeg[..100] }, Color::Rgb).is_err());
        assert!(decode(&Frame { info: info(64, 32, 3), payload: b"\x89PN" }, Color::Rgb).is_err());
        assert!(decode(&Frame { info: info(65_535, 65_535, jpeg.len()), payload: &jpeg }, Color::Rgb).is_err());
        assert!(encode(&Picture { width: 3, height: 1, data: vec![0; 9], channels: 3 }, PixelFormat::Yuv422, 90).is_err());
        assert!(encode(&colours(), PixelFormat::Gray8, 90).is_err());
    }
}
