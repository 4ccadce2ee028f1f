//! A sender that begins anew after the link was closed or silent is heard at once; on a running link, an old sequence is late.

use edge_wire::{CHUNK_BUFFER, Chunks, Event, FrameInfo, Parser, PixelFormat};

fn frame(sequence: u32) -> Vec<u8> {
    let info = FrameInfo { sequence, ..FrameInfo::raw(PixelFormat::Gray8, 4, 4).unwrap() };
    let payload = [sequence as u8; 16];
    Chunks::new(info, &payload, 7).unwrap().flat_map(|c| [&c.header, c.payload].concat()).collect()
}

/// Sequences delivered, late chunks, restarts.
fn receive(pause: bool) -> (Vec<u32>, u64, u64) {
    let mut parser = Parser::new(vec![0; CHUNK_BUFFER], vec![0; 64]).unwrap();
    let mut delivered = Vec::new();
    for part in [[7, 8, 9], [0, 1, 2]] {
        for sequence in part {
            let bytes = frame(sequence);
            let mut input = &bytes[..];
            while let Some(event) = parser.push(&mut input) {
                let Event::Frame(frame) = event else { panic!("{event:?}") };
                delivered.push(frame.info.sequence);
            }
        }
        while pause && parser.finish().is_some() {}
    }
    let counters = parser.counters();
    (delivered, counters.chunks_late, counters.restarts)
}

#[test]
fn after_a_pause_nothing_is_late() {
    assert_eq!(receive(false), (vec![7, 8, 9], 9, 0));
    assert_eq!(receive(true), (vec![7, 8, 9, 0, 1, 2], 0, 1));
}
