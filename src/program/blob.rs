//! Arrays of plain numbers that are either owned or a part of a mapped file.
#![allow(unsafe_code)]

use crate::{Error, Result};
use memmap2::Mmap;
use std::fmt;
use std::marker::PhantomData;
use std::ops::{Deref, Range};
use std::sync::Arc;

/// Numbers of which every bit pattern is valid.
pub trait Plain: Copy + Send + Sync + 'static {}
impl Plain for u8 {}
impl Plain for i8 {}
impl Plain for i16 {}
impl Plain for i32 {}
impl Plain for f32 {}

/// An array of numbers.
pub struct Blob<T: Plain>(Storage<T>);

enum Storage<T> {
    Owned(Vec<T>),
    Mapped { file: Arc<Mmap>, bytes: Range<usize>, of: PhantomData<T> },
}

impl<T: Plain> Deref for Blob<T> {
    type Target = [T];

    #[inline]
    fn deref(&self) -> &[T] {
        match &self.0 {
            Storage::Owned(values) => values,
            Storage::Mapped { file, bytes, .. } => {
                // SAFETY: `AnyBlob::map` checked range and alignment, and T is plain.
                unsafe { std::slice::from_raw_parts(file.as_ptr().add(bytes.start).cast(), bytes.len() / size_of::<T>()) }
            }
        }
    }
}

impl<T: Plain> Default for Blob<T> {
    fn default() -> Self {
        Blob(Storage::Owned(Vec::new()))
    }
}

impl<T: Plain> From<Vec<T>> for Blob<T> {
    fn from(values: Vec<T>) -> Self {
        Blob(Storage::Owned(values))
    }
}

impl<T: Plain + fmt::Debug> fmt::Debug for Blob<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{}; {}]", std::any::type_name::<T>(), self.len())
    }
}

/// A [`Blob`] of any type, as bytes.
pub trait AnyBlob {
    /// Its bytes, in the machine's order.
    fn bytes(&self) -> &[u8];

    /// Makes it the part `bytes` of `file`.
    fn map(&mut self, file: &Arc<Mmap>, bytes: Range<usize>) -> Result<()>;

    /// Makes it a copy of its own.
    fn copy(&mut self);
}

impl<T: Plain> AnyBlob for Blob<T> {
    fn bytes(&self) -> &[u8] {
        // SAFETY: plain numbers without padding.
        unsafe { std::slice::from_raw_parts(self.as_ptr().cast(), size_of_val::<[T]>(self)) }
    }

    fn map(&mut self, file: &Arc<Mmap>, bytes: Range<usize>) -> Result<()> {
        let in_file = bytes.start <= bytes.end && bytes.end <= file.len();
        if !in_file
            || !bytes.len().is_multiple_of(size_of::<T>())
            || !(file.as_ptr() as usize + bytes.start).is_multiple_of(align_of::<T>())
        {
            return Err(Error::InvalidModel(format!("compiled program: array at bytes {bytes:?} of {} does not fit", file.len())));
        }
        self.0 = Storage::Mapped { file: file.clone(), bytes, of: PhantomData };
        Ok(())
    }

    fn copy(&mut self) {
        self.0 = Storage::Owned(self.to_vec());
    }
}
