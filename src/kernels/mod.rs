//! Integer kernels: one scalar definition of every operation ([`mod@reference`]), and per instruction set
//! the convolution microkernels that must equal it bit for bit.
//!
//! # Layout
//! Activations are bytes, NHWC, one pixel's channels contiguous, with a *halo* of zero-point pixels around
//! the picture where a consumer pads. A convolution then needs neither im2col nor bounds checks: tap
//! `(ky, kx)` of any output pixel lies at the same byte offset from that pixel's first tap, and a kernel row
//! without dilation is one contiguous run of `KW·C` bytes.
//!
//! # Weights
//! Packed once per layer for a kernel's register tile: for each block of `nr` output channels,
//! `[k / kr][nr][kr]` signed bytes, every run of taps padded with zeros to a multiple of `kr`
//! (a kernel may thus read up to `kr − 1` bytes past a run: tensors carry that much slack).
//!
//! # Requantization (the one definition)
//! ```text
//! v = f32(acc) · mult[c]                    acc: i32, zero-point corrections and bias folded in
//! v = v + f32(r − zp_r) · mult_r            where a residual is added; no FMA
//! q = i32(round_half_even(clamp(v, lo − zp, hi − zp))) + zp
//! ```
//! `f32(acc)` rounds half to even above 2²⁴, as CVTDQ2PS and SCVTF do.

#![allow(unsafe_code)]

#[cfg(target_arch = "aarch64")]
pub mod aarch64;
pub mod depthwise;
pub mod excess;
pub mod lookup;
pub mod peak;
pub mod portable;
pub mod reference;
pub mod winograd;
#[cfg(target_arch = "x86_64")]
pub mod x86;

use serde::{Deserialize, Serialize};

/// Most output pixels in any kernel's register tile.
pub const MAX_MR: usize = 32;
/// Most output channels in any kernel's register tile.
pub const MAX_NR: usize = 64;
/// Bytes after every tensor that a kernel may read, and ignore.
pub const SLACK: usize = 64;

/// How a stored byte is read: kernels differ in what their multiply instruction takes.
/// Going from one to the other adds 128 to values and zero points alike, so results are the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Domain {
    /// Bytes are 0..=255.
    U8,
    /// Bytes are two's complement, −128..=127.
    S8,
}

impl Domain {
    /// The value of a stored byte.
    #[inline(always)]
    pub fn decode(self, byte: u8) -> i32 {
        match self {
            Domain::U8 => i32::from(byte),
            Domain::S8 => i32::from(byte as i8),
        }
    }

    /// Smallest and largest value of a byte.
    pub fn range(self) -> (i32, i32) {
        match self {
            Domain::U8 => (0, 255),
            Domain::S8 => (-128, 127),
        }
    }
}

/// A contiguous run of input bytes that one kernel row (or one tap) reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Run {
    /// Byte offset from the output pixel's first tap.
    pub offset: usize,
    /// Groups of `kr` bytes, the last one padded with zero weights.
    pub steps: usize,
}

/// The requantization of one layer, in the kernel's [`Domain`].
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Requant {
    /// Zero point of the output.
    pub zero_point: i32,
    /// Lower clamp, `lo − zero_point`.
    pub lo: f32,
    /// Upper clamp, `hi − zero_point`.
    pub hi: f32,
}

/// 1.5 · 2²³.
const ROUNDER: f32 = 12_582_912.0;

impl Requant {
    /// The shared tail of every operation: clamp, round half to even, add the zero point.
    #[inline(always)]
    pub fn quantize(&self, v: f32) -> u8 {
        // As MAXPS and MINPS do it; NaN cannot come from finite multipliers.
        let v = if v > self.lo { v } else { self.lo };
        let v = if v < self.hi { v } else { self.hi };
        // The sum has an ulp of 1, so the addition itself rounds half to even; |v| is at most 255.
        let rounded = (v + ROUNDER).to_bits() as i32 - ROUNDER.to_bits() as i32;
        (rounded + self.zero_point) as u8
    }
}

