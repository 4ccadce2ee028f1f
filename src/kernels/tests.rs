//! Every kernel of the registry against the scalar definition, on random tiles.

use super::winograd::{LANES, Product};
use super::*;
use proptest::prelude::*;

/// A random convolution tile in terms no kernel knows: shapes, bytes and parameters.
#[derive(Debug, Clone)]
struct Problem {
    run_lens: Vec<usize>,
    m: usize,
    channels: usize,
    pixel_stride: usize,
    seed: u64,
    extreme: bool,
    residual: bool,
    mult: f32,
    zero_point: i32,
    lo: i32,
    hi: i32,
}

fn problems() -> impl Strategy<Value = Problem> {
    (
        // Most are small, so that an emulator gets through them; some have several blocks of any kernel.
        prop::collection::vec(1usize..40, 1..4),
        1usize..=MAX_MR,
        prop_oneof![3 => 1usize..=16, 1 => 1usize..=70],
        1usize..40,
        any::<u64>(),
        any::<(bool, bool)>(),
        prop_oneof![1e-7f32..1e-4, 1e-4f32..0.05, Just(1.0f32), Just(4096.0)],
        0i32..=255,
        prop_oneof![(0i32..=255, 0i32..=255), Just((0, 255))],
    )
        .prop_map(|(run_lens, m, channels, pixel_stride, seed, (extreme, residual), mult, zero_point, (a, b))| Problem {
            run_lens,
            m,
            channels,
            pixel_stride,
            seed,
            extreme,
            residual,
            mult,
            zero_point,
            lo: a.min(b),
            hi: a.max(b),
        })
}

