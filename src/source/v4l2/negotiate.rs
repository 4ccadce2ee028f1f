//! Which of a device's formats, sizes and rates is taken.

use crate::source::raw::Layout;
use std::fmt::Write;

/// Frames a second that are taken where nothing else is asked for.
const RATE: f64 = 30.0;
/// Of the wanted rate, what is good enough.
const ENOUGH: f64 = 0.8;
/// Size that is asked of a device that lists none.
const ORDINARY: (u32, u32) = (640, 480);

/// A format that we read: the kernel's code, its name in addresses, and what it is.
pub struct Known {
    pub code: u32,
    pub name: &'static str,
    pub layout: Layout,
}

const fn code(c: &[u8; 4]) -> u32 {
    u32::from_le_bytes(*c)
}

/// Cheapest to convert first; JPEG files have to be decoded, and grey has no colour.
pub const KNOWN: [Known; 8] = [
    Known { code: code(b"NV12"), name: "nv12", layout: Layout::Nv12 },
    Known { code: code(b"YU12"), name: "yuv420", layout: Layout::Yuv420 },
    Known { code: code(b"YUYV"), name: "yuyv", layout: Layout::Yuyv },
    Known { code: code(b"UYVY"), name: "uyvy", layout: Layout::Uyvy },
    Known { code: code(b"RGB3"), name: "rgb888", layout: Layout::Rgb888 },
    Known { code: code(b"MJPG"), name: "mjpeg", layout: Layout::Jpeg },
    Known { code: code(b"JPEG"), name: "jpeg", layout: Layout::Jpeg },
    Known { code: code(b"GREY"), name: "gray8", layout: Layout::Gray8 },
];

/// A format's name, ours or the kernel's.
pub fn name(code: u32) -> String {
    KNOWN.iter().find(|k| k.code == code).map_or_else(|| String::from_utf8_lossy(&code.to_le_bytes()).into_owned(), |k| k.name.into())
}

/// Sizes of a format.
#[derive(Debug, Clone, PartialEq)]
pub enum Sizes {
    /// The device does not list them.
    Unknown,
    /// These.
    Listed(Vec<(u32, u32)>),
    /// Width and height: least, largest, step.
    Range([(u32, u32, u32); 2]),
}

/// One format of a device.
#[derive(Debug, Clone, PartialEq)]
pub struct Offer {
    pub code: u32,
    pub sizes: Sizes,
}

/// What an address asks for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Wish {
    pub size: Option<(u32, u32)>,
    pub rate: Option<u32>,
    /// One of [`KNOWN`]'s names.
    pub format: Option<&'static str>,
    /// Smallest size that feeds the network.
    pub least: (u32, u32),
    /// The network takes luma.
    pub gray: bool,
}

/// What is asked of the device.
#[derive(Debug, Clone, PartialEq)]
pub struct Choice {
    pub code: u32,
    pub size: (u32, u32),
    /// A frame's time as a fraction of a second, where the device lists some.
    pub interval: Option<[u32; 2]>,
}

/// Chooses. `intervals` lists the frame times of a format and size, fractions of a second. Of what feeds the network at
/// about the wanted rate, the smallest is best; of equal sizes, what is cheapest to convert.
pub fn choose(offers: &[Offer], wish: &Wish, mut intervals: impl FnMut(u32, (u32, u32)) -> Vec<[u32; 2]>) -> Result<Choice, String> {
    let want = wish.rate.map_or(RATE, f64::from);
    let mut best: Option<((bool, bool, u64, usize), Choice)> = None;
    for offer in offers {
        let Some(rank) = KNOWN.iter().position(|k| k.code == offer.code) else { continue };
        if wish.format.is_some_and(|format| format != KNOWN[rank].name) {
            continue;
        }
        let rank = if wish.gray && KNOWN[rank].layout == Layout::Gray8 { 0 } else { rank + 1 };
        for size in candidates(&offer.sizes, wish) {
            let interval = nearest(&intervals(offer.code, size), want);
            let slow = interval.is_some_and(|i| rate(i) < want * ENOUGH);
            let small = size.0 < wish.least.0 || size.1 < wish.least.1;
            let area = u64::from(size.0) * u64::from(size.1);
            let key = (small, slow, if small { u64::MAX - area } else { area }, rank);
            if best.as_ref().is_none_or(|(k, _)| key < *k) {
                best = Some((key, Choice { code: offer.code, size, interval }));
            }
        }
    }
    best.map(|(_, choice)| choice).ok_or_else(|| refusal(offers, wish))
}

