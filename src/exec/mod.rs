//! Runs a [`Program`]: persistent threads walk its steps together over one arena.
//!
//! A steady-state inference allocates nothing.

#![allow(unsafe_code)]

mod file;
mod pool;
mod program;

pub use file::{Compiled, Fingerprint, is_compiled, open, save};
pub use pool::{Barrier, Poisoned, Pool};
pub(crate) use program::Parts;
pub use program::Program;

use crate::ops::Step;
use crate::pixels::Pixels;
use crate::program::{Context, Memory, StepOp};
use crate::{Error, Result};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// One 64-byte cache line, so that a `Vec` of them is aligned.
#[derive(Clone, Copy)]
#[repr(align(64))]
struct Line(#[allow(dead_code)] [u8; 64]);

/// A program with its memory and threads.
pub struct Executor {
    program: Arc<Program>,
    arena: Vec<Line>,
    /// One after another, a thread's own.
    scratch: Vec<Line>,
    outputs: Vec<Vec<f32>>,
    /// First value of each of them, made anew for every inference.
    output_pointers: Vec<Pointer>,
    pool: Arc<Pool>,
}

/// Where an output lies. Threads get it as a number, since several `&mut` to one `Vec` must not be.
#[derive(Clone, Copy)]
#[repr(transparent)]
struct Pointer(*mut f32);

// SAFETY: it is only followed during `Executor::execute`, which has the executor to itself.
unsafe impl Send for Pointer {}
// SAFETY: as above.
unsafe impl Sync for Pointer {}

impl Executor {
    /// Allocates the arena and the outputs.
    pub fn new(program: Arc<Program>, pool: Arc<Pool>) -> Self {
        let arena = vec![Line([0; 64]); program.arena_bytes().div_ceil(64)];
        let outputs: Vec<Vec<f32>> = program.targets().iter().map(|p| vec![0.0; p.values()]).collect();
        let scratch = vec![Line([0; 64]); pool.threads() * program.scratch_bytes().div_ceil(64)];
        let output_pointers = vec![Pointer(std::ptr::null_mut()); outputs.len()];
        Executor { program, arena, scratch, outputs, output_pointers, pool }
    }

    /// The program.
    pub fn program(&self) -> &Arc<Program> {
        &self.program
    }

    /// The program, without the memory it ran in.
    pub fn into_program(self) -> Arc<Program> {
        self.program
    }

    /// One inference: `inputs` as [`Program::sources`] says, results as [`Program::targets`] says.
    pub fn run(&mut self, inputs: &[&[f32]]) -> Result<&[Vec<f32>]> {
        self.execute(inputs, None, None)
    }

    /// As [`Executor::run`], for a program of one input, which is a picture: the same results as of its values, sooner.
    pub fn run_pixels(&mut self, pixels: &Pixels<'_>) -> Result<&[Vec<f32>]> {
        match self.program.sources() {
            [source] => pixels.check(&source.shape)?,
            sources => return Err(Error::Shape(format!("one picture given, {} inputs expected", sources.len()))),
        }
        self.execute(&[], Some(pixels), None)
    }

    /// As [`Executor::run`]; `times` receives how long each step took, waiting for the slowest thread included.
    pub fn run_profiled(&mut self, inputs: &[&[f32]], times: &mut Vec<Duration>) -> Result<&[Vec<f32>]> {
        times.clear();
        times.resize(self.program.step_count(), Duration::ZERO);
        self.execute(inputs, None, Some(times))
    }

    /// `pixels` have been checked; without them, `inputs` are here.
    fn execute(&mut self, inputs: &[&[f32]], pixels: Option<&Pixels<'_>>, times: Option<&mut [Duration]>) -> Result<&[Vec<f32>]> {
        let program = &*self.program;
        if pixels.is_none() && inputs.len() != program.sources().len() {
            return Err(Error::Shape(format!("{} inputs given, {} expected", inputs.len(), program.sources().len())));
        }
        for (input, port) in inputs.iter().zip(program.sources()) {
            if input.len() != port.values() {
                return Err(Error::Shape(format!(
                    "input `{}` has {} values; its shape {:?} has {}",
                    port.name,
                    input.len(),
                    port.shape,
                    port.values()
                )));
            }
        }
        for (pointer, output) in self.output_pointers.iter_mut().zip(&mut self.outputs) {
            *pointer = Pointer(output.as_mut_ptr());
        }
        let memory = Memory {
            arena: self.arena.as_mut_ptr().cast(),
            scratch: self.scratch.as_mut_ptr().cast(),
            inputs: inputs.as_ptr().cast(),
            pixels: pixels.map_or(std::ptr::null(), |p| std::ptr::from_ref(p).cast()),
            outputs: self.output_pointers.as_ptr().cast(),
        };
        let scratch_stride = program.scratch_bytes().next_multiple_of(64);
        let threads = self.pool.threads();
        // Only thread 0 looks at the clock.
        let times = Mutex::new(times);
        self.pool
            .run(&|thread, barrier: &Barrier| {
                // SAFETY: the scratch was allocated for this many threads.
                let memory = unsafe { memory.of_thread(thread, scratch_stride) };
                let context = Context { kernel: program.kernel(), memory, thread, threads };
                let mut times = if thread == 0 { times.lock().ok() } else { None };
                let mut clock = times.as_ref().and_then(|t| t.is_some().then(Instant::now));
                for (index, step) in program.parts().steps.iter().enumerate() {
                    // SAFETY: a program's steps have been checked for its memory, lengths were checked above, and the barrier separates steps;
                    // `inputs`, `pixels` and `outputs` outlive `Pool::run`.
                    unsafe { run(step, &context) };
                    if barrier.wait().is_err() {
                        return;
                    }
                    if let (Some(last), Some(Some(times))) = (&mut clock, times.as_deref_mut()) {
                        let now = Instant::now();
                        times[index] = now - *last;
                        *last = now;
                    }
                }
            })
            .map_err(|Poisoned| Error::Shape("a worker thread failed inside a kernel; this is a bug in edge-infer".into()))?;
        Ok(&self.outputs)
    }
}

/// One thread's share of a step.
///
/// # Safety
/// As [`StepOp::run`].
unsafe fn run(step: &Step, cx: &Context<'_>) {
    // SAFETY: the halo is the output's, and one thread's alone; the rest as promised.
    unsafe {
        if let Some(dst) = step.dst()
            && cx.thread == 0
        {
            cx.fill_halo(dst);
        }
        step.run(cx);
    }
}
