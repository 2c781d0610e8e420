//! A packet as `(data, data_end)`: the only arithmetic on packet pointers.

use aya_ebpf::helpers::{bpf_xdp_adjust_head, bpf_xdp_adjust_tail, bpf_xdp_get_buff_len};
use aya_ebpf::programs::XdpContext;
use core::mem::size_of;
use redirector_ebpf::packet::{Frame, Head, HeadMut, Wire};

/// The packet of an XDP program's context.
pub(crate) struct XdpFrame<'a> {
    ctx: &'a XdpContext,
}

const OFFSET_MASK: usize = 0x3fff;

/// The same offset. The verifier of older kernels forgets a comparison once the number has been copied; a mask it sees.
#[inline(always)]
fn masked(mut offset: usize) -> usize {
    // SAFETY: changes nothing, since the offset was compared with the mask.
    unsafe { core::arch::asm!("{0} &= 0x3fff", inout(reg) offset, options(pure, nomem, nostack)) };
    offset
}

impl<'a> XdpFrame<'a> {
    #[inline(always)]
    pub(crate) fn new(ctx: &'a XdpContext) -> Self {
        Self { ctx }
    }

    /// A pointer to a `T` at `offset`, if all of it is within the linear part.
    #[inline(always)]
    fn at<T>(&self, offset: usize) -> Option<*mut T> {
        // The greatest offset that any station asks for is far below.
        if offset > OFFSET_MASK {
            return None;
        }
        let (data, end) = self.bounds();
        let start = data + masked(offset);
        if start + size_of::<T>() > end {
            return None;
        }
        Some(start as *mut T)
    }

    /// Where the linear part starts and ends.
    ///
    /// Read anew each time: else the compiler finds a check redundant that an earlier one, on another register, implies,
    /// and the verifier does not find that.
    #[inline(always)]
    fn bounds(&self) -> (usize, usize) {
        // SAFETY: the context is this program's own.
        unsafe {
            let data = (&raw const (*self.ctx.ctx).data).read_volatile();
            let end = (&raw const (*self.ctx.ctx).data_end).read_volatile();
            (data as usize, end as usize)
        }
    }
}

impl Frame for XdpFrame<'_> {
    #[inline(always)]
    fn length(&self) -> usize {
        // SAFETY: the context is this program's own.
        unsafe { bpf_xdp_get_buff_len(self.ctx.ctx) as usize }
    }

    #[inline(always)]
    fn holds(&self, len: usize) -> bool {
        let (data, end) = self.bounds();
        // A difference, since a sum with a length that may be anything is no pointer any more to older kernels.
        end - data >= len || self.length() >= len
    }

    #[inline(always)]
    fn read<T: Wire>(&self, offset: usize) -> Option<T> {
        // SAFETY: within the packet, as `at` checked; any bytes are a `T`. The kernel allows unaligned access to packets
        // on every machine where this loads.
        self.at::<T>(offset).map(|header| unsafe { *header })
    }

    #[inline(always)]
    fn write<T: Wire>(&mut self, offset: usize, header: T) -> Option<()> {
        // SAFETY: as in `read`.
        self.at::<T>(offset).map(|place| unsafe { *place = header })
    }

    #[inline(always)]
    fn head<const N: usize>(&self) -> Option<Head<'_, N>> {
        let (data, end) = self.bounds();
        if data + N > end {
            return None;
        }
        // SAFETY: within the packet, as was checked.
        Some(unsafe { Head::new(data as *const u8) })
    }

    #[inline(always)]
    fn head_mut<const N: usize>(&mut self) -> Option<HeadMut<'_, N>> {
        let (data, end) = self.bounds();
        if data + N > end {
            return None;
        }
        // SAFETY: as above.
        Some(unsafe { HeadMut::new(data as *mut u8) })
    }

    #[inline(always)]
    fn move_head(&mut self, by: i32) -> Option<()> {
        // SAFETY: the context is this program's own; all pointers are made anew from it afterwards.
        match unsafe { bpf_xdp_adjust_head(self.ctx.ctx, by) } {
            0 => Some(()),
            _ => None,
        }
    }

    #[inline(always)]
    fn cut(&mut self, len: usize) -> Option<()> {
        let by = len as i32 - self.length() as i32;
        // SAFETY: as in `move_head`.
        match unsafe { bpf_xdp_adjust_tail(self.ctx.ctx, by) } {
            0 => Some(()),
            _ => None,
        }
    }
}
