//! Bytes per second of the parser (search, both CRCs, reassembly) and of the encoder; the fastest of many rounds, for other
//! programs run too: `cargo run --release --features std --example throughput`.

use edge_wire::{CHUNK_BUFFER, Chunks, Event, FrameInfo, HEADER_LEN, Parser, PixelFormat};
use std::hint::black_box;
use std::time::Instant;

/// More than the parser takes for late when they come again.
const FRAMES: u32 = 32;
const ROUNDS: u32 = 60;

/// GB/s of the fastest round.
fn fastest(bytes: usize, mut round: impl FnMut()) -> f64 {
    let times = (0..ROUNDS).map(|_| {
        let start = Instant::now();
        round();
        start.elapsed().as_secs_f64()
    });
    bytes as f64 / times.fold(f64::INFINITY, f64::min) / 1e9
}

fn main() {
    let info = FrameInfo::raw(PixelFormat::Rgb565, 640, 480).unwrap();
    let payload: Vec<u8> = (0..info.length).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    for chunk_size in [256, 1024, 4096, 8192] {
        let chunks = |sequence| Chunks::new(FrameInfo { sequence, ..info }, &payload, chunk_size).unwrap();
        let encode = fastest(payload.len(), || {
            chunks(0).for_each(|c| {
                black_box(c);
            })
        });
        let stream: Vec<u8> = (0..FRAMES).flat_map(chunks).flat_map(|c| [&c.header, c.payload].concat()).collect();
        let parse = |stream: &[u8], expected: u32| {
            let mut parser = Parser::new(vec![0; 4 * CHUNK_BUFFER], vec![0; payload.len()]).unwrap();
            fastest(stream.len(), || {
                let mut frames = 0;
                for mut piece in stream.chunks(16_384) {
                    while let Some(event) = parser.push(&mut piece) {
                        frames += u32::from(matches!(event, Event::Frame(_)));
                    }
                }
                assert_eq!(frames, expected);
            })
        };
        let clean = parse(&stream, FRAMES);
        // The worst noise: every header broken at its last bit.
        let mut noise = stream.clone();
        noise.chunks_mut(HEADER_LEN + usize::from(chunk_size)).for_each(|c| c[39] ^= 1);
        let noisy = parse(&noise, 0);
        println!("chunks of {chunk_size:4} bytes: encode {encode:.2} GB/s, parse {clean:.2} GB/s, broken headers {noisy:.2} GB/s");
    }
}
