//! A program that says by its exit status whether a path is good.

use std::process::Stdio;

use super::Target;
use super::connect::{Deadline, Failure};

/// Ends whatever a program has started, when it is over or takes too long.
struct Group(Option<u32>);

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(group) = self.0.and_then(|id| i32::try_from(id).ok()) {
            // SAFETY: the group is the one that was made for this child. It may be gone already.
            unsafe { libc::killpg(group, libc::SIGKILL) };
        }
    }
}

/// Runs it, with nothing but the path in its environment, and lets nothing of it stay.
pub(super) async fn ask(target: &Target, command: &[String], deadline: Deadline) -> Result<(), Failure> {
    let [program, arguments @ ..] = command else { return Err(Failure::new("there is no command")) };
    let mut child = tokio::process::Command::new(program)
        .args(arguments)
        .env_clear()
        .env("PATH", "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin")
        .env("REDIRECTOR_ADDRESS", target.address.to_string())
        .env("REDIRECTOR_INTERFACE", &target.interface)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| Failure::new(format!("{program} cannot be started: {error}")))?;
    let _group = Group(child.id());
    let status = deadline.within(program, child.wait()).await?.map_err(Failure::new)?;
    if status.success() { Ok(()) } else { Err(Failure::new(format!("{program} ended with {status}"))) }
}