/// SplitMix64: reproducible bytes from a seed.
pub(crate) fn random(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (*state ^ (*state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Runs the problem through `kernel`, tile by tile; bytes around the output must stay untouched.
/// Problem and result are in [`Domain::U8`]: for a kernel of signed bytes, bytes and zero points go down by 128.
fn solve(p: &Problem, kernel: &ConvKernel) -> Vec<u8> {
    let mut state = p.seed;
    let span: usize = p.run_lens.iter().map(|l| l + 3).sum();
    let (flip, shift) = match kernel.domain {
        Domain::U8 => (0, 0),
        Domain::S8 => (0x80, 128),
    };
    // Sums of extreme products are where narrow intermediates overflow.
    let byte = |state: &mut u64, extremes: [u8; 2]| {
        let r = random(state);
        if p.extreme && r >> 62 != 0 { extremes[usize::from(r & 15 == 0)] } else { r as u8 }
    };
    let input: Vec<u8> = (0..span + MAX_MR * p.pixel_stride + SLACK).map(|_| byte(&mut state, [0, 255]) ^ flip).collect();
    let residual: Vec<u8> = (0..MAX_MR * p.channels).map(|_| random(&mut state) as u8 ^ flip).collect();
    let mut weight = || byte(&mut state, [0x80, 0x7f]) as i8;
    let weights: Vec<Vec<Vec<i8>>> =
        (0..p.channels).map(|_| p.run_lens.iter().map(|&l| (0..l).map(|_| weight()).collect()).collect()).collect();
    let bias: Vec<i32> = weights
        .iter()
        .map(|w| random(&mut state) as i16 as i32 * 8 + shift * w.iter().flatten().map(|&w| i32::from(w)).sum::<i32>())
        .collect();
    let mult: Vec<f32> = (0..p.channels).map(|_| p.mult * (1.0 + (random(&mut state) % 1000) as f32 / 500.0)).collect();

    let mut offset = 0;
    let runs: Vec<Run> = p
        .run_lens
        .iter()
        .map(|&len| {
            let run = Run { offset, steps: len.div_ceil(kernel.kr) };
            offset += len + 3;
            run
        })
        .collect();
    let mut packed = pack_weights(kernel, p.channels, &p.run_lens, |o, r, k| weights[o][r][k]);
    // Both ways, however much there is.
    let apart = (kernel.pairs && p.seed & 1 == 0).then(|| excess::Excess::take_all(kernel, &mut packed, &runs));
    let block_len = packed.len() / p.channels.div_ceil(kernel.nr);
    let requant = Requant { zero_point: p.zero_point - shift, lo: (p.lo - p.zero_point) as f32, hi: (p.hi - p.zero_point) as f32 };
    let residual_params = p.residual.then_some(ResidualParams { zero_point: 255 - p.zero_point - shift, mult: 0.37 });
    let guard = 64;
    let mut out = vec![0xa5u8; guard + MAX_MR * p.channels + guard];
    for block in 0..p.channels.div_ceil(kernel.nr) {
        let first = block * kernel.nr;
        let n = (p.channels - first).min(kernel.nr);
        let mut block_bias = vec![0; kernel.nr];
        block_bias[..n].copy_from_slice(&bias[first..first + n]);
        let mut block_mult = vec![0.0; kernel.nr];
        block_mult[..n].copy_from_slice(&mult[first..first + n]);
        for start in (0..p.m).step_by(kernel.mr) {
            let m = (p.m - start).min(kernel.mr);
            let row = |i: usize| start + i.min(m - 1);
            let out_base = out.as_mut_ptr();
            let args = TileArgs {
                rows: std::array::from_fn(|i| input[row(i) * p.pixel_stride..].as_ptr()),
                residual: std::array::from_fn(|i| residual[row(i) * p.channels..].as_ptr()),
                out: std::array::from_fn(|i| out_base.wrapping_add(guard + row(i) * p.channels)),
                channel: first,
                runs: &runs,
                weights: &packed[block * block_len..][..block_len],
                excess: apart.as_ref().map(|e| excess::of_block(&e.ends, &e.offsets, &e.weights, block)),
                narrow: !packed[block * block_len..][..block_len].contains(&i8::MIN),
                saturates: requant.saturates(kernel.domain, &block_mult, residual_params.as_ref()),
                bias: &block_bias,
                mult: &block_mult,
                requant,
                residual_params,
                m,
                n,
            };
            // SAFETY: supported kernels only; buffers are sized for every row, run, slack and channel.
            unsafe { (kernel.run)(&args) };
        }
    }
    assert!(out[..guard].iter().chain(&out[guard + p.m * p.channels..]).all(|&b| b == 0xa5), "{}: wrote outside its tile", kernel.name);
    out[guard..guard + p.m * p.channels].iter().map(|b| b ^ flip).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(20_000))]
    #[test]
    fn kernels_equal_the_reference(p in problems()) {
        let expected = solve(&p, &reference::SCALAR);
        for kernel in registry().iter().filter(|k| (k.supported)() && k.isa != reference::SCALAR.isa) {
            prop_assert_eq!(&solve(&p, kernel), &expected, "{}", kernel.name);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]
    #[test]
    fn products_equal_the_reference(seed: u64, depth in 1..9usize, rows in 1..40usize, offset in 0..14usize) {
        for conv in registry().iter().filter(|k| (k.supported)()) {
            let Some(kernel) = conv.winograd else { continue };
            let (depth, offset) = (depth * LANES, offset % kernel.mr);
            let groups = (offset + rows).div_ceil(kernel.mr);
            let mut state = seed;
            let mut values = |n: usize| -> Vec<i16> { (0..n).map(|_| random(&mut state) as i16).collect() };
            let (v, u) = (values(kernel.mr * (groups * depth + LANES)), values(depth * kernel.nr + kernel.read_ahead));
            let (sums, guard) = (rows * kernel.nr, 64);
            let mut m = vec![-1; sums + guard];
            let group = kernel.mr * depth;
            let product = Product { v: v.as_ptr(), group, offset, rows, u: u.as_ptr(), m: m.as_mut_ptr(), depth };
            // SAFETY: a supported kernel's; operands are as large as they shall be.
            unsafe { (kernel.run)(product) };
            prop_assert_eq!(&m[..sums], &winograd::reference(&kernel, &v, &u, depth, offset, rows)[..], "{}", kernel.name);
            prop_assert!(m[sums..].iter().all(|&x| x == -1), "{}: wrote outside its tile", kernel.name);
        }
    }
}

#[test]
fn ties_round_to_even_and_clamp_saturates() {
    let r = Requant { zero_point: 10, lo: -10.0, hi: 245.0 };
    let results = [0.5, 1.5, 2.5, -0.5, -1.5, 1e9, -1e9].map(|v| r.quantize(v));
    assert_eq!(results, [10, 12, 12, 10, 8, 255, 0]);
}

#[test]
fn unknown_instruction_set_lists_the_choices() {
    let message = select(Some("mmx")).unwrap_err().to_string();
    assert!(message.contains("mmx") && message.contains("scalar"), "{message}");
    assert_eq!(select(Some("scalar")).unwrap().isa, "scalar");
}
