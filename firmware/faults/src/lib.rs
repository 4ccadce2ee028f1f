//! A link that misbehaves on purpose, for tests of whatever must survive one.
//!
//! [`FaultyLink`] takes packets and hands on bytes. It knows nothing of what they mean. Equal seeds and inputs give
//! equal faults, so a failing test can be run again.
#![forbid(unsafe_code)]
#![warn(missing_docs)]

/// What goes wrong, and how often. The default is a perfect link.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Faults {
    /// Probability of each bit to arrive inverted.
    pub bit_error_rate: f64,
    /// Probability of a packet to vanish.
    pub drop: f64,
    /// Probability of a packet to arrive twice (the second time possibly late, if it is also reordered).
    pub duplicate: f64,
    /// Probability of a packet to arrive after 1 to [`Faults::reorder_by`] later ones.
    pub reorder: f64,
    /// Longest delay of a reordered packet, in packets.
    pub reorder_by: u32,
    /// Probability of the link to break inside a packet: its rest and 0 to 3 packets after it are lost.
    pub disconnect: f64,
    /// Probability of 1 to 64 random bytes before a packet.
    pub garbage: f64,
}

/// What a link did so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Tally {
    /// Packets given to the link.
    pub packets: u64,
    /// Lost whole.
    pub dropped: u64,
    /// Delivered twice.
    pub duplicated: u64,
    /// Delivered late.
    pub reordered: u64,
    /// Cut in the middle.
    pub cut: u64,
    /// Bits inverted.
    pub bits_flipped: u64,
    /// Bytes that nobody sent.
    pub garbage_bytes: u64,
}

/// Packets in, bytes out, with [`Faults`].
#[derive(Debug, Clone)]
pub struct FaultyLink {
    faults: Faults,
    random: fastrand::Rng,
    /// Packets that are late, and how many others go first.
    late: Vec<(u32, Vec<u8>)>,
    /// Packets still to lose after a disconnect.
    broken_for: u32,
    /// Good bits before the next bad one.
    good_bits: u64,
    tally: Tally,
}

impl FaultyLink {
    /// A link whose faults follow from `seed`.
    pub fn new(faults: Faults, seed: u64) -> Self {
        let mut link = FaultyLink {
            faults,
            random: fastrand::Rng::with_seed(seed),
            late: Vec::new(),
            broken_for: 0,
            good_bits: 0,
            tally: Tally::default(),
        };
        link.good_bits = link.next_gap();
        link
    }

    /// What it did so far.
    pub fn tally(&self) -> Tally {
        self.tally
    }

    /// Changes what goes wrong from here on. Late packets stay late.
    pub fn set_faults(&mut self, faults: Faults) {
        self.faults = faults;
        self.good_bits = self.next_gap();
    }

    /// Sends one packet; appends to `out` what arrives meanwhile.
    pub fn send(&mut self, packet: &[u8], out: &mut Vec<u8>) {
        self.tally.packets += 1;
        self.emit(packet, out);
        self.release(out);
    }

    /// Delivers everything that is still late.
    pub fn flush(&mut self, out: &mut Vec<u8>) {
        self.late.sort_by_key(|(after, _)| *after);
        for (_, packet) in std::mem::take(&mut self.late) {
            self.deliver(&packet, out);
        }
    }

    fn emit(&mut self, packet: &[u8], out: &mut Vec<u8>) {
        if self.broken_for > 0 {
            self.broken_for -= 1;
            self.tally.dropped += 1;
            return;
        }
        if self.chance(self.faults.drop) {
            self.tally.dropped += 1;
            return;
        }
        if self.chance(self.faults.garbage) {
            let garbage: Vec<u8> = (0..self.random.usize(1..=64)).map(|_| self.random.u8(..)).collect();
            self.tally.garbage_bytes += garbage.len() as u64;
            out.extend(garbage);
        }
        if !packet.is_empty() && self.chance(self.faults.disconnect) {
            self.tally.cut += 1;
            self.broken_for = self.random.u32(0..=3);
            let kept = self.random.usize(..packet.len());
            return self.deliver(&packet[..kept], out);
        }
        let copies = 1 + usize::from(self.chance(self.faults.duplicate));
        self.tally.duplicated += copies as u64 - 1;
        for _ in 0..copies {
            if self.faults.reorder_by > 0 && self.chance(self.faults.reorder) {
                self.tally.reordered += 1;
                // One more, for this packet's own release() counts it down too.
                self.late.push((self.random.u32(1..=self.faults.reorder_by) + 1, packet.to_vec()));
            } else {
                self.deliver(packet, out);
            }
        }
    }