impl Requant {
    /// True if rounding to i32, adding the zero point and saturating to a byte is the same for every accumulator: the clamp is the
    /// byte's range, and no real value leaves i32.
    pub fn saturates(&self, domain: Domain, mult: &[f32], residual: Option<&ResidualParams>) -> bool {
        let (lo, hi) = domain.range();
        let whole = self.lo == (lo - self.zero_point) as f32 && self.hi == (hi - self.zero_point) as f32;
        // Half of i32's range each for the sum, which is an i32 itself, and for the residual.
        whole && mult.iter().all(|m| m.abs() <= 0.5) && residual.is_none_or(|r| r.mult.abs() <= 4e6)
    }
}

/// A residual input of one layer.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct ResidualParams {
    /// Zero point of the residual tensor.
    pub zero_point: i32,
    /// Residual scale over output scale.
    pub mult: f32,
}

/// One register tile: `m` output pixels × `n` output channels.
///
/// Pointers are raw because threads share the arena; [`ConvKernel::run`]'s contract says what they must be.
#[derive(Debug, Clone)]
pub struct TileArgs<'a> {
    /// First tap of each output pixel; entries past `m` repeat a valid one.
    pub rows: [*const u8; MAX_MR],
    /// Residual pixel of each output pixel; entries past `m` repeat a valid one; unused without `residual_params`.
    pub residual: [*const u8; MAX_MR],
    /// Output pixel.
    pub out: [*mut u8; MAX_MR],
    /// The block's first channel in `residual` and `out`.
    pub channel: usize,
    /// Runs of input bytes.
    pub runs: &'a [Run],
    /// Packed weights of this block of channels: `Σ steps · nr · kr` bytes.
    pub weights: &'a [i8],
    /// What was taken out of `weights`, if it was, for a kernel that [`ConvKernel::pairs`].
    pub excess: Option<excess::BlockExcess<'a>>,
    /// No weight is −128: two products of bytes then fit 16 bits.
    pub narrow: bool,
    /// See [`Requant::saturates`].
    pub saturates: bool,
    /// Bias per channel of the block, `nr` long.
    pub bias: &'a [i32],
    /// Multiplier per channel of the block, `nr` long.
    pub mult: &'a [f32],
    /// Requantization.
    pub requant: Requant,
    /// Residual parameters, if a residual is added.
    pub residual_params: Option<ResidualParams>,
    /// Valid output pixels, 1..=mr.
    pub m: usize,
    /// Valid output channels, 1..=nr.
    pub n: usize,
}

/// Instruction sets that plain loops (quantize, pool, add, …) are compiled for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SimdLevel {
    /// What the target triple guarantees: SSE2, or NEON on aarch64.
    Baseline,
    /// AVX2.
    Avx2,
    /// AVX-512 F, BW, DQ, VL.
    Avx512,
}

/// A convolution microkernel and what it needs.
#[derive(Debug, Clone, Copy)]
pub struct ConvKernel {
    /// `isa-operation-MRxNRcKR`.
    pub name: &'static str,
    /// Name that `EDGE_ISA` selects it by.
    pub isa: &'static str,
    /// What the processor has for everything else.
    pub level: SimdLevel,
    /// How it reads activation bytes.
    pub domain: Domain,
    /// Output pixels per tile.
    pub mr: usize,
    /// Output channels per tile.
    pub nr: usize,
    /// Input bytes per step.
    pub kr: usize,
    /// Of these, so many of a channel lie together, then as many of the next; `kr` where a step is not divided.
    pub lane: usize,
    /// Steps whose weights lie together, channel by channel: `[unroll][kr]` each. What remains of a run lies step by step.
    pub unroll: usize,
    /// It can add products in 16 bits, two by two, if weights come with their [`excess`].
    pub pairs: bool,
    /// Takes the layers that would not fill this one's tiles.
    pub small: Option<Small>,
    /// The product for Winograd convolution, where that can pay.
    pub winograd: Option<winograd::WinogradKernel>,
    /// True where this processor can run it.
    pub supported: fn() -> bool,
    /// Computes one tile.
    ///
    /// # Safety
    /// The processor supports the kernel; for `i < m`, `rows[i]` is readable over every run plus `kr − 1` bytes,
    /// `out[i]` is writable and `residual[i]` (with a residual) readable for `n` bytes from `channel` on, and no other
    /// thread writes what is read or touches what is written; entries of `rows` and `residual` from `m` to `mr` are as readable as the others;
    /// slices have the lengths their docs say.
    pub run: unsafe fn(&TileArgs<'_>),
}

/// A kernel for the layers that another one's tiles are too large for. It reads bytes in the same way, and runs wherever that one does.
#[derive(Debug, Clone, Copy)]
pub struct Small {
    /// The kernel.
    pub kernel: &'static ConvKernel,
    /// Cycles of a tile and of each of its steps: of the other one, of this one.
    pub costs: [[usize; 2]; 2],
}

impl ConvKernel {
    /// [`Small`], if it takes less time for so many pixels and runs of so many bytes.
    pub fn smaller(&self, pixels: usize, run_lens: &[usize]) -> Option<&'static ConvKernel> {
        let small = self.small?;
        let cost = |k: &ConvKernel, [tile, step]: [usize; 2]| {
            pixels.div_ceil(k.mr) * (tile + step * run_lens.iter().map(|l| l.div_ceil(k.kr)).sum::<usize>())
        };
        // What is about as fast is better done without the largest registers.
        (4 * cost(small.kernel, small.costs[1]) < 5 * cost(self, small.costs[0])).then_some(small.kernel)
    }
}

