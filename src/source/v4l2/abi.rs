//! The kernel's interface: structures and numbers of `linux/videodev2.h`
//! (<https://docs.kernel.org/userspace-api/media/v4l/v4l2.html>), as far as cameras need them.
#![allow(unsafe_code)]

use rustix::ioctl::{Setter, Updater, ioctl, opcode};
use std::ffi::{c_int, c_long};
use std::io;
use std::os::fd::BorrowedFd;
use std::time::Duration;

/// `V4L2_BUF_TYPE_VIDEO_CAPTURE`.
pub const CAPTURE: u32 = 1;
/// `V4L2_MEMORY_MMAP`.
pub const MMAP: u32 = 1;
/// `V4L2_FIELD_NONE`: progressive.
pub const PROGRESSIVE: u32 = 1;

/// `V4L2_CAP_*`.
pub mod cap {
    pub const VIDEO_CAPTURE: u32 = 1;
    pub const VIDEO_CAPTURE_MPLANE: u32 = 0x1000;
    pub const STREAMING: u32 = 0x0400_0000;
    pub const DEVICE_CAPS: u32 = 0x8000_0000;
    /// Of [`super::StreamParm::capability`].
    pub const TIME_PER_FRAME: u32 = 0x1000;
}

/// `V4L2_BUF_FLAG_*`.
pub mod buffer_flag {
    pub const ERROR: u32 = 0x40;
    pub const TIMESTAMP_MASK: u32 = 0xE000;
    pub const TIMESTAMP_MONOTONIC: u32 = 0x2000;
}

/// `V4L2_CTRL_FLAG_*`.
pub mod control_flag {
    pub const DISABLED: u32 = 1;
    pub const READ_ONLY: u32 = 4;
    pub const NEXT: u32 = 0x8000_0000;
}

/// `V4L2_FRMSIZE_TYPE_DISCRETE` and `V4L2_FRMIVAL_TYPE_DISCRETE`.
pub const DISCRETE: u32 = 1;

/// `struct v4l2_capability`.
#[repr(C)]
#[derive(Default)]
pub struct Capability {
    pub driver: [u8; 16],
    pub card: [u8; 32],
    pub bus_info: [u8; 32],
    pub version: u32,
    pub capabilities: u32,
    pub device_caps: u32,
    pub reserved: [u32; 3],
}

/// `struct v4l2_fmtdesc`.
#[repr(C)]
#[derive(Default)]
pub struct FmtDesc {
    pub index: u32,
    pub kind: u32,
    pub flags: u32,
    pub description: [u8; 32],
    pub pixelformat: u32,
    pub mbus_code: u32,
    pub reserved: [u32; 3],
}

/// `struct v4l2_format` with its `v4l2_pix_format`; the union is as aligned as a pointer.
#[repr(C)]
#[derive(Default)]
pub struct Format {
    pub kind: u32,
    pub align: [usize; 0],
    pub pix: PixFormat,
    pub rest: [[u32; 19]; 2],
}

/// `struct v4l2_pix_format`.
#[repr(C)]
#[derive(Default, Clone, Copy)]
pub struct PixFormat {
    pub width: u32,
    pub height: u32,
    pub pixelformat: u32,
    pub field: u32,
    pub bytesperline: u32,
    pub sizeimage: u32,
    pub colorspace: u32,
    pub private: u32,
    pub flags: u32,
    pub ycbcr_enc: u32,
    pub quantization: u32,
    pub xfer_func: u32,
}

/// `struct v4l2_requestbuffers`.
#[repr(C)]
#[derive(Default)]
pub struct RequestBuffers {
    pub count: u32,
    pub kind: u32,
    pub memory: u32,
    pub capabilities: u32,
    pub flags: u32,
}

/// `struct v4l2_buffer`; its union, as large as a pointer, holds the offset of memory-mapped buffers.
#[repr(C)]
#[derive(Default)]
pub struct Buffer {
    pub index: u32,
    pub kind: u32,
    pub bytesused: u32,
    pub flags: u32,
    pub field: u32,
    /// Seconds and microseconds.
    pub timestamp: [c_long; 2],
    pub timecode: [u32; 4],
    pub sequence: u32,
    pub memory: u32,
    pub align: [usize; 0],
    pub offset: [u32; size_of::<usize>() / 4],
    pub length: u32,
    pub reserved: u32,
    pub request_fd: u32,
}

