//! What the threads of one inference share, and what one of them gets.
#![allow(unsafe_code)]

use super::Buffer;
use crate::kernels::ConvKernel;
use crate::pixels::Pixels;
use std::ops::Range;

/// The memory of one inference. In each step every byte is written by one thread at most, and read by others only after the
/// barrier that ends the step. Each thread has its own scratch.
#[derive(Clone, Copy)]
pub(crate) struct Memory {
    /// The tensors.
    pub arena: *mut u8,
    /// A thread's own.
    pub scratch: *mut u8,
    /// Float inputs, one slice for each source.
    pub inputs: *const &'static [f32],
    /// What takes the place of the only input, or null.
    pub pixels: *const Pixels<'static>,
    /// First value of each float output.
    pub outputs: *const *mut f32,
}

// SAFETY: the pointers are used under the rule above, which steps and the barrier uphold.
unsafe impl Send for Memory {}
// SAFETY: as above.
unsafe impl Sync for Memory {}

impl Memory {
    /// The memory as a thread sees it: with its own scratch.
    ///
    /// # Safety
    /// The scratch holds at least `thread + 1` strides.
    pub unsafe fn of_thread(&self, thread: usize, scratch_stride: usize) -> Memory {
        // SAFETY: as promised.
        Memory { scratch: unsafe { self.scratch.add(thread * scratch_stride) }, ..*self }
    }
}

/// What one thread needs to do its share of a step.
#[derive(Clone, Copy)]
pub(crate) struct Context<'a> {
    /// Kernels of the program.
    pub kernel: &'a ConvKernel,
    /// Where everything lies.
    pub memory: Memory,
    /// This thread.
    pub thread: usize,
    /// All threads, which run the same step.
    pub threads: usize,
}

impl Context<'_> {
    /// This thread's share of `total` units.
    #[inline(always)]
    pub fn share(&self, total: usize) -> Range<usize> {
        total * self.thread / self.threads..total * (self.thread + 1) / self.threads
    }

    /// Address of pixel (y, x).
    ///
    /// # Safety
    /// The buffer lies in the arena, and the pixel in the buffer or its halo.
    #[inline(always)]
    pub unsafe fn at(&self, buffer: &Buffer, y: usize, x: usize) -> *mut u8 {
        // SAFETY: as promised.
        unsafe { self.memory.arena.add(buffer.at(y, x)) }
    }

    /// `bytes` bytes from pixel (y, x) on.
    ///
    /// # Safety
    /// They belong to the buffer, which lies in the arena, and nobody writes them during this step.
    #[inline(always)]
    pub unsafe fn read(&self, buffer: &Buffer, y: usize, x: usize, bytes: usize) -> &[u8] {
        // SAFETY: as promised.
        unsafe { std::slice::from_raw_parts(self.at(buffer, y, x), bytes) }
    }

    /// `bytes` bytes from pixel (y, x) on, to write.
    ///
    /// # Safety
    /// They belong to the buffer, which lies in the arena, and nobody else touches them during this step.
    #[inline(always)]
    #[allow(clippy::mut_from_ref)] // The arena is shared by the rule of [`Memory`], not by the borrow checker's.
    pub unsafe fn write(&self, buffer: &Buffer, y: usize, x: usize, bytes: usize) -> &mut [u8] {
        // SAFETY: as promised.
        unsafe { std::slice::from_raw_parts_mut(self.at(buffer, y, x), bytes) }
    }

    /// Fills a buffer's halo with its zero point.
    ///
    /// # Safety
    /// The buffer lies in the arena, and no other thread touches its halo.
    pub unsafe fn fill_halo(&self, dst: &Buffer) {
        if dst.halo == [0; 4] {
            return;
        }
        let zero_point = dst.zero_point as u8;
        let ([h, w, c], [top, left, bottom, right]) = (dst.shape, dst.halo);
        // Pixels from `at` on, which are neighbours.
        let fill = |at: usize, pixels: usize| {
            for pixel in 0..if dst.is_view() { pixels } else { pixels.min(1) } {
                let bytes = if dst.is_view() { c } else { pixels * c };
                // SAFETY: these pixels are the buffer's.
                unsafe { self.memory.arena.add(at + pixel * dst.pixel).write_bytes(zero_point, bytes) };
            }
        };
        let (row, width) = (dst.row_stride(), w + left + right);
        (0..top).chain(top + h..top + h + bottom).for_each(|y| fill(dst.base + y * row, width));
        for y in top..top + h {
            fill(dst.base + y * row, left);
            fill(dst.base + y * row + (left + w) * dst.pixel, right);
        }
    }
}
