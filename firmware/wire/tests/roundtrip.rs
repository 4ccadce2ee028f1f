//! What goes in comes out, whatever stands around it and however it is split.

mod common;

use common::{Owned, Received, parser, receive};
use edge_wire::*;
use proptest::prelude::*;

fn frame() -> impl Strategy<Value = Owned> {
    let format = prop::sample::select(PixelFormat::ALL.to_vec());
    (format, 1u16..12, 1u16..20, 1u32..1500, any::<[u8; 2]>(), any::<u32>()).prop_map(
        |(format, w, h, length, [flags, session], timestamp_us)| {
            let info = if format == PixelFormat::Jpeg { FrameInfo::jpeg(w, h, length) } else { FrameInfo::raw(format, 2 * w, h) }.unwrap();
            let payload = Owned::test(timestamp_us, info.length as usize).payload;
            Owned { info: FrameInfo { flags, session, timestamp_us, ..info }, payload }
        },
    )
}

fn frames() -> impl Strategy<Value = Vec<Owned>> {
    (any::<u32>(), prop::collection::vec(frame(), 1..6)).prop_map(|(first, mut frames)| {
        (0..).zip(&mut frames).for_each(|(i, f)| f.info.sequence = first.wrapping_add(i));
        frames
    })
}

/// Random bytes, with parts of headers among them.
fn garbage() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![
        prop::collection::vec(any::<u8>(), 0..60),
        Just(MAGIC.to_vec()),
        (0..HEADER_LEN).prop_map(|n| Owned::test(9, 30).packets(30)[0][..n].to_vec()),
    ];
    prop::collection::vec(piece, 0..5).prop_map(|p| p.concat())
}

proptest! {
    #[test]
    fn any_split_any_garbage(frames in frames(), noise in prop::collection::vec(garbage(), 7), chunk_size in 1u16..600, seed: u64) {
        let mut stream = noise[6].clone();
        for (frame, noise) in frames.iter().zip(noise) {
            let packets = frame.packets(chunk_size);
            // Noise between frames, and once more inside the frame.
            for (i, packet) in packets.iter().enumerate() {
                if i == 0 || i == packets.len() / 2 {
                    stream.extend(&noise);
                }
                stream.extend(packet);
            }
        }
        let (received, counters) = receive(&stream, seed);
        prop_assert_eq!(received.frames, frames);
        prop_assert_eq!((received.dropped.len(), counters.frames_missed), (0, 0));
    }

    #[test]
    fn any_order_within_a_frame_and_any_repeats(sequence: u32, length in 1usize..3000, chunk_size in 1u16..500, seed: u64) {
        let frame = Owned::test(sequence, length);
        let mut packets = frame.packets(chunk_size);
        let count = packets.len() as u64;
        packets.extend_from_within(packets.len() / 2..);
        let repeats = packets.len() as u64 - count;
        fastrand::Rng::with_seed(seed).shuffle(&mut packets);
        let (received, counters) = receive(&packets.concat(), seed);
        prop_assert_eq!(received.frames, [frame]);
        prop_assert_eq!((counters.chunks_stored, counters.chunks_repeated, counters.bytes_skipped), (count, repeats, 0));
    }

    #[test]
    fn flipped_bits_are_never_accepted(length in 1usize..400, chunk_size in 50u16..500, flips in prop::collection::vec(any::<prop::sample::Index>(), 1..4)) {
        let frame = Owned::test(3, length);
        let mut stream = frame.packets(chunk_size).concat();
        for flip in &flips {
            let bit = flip.index(stream.len() * 8);
            stream[bit / 8] ^= 1 << (bit % 8);
        }
        let undone = stream == frame.packets(chunk_size).concat();
        let (received, _) = receive(&stream, 1);
        prop_assert_eq!(received.frames.len(), usize::from(undone));
    }

    #[test]
    fn truncated_streams_lose_only_the_end(cut in any::<prop::sample::Index>(), seed: u64) {
        let frames = [Owned::test(1, 300), Owned::test(2, 500), Owned::test(3, 70)];
        let ends: Vec<usize> = frames.iter().scan(0, |at, f| { *at += f.packets(128).concat().len(); Some(*at) }).collect();
        let stream: Vec<u8> = frames.iter().flat_map(|f| f.packets(128)).flatten().collect();
        let cut = cut.index(stream.len());
        let whole = ends.iter().filter(|e| **e <= cut).count();
        let (received, counters) = receive(&stream[..cut], seed);
        prop_assert_eq!(&received.frames[..], &frames[..whole]);
        prop_assert!(counters.frames_incomplete <= 1 && counters.frames_missed == 0);
    }
}

#[test]
fn a_chunk_cut_short_hides_nothing_behind_it() {
    let (cut, whole) = (Owned::test(1, 5000), Owned::test(2, 40));
    let stream = [&cut.packets(5000)[0][..100], &whole.packets(64).concat()].concat();
    let (received, counters) = receive(&stream, 5);
    assert_eq!(received.frames, [whole]);
    assert_eq!((counters.chunks_corrupted, counters.bytes_skipped), (1, 100));
}

