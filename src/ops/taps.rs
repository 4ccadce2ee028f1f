//! Which taps of a pooling window lie in the picture.

use crate::graph::Window;
use crate::program::Buffer;

/// Taps of a pooling window along one side that lie in the picture.
pub(super) struct Taps {
    /// The first one's coordinate.
    pub first: usize,
    /// From one to the next.
    pub step: usize,
    /// How many.
    pub count: usize,
}

impl Taps {
    /// `side` is 0 for rows and 1 for columns; `position` counts outputs along it.
    #[inline(always)]
    pub fn new(src: &Buffer, window: &Window, side: usize, position: usize) -> Self {
        let (start, step, pad) = (position * window.stride[side], window.dilation[side], window.pad[side]);
        // Hardly any window is dilated, and small cores divide slowly.
        let steps = |n: usize| if step == 1 { n } else { n.div_ceil(step) };
        let first = steps(pad.saturating_sub(start));
        let end = steps((src.shape[side] + pad).saturating_sub(start)).min(window.kernel[side]);
        Taps { first: (start + first * step).saturating_sub(pad), step, count: end.saturating_sub(first) }
    }
}

/// Calls `f(y, x)` for every tap that lies in the picture.
#[inline(always)]
pub(super) fn each_tap(rows: &Taps, columns: &Taps, mut f: impl FnMut(usize, usize)) {
    for row in 0..rows.count {
        for column in 0..columns.count {
            f(rows.first + row * rows.step, columns.first + column * columns.step);
        }
    }
}