fn rate([numerator, denominator]: [u32; 2]) -> f64 {
    f64::from(denominator) / f64::from(numerator.max(1))
}

/// The frame time closest to a rate.
fn nearest(intervals: &[[u32; 2]], want: f64) -> Option<[u32; 2]> {
    let distance = |i: [u32; 2]| (rate(i) - want).abs();
    intervals.iter().copied().min_by(|a, b| distance(*a).total_cmp(&distance(*b)))
}

fn candidates(sizes: &Sizes, wish: &Wish) -> Vec<(u32, u32)> {
    let fits = |[w, h]: [(u32, u32, u32); 2], (width, height): (u32, u32)| {
        let fit = |(least, most, step): (u32, u32, u32), v: u32| {
            let steps = v.max(least).saturating_sub(least).div_ceil(step.max(1));
            least.saturating_add(steps.saturating_mul(step.max(1))).min(most)
        };
        (fit(w, width), fit(h, height))
    };
    match (sizes, wish.size) {
        (Sizes::Unknown, size) => vec![size.unwrap_or((ORDINARY.0.max(wish.least.0), ORDINARY.1.max(wish.least.1)))],
        (Sizes::Listed(sizes), Some(size)) => sizes.iter().copied().filter(|s| *s == size).collect(),
        (Sizes::Listed(sizes), None) => sizes.clone(),
        (Sizes::Range(range), Some(size)) => {
            if fits(*range, size) == size {
                vec![size]
            } else {
                vec![]
            }
        }
        // Even sides, and not so few pixels that the sensor's picture is only a corner of itself.
        (Sizes::Range(range), None) => {
            let side = |least: u32, ordinary: u32| if least == 0 { ordinary } else { least.next_multiple_of(16) };
            vec![fits(*range, (side(wish.least.0, ORDINARY.0), side(wish.least.1, ORDINARY.1)))]
        }
    }
}