    fn release(&mut self, out: &mut Vec<u8>) {
        let mut i = 0;
        while i < self.late.len() {
            self.late[i].0 -= 1;
            if self.late[i].0 == 0 {
                let (_, packet) = self.late.remove(i);
                self.deliver(&packet, out);
            } else {
                i += 1;
            }
        }
    }

    fn deliver(&mut self, bytes: &[u8], out: &mut Vec<u8>) {
        let start = out.len();
        out.extend_from_slice(bytes);
        let bits = bytes.len() as u64 * 8;
        let mut at = self.good_bits;
        while at < bits {
            out[start + (at / 8) as usize] ^= 1 << (at % 8);
            self.tally.bits_flipped += 1;
            at = at.saturating_add(1).saturating_add(self.next_gap());
        }
        self.good_bits = at - bits;
    }

    fn chance(&mut self, probability: f64) -> bool {
        probability > 0.0 && self.random.f64() < probability
    }

    /// Good bits before the next bad one: geometrically distributed, so that cost follows errors, not bits.
    fn next_gap(&mut self) -> u64 {
        match self.faults.bit_error_rate {
            p if p <= 0.0 => u64::MAX,
            p if p >= 1.0 => 0,
            p => ((1.0 - self.random.f64()).ln() / (1.0 - p).ln()) as u64,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn send(faults: Faults, packets: u32) -> (Vec<u8>, Tally) {
        let mut link = FaultyLink::new(faults, 7);
        let mut out = Vec::new();
        for i in 0..packets {
            link.send(&i.to_be_bytes(), &mut out);
        }
        link.flush(&mut out);
        (out, link.tally())
    }

    #[test]
    fn a_perfect_link_changes_nothing() {
        let (out, tally) = send(Faults::default(), 1000);
        assert_eq!(out, (0..1000u32).flat_map(u32::to_be_bytes).collect::<Vec<_>>());
        assert_eq!(tally, Tally { packets: 1000, ..Tally::default() });
    }

    #[test]
    fn bits_flip_at_the_rate_asked_for() {
        let (out, tally) = send(Faults { bit_error_rate: 1e-3, ..Faults::default() }, 100_000);
        let flipped: u32 = out.iter().zip((0..100_000u32).flat_map(u32::to_be_bytes)).map(|(a, b)| (a ^ b).count_ones()).sum();
        assert_eq!(u64::from(flipped), tally.bits_flipped);
        assert!((2_900..3_500).contains(&flipped), "{flipped} of 3.2 million bits");
    }

    #[test]
    fn reordering_and_duplication_lose_nothing() {
        let (out, tally) = send(Faults { reorder: 0.3, reorder_by: 4, duplicate: 0.1, ..Faults::default() }, 10_000);
        let mut arrived: Vec<u32> = out.as_chunks::<4>().0.iter().map(|b| u32::from_be_bytes(*b)).collect();
        assert_eq!(arrived.len() as u64, 10_000 + tally.duplicated);
        assert!(arrived.iter().enumerate().any(|(i, v)| *v != i as u32) && tally.reordered > 2_000);
        arrived.sort_unstable();
        arrived.dedup();
        assert_eq!(arrived, (0..10_000).collect::<Vec<_>>());
    }

    #[test]
    fn drops_and_disconnects_are_counted() {
        let (out, tally) = send(Faults { drop: 0.1, ..Faults::default() }, 10_000);
        assert_eq!(out.len() as u64, 4 * (10_000 - tally.dropped));
        assert!((800..1200).contains(&tally.dropped));
        let (out, tally) = send(Faults { disconnect: 0.01, ..Faults::default() }, 10_000);
        assert!(tally.cut > 50 && tally.dropped > tally.cut);
        assert!((out.len() as u64) < 4 * (10_000 - tally.dropped));
    }
}
