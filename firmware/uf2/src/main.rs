//! `edge-uf2 PROGRAM.elf -o PROGRAM.uf2`.
#![forbid(unsafe_code)]

use anyhow::{Context, bail, ensure};
use clap::Parser;
use object::read::elf::{FileHeader, ProgramHeader};
use object::{Endianness, elf};
use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};

/// Bytes of the program in each block of a UF2 file, all of one page of flash.
const PAGE: usize = 256;
/// Most of a program that is taken: far more than any board here has of flash.
const MAX_PROGRAM: usize = 64 << 20;

/// Turns a program for a microcontroller (ELF) into a UF2 file, which is flashed by copying it to the board's drive.
#[derive(Parser)]
#[command(
    version,
    after_help = "\
Examples:
  edge-uf2 edge-board-pico -o pico.uf2         then hold BOOTSEL, plug the Pico in, and copy pico.uf2 to RPI-RP2
  edge-uf2 program.elf -o program.uf2 --family 0xada52840

The format is Microsoft's, https://github.com/microsoft/uf2."
)]
struct Args {
    /// Program, as cargo builds it.
    elf: PathBuf,
    /// File to write.
    #[arg(short, long)]
    output: PathBuf,
    /// Family of microcontrollers, from the format's list: 0xe48bff56 is the RP2040's.
    #[arg(long, default_value = "0xe48bff56", value_parser = family)]
    family: u32,
}

fn family(text: &str) -> Result<u32, String> {
    let parsed = text.strip_prefix("0x").map_or_else(|| text.parse(), |hex| u32::from_str_radix(hex, 16));
    parsed.map_err(|e| format!("{e}; a number such as 0xe48bff56"))
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let program = std::fs::read(&args.elf).with_context(|| format!("cannot read {}", args.elf.display()))?;
    let pages = pages(&program).with_context(|| format!("cannot convert {}", args.elf.display()))?;
    write_atomically(&args.output, &uf2(&pages, args.family)).with_context(|| format!("cannot write {}", args.output.display()))?;
    println!("{}: {} pages of {PAGE} bytes for family {:#x}", args.output.display(), pages.len(), args.family);
    Ok(())
}

fn write_atomically(path: &Path, data: &[u8]) -> anyhow::Result<()> {
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut file = tempfile::NamedTempFile::new_in(folder)?;
    file.write_all(data)?;
    file.persist(path)?;
    Ok(())
}

/// What the program stores in flash, page by page, gaps filled with zeros; the key is a page's address.
fn pages(program: &[u8]) -> anyhow::Result<BTreeMap<u32, [u8; PAGE]>> {
    let header = elf::FileHeader32::<Endianness>::parse(program).context("this is no 32-bit ELF file")?;
    let endian = header.endian()?;
    let mut pages = BTreeMap::new();
    let mut total = 0usize;
    for segment in header.program_headers(endian, program)? {
        if segment.p_type(endian) != elf::PT_LOAD || segment.p_filesz(endian) == 0 {
            continue;
        }
        // Where it is stored, which for variables is not where it will lie.
        let start = segment.p_paddr(endian);
        let Ok(data) = segment.data(endian, program) else { bail!("the segment for {start:#x} is cut") };
        total += data.len();
        ensure!(total <= MAX_PROGRAM, "it stores more than {MAX_PROGRAM} bytes");
        ensure!(start.checked_add(data.len() as u32).is_some(), "the segment for {start:#x} leaves the address space");
        for (offset, &byte) in data.iter().enumerate() {
            let address = start + offset as u32;
            let page = pages.entry(address - address % PAGE as u32).or_insert([0; PAGE]);
            page[address as usize % PAGE] = byte;
        }
    }
    ensure!(!pages.is_empty(), "it stores nothing");
    Ok(pages)
}

/// Blocks of 512 bytes: magic numbers, flags (a family is given), address, size, number, count, family, data, magic number.
fn uf2(pages: &BTreeMap<u32, [u8; PAGE]>, family: u32) -> Vec<u8> {
    let mut out = Vec::with_capacity(512 * pages.len());
    for (number, (address, data)) in pages.iter().enumerate() {
        let words = [0x0A32_4655, 0x9E5D_5157, 0x2000, *address, PAGE as u32, number as u32, pages.len() as u32, family];
        out.extend(words.iter().flat_map(|w: &u32| w.to_le_bytes()));
        out.extend(data);
        out.resize(512 * number + 508, 0);
        out.extend(0x0AB1_6F30u32.to_le_bytes());
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A little-endian ELF file of these segments: address in memory, where it is stored, bytes.
    fn elf_of(segments: &[(u32, u32, &[u8])]) -> Vec<u8> {
        let (header, entry) = (52u32, 32u32);
        let mut file = b"\x7fELF\x01\x01\x01".to_vec();
        file.resize(16, 0);
        file.extend([2, 0, 40, 0]);
        file.extend([1u32, 0, header, 0, 0].iter().flat_map(|w| w.to_le_bytes()));
        file.extend([52u16, 32, segments.len() as u16, 40, 0, 0].iter().flat_map(|w| w.to_le_bytes()));
        let mut offset = header + entry * segments.len() as u32;
        for (memory, stored, data) in segments {
            let size = data.len() as u32;
            file.extend([1, offset, *memory, *stored, size, size, 5, 1].iter().flat_map(|w: &u32| w.to_le_bytes()));
            offset += size;
        }
        segments.iter().for_each(|(_, _, data)| file.extend(*data));
        file
    }

    #[test]
    fn blocks_are_as_the_format_says() {
        let (code, variables) = ([7u8; 300], [9u8; 4]);
        let file = elf_of(&[(0x1000_0000, 0x1000_0000, &code), (0x2000_0000, 0x1000_0200, &variables)]);
        let out = uf2(&pages(&file).unwrap(), 0xe48b_ff56);
        assert_eq!(out.len(), 3 * 512);
        for (i, block) in out.chunks(512).enumerate() {
            let word = |at: usize| u32::from_le_bytes(block[at..at + 4].try_into().unwrap());
            assert_eq!([word(0), word(4), word(508)], [0x0A32_4655, 0x9E5D_5157, 0x0AB1_6F30]);
            assert_eq!([word(8), word(12), word(16)], [0x2000, 0x1000_0000 + 256 * i as u32, 256]);
            assert_eq!([word(20), word(24), word(28)], [i as u32, 3, 0xe48b_ff56]);
            assert!(block[288..508].iter().all(|&b| b == 0));
        }
        assert!(out[32..288].iter().all(|&b| b == 7));
        assert_eq!((out[512 + 32 + 43], out[512 + 32 + 44]), (7, 0));
        assert_eq!(out[1024 + 32..1024 + 37], [9, 9, 9, 9, 0]);
    }

    #[test]
    fn broken_files_are_errors() {
        let file = elf_of(&[(0x1000_0000, 0x1000_0000, &[1; 64])]);
        for length in 0..file.len() {
            assert!(pages(&file[..length]).is_err(), "{length} bytes");
        }
        assert!(pages(&elf_of(&[(0, 0xffff_fff0, &[1; 64])])).is_err());
        assert!(pages(&elf_of(&[])).is_err());
    }
}