/// Why nothing fits, and what there is.
fn refusal(offers: &[Offer], wish: &Wish) -> String {
    if !offers.iter().any(|o| KNOWN.iter().any(|k| k.code == o.code)) {
        let has = offers.iter().map(|o| name(o.code)).collect::<Vec<_>>().join(", ");
        let has = if has.is_empty() { "none".into() } else { has };
        return format!("its formats ({has}) are not read; libcamera: reads CSI sensors, exec: with ffmpeg or GStreamer the rest");
    }
    let mut text = String::from("it has no ");
    if let Some((w, h)) = wish.size {
        let _ = write!(text, "{w}x{h} pixels ");
    }
    let _ = write!(text, "{}but:", wish.format.map_or(String::new(), |f| format!("of {f} ")));
    for offer in offers.iter().filter(|o| KNOWN.iter().any(|k| k.code == o.code)) {
        let sizes = match &offer.sizes {
            Sizes::Unknown => "any size".into(),
            Sizes::Listed(sizes) => sizes.iter().map(|(w, h)| format!("{w}x{h}")).collect::<Vec<_>>().join(" "),
            Sizes::Range([w, h]) => format!("{}x{} to {}x{} in steps of {}x{}", w.0, h.0, w.1, h.1, w.2, h.2),
        };
        let _ = write!(text, " {}: {sizes};", name(offer.code));
    }
    text.trim_end_matches(';').into()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A Logitech C270's formats, as `v4l2-ctl --list-formats-ext` shows them (shortened), 30 frames a second where JPEG,
    /// and for YUYV as many as USB 2 carries.
    #[allow(clippy::type_complexity)] // It is a fixture of two parts.
    fn webcam() -> (Vec<Offer>, impl Fn(u32, (u32, u32)) -> Vec<[u32; 2]>) {
        let sizes =
            || Sizes::Listed(vec![(640, 480), (160, 120), (176, 144), (320, 240), (352, 288), (800, 600), (1280, 720), (1280, 960)]);
        let offers = vec![Offer { code: code(b"YUYV"), sizes: sizes() }, Offer { code: code(b"MJPG"), sizes: sizes() }];
        let intervals = |format: u32, (w, _): (u32, u32)| match (format == code(b"YUYV"), w) {
            (true, 1280) => vec![[2, 15], [1, 5]],
            (true, 800) => vec![[1, 20], [1, 10]],
            _ => vec![[1, 30], [1, 25], [1, 15]],
        };
        (offers, intervals)
    }

    fn chosen(wish: &Wish) -> (u32, (u32, u32), Option<[u32; 2]>) {
        let (offers, intervals) = webcam();
        let choice = choose(&offers, wish, intervals).unwrap();
        (choice.code, choice.size, choice.interval)
    }

    #[test]
    fn the_smallest_that_feeds_the_network_fast_enough() {
        let wish = |least| Wish { least: (least, least), ..Wish::default() };
        assert_eq!(chosen(&wish(224)), (code(b"YUYV"), (320, 240), Some([1, 30])));
        assert_eq!(chosen(&wish(256)), (code(b"YUYV"), (352, 288), Some([1, 30])));
        // YUYV is too slow there.
        assert_eq!(chosen(&wish(640)), (code(b"MJPG"), (1280, 720), Some([1, 30])));
        // But not too slow for one who wants few.
        assert_eq!(chosen(&Wish { rate: Some(5), ..wish(640) }), (code(b"YUYV"), (1280, 720), Some([1, 5])));
        // None is large enough: the largest.
        assert_eq!(chosen(&wish(1024)), (code(b"MJPG"), (1280, 960), Some([1, 30])));
    }

    #[test]
    fn wishes_are_met_or_refused_with_what_there_is() {
        let wish = Wish { size: Some((1280, 960)), format: Some("yuyv"), rate: Some(25), ..Wish::default() };
        assert_eq!(chosen(&wish), (code(b"YUYV"), (1280, 960), Some([2, 15])));
        let (offers, intervals) = webcam();
        let refused = choose(&offers, &Wish { size: Some((1000, 1000)), ..Wish::default() }, &intervals).unwrap_err();
        assert!(refused.contains("1000x1000") && refused.contains("mjpeg: 640x480 160x120"), "{refused}");
        let refused = choose(&offers, &Wish { format: Some("nv12"), ..Wish::default() }, &intervals).unwrap_err();
        assert!(refused.contains("of nv12"), "{refused}");
        let bayer = [Offer { code: code(b"pBAA"), sizes: Sizes::Unknown }];
        assert!(choose(&bayer, &Wish::default(), &intervals).unwrap_err().contains("(pBAA)"));
    }

    #[test]
    fn ranges_are_rounded_up_to_their_steps() {
        let offers = [
            Offer { code: code(b"NV12"), sizes: Sizes::Range([(32, 3280, 32), (32, 2464, 2)]) },
            Offer { code: code(b"GREY"), sizes: Sizes::Unknown },
        ];
        let size = |wish: &Wish| choose(&offers, wish, |_, _| vec![]).map(|c| (name(c.code), c.size));
        let wish = Wish { least: (250, 250), ..Wish::default() };
        assert_eq!(size(&wish), Ok(("nv12".into(), (256, 256))));
        assert_eq!(size(&Wish { least: (9999, 9999), ..Wish::default() }).unwrap().1, (9999, 9999));
        assert_eq!(size(&Wish { size: Some((640, 480)), ..Wish::default() }), Ok(("nv12".into(), (640, 480))));
        assert_eq!(size(&Wish { size: Some((650, 480)), ..Wish::default() }), Ok(("gray8".into(), (650, 480))));
        assert_eq!(size(&Wish { gray: true, format: Some("gray8"), ..Wish::default() }), Ok(("gray8".into(), (640, 480))));
    }
}
