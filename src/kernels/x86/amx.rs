//! TDPBUSD: products of whole matrices, sixteen rows of 64 bytes at once (AMX, Xeons from Sapphire Rapids on).
//!
//! Instructions are written as assembly: their intrinsics are not stable. One block of it holds all that happens between setting up the
//! tile registers and giving them back, so that none of the rest has to know of them.

use super::VNNI512;
use crate::kernels::{ConvKernel, Domain, MAX_MR, SimdLevel, Small, TileArgs};
use std::arch::asm;
use std::arch::x86_64::*;
use std::sync::OnceLock;

/// TDPBUSD, 32 pixels × 32 channels: four tiles of sums, two of pixels, two of weights.
pub const AMX: ConvKernel = ConvKernel {
    name: "amx-conv-32x32c64",
    isa: "amx",
    level: SimdLevel::Avx512,
    domain: Domain::U8,
    mr: 2 * ROWS,
    nr: 32,
    kr: DEPTH,
    lane: 4,
    unroll: 1,
    pairs: false,
    // Measured on Emerald Rapids.
    small: Some(Small { kernel: &VNNI512, costs: [[550, 190], [30, 16]] }),
    winograd: None,
    supported,
    run: tile,
};

/// Rows of a tile register.
const ROWS: usize = 16;
/// Bytes of a row.
const DEPTH: usize = 64;
/// Bytes of weights of a step: 16 quads of each of 32 channels.
const STEP_BYTES: usize = DEPTH * 32;
/// Steps between two visits of the sums to memory.
const STEPS: usize = 16;

