//! Functions of one real value: ONNX's unary operators, and what exporters compose of them.

use crate::graph::QuantParams;

/// A function of one real value. Its value is computed in f64 and rounded to f32, unless it says otherwise.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Function {
    /// |x|
    Abs,
    /// max(0, x) + min(0, α·(e^(x/α) − 1))
    Celu {
        /// α
        alpha: f32,
    },
    /// min(hi, max(lo, x))
    Clip {
        /// Lower bound.
        lo: f32,
        /// Upper bound.
        hi: f32,
    },
    /// x, or α·(eˣ − 1) below 0
    Elu {
        /// α
        alpha: f32,
    },
    /// The error function.
    Erf,
    /// eˣ
    Exp,
    /// x·Φ(x), with the normal distribution's Φ(x) = (1 + erf(x/√2)) / 2
    Gelu,
    /// Gelu by x·(1 + tanh(√(2/π)·(x + 0.044715·x³))) / 2
    GeluTanh,
    /// max(0, min(1, α·x + β)), in f32
    HardSigmoid {
        /// Slope.
        alpha: f32,
        /// Value at 0.
        beta: f32,
    },
    /// x, or α·x below 0
    LeakyRelu {
        /// α
        alpha: f32,
    },
    /// Natural logarithm.
    Log,
    /// x·tanh(ln(1 + eˣ))
    Mish,
    /// −x
    Neg,
    /// 1 / x
    Reciprocal,
    /// γ·x, or γ·α·(eˣ − 1) up to 0
    Selu {
        /// α
        alpha: f32,
        /// γ
        gamma: f32,
    },
    /// 1 / (1 + e⁻ˣ)
    Sigmoid,
    /// ln(1 + eˣ)
    Softplus,
    /// x / (1 + |x|)
    Softsign,
    /// √x
    Sqrt,
    /// Hyperbolic tangent.
    Tanh,
}

impl Function {
    /// Its value at `x`.
    pub fn at(self, x: f32) -> f32 {
        let v = f64::from(x);
        let softplus = |v: f64| v.max(0.0) + (-v.abs()).exp().ln_1p();
        let y = match self {
            Function::Abs => v.abs(),
            Function::Celu { alpha } => v.max(0.0) + (f64::from(alpha) * (v / f64::from(alpha)).exp_m1()).min(0.0),
            Function::Clip { lo, hi } => return x.max(lo).min(hi),
            Function::Elu { alpha } if v < 0.0 => f64::from(alpha) * v.exp_m1(),
            Function::Elu { .. } => v,
            Function::Erf => libm::erf(v),
            Function::Exp => v.exp(),
            Function::Gelu => 0.5 * v * (1.0 + libm::erf(v * std::f64::consts::FRAC_1_SQRT_2)),
            Function::GeluTanh => {
                let inner = std::f64::consts::FRAC_2_PI.sqrt() * (v + 0.044715 * v.powi(3));
                0.5 * v * (1.0 + inner.tanh())
            }
            Function::HardSigmoid { alpha, beta } => return (alpha * x + beta).clamp(0.0, 1.0),
            Function::LeakyRelu { alpha } if v < 0.0 => f64::from(alpha) * v,
            Function::LeakyRelu { .. } => v,
            Function::Log => v.ln(),
            Function::Mish => v * softplus(v).tanh(),
            Function::Neg => -v,
            Function::Reciprocal => 1.0 / v,
            Function::Selu { alpha, gamma } if v <= 0.0 => f64::from(gamma) * f64::from(alpha) * v.exp_m1(),
            Function::Selu { gamma, .. } => f64::from(gamma) * v,
            Function::Sigmoid => 1.0 / (1.0 + (-v).exp()),
            Function::Softplus => softplus(v),
            Function::Softsign => v / (1.0 + v.abs()),
            Function::Sqrt => v.sqrt(),
            Function::Tanh => v.tanh(),
        };
        y as f32
    }

