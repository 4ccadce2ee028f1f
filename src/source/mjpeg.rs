//! Whole JPEG files in a stream of bytes (ITU-T T.81, annex B).
//!
//! The files' own structure is followed, not what stands between them: lengths and boundaries that servers announce are
//! often wrong, and a boundary may turn up inside a file. In a scan FF is followed by 00 or a restart marker, and every
//! other segment says its length, so that nothing inside a file looks like its end.

/// Longest file.
const MAX_FILE: usize = 16 << 20;
/// Most segments of a file; it keeps the search through hostile bytes short.
const MAX_SEGMENTS: u32 = 256;
/// Bytes before a file that are kept: its part's header.
const KEPT_BEFORE: usize = 1024;
const SOI: u8 = 0xD8;
const EOI: u8 = 0xD9;
const SOS: u8 = 0xDA;

/// What [`Scanner::next`] found.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// A whole file: [`Scanner::file`].
    File,
    /// A file that another one follows before its end.
    Incomplete,
    /// What begins as a file and is none.
    Corrupted,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// No file has begun. After a file that broke off in its head, the next one must stand where files do, lest a
    /// thumbnail inside of it be taken for one.
    Between { strict: bool },
    /// At a marker.
    Marker,
    /// In a scan's data.
    Scan,
    /// [`Scanner::file`] is whole, up to here.
    Whole,
}

/// Finds files. Its memory is bounded by the longest file.
#[derive(Debug)]
pub(super) struct Scanner {
    bytes: Vec<u8>,
    /// How far they have been understood.
    at: usize,
    phase: Phase,
    segments: u32,
    size: Option<(u16, u16)>,
    scanned: bool,
    before: Vec<u8>,
    /// Bytes that belong to no whole file.
    skipped: u64,
}

impl Scanner {
    pub fn new() -> Self {
        let phase = Phase::Between { strict: false };
        Scanner { bytes: Vec::new(), at: 0, phase, segments: 0, size: None, scanned: false, before: Vec::new(), skipped: 0 }
    }

    /// Adds what has come.
    pub fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// Whether a file has begun.
    pub fn has_begun(&self) -> bool {
        matches!(self.phase, Phase::Marker | Phase::Scan)
    }

    /// The whole file that was found, its width and height, and the bytes before it, as far as they are kept.
    pub fn file(&self) -> (&[u8], (u16, u16), &[u8]) {
        (&self.bytes[..self.at], self.size.unwrap_or_default(), &self.before)
    }

    /// Bytes so far that belong to no whole file.
    pub fn skipped(&self) -> u64 {
        self.skipped
    }

    /// The stream is over: what is left, again and again until there is nothing.
    pub fn finish(&mut self) -> Option<Found> {
        if let Some(found) = self.next() {
            return Some(found);
        }
        if self.has_begun() {
            let from = if self.scanned { self.bytes.len() } else { 2 };
            return Some(self.broken(from, Found::Incomplete));
        }
        self.skipped += self.bytes.len() as u64;
        *self = Scanner { skipped: self.skipped, ..Scanner::new() };
        None
    }

    fn drop_file(&mut self) {
        if self.phase == Phase::Whole {
            self.bytes.drain(..self.at);
            self.before.clear();
            (self.at, self.phase) = (0, Phase::Between { strict: false });
        }
    }

    /// The next file or what is left of one, as soon as its last byte was pushed. Ends the time of the last [`Scanner::file`].
    pub fn next(&mut self) -> Option<Found> {
        self.drop_file();
        loop {
            match self.phase {
                Phase::Between { strict } => self.begin(strict)?,
                Phase::Scan => self.scan()?,
                Phase::Marker => match self.marker() {
                    None if self.bytes.len() <= MAX_FILE => return None,
                    None => return Some(self.broken(self.bytes.len(), Found::Corrupted)),
                    Some(Ok(())) if self.phase == Phase::Whole => return Some(Found::File),
                    Some(Ok(())) => {}
                    Some(Err(found)) => {
                        // In a scan no file can be hidden; a head may have swallowed the beginning of the next one.
                        let from = if self.scanned { self.at } else { 2 };
                        return Some(self.broken(from, found));
                    }
                },
                Phase::Whole => return None,
            }
            if self.bytes.len() > MAX_FILE && self.at == self.bytes.len() {
                return Some(self.broken(self.at, Found::Corrupted));
            }
        }
    }

    /// Gives up the first `length` bytes.
    fn broken(&mut self, length: usize, found: Found) -> Found {
        self.skipped += length as u64;
        self.bytes.drain(..length);
        self.before.clear();
        (self.at, self.phase) = (0, Phase::Between { strict: !self.scanned });
        found
    }