/// `struct v4l2_frmsizeenum`.
#[repr(C)]
#[derive(Default)]
pub struct FrameSize {
    pub index: u32,
    pub pixelformat: u32,
    pub kind: u32,
    /// Width and height; or of both the least, the largest and the step.
    pub values: [u32; 6],
    pub reserved: [u32; 2],
}

/// `struct v4l2_frmivalenum`.
#[repr(C)]
#[derive(Default)]
pub struct FrameInterval {
    pub index: u32,
    pub pixelformat: u32,
    pub width: u32,
    pub height: u32,
    pub kind: u32,
    /// A fraction of a second; or three, the least, the largest and the step.
    pub values: [u32; 6],
    pub reserved: [u32; 2],
}

/// `struct v4l2_streamparm` with its `v4l2_captureparm`.
#[repr(C)]
#[derive(Default)]
pub struct StreamParm {
    pub kind: u32,
    pub capability: u32,
    pub capturemode: u32,
    /// A fraction of a second.
    pub time_per_frame: [u32; 2],
    pub extendedmode: u32,
    pub readbuffers: u32,
    pub rest: [[u32; 22]; 2],
}

/// `struct v4l2_queryctrl`.
#[repr(C)]
#[derive(Debug, Default, Clone, Copy)]
pub struct QueryCtrl {
    pub id: u32,
    pub kind: u32,
    pub name: [u8; 32],
    pub minimum: i32,
    pub maximum: i32,
    pub step: i32,
    pub default: i32,
    pub flags: u32,
    pub reserved: [u32; 2],
}

/// `struct v4l2_control`.
#[repr(C)]
#[derive(Default)]
pub struct Control {
    pub id: u32,
    pub value: i32,
}

/// A request whose structure the kernel reads and writes; given again when a signal interrupts it.
macro_rules! requests {
    ($($name:ident $direction:ident $number:literal $type:ty;)*) => {
        $(
            #[doc = concat!("Request ", stringify!($number), " (`", stringify!($direction), "`) with its structure.")]
            pub fn $name(fd: BorrowedFd, value: &mut $type) -> io::Result<()> {
                rustix::io::retry_on_intr(|| {
                    // SAFETY: the number holds the size of the structure, laid out as the kernel's (see the test), so that no
                    // driver touches more of it; and none of ours has pointers in it.
                    let request = unsafe { Updater::<{ opcode::$direction::<$type>(b'V', $number) }, $type>::new(value) };
                    // SAFETY: as above. Numbers of 'V' are Video4Linux2's; a driver of another kind refuses them.
                    unsafe { ioctl(fd, request) }
                })
                .map_err(io::Error::from)
            }
        )*
    };
}

requests! {
    query_capability read 0 Capability;
    enumerate_formats read_write 2 FmtDesc;
    set_format read_write 5 Format;
    request_buffers read_write 8 RequestBuffers;
    query_buffer read_write 9 Buffer;
    queue_buffer read_write 15 Buffer;
    dequeue_buffer read_write 17 Buffer;
    get_parameters read_write 21 StreamParm;
    set_parameters read_write 22 StreamParm;
    set_control read_write 28 Control;
    query_control read_write 36 QueryCtrl;
    enumerate_sizes read_write 74 FrameSize;
    enumerate_intervals read_write 75 FrameInterval;
}

/// `VIDIOC_STREAMON`, `VIDIOC_STREAMOFF`.
pub fn stream(fd: BorrowedFd, on: bool) -> io::Result<()> {
    let kind = CAPTURE as c_int;
    // SAFETY: the request takes a pointer to an int, which `Setter` makes, and only reads it.
    let done = unsafe {
        if on {
            ioctl(fd, Setter::<{ opcode::write::<c_int>(b'V', 18) }, c_int>::new(kind))
        } else {
            ioctl(fd, Setter::<{ opcode::write::<c_int>(b'V', 19) }, c_int>::new(kind))
        }
    };
    Ok(done?)
}

