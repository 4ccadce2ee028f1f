//! The board's log.

use crate::{Error, ensure};
use defmt_decoder::{DecodeError, Table};
use std::fmt::Write;
use std::path::Path;

/// Decodes the log by the program's symbols and compares it with the recorded one; gives its lines.
/// A command that had to be repeated is logged again: repeated lines count once.
pub fn check(elf: &Path, bytes: &[u8], golden: &Path) -> Result<usize, Error> {
    let table = Table::parse(&std::fs::read(elf)?)?.ok_or("the program has no defmt symbols")?;
    let mut decoder = table.new_stream_decoder();
    decoder.received(bytes);
    let mut lines: Vec<String> = Vec::new();
    loop {
        match decoder.decode() {
            Ok(frame) => {
                let level = frame.level().map_or("", |level| level.as_str());
                let mut line = String::new();
                write!(line, "{level} {}", frame.display_message())?;
                if lines.last() != Some(&line) {
                    lines.push(line);
                }
            }
            Err(DecodeError::UnexpectedEof) => break,
            Err(DecodeError::Malformed) => return Err("the log cannot be decoded: something else was written into it".into()),
        }
    }
    let log = lines.join("\n") + "\n";
    let expected = std::fs::read_to_string(golden).unwrap_or_default();
    if log != expected {
        let actual = std::env::temp_dir().join("edge-board-qemu.log");
        std::fs::write(&actual, &log)?;
        let line = log.lines().zip(expected.lines()).take_while(|(a, b)| a == b).count();
        ensure!(
            false,
            "the log differs from {} at line {}:\n  {}\n  instead of\n  {}\nAll of it is in {}.",
            golden.display(),
            line + 1,
            log.lines().nth(line).unwrap_or("(end)"),
            expected.lines().nth(line).unwrap_or("(end)"),
            actual.display()
        );
    }
    Ok(lines.len())
}
