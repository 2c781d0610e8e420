//! What the kernel's verifier or the compiler must be told, and costs an instruction at most. On the host: nothing.

/// The same place, of whose content nothing is known any more: it is written out and will be read again.
///
/// The verifier follows every combination of known values from branch to branch. What is read from a map's memory it
/// takes for any number, so that ways which differ only in what they found become one.
#[inline(always)]
pub(crate) fn forget<T>(place: &mut T) -> &mut T {
    #[cfg(target_arch = "bpf")]
    {
        let mut pointer: *mut T = place;
        // SAFETY: the pointer stays the same one; memory counts as changed, which a `&mut` allows.
        unsafe {
            core::arch::asm!("{0} += 0", inout(reg) pointer, options(nostack));
            &mut *pointer
        }
    }
    #[cfg(not(target_arch = "bpf"))]
    place
}

/// The value itself, of which the verifier then knows nothing: it was mixed with a number that may be any, and unmixed.
#[inline(always)]
pub(crate) fn hide(noise: u64, value: u64) -> u64 {
    #[cfg(target_arch = "bpf")]
    {
        let mut hidden = value;
        // SAFETY: changes nothing but its operand.
        unsafe {
            core::arch::asm!(
                "{0} ^= {1}", "{0} ^= {1}",
                inout(reg) hidden, in(reg) noise, options(pure, nomem, nostack)
            );
        }
        hidden
    }
    #[cfg(not(target_arch = "bpf"))]
    {
        let _ = noise;
        value
    }
}

/// Stores a value by an instruction of its own. Of neighbouring plain stores the compiler makes a call to `memset`, which
/// for BPF is a loop over single bytes.
#[inline(always)]
pub(crate) fn put<T>(place: &mut T, value: T) {
    let place: *mut T = place;
    // SAFETY: valid and aligned, being a reference; the types put here need no drop.
    unsafe { place.write_volatile(value) }
}
