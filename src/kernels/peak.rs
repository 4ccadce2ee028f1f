//! How many multiply-accumulates a second this core could do at most: each instruction set's product, on registers
//! alone, often enough at once that its latency does not count. What a layer's speed is held against.
//!
//! It is the peak of the *instructions* that the kernels use, not of the core: AVX2 takes three for what VNNI does in one. Winograd convolution does fewer products than it counts, and may stand above it.

use std::time::{Duration, Instant};

/// Runs products on registers so many times; the second value is multiply-accumulates of one time.
type Burst = (unsafe fn(u64), u64);

/// Giga multiply-accumulates a second of one core, now, for the kernels of this name; `None` where no loop is written
/// for them. Takes about `time`; the fastest of several bursts counts.
pub fn gmacs_per_second(isa: &str, time: Duration) -> Option<f64> {
    let supported = super::registry().iter().any(|k| k.isa == isa && (k.supported)());
    let (burst, macs) = burst(isa).filter(|_| supported)?;
    let run = |times: u64| {
        let start = Instant::now();
        // SAFETY: the processor supports the instruction set, and registers are all that is touched.
        unsafe { burst(times) };
        start.elapsed()
    };
    let mut times = 1000;
    let bursts = 8;
    while run(times) < time / (2 * bursts) && times < 1 << 40 {
        times *= 2;
    }
    let fastest = (0..bursts).map(|_| run(times)).min()?;
    Some((times * macs) as f64 / fastest.as_secs_f64() / 1e9)
}

#[cfg(target_arch = "x86_64")]
fn burst(isa: &str) -> Option<Burst> {
    match isa {
        "amx" => Some((super::x86::amx::peak, 4 * 16 * 16 * 64)),
        "avx512vnni" => Some((x86::vnni512, 24 * 64)),
        "avxvnni" => Some((x86::vnni256, 12 * 32)),
        "avx2" => Some((x86::avx2, 12 * 32)),
        _ => None,
    }
}

#[cfg(target_arch = "aarch64")]
fn burst(isa: &str) -> Option<Burst> {
    match isa {
        "neon" => Some((aarch64::neon, 8 * 16)),
        "dotprod" => Some((aarch64::dotprod, 20 * 16)),
        "i8mm" => Some((aarch64::i8mm, 20 * 32)),
        _ => None,
    }
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn burst(_isa: &str) -> Option<Burst> {
    None
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::asm;

    /// `times` > 0 times the lines, on vector registers whose content does not matter.
    macro_rules! repeat {
        ($times:ident, $($line:expr),+) => {
            // SAFETY: vector registers and flags only; all of them are named as clobbered by the ABI.
            unsafe {
                asm!("2:", $($line,)+ "dec rcx", "jnz 2b", inout("rcx") $times.max(1) => _, clobber_abi("C"), options(nomem, nostack))
            }
        };
    }

    macro_rules! dot512 {
        ($($i:literal)+) => { concat!($("vpdpbusd zmm", $i, ", zmm30, zmm31\n"),+) };
    }

    /// # Safety
    /// The processor has AVX-512 VNNI.
    #[target_feature(enable = "avx512f,avx512vnni")]
    pub unsafe fn vnni512(times: u64) {
        repeat!(times, dot512!(0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23));
    }

    macro_rules! dot256 {
        ($($i:literal)+) => { concat!($("{{vex}} vpdpbusd ymm", $i, ", ymm14, ymm15\n"),+) };
    }

    /// # Safety
    /// The processor has AVX-VNNI.
    #[target_feature(enable = "avx2,avxvnni")]
    pub unsafe fn vnni256(times: u64) {
        repeat!(times, dot256!(0 1 2 3 4 5 6 7 8 9 10 11));
    }

    macro_rules! multiply_add {
        ($($i:literal)+) => { concat!($("vpmaddubsw ymm12, ymm14, ymm15\nvpmaddwd ymm12, ymm12, ymm13\nvpaddd ymm", $i, ", ymm", $i, ", ymm12\n"),+) };
    }

    /// # Safety
    /// The processor has AVX2.
    #[target_feature(enable = "avx2")]
    pub unsafe fn avx2(times: u64) {
        repeat!(times, multiply_add!(0 1 2 3 4 5 6 7 8 9 10 11));
    }
}

#[cfg(target_arch = "aarch64")]
mod aarch64 {
    use std::arch::asm;

    /// `times` > 0 times the lines, on vector registers whose content does not matter.
    macro_rules! repeat {
        ($times:ident, $($line:expr),+) => {
            // SAFETY: vector registers and flags only; all of them are named as clobbered by the ABI.
            unsafe {
                asm!("2:", $($line,)+ "subs x8, x8, #1", "b.ne 2b", inout("x8") $times.max(1) => _, clobber_abi("C"), options(nomem, nostack))
            }
        };
    }

    /// Two products of eight bytes each, and their sums: three instructions for 16.
    macro_rules! widening {
        ($(($t:literal $a:literal))+) => {
            concat!(
                $("smull v", $t, ".8h, v6.8b, v7.8b\n"),+,
                $("smlal v", $t, ".8h, v6.8b, v7.8b\n"),+,
                $("sadalp v", $a, ".4s, v", $t, ".8h\n"),+
            )
        };
    }

    /// # Safety
    /// None: NEON is in every aarch64.
    pub unsafe fn neon(times: u64) {
        repeat!(times, widening!((16 24)(17 25)(18 26)(19 27)(20 28)(21 29)(22 30)(23 31)));
    }

    macro_rules! dot {
        ($instruction:literal $source:literal, $($i:literal)+) => {
            concat!($($instruction, " v", $i, ".4s, v0.16b, ", $source, "\n"),+)
        };
    }

    /// # Safety
    /// The processor has the dot product instructions.
    pub unsafe fn dotprod(times: u64) {
        repeat!(times, ".arch_extension dotprod", dot!("sdot" "v1.4b[0]", 2 3 4 5 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30 31));
    }

    /// # Safety
    /// The processor has the 8-bit matrix products.
    pub unsafe fn i8mm(times: u64) {
        repeat!(times, ".arch_extension i8mm", dot!("smmla" "v1.16b", 2 3 4 5 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30 31));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_vector_instruction_set_of_this_processor_has_a_peak() {
        for kernel in super::super::registry().iter().filter(|k| (k.supported)()) {
            let peak = gmacs_per_second(kernel.isa, Duration::from_millis(4));
            let wanted = !matches!(kernel.isa, "portable" | "scalar");
            assert_eq!(peak.is_some(), wanted, "{}", kernel.isa);
            // No core is slower than a product in ten nanoseconds, or faster than 8,000 a nanosecond.
            assert!(peak.is_none_or(|p| (0.1..8000.0).contains(&p)), "{}: {peak:?}", kernel.isa);
        }
        assert_eq!(gmacs_per_second("nonsense", Duration::ZERO), None);
    }
}
