//! Time without wrap-around.

/// Extends a sender's 32-bit microseconds to 64 bits.
///
/// Each time is taken to be the one nearest to the one before it, so gaps and steps back of less than 2³¹ µs
/// (35.8 minutes) are exact. After a longer silence the time is right modulo 2³² µs only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Timeline {
    now: Option<u64>,
}

impl Timeline {
    /// Extends a timestamp. The first one is taken as it is.
    pub fn extend(&mut self, timestamp_us: u32) -> u64 {
        let now = match self.now {
            None => u64::from(timestamp_us),
            Some(now) => {
                let step = timestamp_us.wrapping_sub(now as u32) as i32;
                // A step back before the first time would be before 0.
                now.checked_add_signed(i64::from(step)).unwrap_or(u64::from(timestamp_us))
            }
        };
        self.now = Some(now);
        now
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_day_at_any_rate_and_with_steps_back() {
        let (mut timeline, mut now) = (Timeline::default(), 4_294_000_000u64);
        assert_eq!(timeline.extend(now as u32), now);
        for step in [1u64, 33_333, 1_000_000, 2_147_000_000].into_iter().cycle().take(200) {
            now += step;
            assert_eq!(timeline.extend(now as u32), now);
            assert_eq!(timeline.extend(now.wrapping_sub(500) as u32), now - 500);
        }
        assert!(now > 24 * 3600 * 1_000_000);
    }

    #[test]
    fn the_first_time_may_be_followed_by_an_earlier_one() {
        let mut timeline = Timeline::default();
        assert_eq!((timeline.extend(5), timeline.extend(u32::MAX)), (5, u64::from(u32::MAX)));
    }
}
