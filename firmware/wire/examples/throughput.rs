//! Bytes per second of the parser (search, both CRCs, reassembly) and of the encoder:
//! `cargo run --release --features std --example throughput`.

use edge_wire::{CHUNK_BUFFER, Chunks, Event, FrameInfo, HEADER_LEN, Parser, PixelFormat};
use std::time::Instant;

fn main() {
    let info = FrameInfo::raw(PixelFormat::Rgb565, 640, 480).unwrap();
    let payload: Vec<u8> = (0..info.length).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    for chunk_size in [256, 1024, 4096, 8192] {
        let mut stream = Vec::new();
        let mut encoding = 0.0;
        for sequence in 0..32 {
            let info = FrameInfo { sequence, ..info };
            let start = Instant::now();
            let chunks: Vec<_> = Chunks::new(info, &payload, chunk_size).unwrap().collect();
            encoding += start.elapsed().as_secs_f64();
            for c in chunks {
                stream.extend_from_slice(&c.header);
                stream.extend_from_slice(c.payload);
            }
        }
        let parse = |stream: &[u8], piece: usize| {
            let mut parser = Parser::new(vec![0; 4 * CHUNK_BUFFER], vec![0; payload.len()]).unwrap();
            let (mut frames, rounds) = (0, 20);
            let start = Instant::now();
            for _ in 0..rounds {
                for mut piece in stream.chunks(piece) {
                    while let Some(event) = parser.push(&mut piece) {
                        frames += usize::from(matches!(event, Event::Frame(_)));
                    }
                }
            }
            (rounds as f64 * stream.len() as f64 / start.elapsed().as_secs_f64() / 1e9, frames)
        };
        let (clean, frames) = parse(&stream, 16_384);
        assert_eq!(frames, 32 * 20);
        // The worst noise: every header broken at its last bit.
        let mut noise = stream.clone();
        noise.chunks_mut(HEADER_LEN + usize::from(chunk_size)).for_each(|c| c[39] ^= 1);
        let (noisy, frames) = parse(&noise, 16_384);
        assert_eq!(frames, 0);
        let encode = 32.0 * payload.len() as f64 / encoding / 1e9;
        println!("chunks of {chunk_size:4} bytes: encode {encode:.2} GB/s, parse {clean:.2} GB/s, broken headers {noisy:.2} GB/s");
    }
}
