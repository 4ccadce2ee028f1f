//! Table lookup by TBL and TBX, which take tables of 64 bytes and leave alone what lies beyond.

use std::arch::aarch64::*;

/// Looks up whole registers, and tells how many bytes that was.
pub fn lookup(table: &[u8; 256], from: &[u8], out: &mut [u8]) -> usize {
    // SAFETY: NEON is part of every AArch64 target; a table has four times four registers; chunks have one.
    unsafe {
        let quarter = |i: usize| vld1q_u8_x4(table.as_ptr().add(64 * i));
        let t = [quarter(0), quarter(1), quarter(2), quarter(3)];
        let step = vdupq_n_u8(64);
        let (from, _) = from.as_chunks::<16>();
        let (out, _) = out.as_chunks_mut::<16>();
        for (out, from) in out.iter_mut().zip(from) {
            let x = vld1q_u8(from.as_ptr());
            let mut found = vqtbl4q_u8(t[0], x);
            let x = vsubq_u8(x, step);
            found = vqtbx4q_u8(found, t[1], x);
            let x = vsubq_u8(x, step);
            found = vqtbx4q_u8(found, t[2], x);
            let x = vsubq_u8(x, step);
            vst1q_u8(out.as_mut_ptr(), vqtbx4q_u8(found, t[3], x));
        }
        16 * from.len().min(out.len())
    }
}
