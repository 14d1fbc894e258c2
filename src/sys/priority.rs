//! Which of the process's threads the kernel runs first.
use rustix::process::{getpriority_process, setpriority_process};
use rustix::thread::gettid;

/// How much later than the process's other threads: a third of their share where all want to run.
const LATER: i32 = 5;

/// Lets the process's other threads run before the calling one. Linux keeps a nice value for each thread, whatever POSIX
/// says of processes (`man 2 setpriority`, "C library/kernel differences"). Where it is denied nothing is lost but time.
pub fn after_the_others() {
    let thread = Some(gettid());
    let lowered = getpriority_process(thread).and_then(|now| setpriority_process(thread, now + LATER));
    if let Err(error) = lowered {
        tracing::debug!(%error, "the thread keeps its priority");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_thread_that_asks_comes_later() {
        let of_this = || getpriority_process(Some(gettid())).unwrap();
        let before = of_this();
        let lowered = std::thread::spawn(move || {
            after_the_others();
            of_this()
        });
        assert_eq!(lowered.join().unwrap(), (before + LATER).min(19));
        assert_eq!(of_this(), before);
    }
}
