//! Constants in one form: little-endian bytes in `raw_data`, and their numbers where something computes with them.

use crate::import::onnx::{TensorProto, tensor_dims};
use crate::{Error, Result};
use tract_onnx::pb::tensor_proto::DataType;

/// ONNX element types by number, as `elem_type` and `data_type` store them.
pub const FLOAT: i32 = DataType::Float as i32;
/// See [`FLOAT`].
pub const INT64: i32 = DataType::Int64 as i32;
/// See [`FLOAT`].
pub const INT32: i32 = DataType::Int32 as i32;
/// See [`FLOAT`].
pub const INT8: i32 = DataType::Int8 as i32;
/// See [`FLOAT`].
pub const UINT8: i32 = DataType::Uint8 as i32;
/// See [`FLOAT`].
pub const BOOL: i32 = DataType::Bool as i32;

/// True for the floating-point types that become float32.
pub fn is_other_float(data_type: i32) -> bool {
    [DataType::Float16, DataType::Bfloat16, DataType::Double].iter().any(|t| *t as i32 == data_type)
}

/// Bytes of one element; `None` for strings, packed and unknown types.
pub fn width(data_type: i32) -> Option<usize> {
    Some(match DataType::try_from(data_type).ok()? {
        DataType::Uint8 | DataType::Int8 | DataType::Bool => 1,
        DataType::Float16 | DataType::Bfloat16 | DataType::Int16 | DataType::Uint16 => 2,
        DataType::Float | DataType::Int32 | DataType::Uint32 => 4,
        DataType::Double | DataType::Int64 | DataType::Uint64 => 8,
        _ => return None,
    })
}

/// Smallest and largest value of an integer type.
pub fn range(data_type: i32) -> Option<(i64, i64)> {
    Some(match DataType::try_from(data_type).ok()? {
        DataType::Uint8 => (0, 255),
        DataType::Int8 => (-128, 127),
        DataType::Uint16 => (0, 65535),
        DataType::Int16 => (-32768, 32767),
        DataType::Uint4 => (0, 15),
        DataType::Int4 => (-8, 7),
        DataType::Int32 => (i64::from(i32::MIN), i64::from(i32::MAX)),
        DataType::Uint32 => (0, i64::from(u32::MAX)),
        DataType::Int64 => (i64::MIN, i64::MAX),
        DataType::Bool => (0, 1),
        _ => return None,
    })
}

/// Moves the data of a validated tensor into `raw_data`.
pub fn to_raw(t: &mut TensorProto) {
    if !t.raw_data.is_empty() {
        return;
    }
    let low = |bytes: usize| t.int32_data.iter().flat_map(move |v| v.to_le_bytes().into_iter().take(bytes)).collect::<Vec<u8>>();
    let raw = match DataType::try_from(t.data_type) {
        Ok(DataType::Float) => t.float_data.iter().flat_map(|v| v.to_le_bytes()).collect(),
        Ok(DataType::Double) => t.double_data.iter().flat_map(|v| v.to_le_bytes()).collect(),
        Ok(DataType::Int64) => t.int64_data.iter().flat_map(|v| v.to_le_bytes()).collect(),
        Ok(DataType::Uint64) => t.uint64_data.iter().flat_map(|v| v.to_le_bytes()).collect(),
        Ok(DataType::Uint32) => t.uint64_data.iter().flat_map(|v| (*v as u32).to_le_bytes()).collect(),
        Ok(DataType::Uint4 | DataType::Int4 | DataType::Uint8 | DataType::Int8 | DataType::Bool) => low(1),
        Ok(DataType::Int16 | DataType::Uint16 | DataType::Float16 | DataType::Bfloat16) => low(2),
        Ok(DataType::Int32) => low(4),
        _ => return,
    };
    *t = raw_tensor(std::mem::take(&mut t.name), std::mem::take(&mut t.dims), t.data_type, raw);
}

/// A tensor of these bytes.
pub fn raw_tensor(name: String, dims: Vec<i64>, data_type: i32, raw_data: Vec<u8>) -> TensorProto {
    TensorProto { name, dims, data_type, raw_data, ..Default::default() }
}

/// The elements of a tensor, as they are computed with.
#[derive(Debug, Clone, PartialEq)]
pub enum Numbers {
    /// Of float32.
    Real(Vec<f32>),
    /// Of an integer type or bool.
    Whole(Vec<i64>),
}

