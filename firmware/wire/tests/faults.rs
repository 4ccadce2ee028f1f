//! Ten thousand frames over links that misbehave.

mod common;

use common::{Owned, Received, parser};
use edge_faults::{Faults, FaultyLink, Tally};
use edge_wire::*;

const SIDE: u16 = 48;

/// Frames that a receiver can check without keeping those sent: the payload follows from the sequence.
fn frame(sequence: u32, timestamp_us: u32) -> Owned {
    let info = FrameInfo::raw(PixelFormat::Gray8, SIDE, SIDE).unwrap();
    let payload = Owned::test(sequence, info.length as usize).payload;
    Owned { info: FrameInfo { sequence, timestamp_us, ..info }, payload }
}

struct Run {
    counters: Counters,
    tally: Tally,
}

/// Sends `count` frames from `first` on, 64 KiB of link at a time, and checks every one that arrives.
/// The first and the last go over a perfect link, so that counters can be held against what was sent.
fn run(faults: Faults, count: u32, first: u32, microseconds: u64) -> Run {
    let (mut parser, mut received) = (parser(), Received::default());
    let mut link = FaultyLink::new(Faults::default(), u64::from(first) + 1);
    let mut bytes = Vec::new();
    let (mut timeline, mut delivered) = (Timeline::default(), 0);
    let start = u64::from(u32::MAX) - 5_000_000;
    for i in 0..count {
        match i {
            1 => link.set_faults(faults),
            i if i + 1 == count => {
                link.flush(&mut bytes);
                link.set_faults(Faults::default());
                // Whatever a disconnect still swallows.
                (0..4).for_each(|_| link.send(&[], &mut bytes));
            }
            _ => {}
        }
        for packet in frame(first.wrapping_add(i), (start + u64::from(i) * microseconds) as u32).packets(512) {
            link.send(&packet, &mut bytes);
        }
        if bytes.len() > 1 << 16 || i + 1 == count {
            received.push(&mut parser, &bytes);
            bytes.clear();
            for f in received.frames.drain(delivered..) {
                let i = f.info.sequence.wrapping_sub(first);
                assert!(i < count, "a frame that nobody sent: {:?}", f.info);
                assert_eq!(f, frame(f.info.sequence, (start + u64::from(i) * microseconds) as u32));
                assert_eq!(timeline.extend(f.info.timestamp_us), start + u64::from(i) * microseconds);
            }
            delivered = received.frames.len();
        }
    }
    let c = parser.counters();
    received.frames = vec![frame(0, 0); c.frames_ok as usize];
    received.finish(&mut parser);
    let c = parser.counters();
    assert_eq!(c.frames_ok + c.frames_incomplete + c.frames_corrupted + c.frames_missed, u64::from(count), "{c:?}");
    assert_eq!((c.restarts, c.frames_overrun), (0, 0));
    Run { counters: c, tally: link.tally() }
}

#[test]
fn bit_errors_from_1e_6_to_1e_3() {
    // Share of frames that must arrive: a frame is 20,512 bits, (1 − p)^20512 of them arrive unharmed.
    for (rate, least) in [(1e-6, 0.97), (1e-5, 0.80), (1e-4, 0.11), (1e-3, 0.0)] {
        let Run { counters: c, tally } = run(Faults { bit_error_rate: rate, ..Faults::default() }, 10_000, u32::MAX - 3_000, 33_333);
        println!("bit error rate {rate:e}: {} bits flipped, {c:?}", tally.bits_flipped);
        assert!(c.frames_ok as f64 >= 10_000.0 * least, "{c:?}");
        assert!(c.bytes_skipped > 0 && c.frames_ok < 10_000, "{c:?}");
        // Each lost frame was lost to at least one flipped bit.
        assert!(10_000 - c.frames_ok <= tally.bits_flipped);
    }
}

#[test]
fn everything_at_once() {
    let faults =
        Faults { bit_error_rate: 1e-6, drop: 0.005, duplicate: 0.02, reorder: 0.02, reorder_by: 4, disconnect: 0.002, garbage: 0.01 };
    let Run { counters: c, tally } = run(faults, 10_000, 77, 33_333);
    println!("{tally:?}\n{c:?}");
    assert!(tally.dropped > 0 && tally.duplicated > 0 && tally.reordered > 0 && tally.cut > 0 && tally.garbage_bytes > 0);
    assert!(c.frames_ok > 8_500 && c.frames_incomplete > 100 && c.chunks_repeated > 0 && c.chunks_late > 0, "{c:?}");
}

#[test]
fn repeats_alone_cost_nothing() {
    let Run { counters: c, tally } = run(Faults { duplicate: 0.3, garbage: 0.3, ..Faults::default() }, 2_000, 0, 33_333);
    assert_eq!((c.frames_ok, c.bytes_skipped), (2_000, tally.garbage_bytes));
    assert_eq!(c.chunks_repeated + c.chunks_late, tally.duplicated);
}

#[test]
fn a_day_of_wrapping_clocks_and_sequences() {
    // One frame every 8.64 s for 24 h: the time wraps 20 times, the sequence once.
    let faults = Faults { bit_error_rate: 1e-5, drop: 0.01, duplicate: 0.01, reorder: 0.01, reorder_by: 3, ..Faults::default() };
    let Run { counters: c, .. } = run(faults, 10_000, u32::MAX - 5_000, 8_640_000);
    assert!(c.frames_ok > 7_000, "{c:?}");
}

#[test]
fn clean_input_is_understood_within_one_frame() {
    // After any damage, the first frame sent whole over the clean link arrives.
    for seed in 0..500 {
        let faults = Faults { bit_error_rate: 1e-3, drop: 0.1, disconnect: 0.1, garbage: 0.2, ..Faults::default() };
        let mut link = FaultyLink::new(faults, seed);
        let mut bytes = Vec::new();
        for i in 0..20 {
            frame(i, 0).packets(512).iter().for_each(|p| link.send(p, &mut bytes));
        }
        let clean: Vec<Owned> = (20..23).map(|i| frame(i, 0)).collect();
        bytes.extend(clean.iter().flat_map(|f| f.packets(512)).flatten());
        let (received, _) = common::receive(&bytes, seed);
        assert!(received.frames.ends_with(&clean), "seed {seed}");
    }
}
