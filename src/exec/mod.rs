//! Runs a [`Program`]: persistent threads walk its steps together over one arena.
//!
//! A steady-state inference allocates nothing.

#![allow(unsafe_code)]

mod pixels;
mod pool;
mod steps;
mod winograd;

pub use pixels::Pixels;
pub use pool::{Barrier, Poisoned, Pool};

use crate::plan::Program;
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
    pool: Arc<Pool>,
}

/// What the threads of one inference share. Every byte is written by one thread a step, and read by others
/// only after the barrier that ends the step; each thread has its own scratch.
#[derive(Clone, Copy)]
struct Memory {
    arena: *mut u8,
    scratch: *mut u8,
    inputs: *const &'static [f32],
    /// What takes the place of the only input, or null.
    pixels: *const Pixels<'static>,
    outputs: *mut Vec<f32>,
}

// SAFETY: the pointers are used under the rule above, which steps and the barrier uphold.
unsafe impl Send for Memory {}
// SAFETY: as above.
unsafe impl Sync for Memory {}

impl Memory {
    /// # Safety
    /// The scratch holds at least `thread + 1` strides.
    unsafe fn of_thread(&self, thread: usize, scratch_stride: usize) -> Memory {
        // SAFETY: as promised.
        Memory { scratch: unsafe { self.scratch.add(thread * scratch_stride) }, ..*self }
    }
}

impl Executor {
    /// Allocates the arena and the outputs.
    pub fn new(program: Arc<Program>, pool: Arc<Pool>) -> Self {
        let arena = vec![Line([0; 64]); program.arena_bytes.div_ceil(64)];
        let outputs = program.targets.iter().map(|p| vec![0.0; p.shape.iter().product()]).collect();
        let scratch = vec![Line([0; 64]); pool.threads() * program.scratch_bytes.div_ceil(64)];
        Executor { program, arena, scratch, outputs, pool }
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
        match &self.program.sources[..] {
            [source] => pixels.check(&source.shape)?,
            sources => return Err(Error::Shape(format!("one picture given, {} inputs expected", sources.len()))),
        }
        self.execute(&[], Some(pixels), None)
    }

    /// As [`Executor::run`]; `times` receives how long each step took, waiting for the slowest thread included.
    pub fn run_profiled(&mut self, inputs: &[&[f32]], times: &mut Vec<Duration>) -> Result<&[Vec<f32>]> {
        times.clear();
        times.resize(self.program.steps.len(), Duration::ZERO);
        self.execute(inputs, None, Some(times))
    }

    /// `pixels` have been checked; without them, `inputs` are here.
    fn execute(&mut self, inputs: &[&[f32]], pixels: Option<&Pixels<'_>>, times: Option<&mut [Duration]>) -> Result<&[Vec<f32>]> {
        let program = &*self.program;
        if pixels.is_none() && inputs.len() != program.sources.len() {
            return Err(Error::Shape(format!("{} inputs given, {} expected", inputs.len(), program.sources.len())));
        }
        for (input, port) in inputs.iter().zip(&program.sources) {
            if input.len() != port.shape.iter().product::<usize>() {
                return Err(Error::Shape(format!(
                    "input `{}` has {} values; its shape {:?} has {}",
                    port.name,
                    input.len(),
                    port.shape,
                    port.shape.iter().product::<usize>()
                )));
            }
        }
        let memory = Memory {
            arena: self.arena.as_mut_ptr().cast(),
            scratch: self.scratch.as_mut_ptr().cast(),
            inputs: inputs.as_ptr().cast(),
            pixels: pixels.map_or(std::ptr::null(), |p| std::ptr::from_ref(p).cast()),
            outputs: self.outputs.as_mut_ptr(),
        };
        let scratch_stride = program.scratch_bytes.next_multiple_of(64);
        let threads = self.pool.threads();
        // Only thread 0 looks at the clock.
        let times = Mutex::new(times);
        self.pool
            .run(&|thread, barrier: &Barrier| {
                // SAFETY: the scratch was allocated for this many threads.
                let memory = unsafe { memory.of_thread(thread, scratch_stride) };
                let mut times = if thread == 0 { times.lock().ok() } else { None };
                let mut clock = times.as_ref().and_then(|t| t.is_some().then(Instant::now));
                for (index, step) in program.steps.iter().enumerate() {
                    // SAFETY: the plan's addresses lie in the arena, lengths were checked above, and the barrier
                    // separates steps; `inputs`, `pixels` and `outputs` outlive `Pool::run`.
                    unsafe { steps::run(program.kernel, step, &memory, thread, threads) };
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