    /// ONNX's name.
    pub fn name(self) -> &'static str {
        match self {
            Function::Abs => "Abs",
            Function::Celu { .. } => "Celu",
            Function::Clip { .. } => "Clip",
            Function::Elu { .. } => "Elu",
            Function::Erf => "Erf",
            Function::Exp => "Exp",
            Function::Gelu | Function::GeluTanh => "Gelu",
            Function::HardSigmoid { .. } => "HardSigmoid",
            Function::LeakyRelu { .. } => "LeakyRelu",
            Function::Log => "Log",
            Function::Mish => "Mish",
            Function::Neg => "Neg",
            Function::Reciprocal => "Reciprocal",
            Function::Selu { .. } => "Selu",
            Function::Sigmoid => "Sigmoid",
            Function::Softplus => "Softplus",
            Function::Softsign => "Softsign",
            Function::Sqrt => "Sqrt",
            Function::Tanh => "Tanh",
        }
    }
}

/// Arithmetic on two values of one expression, in f32.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arithmetic {
    /// a + b
    Add,
    /// a − b
    Sub,
    /// a · b
    Mul,
    /// a / b
    Div,
    /// aᵇ, computed in f64
    Pow,
}

impl Arithmetic {
    fn at(self, a: f32, b: f32) -> f32 {
        match self {
            Arithmetic::Add => a + b,
            Arithmetic::Sub => a - b,
            Arithmetic::Mul => a * b,
            Arithmetic::Div => a / b,
            Arithmetic::Pow => f64::from(a).powf(b.into()) as f32,
        }
    }
}

/// An expression in one real value x; what each operator makes is rounded to f32, as a float runtime does it.
#[derive(Debug, Clone, PartialEq)]
pub enum Expression {
    /// x itself.
    X,
    /// A number.
    Constant(f32),
    /// A function of an expression.
    Of(Function, Box<Expression>),
    /// Arithmetic on two expressions.
    Pair(Arithmetic, Box<[Expression; 2]>),
    /// An expression that is quantized and dequantized again.
    Rounded(QuantParams, Box<Expression>),
}

/// Most nodes of an expression: a model that says more has it left to tract. It also bounds how deep expressions are nested.
pub const MAX_NODES: usize = 64;

impl Expression {
    /// A function of x.
    pub fn of(function: Function) -> Self {
        Expression::Of(function, Box::new(Expression::X))
    }

    /// a op b.
    pub fn pair(op: Arithmetic, a: Expression, b: Expression) -> Self {
        Expression::Pair(op, Box::new([a, b]))
    }

    /// x · max(0, min(1, x/6 + 1/2)), ONNX `HardSwish`.
    pub fn hard_swish() -> Self {
        let gate = Function::HardSigmoid { alpha: 1.0 / 6.0, beta: 0.5 };
        Expression::pair(Arithmetic::Mul, Expression::X, Expression::of(gate))
    }

    /// Its value at `x`.
    pub fn at(&self, x: f32) -> f32 {
        match self {
            Expression::X => x,
            Expression::Constant(c) => *c,
            Expression::Of(function, e) => function.at(e.at(x)),
            Expression::Pair(op, pair) => op.at(pair[0].at(x), pair[1].at(x)),
            Expression::Rounded(q, e) => {
                let (min, max) = q.dtype.range();
                let zero = q.zero_point as f32;
                (((e.at(x) / q.scale).round_ties_even() + zero).clamp(min as f32, max as f32) - zero) * q.scale
            }
        }
    }

    /// How many nodes it has.
    pub fn nodes(&self) -> usize {
        match self {
            Expression::X | Expression::Constant(_) => 1,
            Expression::Of(_, e) | Expression::Rounded(_, e) => 1 + e.nodes(),
            Expression::Pair(_, pair) => 1 + pair[0].nodes() + pair[1].nodes(),
        }
    }

    /// Its name in reports: ONNX's, where ONNX has it.
    pub fn name(&self) -> &'static str {
        match self {
            Expression::X => "Identity",
            Expression::Constant(_) => "Constant",
            Expression::Of(function, e) if **e == Expression::X => function.name(),
            Expression::Rounded(_, e) => e.name(),
            Expression::Pair(Arithmetic::Mul, pair) => match (&pair[0], pair[1].name()) {
                (Expression::X, "Sigmoid") => "SiLU",
                (Expression::X, "HardSigmoid") => "HardSwish",
                _ => "Function",
            },
            Expression::Of(..) | Expression::Pair(..) => "Function",
        }
    }
}
