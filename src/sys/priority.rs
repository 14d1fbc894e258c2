//! Scheduling priority of single threads.
use rustix::process::{getpriority_process, setpriority_process};
use rustix::thread::gettid;

/// Added to the nice value: a third of the other threads' share under contention.
const NICE_INCREMENT: i32 = 5;

/// Lowers the priority of the calling thread. On Linux the nice value belongs to the thread (`man 2 setpriority`, "C
/// library/kernel differences"). A refusal is logged only.
pub fn lower_thread_priority() {
    let thread = Some(gettid());
    let lowered = getpriority_process(thread).and_then(|now| setpriority_process(thread, now + NICE_INCREMENT));
    if let Err(error) = lowered {
        tracing::debug!(%error, "thread priority not lowered");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_calling_thread_is_lowered() {
        let of_this = || getpriority_process(Some(gettid())).unwrap();
        let before = of_this();
        let lowered = std::thread::spawn(move || {
            lower_thread_priority();
            of_this()
        });
        assert_eq!(lowered.join().unwrap(), (before + NICE_INCREMENT).min(19));
        assert_eq!(of_this(), before);
    }
}
