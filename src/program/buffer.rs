//! Where a tensor lies.

use serde::{Deserialize, Serialize};

/// A tensor's place in the arena: NHWC (batch 1), with a halo of zero-point pixels.
///
/// Pixels may lie further apart than they have channels: the buffer is then a *view* of some channels of a larger one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Buffer {
    /// Byte offset of its first channel in the first pixel, halo included.
    pub base: usize,
    /// Height, width, channels without the halo.
    pub shape: [usize; 3],
    /// Halo pixels: top, left, bottom, right.
    pub halo: [usize; 4],
    /// Bytes from one pixel to the next: the number of channels, or more in a view.
    pub pixel: usize,
    /// Zero point, in the kernels' domain.
    pub zero_point: i32,
}

impl Buffer {
    /// Bytes from one pixel row to the next.
    pub fn row_stride(&self) -> usize {
        (self.shape[1] + self.halo[1] + self.halo[3]) * self.pixel
    }

    /// Pixel rows, halo included.
    pub fn rows(&self) -> usize {
        self.shape[0] + self.halo[0] + self.halo[2]
    }

    /// Bytes from its first to its last one, halo included, slack excluded.
    pub fn len(&self) -> usize {
        (self.rows() * self.row_stride()).saturating_sub(self.pixel - self.channels())
    }

    /// True for a tensor without values.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Channels.
    pub fn channels(&self) -> usize {
        self.shape[2]
    }

    /// Values, halo excluded.
    pub fn values(&self) -> usize {
        self.shape.iter().product()
    }

    /// True if it is a part of a larger buffer's channels.
    pub fn is_view(&self) -> bool {
        self.pixel != self.channels()
    }

    /// Byte offset in the arena of pixel (y, x) of the picture.
    pub fn at(&self, y: usize, x: usize) -> usize {
        self.base + (y + self.halo[0]) * self.row_stride() + (x + self.halo[1]) * self.pixel
    }

    /// The view of `count` channels from `first` on.
    pub fn view(&self, first: usize, count: usize) -> Buffer {
        Buffer { base: self.base + first, shape: [self.shape[0], self.shape[1], count], ..*self }
    }

    /// Its pixel rows as stretches of bytes that lie together: how many in a row, and the pixels and bytes of each.
    pub fn spans(&self) -> Spans {
        let [_, w, c] = self.shape;
        if self.is_view() { Spans { count: w, pixels: 1, bytes: c } } else { Spans { count: 1, pixels: w, bytes: w * c } }
    }
}

/// How a row of a [`Buffer`] is cut into stretches of bytes.
#[derive(Debug, Clone, Copy)]
pub struct Spans {
    /// Stretches of a row.
    pub count: usize,
    /// Pixels of each.
    pub pixels: usize,
    /// Bytes of each.
    pub bytes: usize,
}

impl Spans {
    /// The longest stretches that lie together in both.
    pub fn and(self, other: Spans) -> Spans {
        if self.count >= other.count { self } else { other }
    }
}