/// A buffer of the driver's, to read.
pub fn map(fd: BorrowedFd, buffer: &Buffer) -> io::Result<memmap2::Mmap> {
    use std::os::fd::AsRawFd;
    let mut options = memmap2::MmapOptions::new();
    options.offset(buffer.offset[0].into()).len(buffer.length as usize);
    // SAFETY: the driver writes into it only while the buffer is queued, and it is looked at only while it is not
    // (`super::Buffer`). A device that is unplugged leaves its pages to those who mapped them.
    unsafe { options.map(fd.as_raw_fd()) }
}

/// `CLOCK_MONOTONIC`, the clock of `std::time::Instant`, of which the latter does not tell the time.
#[cfg(target_os = "linux")]
pub fn monotonic() -> Option<Duration> {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the kernel writes a time into the place that it is given, and nothing else.
    let done = unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut time) };
    (done == 0).then(|| Duration::new(time.tv_sec as u64, time.tv_nsec as u32))
}

/// There is no Video4Linux2 elsewhere.
#[cfg(not(target_os = "linux"))]
pub fn monotonic() -> Option<Duration> {
    None
}

#[cfg(all(test, target_pointer_width = "64"))]
mod tests {
    use super::*;
    use std::mem::offset_of;

    /// What a C program with Debian's linux-libc-dev 6.1 prints of `sizeof`, `offsetof` and the numbers.
    #[test]
    fn layouts_are_the_kernels() {
        let sizes = [
            size_of::<Capability>(),
            size_of::<FmtDesc>(),
            size_of::<Format>(),
            size_of::<RequestBuffers>(),
            size_of::<Buffer>(),
            size_of::<FrameSize>(),
            size_of::<FrameInterval>(),
            size_of::<StreamParm>(),
            size_of::<QueryCtrl>(),
            size_of::<Control>(),
        ];
        assert_eq!(sizes, [104, 64, 208, 20, 88, 44, 52, 204, 68, 8]);
        let offsets = [
            offset_of!(Format, pix),
            offset_of!(PixFormat, colorspace),
            offset_of!(PixFormat, ycbcr_enc),
            offset_of!(PixFormat, quantization),
            offset_of!(FmtDesc, pixelformat),
            offset_of!(Buffer, timestamp),
            offset_of!(Buffer, timecode),
            offset_of!(Buffer, sequence),
            offset_of!(Buffer, offset),
            offset_of!(Buffer, length),
            offset_of!(FrameSize, values),
            offset_of!(FrameInterval, values),
            offset_of!(QueryCtrl, minimum),
        ];
        assert_eq!(offsets, [8, 24, 36, 40, 44, 24, 40, 56, 64, 72, 12, 20, 40]);
        let numbers = [
            opcode::read::<Capability>(b'V', 0),
            opcode::read_write::<FmtDesc>(b'V', 2),
            opcode::read_write::<Format>(b'V', 5),
            opcode::read_write::<RequestBuffers>(b'V', 8),
            opcode::read_write::<Buffer>(b'V', 17),
            opcode::write::<c_int>(b'V', 18),
            opcode::read_write::<StreamParm>(b'V', 22),
            opcode::read_write::<Control>(b'V', 28),
            opcode::read_write::<QueryCtrl>(b'V', 36),
            opcode::read_write::<FrameSize>(b'V', 74),
            opcode::read_write::<FrameInterval>(b'V', 75),
        ];
        let wanted = [
            0x8068_5600,
            0xC040_5602,
            0xC0D0_5605,
            0xC014_5608,
            0xC058_5611,
            0x4004_5612,
            0xC0CC_5616,
            0xC008_561C,
            0xC044_5624,
            0xC02C_564A,
            0xC034_564B,
        ];
        assert_eq!(numbers.map(u64::from), wanted);
    }

    #[test]
    fn other_devices_refuse() {
        use std::os::fd::AsFd;
        let null = std::fs::File::open("/dev/null").unwrap();
        let refused = query_capability(null.as_fd(), &mut Capability::default()).unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(rustix::io::Errno::NOTTY.raw_os_error()));
    }
}
