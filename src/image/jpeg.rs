//! What a JPEG file says of itself, read from its markers (ITU-T T.81, Annex B) before anything is decoded.

use std::borrow::Cow;

/// A JPEG file's layout.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    /// Pixels, as stored: before any turn that EXIF asks for.
    pub width: u32,
    /// Pixels, as stored.
    pub height: u32,
    /// Passes over the pixels: 1 in a baseline file, some ten in a progressive one.
    pub scans: u32,
    /// Where the first scan begins, if no Huffman table comes before it.
    without_tables: Option<usize>,
}

/// Reads the markers up to the end of the first picture; what follows it (padding, a second picture) does not matter.
/// A file that ends before is an error: a decoder would paint the rest grey.
pub fn layout(file: &[u8]) -> Result<Layout, String> {
    const CUT: &str = "the JPEG file is cut: it has no end";
    if !file.starts_with(&[0xFF, 0xD8]) {
        return Err("not a JPEG file".into());
    }
    let (mut at, mut size, mut tables) = (2, None, false);
    let (mut scans, mut without_tables) = (0, None);
    loop {
        // Inside a scan FF is followed by 0 or a restart marker (B.1.1.5); before a marker there may be any number of FF.
        let marker = loop {
            at += file[at..].iter().position(|&b| b == 0xFF).ok_or(CUT)? + 1;
            match *file.get(at).ok_or(CUT)? {
                0x00 | 0xD0..=0xD7 => at += 1,
                0xFF => {}
                marker => break marker,
            }
        };
        let start = at - 1;
        at += 1;
        match marker {
            // End of image.
            0xD9 => break,
            // TEM and SOI stand alone.
            0x01 | 0xD8 => continue,
            _ => {}
        }
        let length: [u8; 2] = file.get(at..at + 2).and_then(|b| b.try_into().ok()).ok_or(CUT)?;
        let length = usize::from(u16::from_be_bytes(length)).max(2);
        let segment = file.get(at + 2..at + length).ok_or(CUT)?;
        at += length;
        match marker {
            0xC4 => tables = true,
            // Arithmetic coding has no Huffman tables.
            0xCC => tables = true,
            // Start of frame, of whatever kind.
            0xC0..=0xCF if size.is_none() => {
                let side = |i: usize| segment.get(i..i + 2).map(|b| u32::from(u16::from_be_bytes([b[0], b[1]])));
                size = Some((side(3).ok_or(CUT)?, side(1).ok_or(CUT)?));
            }
            0xDA => {
                if scans == 0 && !tables {
                    without_tables = Some(start);
                }
                scans += 1;
            }
            _ => {}
        }
    }
    let (width, height) = size.ok_or("the JPEG file says no size")?;
    if scans == 0 {
        return Err("the JPEG file holds no picture".into());
    }
    Ok(Layout { width, height, scans, without_tables })
}

/// The file with Huffman tables: one that has none, as USB cameras send them, gets the standard ones.
pub fn with_tables<'a>(file: &'a [u8], layout: &Layout) -> Cow<'a, [u8]> {
    let Some(scan) = layout.without_tables else { return Cow::Borrowed(file) };
    let mut whole = Vec::with_capacity(file.len() + 512);
    whole.extend_from_slice(&file[..scan]);
    for (class_and_number, counts, values) in STANDARD_TABLES {
        whole.extend([0xFF, 0xC4]);
        whole.extend((2 + 1 + counts.len() as u16 + values.len() as u16).to_be_bytes());
        whole.push(class_and_number);
        whole.extend_from_slice(&counts);
        whole.extend_from_slice(values);
    }
    whole.extend_from_slice(&file[scan..]);
    Cow::Owned(whole)
}

