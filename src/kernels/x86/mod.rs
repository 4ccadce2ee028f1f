//! x86-64 microkernels: AVX2, AVX-VNNI, AVX-512 VNNI and AMX. All read unsigned bytes, keep a tile of i32 accumulators in registers
//! over the whole depth and requantize from there.

pub mod amx;
mod avx2;
mod avx512vnni;
mod avxvnni;
mod depthwise;
mod epilogue;
mod winograd;

pub use amx::AMX;
pub use avx2::AVX2;
pub use avx512vnni::VNNI512;
pub use avxvnni::VNNI256;
pub use depthwise::{AMX_DEPTHWISE, AVX2_DEPTHWISE, VNNI256_DEPTHWISE, VNNI512_DEPTHWISE};

/// A copy that may be indexed with a variable: accumulators that are would live in memory all along.
#[inline(always)]
fn settled<T: Copy, const MR: usize>(acc: &[[T; 2]; MR]) -> [[T; 2]; MR] {
    let mut done = [acc[0]; MR];
    done.copy_from_slice(acc);
    done
}