/// Decodes a [raw](to_raw) tensor; `None` for other types than float32 and integers.
pub fn numbers(t: &TensorProto) -> Option<Numbers> {
    fn each<const N: usize>(raw: &[u8], f: impl Fn([u8; N]) -> i64) -> Vec<i64> {
        raw.as_chunks::<N>().0.iter().map(|b| f(*b)).collect()
    }
    let raw = t.raw_data.as_slice();
    Some(Numbers::Whole(match DataType::try_from(t.data_type).ok()? {
        DataType::Float => return Some(Numbers::Real(raw.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect())),
        DataType::Uint8 | DataType::Bool => each(raw, |[b]| i64::from(b)),
        DataType::Int8 => each(raw, |[b]| i64::from(b as i8)),
        DataType::Uint16 => each(raw, |b| i64::from(u16::from_le_bytes(b))),
        DataType::Int16 => each(raw, |b| i64::from(i16::from_le_bytes(b))),
        DataType::Int32 => each(raw, |b| i64::from(i32::from_le_bytes(b))),
        DataType::Uint32 => each(raw, |b| i64::from(u32::from_le_bytes(b))),
        DataType::Int64 => each(raw, i64::from_le_bytes),
        // Two to a byte, the first in the low half (ONNX IR, "TensorProto").
        kind @ (DataType::Uint4 | DataType::Int4) => {
            let signed = kind == DataType::Int4;
            let half = |h: u8| if signed && h > 7 { i64::from(h) - 16 } else { i64::from(h) };
            let count = tensor_dims(t).ok()?.iter().product();
            raw.iter().flat_map(|b| [half(b & 15), half(b >> 4)]).take(count).collect()
        }
        _ => return None,
    }))
}

/// Whole numbers of any integer type.
pub fn whole(t: &TensorProto) -> Option<Vec<i64>> {
    match numbers(t)? {
        Numbers::Whole(v) => Some(v),
        Numbers::Real(_) => None,
    }
}

/// Encodes numbers as a type; integers wrap as casts do. `None` for a type that cannot hold them.
pub fn encode(name: &str, dims: &[i64], data_type: i32, numbers: &Numbers) -> Option<TensorProto> {
    let raw: Vec<u8> = match numbers {
        Numbers::Real(v) if data_type == FLOAT => v.iter().flat_map(|v| v.to_le_bytes()).collect(),
        Numbers::Whole(v) if data_type != FLOAT => {
            let bytes = width(data_type)?;
            v.iter().flat_map(|v| v.to_le_bytes().into_iter().take(bytes)).collect()
        }
        _ => return None,
    };
    Some(raw_tensor(name.into(), dims.to_vec(), data_type, raw))
}

/// Makes float16, bfloat16 and float64 data float32.
pub fn to_f32(t: &mut TensorProto) -> Result<()> {
    if !is_other_float(t.data_type) {
        return Ok(());
    }
    to_raw(t);
    let halves = || t.raw_data.as_chunks::<2>().0.iter().map(|b| u16::from_le_bytes(*b));
    let values: Vec<f32> = match DataType::try_from(t.data_type) {
        Ok(DataType::Float16) => halves().map(half_to_f32).collect(),
        Ok(DataType::Bfloat16) => halves().map(|b| f32::from_bits(u32::from(b) << 16)).collect(),
        _ => t.raw_data.as_chunks::<8>().0.iter().map(|b| f64::from_le_bytes(*b) as f32).collect(),
    };
    if values.iter().any(|v| !v.is_finite()) {
        return Err(Error::tensor(&t.name, "it holds values that float32 does not; the training probably diverged"));
    }
    t.raw_data = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    t.data_type = FLOAT;
    Ok(())
}

/// IEEE 754 binary16 to binary32, exactly.
pub fn half_to_f32(bits: u16) -> f32 {
    let sign = u32::from(bits >> 15) << 31;
    let (exponent, fraction) = (u32::from(bits >> 10) & 31, u32::from(bits & 0x3ff));
    match exponent {
        0 => {
            let value = fraction as f32 * (1.0 / (1 << 24) as f32);
            f32::from_bits(value.to_bits() | sign)
        }
        31 => f32::from_bits(sign | 0x7f80_0000 | fraction << 13),
        e => f32::from_bits(sign | (e + 112) << 23 | fraction << 13),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_keep_their_values() {
        for (bits, value) in
            [(0x3c00, 1.0), (0xc000, -2.0), (0x0001, 2f32.powi(-24)), (0x7bff, 65504.0), (0x8000, -0.0), (0x03ff, 1023.0 / 16777216.0)]
        {
            assert_eq!(half_to_f32(bits).to_bits(), f32::to_bits(value));
        }
        assert!(half_to_f32(0x7c00).is_infinite() && half_to_f32(0x7e00).is_nan());
        let mut t = TensorProto { dims: vec![1], data_type: DataType::Bfloat16 as i32, int32_data: vec![0x3fc0], ..Default::default() };
        to_f32(&mut t).unwrap();
        assert_eq!(numbers(&t), Some(Numbers::Real(vec![1.5])));
        let mut t = TensorProto { dims: vec![1], data_type: DataType::Double as i32, double_data: vec![1e300], ..Default::default() };
        assert!(to_f32(&mut t).is_err());
    }

    #[test]
    fn numbers_survive_their_encoding() {
        for kind in [INT8, UINT8, INT32, INT64, DataType::Int16 as i32, DataType::Uint16 as i32, DataType::Uint32 as i32] {
            let (lo, hi) = range(kind).unwrap();
            let v = Numbers::Whole(vec![lo, 0, 1, hi]);
            assert_eq!(numbers(&encode("t", &[4], kind, &v).unwrap()), Some(v));
        }
        let packed = raw_tensor("t".into(), vec![3], DataType::Int4 as i32, vec![0x8f, 0x07]);
        assert_eq!(whole(&packed), Some(vec![-1, -8, 7]));
    }
}