#[test]
fn a_frame_inside_a_damaged_payload_is_found() {
    // A payload that holds a chunk, as pictures of a link's recording would.
    let inner = Owned::test(7, 50);
    let payload = inner.packets(64).concat();
    let outer = Owned { info: FrameInfo::jpeg(1, 1, payload.len() as u32).unwrap(), payload };
    let mut stream = outer.packets(1024).concat();
    assert_eq!(receive(&stream, 0).0.frames, [outer]);
    stream[0] = 0;
    assert_eq!(receive(&stream, 0).0.frames, [inner]);
}

#[test]
fn a_reset_that_repeats_sequence_and_time_tears_nothing() {
    let before = Owned::test(0, 1000);
    let after = Owned { payload: Owned::test(1, 1000).payload, ..before.clone() };
    let stream = [before.packets(256)[..2].concat(), after.packets(256).concat()].concat();
    let (received, counters) = receive(&stream, 0);
    assert_eq!(received.frames, []);
    assert_eq!(received.dropped, [Dropped { info: before.info, reason: Reason::Checksum }]);
    assert_eq!((counters.chunks_repeated, counters.frames_corrupted), (2, 1));
}

#[test]
fn newer_frames_displace_older_ones() {
    let frames = [Owned::test(u32::MAX, 600), Owned::test(0, 600)];
    let [old, new] = frames.each_ref().map(|f| f.packets(256));
    let stream = [&old[0], &new[0], &old[1], &new[1], &old[2], &new[2]].map(Vec::as_slice).concat();
    let (received, counters) = receive(&stream, 0);
    assert_eq!(received.frames, frames[1..]);
    assert_eq!(received.dropped, [Dropped { info: frames[0].info, reason: Reason::Incomplete { missing: 2, chunks: 3 } }]);
    assert_eq!((counters.chunks_late, counters.restarts, counters.frames_missed), (2, 0, 0));
}

#[test]
fn gaps_restarts_and_overruns_are_told_apart() {
    let frame = |sequence, flags, session| {
        let mut f = Owned::test(sequence, 10);
        f.info.flags = flags;
        f.info.session = session;
        f
    };
    let sent = [frame(100, 0, 0), frame(103, 0, 0), frame(110, flags::OVERRUN, 0), frame(0, 0, 0), frame(1, 0, 0), frame(1, 0, 9)];
    let (received, counters) = receive(&sent.iter().flat_map(|f| f.packets(16)).flatten().collect::<Vec<u8>>(), 0);
    assert_eq!(received.frames, sent);
    assert_eq!((counters.frames_missed, counters.frames_overrun, counters.restarts), (2, 6, 2));
}

#[test]
fn what_does_not_fit_is_skipped() {
    let mut small = Parser::new(vec![0; HEADER_LEN + 64], vec![0; 256]).unwrap();
    let (big_chunk, big_frame, good) = (Owned::test(1, 65), Owned::test(2, 257), Owned::test(3, 256));
    let stream = [big_chunk.packets(65), big_frame.packets(64), good.packets(64)].concat().concat();
    let mut received = Received::default();
    received.push(&mut small, &stream);
    received.finish(&mut small);
    assert_eq!(received.frames, [good]);
    assert_eq!(small.counters().headers_refused, 1 + 5);
    assert!(Parser::new([0; HEADER_LEN], [0; 0]).is_err());
}

#[test]
fn a_parser_goes_on_after_the_end_of_a_stream() {
    let (mut parser, mut received) = (parser(), Received::default());
    let frames = [Owned::test(1, 600), Owned::test(2, 600)];
    received.push(&mut parser, &frames[0].packets(256).concat()[..700]);
    received.finish(&mut parser);
    received.push(&mut parser, &frames[1].packets(256).concat());
    received.finish(&mut parser);
    assert_eq!(received.frames, frames[1..]);
    assert_eq!(parser.counters().frames_incomplete, 1);
}

#[test]
fn messages_come_between_the_chunks_of_a_frame() {
    let frame = Owned::test(1, 600);
    let message = Command::SetExposure(Level::Manual(300)).encode(5);
    let (bytes, length) = message.encode();
    let packets = frame.packets(256);
    let stream = [&packets[0][..], &bytes[..length], &packets[1], &bytes[..length], &packets[2]].concat();
    let (received, counters) = receive(&stream, 3);
    assert_eq!((received.frames, received.messages), (vec![frame], vec![message; 2]));
    assert_eq!((counters.messages, counters.bytes_skipped, counters.headers_refused), (2, 0, 0));
}

#[test]
fn a_message_with_any_bit_wrong_is_none() {
    let (bytes, length) = Command::Start.encode(1).encode();
    for bit in 0..length * 8 {
        let mut damaged = bytes[..length].to_vec();
        damaged[bit / 8] ^= 1 << (bit % 8);
        assert_eq!(receive(&damaged, 0).0.messages, []);
    }
}
