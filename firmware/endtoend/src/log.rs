//! The board's log.

use crate::{Error, ensure};
use defmt_decoder::{DecodeError, Table};
use std::path::Path;

/// Prints a log.
pub fn print(elf: &Path, file: &Path) -> Result<(), Error> {
    let lines = decode(elf, &std::fs::read(file)?)?;
    ensure!(!lines.is_empty(), "nothing was logged");
    lines.iter().for_each(|line| println!("{}", line.trim_start()));
    Ok(())
}

/// Level and message of every line, by the program's symbols.
fn decode(elf: &Path, bytes: &[u8]) -> Result<Vec<String>, Error> {
    let table = Table::parse(&std::fs::read(elf)?)?.ok_or("the program has no defmt symbols")?;
    let mut decoder = table.new_stream_decoder();
    decoder.received(bytes);
    let mut lines = Vec::new();
    loop {
        match decoder.decode() {
            Ok(frame) => lines.push(format!("{} {}", frame.level().map_or("", |level| level.as_str()), frame.display_message())),
            Err(DecodeError::UnexpectedEof) => return Ok(lines),
            Err(DecodeError::Malformed) => return Err("the log cannot be decoded: something else was written into it".into()),
        }
    }
}

/// Compares a log with the recorded one; gives its lines. A command that had to be repeated is logged again: repeated
/// lines count once.
pub fn check(elf: &Path, bytes: &[u8], golden: &Path) -> Result<usize, Error> {
    let mut lines = decode(elf, bytes)?;
    lines.dedup();
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
