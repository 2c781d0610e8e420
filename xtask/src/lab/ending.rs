//! A process that is told to end, by SIGTERM, Ctrl-C or its terminal's end, takes its labs down before it does.
//!
//! The handling of signals is `signal-hook`'s: by the author of what tokio handles signals with, and so in the tree already
//! for the most part. Blocking them and waiting would be less, but every program that a lab starts would inherit that.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};
use std::thread;

use anyhow::{Context as _, Result};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use signal_hook::low_level::emulate_default_handler;

/// How often it is tried: a lab that is being brought up may get a new host or process meanwhile.
const TRIES: u32 = 3;

/// The labs that go with this process; none before its signals are handled.
static OWNED: Mutex<Option<BTreeSet<String>>> = Mutex::new(None);

/// Has a lab go with this process.
pub(super) fn own(lab: &str) -> Result<()> {
    let mut owned = OWNED.lock().unwrap_or_else(PoisonError::into_inner);
    let owned = match &mut *owned {
        Some(owned) => owned,
        none => {
            let signals = Signals::new([SIGTERM, SIGINT, SIGHUP]).context("cannot handle signals")?;
            thread::Builder::new().name("ending".to_owned()).spawn(move || end_by(signals))?;
            none.insert(BTreeSet::new())
        }
    };
    owned.insert(lab.to_owned());
    Ok(())
}

/// Has a lab outlive this process, or notes that it is gone.
pub(super) fn disown(lab: &str) {
    if let Some(owned) = &mut *OWNED.lock().unwrap_or_else(PoisonError::into_inner) {
        owned.remove(lab);
    }
}

fn end_by(mut signals: Signals) {
    for signal in signals.forever() {
        let owned = OWNED.lock().unwrap_or_else(PoisonError::into_inner).clone().unwrap_or_default();
        for lab in owned {
            eprintln!("told to end: taking down the lab `{lab}`");
            let mut done = Ok(());
            for _ in 0..TRIES {
                done = super::down(&lab);
            }
            if let Err(error) = done {
                eprintln!("the lab `{lab}` is not wholly down: {error:#}");
            }
        }
        // It ends the process as the signal would have, for whoever waits for it; where that fails, the next one does.
        let _ = emulate_default_handler(signal);
    }
}
