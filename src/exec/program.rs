//! A region, ready to run. Only what has been proven to stay inside its memory is one.

use crate::graph::Port;
use crate::kernels::ConvKernel;
use crate::ops::{Step, StepInfo};
use crate::program::{Check, Checker, MAX_ARENA, StepOp, ensure};
use serde::{Deserialize, Serialize};

/// No thread needs more scratch.
const MAX_SCRATCH: usize = 1 << 28;

/// What a program is made of, not yet checked.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Parts {
    /// Kernels.
    #[serde(with = "super::file::kernel_name")]
    pub kernel: &'static ConvKernel,
    /// In execution order.
    pub steps: Vec<Step>,
    /// One for each step.
    pub info: Vec<StepInfo>,
    /// Size of the arena, slack included.
    pub arena_bytes: usize,
    /// Float inputs.
    pub sources: Vec<Port>,
    /// Float outputs.
    pub targets: Vec<Port>,
}

/// A region, ready to run: steps over one arena.
///
/// Steps and kernels trust their addresses, so there is one way to a program: `Program::new`, which proves every address that any step can
/// form. Planner and file reader both go through it, and nobody can change a program afterwards.
#[derive(Debug)]
pub struct Program {
    parts: Parts,
    scratch_bytes: usize,
}

impl Program {
    /// Checks every step; or says which one could leave its memory, and how.
    pub(crate) fn new(parts: Parts) -> Result<Self, String> {
        ensure(parts.arena_bytes <= MAX_ARENA, "its arena is too large")?;
        ensure(parts.info.len() == parts.steps.len(), "steps and their descriptions differ in number")?;
        for port in parts.sources.iter().chain(&parts.targets) {
            let in_range = port.values() <= MAX_ARENA / size_of::<f32>() && port.shape.iter().all(|&d| d > 0);
            ensure(in_range, "a port's shape is out of range")?;
        }
        let Parts { kernel, arena_bytes, sources, targets, .. } = &parts;
        let checker = Checker { kernel, arena_bytes: *arena_bytes, sources, targets };
        let mut scratch_bytes = 0;
        for (step, info) in parts.steps.iter().zip(&parts.info) {
            let check = || -> Check {
                step.check(&checker)?;
                // The sizes that it follows from are in range by now.
                ensure(step.scratch_bytes() <= MAX_SCRATCH, "its scratch is too large")
            };
            check().map_err(|why| format!("step `{}`: {why}", info.name))?;
            scratch_bytes = scratch_bytes.max(step.scratch_bytes());
        }
        Ok(Program { parts, scratch_bytes })
    }

    /// The instruction set of its kernels.
    pub fn isa(&self) -> &'static str {
        self.parts.kernel.isa
    }

    /// Size of the arena, bytes.
    pub fn arena_bytes(&self) -> usize {
        self.parts.arena_bytes
    }

    /// Scratch of each thread, bytes.
    pub fn scratch_bytes(&self) -> usize {
        self.scratch_bytes
    }

    /// Float inputs.
    pub fn sources(&self) -> &[Port] {
        &self.parts.sources
    }

    /// Float outputs.
    pub fn targets(&self) -> &[Port] {
        &self.parts.targets
    }

    /// Number of steps.
    pub fn step_count(&self) -> usize {
        self.parts.steps.len()
    }

    /// The kernel that each step runs on, by name.
    pub fn kernels(&self) -> impl Iterator<Item = &str> {
        self.parts.info.iter().map(|i| i.kernel.as_str())
    }

    /// The operators of each step, by name.
    pub fn operators(&self) -> impl Iterator<Item = &str> {
        self.parts.info.iter().map(|i| i.op.as_str())
    }

    pub(crate) fn kernel(&self) -> &'static ConvKernel {
        self.parts.kernel
    }

    pub(crate) fn info(&self) -> &[StepInfo] {
        &self.parts.info
    }

    pub(super) fn parts(&self) -> &Parts {
        &self.parts
    }

    pub(super) fn into_parts(self) -> Parts {
        self.parts
    }
}