/// Every kernel compiled into this program, best first. Tests, benches and dispatch all walk this list.
pub fn registry() -> &'static [ConvKernel] {
    static KERNELS: &[ConvKernel] = &[
        #[cfg(target_arch = "x86_64")]
        x86::AMX,
        #[cfg(target_arch = "x86_64")]
        x86::VNNI512,
        #[cfg(target_arch = "x86_64")]
        x86::VNNI256,
        #[cfg(target_arch = "x86_64")]
        x86::AVX2,
        #[cfg(target_arch = "aarch64")]
        aarch64::I8MM,
        #[cfg(target_arch = "aarch64")]
        aarch64::DOTPROD,
        #[cfg(target_arch = "aarch64")]
        aarch64::NEON,
        portable::PORTABLE,
        reference::SCALAR,
    ];
    KERNELS
}

/// The best kernel this processor runs, or the one named by `isa` (see [`ConvKernel::isa`]).
pub fn select(isa: Option<&str>) -> crate::Result<&'static ConvKernel> {
    match isa {
        None => Ok(registry().iter().find(|k| (k.supported)()).unwrap_or(&reference::SCALAR)),
        Some(name) => {
            let names: Vec<_> = registry().iter().filter(|k| (k.supported)()).map(|k| k.isa).collect();
            registry().iter().find(|k| k.isa == name && (k.supported)()).ok_or_else(|| {
                crate::Error::Usage(format!("instruction set {name:?} is not available here; choose one of {}", names.join(", ")))
            })
        }
    }
}

/// Packs one group's weights (`[out][run][bytes]`, given by `weight(out, run, byte)`) for `kernel`.
/// `run_lens` are the bytes of each run before padding. Returns whole blocks of `nr` channels.
pub fn pack_weights(kernel: &ConvKernel, out_channels: usize, run_lens: &[usize], weight: impl Fn(usize, usize, usize) -> i8) -> Vec<i8> {
    let (nr, kr, unroll) = (kernel.nr, kernel.kr, kernel.unroll);
    let steps: usize = run_lens.iter().map(|l| l.div_ceil(kr)).sum();
    let blocks = out_channels.div_ceil(nr);
    let mut packed = vec![0i8; blocks * steps * nr * kr];
    let mut at = 0;
    for block in 0..blocks {
        for (run, &len) in run_lens.iter().enumerate() {
            let steps = len.div_ceil(kr);
            let mut step = 0;
            while step < steps {
                let together = if step + unroll <= steps { unroll } else { 1 };
                let lane = if kernel.lane < kr { kernel.lane } else { together * kr };
                for j in 0..nr {
                    let out = block * nr + j;
                    for k in 0..together * kr {
                        let byte = step * kr + k;
                        if out < out_channels && byte < len {
                            packed[at + k / lane * nr * lane + j * lane + k % lane] = weight(out, run, byte);
                        }
                    }
                }
                at += together * nr * kr;
                step += together;
            }
        }
    }
    packed
}

#[cfg(test)]
mod tests;