    /// Looks for a file's beginning.
    fn begin(&mut self, strict: bool) -> Option<()> {
        let after_end = |before: &[u8]| [b"\n\r\n".as_slice(), b"\n\n", &[0xFF, EOI]].iter().any(|end| before.ends_with(end));
        let begins = |at: usize| !strict || after_end(&self.bytes[..at]);
        let found = self.bytes.windows(3).enumerate().position(|(at, w)| w == [0xFF, SOI, 0xFF] && begins(at));
        // What may yet become a beginning stays, with what must stand before it.
        let length = found.unwrap_or(self.bytes.len().saturating_sub(5));
        self.before.extend_from_slice(&self.bytes[..length]);
        let excess = self.before.len().saturating_sub(KEPT_BEFORE);
        self.before.drain(..excess);
        self.skipped += length as u64;
        self.bytes.drain(..length);
        found?;
        (self.at, self.phase, self.segments, self.size, self.scanned) = (2, Phase::Marker, 0, None, false);
        Some(())
    }

    /// To the end of a scan's data, or of what is there of it.
    fn scan(&mut self) -> Option<()> {
        loop {
            let rest = &self.bytes[self.at..];
            let Some(ff) = rest.iter().position(|b| *b == 0xFF) else {
                self.at = self.bytes.len();
                return (self.bytes.len() > MAX_FILE).then_some(());
            };
            self.at += ff;
            match self.bytes.get(self.at + 1)? {
                0 | 0xD0..=0xD7 => self.at += 2,
                0xFF => self.at += 1,
                _ => {
                    self.phase = Phase::Marker;
                    return Some(());
                }
            }
        }
    }