/// What LDTILECFG reads: palette 1, and eight tiles of sixteen rows of 64 bytes (Intel's manual, volume 1, 18.2).
#[repr(align(64))]
struct TileConfig(#[allow(dead_code)] [u8; 64]);

static CONFIG: TileConfig = {
    let mut config = [0; 64];
    config[0] = 1;
    let mut tile = 0;
    while tile < 8 {
        config[16 + 2 * tile] = DEPTH as u8;
        config[48 + tile] = ROWS as u8;
        tile += 1;
    }
    TileConfig(config)
};

/// True if the processor has it, and the kernel lets this process use it.
pub fn supported() -> bool {
    static SUPPORTED: OnceLock<bool> = OnceLock::new();
    *SUPPORTED.get_or_init(|| {
        /// CPUID leaf 7, EDX.
        const AMX_TILE_AND_INT8: u32 = 1 << 24 | 1 << 25;
        (VNNI512.supported)() && __cpuid(0).eax >= 7 && __cpuid_count(7, 0).edx & AMX_TILE_AND_INT8 == AMX_TILE_AND_INT8 && permitted()
    })
}

/// Asks Linux for the tile registers; threads of this process get them as well.
#[cfg(target_os = "linux")]
fn permitted() -> bool {
    // Documentation/arch/x86/xstate.rst of Linux: arch_prctl(ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA).
    const ARCH_PRCTL: isize = 158;
    const ARCH_REQ_XCOMP_PERM: usize = 0x1023;
    const XTILEDATA: usize = 18;
    let mut result = ARCH_PRCTL;
    // SAFETY: a system call that touches no memory of ours.
    unsafe {
        asm!("syscall", inlateout("rax") result, in("rdi") ARCH_REQ_XCOMP_PERM, in("rsi") XTILEDATA,
            lateout("rcx") _, lateout("r11") _, options(nostack));
    }
    result == 0
}

#[cfg(not(target_os = "linux"))]
fn permitted() -> bool {
    false
}

/// Sums of a tile.
#[repr(align(64))]
struct Sums(#[allow(dead_code)] [[i32; 32]; 2 * ROWS]);

/// Sixteen pixels' bytes of some steps, copied together.
#[repr(align(64))]
struct Panel(#[allow(dead_code)] [[[u8; DEPTH]; ROWS]; STEPS]);

/// Where one half of the tile's pixels lie.
#[derive(Clone, Copy)]
struct Half<'a> {
    rows: &'a [*const u8; ROWS],
    /// Bytes from one pixel to the next, if that is the same for all.
    stride: Option<usize>,
}

impl<'a> Half<'a> {
    fn new(rows: &'a [*const u8; ROWS]) -> Self {
        let stride = (rows[1] as usize).wrapping_sub(rows[0] as usize);
        let even = rows.windows(2).all(|w| (w[1] as usize).wrapping_sub(w[0] as usize) == stride);
        Half { rows, stride: even.then_some(stride) }
    }

    /// Address of the first pixel's bytes at `offset`; copies all to `panel` if they lie apart.
    ///
    /// # Safety
    /// Rows are readable for 64 bytes from `offset` on; `panel` is writable.
    #[inline(always)]
    unsafe fn step(&self, offset: usize, panel: *mut [[u8; DEPTH]; ROWS]) -> *const u8 {
        if self.stride.is_some() {
            return self.rows[0].wrapping_add(offset);
        }
        let to = panel.cast::<[u8; DEPTH]>();
        for (i, row) in self.rows.iter().enumerate() {
            // SAFETY: as promised.
            unsafe { to.add(i).write(row.wrapping_add(offset).cast::<[u8; DEPTH]>().read()) };
        }
        to.cast()
    }
}

/// # Safety
/// See [`ConvKernel::run`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
unsafe fn tile(t: &TileArgs<'_>) {
    const { assert!(2 * ROWS <= MAX_MR) };
    debug_assert!(t.m <= 2 * ROWS && t.bias.len() >= 32 && t.mult.len() >= 32);
    let mut sums = std::mem::MaybeUninit::<Sums>::uninit();
    let mut panels = [const { std::mem::MaybeUninit::<Panel>::uninit() }; 2];
    let (first, second) = (t.rows.first_chunk::<ROWS>(), t.rows[ROWS..].first_chunk::<ROWS>());
    let (Some(first), Some(second)) = (first, second) else { return };
    let halves = [Half::new(first), Half::new(second)];
    let both = t.m > ROWS;
    let mut pixels = [[std::ptr::null::<u8>(); 2]; STEPS];
    let mut weights = t.weights.as_ptr();
    let (mut filled, mut fresh) = (0, true);
    // SAFETY: rows are readable over every run, which is whole steps; weights hold as many; the processor supports the kernel.
    unsafe {
        let panels = panels.each_mut().map(|p| p.as_mut_ptr().cast::<[[u8; DEPTH]; ROWS]>());
        let strides = halves.map(|h| h.stride.unwrap_or(DEPTH));
        for run in t.runs {
            for step in 0..run.steps {
                let offset = run.offset + DEPTH * step;
                pixels[filled][0] = halves[0].step(offset, panels[0].add(filled));
                if both {
                    pixels[filled][1] = halves[1].step(offset, panels[1].add(filled));
                }
                filled += 1;
                if filled == STEPS {
                    multiply(&pixels, strides, weights, sums.as_mut_ptr(), fresh, both);
                    weights = weights.wrapping_add(STEPS * STEP_BYTES);
                    (filled, fresh) = (0, false);
                }
            }
        }
        if filled > 0 || fresh {
            multiply(&pixels[..filled], strides, weights, sums.as_mut_ptr(), fresh, both);
        }
        finish(t, sums.as_ptr().cast());
    }
}

/// Adds the products of some steps to `sums`, or writes them there if it is `fresh`; the second half only if there are `both`.
///
/// # Safety
/// The processor supports the kernel. Rows of `pixels` are readable for 64 bytes, `strides` apart; `weights` hold as many steps; `sums` are
/// writable, and hold values unless `fresh`.
#[inline]
unsafe fn multiply(pixels: &[[*const u8; 2]], strides: [usize; 2], weights: *const i8, sums: *mut Sums, fresh: bool, both: bool) {
    macro_rules! products {
        ($load:literal, $loop:literal, $store:literal) => {
            asm!(
                "ldtilecfg [{config}]",
                "test {fresh}, {fresh}",
                "jnz 3f",
                "tileloadd tmm0, [{sums} + {row}]",
                "tileloadd tmm1, [{sums} + {row} + 64]",
                $load,
                "3:",
                "test {steps}, {steps}",
                "jz 4f",
                "2:",
                "mov {a}, [{pixels}]",
                "tileloadd tmm4, [{a} + {stride0}]",
                "tileloadd tmm6, [{weights} + {row}]",
                "tdpbusd tmm0, tmm4, tmm6",
                "tileloadd tmm7, [{weights} + {row} + 64]",
                "tdpbusd tmm1, tmm4, tmm7",
                $loop,
                "add {pixels}, 16",
                "add {weights}, 2048",
                "dec {steps}",
                "jnz 2b",
                "4:",
                "tilestored [{sums} + {row}], tmm0",
                "tilestored [{sums} + {row} + 64], tmm1",
                $store,
                "tilerelease",
                config = in(reg) &raw const CONFIG,
                fresh = in(reg) usize::from(fresh),
                sums = in(reg) sums,
                row = in(reg) 128usize,
                steps = inout(reg) pixels.len() => _,
                pixels = inout(reg) pixels.as_ptr() => _,
                weights = inout(reg) weights => _,
                stride0 = in(reg) strides[0],
                stride1 = in(reg) strides[1],
                a = out(reg) _,
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _, out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack)
            )
        };
    }
    // Setting up the registers clears them.
    // SAFETY: as promised; tile registers are given back.
    unsafe {
        if both {
            products!(
                "tileloadd tmm2, [{sums} + {row} + 2048]\ntileloadd tmm3, [{sums} + {row} + 2112]",
                "mov {a}, [{pixels} + 8]\ntileloadd tmm5, [{a} + {stride1}]\ntdpbusd tmm2, tmm5, tmm6\ntdpbusd tmm3, tmm5, tmm7",
                "tilestored [{sums} + {row} + 2048], tmm2\ntilestored [{sums} + {row} + 2112], tmm3"
            );
        } else {
            products!("", "/* {stride1} */", "");
        }
    }
}

/// Requantizes and stores a tile.
///
/// # Safety
/// See [`ConvKernel::run`]; `sums` holds `m` rows, aligned.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
unsafe fn finish(t: &TileArgs<'_>, sums: *const [i32; 32]) {
    // SAFETY: per-channel slices hold 32 entries; residual and output hold n bytes.
    unsafe {
        let bias = [_mm512_loadu_si512(t.bias.as_ptr().cast()), _mm512_loadu_si512(t.bias.as_ptr().add(16).cast())];
        let mult = [_mm512_loadu_ps(t.mult.as_ptr()), _mm512_loadu_ps(t.mult.as_ptr().add(16))];
        let masks = [0, 16].map(|first: usize| ((1u32 << t.n.saturating_sub(first).min(16)) - 1) as __mmask16);
        let (lo, hi) = (_mm512_set1_ps(t.requant.lo), _mm512_set1_ps(t.requant.hi));
        let real = |i: usize, half: usize| {
            let sum = _mm512_load_si512(sums.add(i).cast::<i32>().add(16 * half).cast());
            let mut v = _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_add_epi32(sum, bias[half])), mult[half]);
            if let Some(p) = t.residual_params {
                let r = _mm_maskz_loadu_epi8(masks[half], t.residual[i].add(t.channel + 16 * half).cast());
                let r = _mm512_sub_epi32(_mm512_cvtepu8_epi32(r), _mm512_set1_epi32(p.zero_point));
                v = _mm512_add_ps(v, _mm512_mul_ps(_mm512_cvtepi32_ps(r), _mm512_set1_ps(p.mult)));
            }
            v
        };
        if t.saturates && t.n == 32 {
            // The zero point is added to two halves at once: what saturates on the way saturates in the end.
            let zero_point = _mm512_set1_epi16(t.requant.zero_point as i16);
            let order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
            let words = |i: usize| {
                let words = _mm512_packs_epi32(_mm512_cvtps_epi32(real(i, 0)), _mm512_cvtps_epi32(real(i, 1)));
                _mm512_adds_epi16(words, zero_point)
            };
            for first in (0..t.m).step_by(2) {
                let second = (first + 1).min(t.m - 1);
                let bytes = _mm512_permutexvar_epi32(order, _mm512_packus_epi16(words(first), words(second)));
                _mm256_storeu_si256(t.out[first].add(t.channel).cast(), _mm512_castsi512_si256(bytes));
                if second > first {
                    _mm256_storeu_si256(t.out[second].add(t.channel).cast(), _mm512_extracti64x4_epi64(bytes, 1));
                }
            }
            return;
        }
        let zero_point = _mm512_set1_epi32(t.requant.zero_point);
        for i in 0..t.m {
            for (half, mask) in masks.into_iter().enumerate() {
                let v = _mm512_min_ps(_mm512_max_ps(real(i, half), lo), hi);
                let q = _mm512_add_epi32(_mm512_cvtps_epi32(v), zero_point);
                let out = t.out[i].wrapping_add(t.channel + 16 * half);
                if mask == 0xffff {
                    // Many times faster than a masked store.
                    _mm_storeu_si128(out.cast(), _mm512_cvtepi32_epi8(q));
                } else {
                    _mm512_mask_cvtepi32_storeu_epi8(out.cast(), mask, q);
                }
            }
        }
    }
}

/// `times` > 0 times four products on tile registers whose content does not matter.
///
/// # Safety
/// The processor supports [`AMX`].
pub unsafe fn peak(times: u64) {
    // SAFETY: the processor supports it; tile registers are given back.
    unsafe {
        asm!(
            "ldtilecfg [{config}]",
            "2:",
            "tdpbusd tmm0, tmm4, tmm5",
            "tdpbusd tmm1, tmm4, tmm5",
            "tdpbusd tmm2, tmm4, tmm5",
            "tdpbusd tmm3, tmm4, tmm5",
            "dec {times}",
            "jnz 2b",
            "tilerelease",
            config = in(reg) &raw const CONFIG,
            times = inout(reg) times.max(1) => _,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _, out("tmm4") _, out("tmm5") _,
            options(nostack)
        );
    }
}