/// Class (DC 0, AC 1) in the high half of the first byte and number in the low one; how many codes have 1, 2, … 16 bits;
/// the values in the order of their codes. ITU-T T.81, tables K.3 to K.6.
const STANDARD_TABLES: [(u8, [u8; 16], &[u8]); 4] = [
    (0x00, [0, 1, 5, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0], &[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]),
    (0x10, [0, 2, 1, 3, 3, 2, 4, 3, 5, 5, 4, 4, 0, 0, 1, 0x7D], &LUMA_AC),
    (0x01, [0, 3, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0], &[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]),
    (0x11, [0, 2, 1, 2, 4, 4, 3, 4, 7, 5, 4, 4, 0, 1, 2, 0x77], &CHROMA_AC),
];
#[rustfmt::skip]
const LUMA_AC: [u8; 162] = [
    0x01, 0x02, 0x03, 0x00, 0x04, 0x11, 0x05, 0x12, 0x21, 0x31, 0x41, 0x06, 0x13, 0x51, 0x61, 0x07, 0x22, 0x71,
    0x14, 0x32, 0x81, 0x91, 0xA1, 0x08, 0x23, 0x42, 0xB1, 0xC1, 0x15, 0x52, 0xD1, 0xF0, 0x24, 0x33, 0x62, 0x72,
    0x82, 0x09, 0x0A, 0x16, 0x17, 0x18, 0x19, 0x1A, 0x25, 0x26, 0x27, 0x28, 0x29, 0x2A, 0x34, 0x35, 0x36, 0x37,
    0x38, 0x39, 0x3A, 0x43, 0x44, 0x45, 0x46, 0x47, 0x48, 0x49, 0x4A, 0x53, 0x54, 0x55, 0x56, 0x57, 0x58, 0x59,
    0x5A, 0x63, 0x64, 0x65, 0x66, 0x67, 0x68, 0x69, 0x6A, 0x73, 0x74, 0x75, 0x76, 0x77, 0x78, 0x79, 0x7A, 0x83,
    0x84, 0x85, 0x86, 0x87, 0x88, 0x89, 0x8A, 0x92, 0x93, 0x94, 0x95, 0x96, 0x97, 0x98, 0x99, 0x9A, 0xA2, 0xA3,
    0xA4, 0xA5, 0xA6, 0xA7, 0xA8, 0xA9, 0xAA, 0xB2, 0xB3, 0xB4, 0xB5, 0xB6, 0xB7, 0xB8, 0xB9, 0xBA, 0xC2, 0xC3,
    0xC4, 0xC5, 0xC6, 0xC7, 0xC8, 0xC9, 0xCA, 0xD2, 0xD3, 0xD4, 0xD5, 0xD6, 0xD7, 0xD8, 0xD9, 0xDA, 0xE1, 0xE2,
    0xE3, 0xE4, 0xE5, 0xE6, 0xE7, 0xE8, 0xE9, 0xEA, 0xF1, 0xF2, 0xF3, 0xF4, 0xF5, 0xF6, 0xF7, 0xF8, 0xF9, 0xFA,
];
#[rustfmt::skip]
const CHROMA_AC: [u8; 162] = [
    0x00, 0x01, 0x02, 0x03, 0x11, 0x04, 0x05, 0x21, 0x31, 0x06, 0x12, 0x41, 0x51, 0x07, 0x61, 0x71, 0x13, 0x22,
    0x32, 0x81, 0x08, 0x14, 0x42, 0x91, 0xA1, 0xB1, 0xC1, 0x09, 0x23, 0x33, 0x52, 0xF0, 0x15, 0x62, 0x72, 0xD1,
    0x0A, 0x16, 0x24, 0x34, 0xE1, 0x25, 0xF1, 0x17, 0x18, 0x19, 0x1A, 0x26, 0x27, 0x28, 0x29, 0x2A, 0x35, 0x36,
    0x37, 0x38, 0x39, 0x3A, 0x43, 0x44, 0x45, 0x46, 0x47, 0x48, 0x49, 0x4A, 0x53, 0x54, 0x55, 0x56, 0x57, 0x58,
    0x59, 0x5A, 0x63, 0x64, 0x65, 0x66, 0x67, 0x68, 0x69, 0x6A, 0x73, 0x74, 0x75, 0x76, 0x77, 0x78, 0x79, 0x7A,
    0x82, 0x83, 0x84, 0x85, 0x86, 0x87, 0x88, 0x89, 0x8A, 0x92, 0x93, 0x94, 0x95, 0x96, 0x97, 0x98, 0x99, 0x9A,
    0xA2, 0xA3, 0xA4, 0xA5, 0xA6, 0xA7, 0xA8, 0xA9, 0xAA, 0xB2, 0xB3, 0xB4, 0xB5, 0xB6, 0xB7, 0xB8, 0xB9, 0xBA,
    0xC2, 0xC3, 0xC4, 0xC5, 0xC6, 0xC7, 0xC8, 0xC9, 0xCA, 0xD2, 0xD3, 0xD4, 0xD5, 0xD6, 0xD7, 0xD8, 0xD9, 0xDA,
    0xE2, 0xE3, 0xE4, 0xE5, 0xE6, 0xE7, 0xE8, 0xE9, 0xEA, 0xF2, 0xF3, 0xF4, 0xF5, 0xF6, 0xF7, 0xF8, 0xF9, 0xFA,
];

