//! Where a JPEG file begins and ends among the bytes of a FIFO, which rounds up and may begin with a stale byte.

use core::ops::Range;

/// How far from the start the file may begin.
const LEAD: usize = 16;

/// The file in `bytes`: from SOI to EOI (ITU-T T.81, B.1.1.3), found by walking its segments, so that a table that holds
/// the bytes of EOI does not end it.
pub(crate) fn find(bytes: &[u8]) -> Option<Range<usize>> {
    let start = bytes.windows(2).take(LEAD).position(|w| w == [0xFF, 0xD8])?;
    let mut at = start + 2;
    loop {
        let [0xFF, marker] = *bytes.get(at..)?.first_chunk()? else { return None };
        at += 2;
        match marker {
            // A fill byte before a marker.
            0xFF => at -= 1,
            0xD9 => return Some(start..at),
            // TEM, RSTn: no segment.
            0x01 | 0xD0..=0xD7 => {}
            _ => {
                let length = usize::from(u16::from_be_bytes(*bytes.get(at..)?.first_chunk()?));
                at += length.max(2);
                if marker == 0xDA {
                    // Entropy-coded data: FF is followed by 00 or RSTn.
                    at += bytes.get(at..)?.windows(2).position(|w| w[0] == 0xFF && !matches!(w[1], 0 | 0xD0..=0xD7))?;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// SOI, a table that holds FF D9, a scan with a stuffed FF and an RST0, EOI.
    const FILE: [u8; 26] =
        [0xFF, 0xD8, 0xFF, 0xDB, 0, 6, 0xFF, 0xD9, 1, 2, 0xFF, 0xDA, 0, 4, 9, 9, 7, 0xFF, 0, 8, 0xFF, 0xD0, 5, 0xFF, 0xFF, 0xD9];

    #[test]
    fn found_with_padding_around_it() {
        assert_eq!(find(&FILE), Some(0..26));
        let mut padded = [0xFF; 40];
        padded[3..29].copy_from_slice(&FILE);
        assert_eq!(find(&padded), Some(3..29));
    }

    #[test]
    fn a_cut_or_missing_file_is_none() {
        for end in 0..FILE.len() {
            assert_eq!(find(&FILE[..end]), None, "{end}");
        }
        assert_eq!(find(&[0; 100]), None);
        let mut late = [0; 60];
        late[20..46].copy_from_slice(&FILE);
        assert_eq!(find(&late), None);
    }
}
