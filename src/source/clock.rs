//! When a frame was captured, by the clock of the machine that receives it.

use std::time::{Duration, Instant};

/// How much faster than ours a sender's clock may run, parts per million: two ordinary crystals, generously.
const DRIFT_PPM: u64 = 300;

/// Maps a sender's times to ours. The offset between the clocks is unknown; the frame that took least time from capture
/// to its first byte bounds it, and that frame is taken to have taken none. Ages are therefore at least what this says.
#[derive(Debug, Default)]
pub struct SenderClock {
    /// Of the fastest frame: our time and the sender's.
    fastest: Option<(Instant, u64)>,
}

impl SenderClock {
    /// Forgets the sender: it began anew.
    pub fn reset(&mut self) {
        self.fastest = None;
    }

    /// When the frame was captured, given when its first byte came. Never later than that.
    pub fn captured(&mut self, first_byte: Instant, timestamp_us: u64) -> Instant {
        let predicted = self.fastest.and_then(|(ours, theirs)| match timestamp_us.checked_sub(theirs) {
            Some(ahead) => ours.checked_add(Duration::from_micros(ahead.saturating_add(ahead / 1_000_000 * DRIFT_PPM))),
            None => ours.checked_sub(Duration::from_micros(theirs - timestamp_us)),
        });
        match predicted {
            Some(captured) if captured < first_byte => {
                // From here on the drift counts from this frame.
                self.fastest = Some((captured, timestamp_us));
                captured
            }
            _ => {
                self.fastest = Some((first_byte, timestamp_us));
                first_byte
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fastest_frame_sets_the_offset() {
        let (start, mut clock) = (Instant::now(), SenderClock::default());
        let at = |ms: u64| start + Duration::from_millis(ms);
        // Delays of 20, 5 and 12 ms behind a sender whose zero is our second 1.
        assert_eq!(clock.captured(at(1020), 0), at(1020));
        assert_eq!(clock.captured(at(1105), 100_000), at(1105));
        assert_eq!(clock.captured(at(1212), 200_000), at(1205));
        // Sent before the last one.
        assert_eq!(clock.captured(at(1300), 150_000), at(1155));
        clock.reset();
        assert_eq!(clock.captured(at(1400), 7), at(1400));
    }

    #[test]
    fn a_slow_clock_does_not_make_frames_old() {
        let (start, mut clock) = (Instant::now(), SenderClock::default());
        // The sender's clock loses 100 ppm over a day of frames, one a second.
        for second in 0..86_400u64 {
            let ours = start + Duration::from_secs(second);
            let age = ours - clock.captured(ours, second * 999_900);
            assert!(age < Duration::from_millis(1), "{second}: {age:?}");
        }
    }
}
