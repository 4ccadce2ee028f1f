//! torchvision's initialisation, reproducible by seed.

use crate::network::{Network, Role};
use rand_core::SeedableRng;
use rand_distr::{Distribution, StandardNormal, Uniform};
use rand_xorshift::XorShiftRng;

/// Values of every parameter, in [`Network::parameters`] order.
///
/// Convolutions are Kaiming-normal with fan-out and ReLU's gain: σ = √(2 / (O·K·K)). The classifier's weights and bias are
/// uniform within ±1/√features, as `torch.nn.Linear` has it. Convolution biases are 0. BatchNorm starts as the identity;
/// with `zero_init_residual` the last γ of each residual branch is 0. `tick` is called after each tensor.
pub fn initialise(network: &Network, seed: u64, zero_init_residual: bool, mut tick: impl FnMut()) -> Vec<Vec<f32>> {
    let mut rng = XorShiftRng::seed_from_u64(seed);
    let mut values = |role: Role, dims: &[usize]| -> Vec<f32> {
        let n = dims.iter().product();
        let mut uniform = |fan_in: usize| {
            let bound = 1.0 / (fan_in as f32).sqrt();
            let distribution = Uniform::new_inclusive(-bound, bound).ok();
            (0..n).map(|_| distribution.map_or(0.0, |d| d.sample(&mut rng))).collect()
        };
        match role {
            Role::LinearWeight => uniform(dims[1]),
            Role::LinearBias { fan_in } => uniform(fan_in),
            Role::ConvWeight => {
                let sigma = (2.0 / (dims[0] * dims[2] * dims[3]) as f64).sqrt() as f32;
                (0..n).map(|_| sigma * Distribution::<f32>::sample(&StandardNormal, &mut rng)).collect()
            }
            Role::Gamma { last } => vec![if last && zero_init_residual { 0.0 } else { 1.0 }; n],
            Role::Variance => vec![1.0; n],
            Role::ConvBias | Role::Beta | Role::Mean => vec![0.0; n],
        }
    };
    let fill = |p: &crate::network::Parameter| {
        let v = values(p.role, &p.dims);
        tick();
        v
    };
    network.parameters().map(fill).collect()
}