    /// Over one marker and its segment; `None` where more bytes are needed.
    fn marker(&mut self) -> Option<Result<(), Found>> {
        if *self.bytes.get(self.at)? != 0xFF {
            return Some(Err(Found::Corrupted));
        }
        let marker = *self.bytes.get(self.at + 1)?;
        match marker {
            // A filling byte.
            0xFF => self.at += 1,
            SOI => return Some(Err(Found::Incomplete)),
            EOI if self.scanned && self.size.is_some() => {
                self.at += 2;
                self.phase = Phase::Whole;
            }
            0xC0..=0xCF | SOS..=0xFE if self.segments < MAX_SEGMENTS => {
                let length = usize::from(u16::from_be_bytes([*self.bytes.get(self.at + 2)?, *self.bytes.get(self.at + 3)?]));
                let segment = self.bytes.get(self.at + 4..self.at + 2 + length.max(2))?;
                let is_frame_header = (0xC0..=0xCF).contains(&marker) && ![0xC4, 0xC8, 0xCC].contains(&marker);
                match *segment {
                    [_, h1, h0, w1, w0, ..] if is_frame_header => {
                        self.size = Some((u16::from_be_bytes([w1, w0]), u16::from_be_bytes([h1, h0])));
                    }
                    _ if is_frame_header || length < 2 => return Some(Err(Found::Corrupted)),
                    _ => {}
                }
                self.at += 2 + length;
                // Not before the segment is there: until then it is looked at again and again.
                self.segments += 1;
                if marker == SOS {
                    (self.phase, self.scanned) = (Phase::Scan, true);
                }
            }
            _ => return Some(Err(Found::Corrupted)),
        }
        Some(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::{ExtendedColorType, codecs::jpeg::JpegEncoder};
    use proptest::prelude::*;

    const BOUNDARY: &[u8] = b"\r\n--frame\r\nContent-Type: image/jpeg\r\n\r\n";

    /// A file with a comment, one with its own beginning and end in it and a boundary.
    fn file(seed: u8) -> Vec<u8> {
        let mut file = Vec::new();
        let pixels: Vec<u8> = (0..40 * 24 * 3u32).map(|i| (i.wrapping_mul(2_654_435_761 + u32::from(seed)) >> 24) as u8).collect();
        JpegEncoder::new_with_quality(&mut file, 40 + seed).encode(&pixels, 40, 24, ExtendedColorType::Rgb8).unwrap();
        let comment = [b"\xFF\xD8\xFF\xDB thumbnail \xFF\xD9".as_slice(), BOUNDARY, &[0xFF, 0xD9, seed]].concat();
        let head = [&file[..2], &[0xFF, 0xFE], &(comment.len() as u16 + 2).to_be_bytes(), &comment].concat();
        [head, file[2..].to_vec()].concat()
    }

    /// A file that was not sent: the beginning of one and the end of another.
    const SPLICED: usize = usize::MAX;

    /// Which files were found, and how many broke off or were damaged.
    fn scan<'a>(files: &[Vec<u8>], pieces: impl IntoIterator<Item = &'a [u8]>) -> (Vec<usize>, u64) {
        let (mut scanner, mut found, mut broken) = (Scanner::new(), vec![], 0);
        let (mut pushed, mut whole) = (0, 0);
        let mut take = |scanner: &Scanner, what: Found| {
            if what != Found::File {
                broken += 1;
                return;
            }
            let (file, size, _) = scanner.file();
            assert_eq!(size, (40, 24));
            whole += file.len();
            found.push(files.iter().position(|f| f == file).unwrap_or(SPLICED));
        };
        for piece in pieces {
            scanner.push(piece);
            pushed += piece.len();
            while let Some(what) = scanner.next() {
                take(&scanner, what);
            }
        }
        while let Some(what) = scanner.finish() {
            take(&scanner, what);
        }
        assert_eq!(scanner.skipped() as usize + whole, pushed);
        (found, broken)
    }

    #[test]
    fn whole_files_are_found_whatever_is_between_them() {
        let files: Vec<_> = (0..4).map(file).collect();
        for between in [BOUNDARY, b"", b"\0\0\0", b"--\n\xFF\xFF\xD8\n"] {
            let stream: Vec<u8> = files.iter().flat_map(|f| [between, f].concat()).collect();
            for piece in [1, 7, 1000, stream.len()] {
                assert_eq!(scan(&files, stream.chunks(piece)), (vec![0, 1, 2, 3], 0), "{between:?} {piece}");
            }
        }
    }

    #[test]
    fn a_cut_file_costs_itself_only_wherever_it_is_cut() {
        let files: Vec<_> = (0..3).map(file).collect();
        let pixels = files[1].windows(2).rposition(|w| w == [0xFF, SOS]).unwrap() + 12;
        for cut in 3..files[1].len() {
            let parts = [&files[0], &files[1][..cut], &files[2]];
            let stream: Vec<u8> = parts.iter().flat_map(|f| [BOUNDARY, f].concat()).collect();
            let (found, broken) = scan(&files, [&stream[..]]);
            // A segment that is cut takes its length from what follows, the next file's beginning: only a decoder can tell.
            let swallowed = cut < pixels && found[0] == 0 && found[1..].iter().all(|f| [2, SPLICED].contains(f));
            assert!((&found[..], broken) == (&[0, 2], 1) || swallowed, "cut at {cut} of {}: {found:?}, {broken}", files[1].len());
        }
    }

    #[test]
    fn the_text_before_a_file_is_kept() {
        let mut scanner = Scanner::new();
        scanner.push(&[BOUNDARY, &file(0), b"X-Timestamp: 7\r\n\r\n", &file(1)].concat());
        assert_eq!(scanner.next(), Some(Found::File));
        assert_eq!(scanner.file().2, BOUNDARY);
        assert_eq!(scanner.next(), Some(Found::File));
        assert_eq!(scanner.file().2, b"X-Timestamp: 7\r\n\r\n");
        assert_eq!(scanner.next(), None);
    }

    #[test]
    fn endless_files_are_given_up_and_memory_is_bounded() {
        let whole = file(0);
        let scan_data = whole.windows(2).rposition(|w| w == [0xFF, SOS]).unwrap() + 20;
        let mut scanner = Scanner::new();
        scanner.push(&whole[..scan_data]);
        let mut found = None;
        for _ in 0..(MAX_FILE >> 16) + 2 {
            scanner.push(&[7; 1 << 16]);
            found = found.or(scanner.next());
            assert!(scanner.bytes.len() <= MAX_FILE + (1 << 17));
        }
        assert_eq!(found, Some(Found::Corrupted));
        scanner.push(&whole);
        assert_eq!(scanner.next(), Some(Found::File));
    }

    proptest! {
        #[test]
        fn damage_never_panics_and_every_byte_is_counted(
            flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..20),
            piece in 1usize..500,
        ) {
            let mut stream: Vec<u8> = (0..3).flat_map(|i| [BOUNDARY.to_vec(), file(i)].concat()).collect();
            for (at, value) in flips {
                let at = at.index(stream.len());
                stream[at] = value;
            }
            let (mut scanner, mut whole) = (Scanner::new(), 0);
            for piece in stream.chunks(piece) {
                scanner.push(piece);
                while let Some(found) = scanner.next() {
                    whole += if found == Found::File { scanner.file().0.len() } else { 0 };
                }
            }
            while let Some(found) = scanner.finish() {
                whole += if found == Found::File { scanner.file().0.len() } else { 0 };
            }
            prop_assert_eq!(scanner.skipped() as usize + whole, stream.len());
        }
    }
}
