//! The one shared, writable word: read and compared-and-swapped whole, by XDP on every CPU and by the agent.

use core::cell::UnsafeCell;

/// A 64-bit word that several CPUs read and replace.
///
/// `core::sync::atomic` cannot be used: the BPF back end rejects its loads and stores. Aligned 64-bit accesses are whole
/// on every machine that runs BPF, which is all that a lone word needs.
#[repr(transparent)]
#[derive(Default)]
pub struct Word(UnsafeCell<u64>);

// SAFETY: every access below is a single whole-word read or an atomic exchange.
unsafe impl Sync for Word {}

impl Word {
    /// A word with this value.
    pub const fn new(value: u64) -> Self {
        Self(UnsafeCell::new(value))
    }

    /// The present value.
    #[inline(always)]
    pub fn load(&self) -> u64 {
        // SAFETY: the pointer is valid and aligned; volatile keeps the read whole and in its place.
        unsafe { self.0.get().read_volatile() }
    }

    /// Replaces the value, whatever it was.
    #[inline(always)]
    pub fn store(&self, value: u64) {
        // SAFETY: as in `load`.
        unsafe { self.0.get().write_volatile(value) }
    }

    /// Raises the value to `to`; says whether it was lower. Under a race of more CPUs than this tries to win, it was not.
    #[inline(always)]
    pub fn raise(&self, to: u64) -> bool {
        let mut tries = 0;
        while tries < 4 {
            let old = self.load();
            if to <= old {
                return false;
            }
            if self.replace(old, to) {
                return true;
            }
            tries += 1;
        }
        false
    }

    /// Adds to the value.
    #[inline(always)]
    pub fn add(&self, more: u64) {
        #[cfg(target_arch = "bpf")]
        // SAFETY: BPF_ADD with BPF_ATOMIC changes the word alone, which is valid and aligned.
        unsafe {
            core::arch::asm!("lock *(u64 *)({p} + 0) += {n}", p = in(reg) self.0.get(), n = in(reg) more);
        }
        #[cfg(not(target_arch = "bpf"))]
        {
            use core::sync::atomic::{AtomicU64, Ordering};
            // SAFETY: as in `replace`.
            unsafe { AtomicU64::from_ptr(self.0.get()) }.fetch_add(more, Ordering::Relaxed);
        }
    }

    /// Puts `new` in place if the value is still `old`; says whether it did.
    #[inline(always)]
    pub fn replace(&self, old: u64, new: u64) -> bool {
        #[cfg(target_arch = "bpf")]
        {
            let mut found = old;
            // SAFETY: BPF_CMPXCHG compares r0 with the word and leaves the value found in r0.
            unsafe {
                core::arch::asm!(
                    "r0 = cmpxchg_64({p} + 0, r0, {n})",
                    p = in(reg) self.0.get(),
                    n = in(reg) new,
                    inout("r0") found,
                );
            }
            found == old
        }
        #[cfg(not(target_arch = "bpf"))]
        {
            use core::sync::atomic::{AtomicU64, Ordering};
            // SAFETY: the word is aligned and lives as long as `self`; all writers use whole-word accesses.
            let word = unsafe { AtomicU64::from_ptr(self.0.get()) };
            word.compare_exchange(old, new, Ordering::AcqRel, Ordering::Acquire).is_ok()
        }
    }
}
