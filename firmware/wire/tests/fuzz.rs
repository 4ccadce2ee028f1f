//! Random and mutated streams: no panic, nothing read out of bounds, no frame that nobody sent.
//! `EDGE_WIRE_FUZZ=10000000` chooses the number of inputs; `fuzz/` holds the same for cargo-fuzz.

mod common;

#[test]
fn random_streams() {
    let inputs = std::env::var("EDGE_WIRE_FUZZ").map_or(300_000, |n| n.parse().expect("EDGE_WIRE_FUZZ is a number"));
    let template: Vec<u8> = (0..3).flat_map(|i| common::Owned::test(i, 90).packets(40)).flatten().collect();
    let mut random = fastrand::Rng::with_seed(1);
    let mut input = Vec::new();
    for _ in 0..inputs {
        input.clear();
        input.extend(random.u64(..).to_le_bytes());
        if input[0] & 1 == 1 {
            // Changes to a good stream.
            input.extend((0..4 * random.usize(0..6)).map(|_| random.u8(..)));
        } else {
            // Pieces of a good stream and noise.
            for _ in 0..random.usize(1..6) {
                let (a, b) = (random.usize(..template.len()), random.usize(..template.len()));
                input.extend_from_slice(&template[a.min(b)..a.max(b)]);
                input.extend((0..random.usize(0..20)).map(|_| random.u8(..)));
            }
        }
        common::fuzz(&input);
    }
}
