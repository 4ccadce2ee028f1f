//! memory.x for the linker, and the pictures as a sensor would see them: RGB565 beside the JPEG file.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::{env, fs};
use zune_jpeg::JpegDecoder;
use zune_jpeg::zune_core::bytestream::ZCursor;
use zune_jpeg::zune_core::colorspace::ColorSpace;
use zune_jpeg::zune_core::options::DecoderOptions;

fn main() {
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    fs::copy("memory.x", out.join("memory.x")).expect("memory.x can be copied");
    println!("cargo::rustc-link-search={}", out.display());
    println!("cargo::rerun-if-changed=memory.x");
    println!("cargo::rerun-if-changed=pictures");

    let mut files: Vec<PathBuf> = fs::read_dir("pictures").expect("pictures/ is there").map(|e| e.unwrap().path()).collect();
    files.sort();
    let mut source = format!("pub static PICTURES: [edge_simulator::Picture; {}] = [\n", files.len());
    for file in &files {
        let name = file.file_stem().and_then(|n| n.to_str()).expect("names are UTF-8");
        let jpeg = fs::read(file).expect("pictures can be read");
        let options = DecoderOptions::default().jpeg_set_out_colorspace(ColorSpace::RGB);
        let mut decoder = JpegDecoder::new_with_options(ZCursor::new(&jpeg), options);
        let pixels = decoder.decode().expect("pictures are JPEG files");
        let (width, height) = decoder.dimensions().expect("known after decoding");
        let rgb565: Vec<u8> = pixels
            .chunks_exact(3)
            .flat_map(|p| {
                let level = |v: u8, most: u16| (u16::from(v) * most + 127) / 255;
                (level(p[0], 31) << 11 | level(p[1], 63) << 5 | level(p[2], 31)).to_be_bytes()
            })
            .collect();
        let raw = out.join(format!("{name}.rgb565"));
        fs::write(&raw, rgb565).expect("OUT_DIR is writable");
        let jpeg = fs::canonicalize(file).expect("it exists");
        writeln!(
            source,
            "    edge_simulator::Picture {{ width: {width}, height: {height}, rgb565: include_bytes!({raw:?}), jpeg: include_bytes!({jpeg:?}) }},"
        )
        .expect("strings take everything");
    }
    source.push_str("];\n");
    fs::write(out.join("pictures.rs"), source).expect("OUT_DIR is writable");
}