#[cfg(test)]
mod tests {
    use super::*;

    fn file() -> Vec<u8> {
        let mut file = Vec::new();
        let pixels: Vec<u8> = (0..48 * 40 * 3).map(|i| (i * 7 % 251) as u8).collect();
        image::codecs::jpeg::JpegEncoder::new(&mut file).encode(&pixels, 48, 40, image::ExtendedColorType::Rgb8).unwrap();
        file
    }

    /// The encoder writes Annex K's tables, each in a segment of its own: without them, as a USB camera sends it, the file
    /// must mean the same.
    #[test]
    fn standard_tables_are_those_of_the_standard() {
        let whole = file();
        let mut bare = whole.clone();
        while let Some(at) = bare.windows(2).position(|w| w == [0xFF, 0xC4]) {
            let length = usize::from(u16::from_be_bytes([bare[at + 2], bare[at + 3]]));
            bare.drain(at..at + 2 + length);
        }
        assert!(bare.len() < whole.len() - 400, "{} of {} bytes are left", bare.len(), whole.len());
        let pixels = |file: &[u8]| image::load_from_memory(file).map(|p| p.into_rgb8().into_raw());
        assert!(pixels(&bare).is_err(), "the decoder knows the tables itself: these here can go");
        let mended = with_tables(&bare, &layout(&bare).unwrap());
        assert_eq!(pixels(&mended).unwrap(), pixels(&whole).unwrap());
        assert!(matches!(with_tables(&whole, &layout(&whole).unwrap()), Cow::Borrowed(_)));
    }

    #[test]
    fn size_and_scans_come_from_the_markers() {
        let file = file();
        let found = layout(&file).unwrap();
        assert_eq!((found.width, found.height, found.scans), (48, 40, 1));
        // Phones append a second picture; a cut in that one is no cut in the first.
        let two = [file.as_slice(), &file[..file.len() / 2]].concat();
        assert_eq!(layout(&two).unwrap(), found);
        // A thumbnail inside a segment, whose own end is not the file's.
        let mut thumbnail = vec![0xFF, 0xD8, 0xFF, 0xE1];
        thumbnail.extend((2 + file.len() as u16).to_be_bytes());
        thumbnail.extend_from_slice(&file);
        let with_thumbnail = [thumbnail.as_slice(), &file[2..]].concat();
        assert_eq!(layout(&with_thumbnail).unwrap(), found);
        assert!(layout(&with_thumbnail[..with_thumbnail.len() - 2]).is_err());
        for length in 0..file.len() - 1 {
            assert!(layout(&file[..length]).is_err(), "{length} of {} bytes", file.len());
        }
    }
}
