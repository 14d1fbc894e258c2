//! Supervision of the tasks: restart with backoff, or end the process where a vital task ends. No task takes the kernel
//! tunnel down.
use spoke_model::log_text::Span;
use spoke_sys::clock::{Clock, SystemClock};
use std::fmt::Display;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::time::Duration;
use tokio::runtime::Runtime;
use tokio::sync::oneshot;
use tokio::task::JoinSet;

/// First wait before a restart.
const RESTART_MIN: Duration = Duration::from_secs(1);
/// Longest wait.
const RESTART_MAX: Duration = Duration::from_secs(60);
/// How long to wait for the reason why a vital task returned.
const REASON_TIMEOUT: Duration = Duration::from_secs(1);
/// Bytes of stack of a thread with a runtime of its own.
const STACK: usize = 512 * 1024;
/// A task that ran for this long starts at [`RESTART_MIN`] again.
const RESTART_RESET: Duration = Duration::from_secs(300);

/// Why the process ends.
#[derive(Debug, thiserror::Error)]
pub enum Exit {
    /// A vital task ended; the service manager starts the process again.
    #[error("{task} ended: {reason}")]
    Vital {
        /// The task.
        task: &'static str,
        /// Its error.
        reason: String,
    },
    /// A vital task returned, which none does while what it waits for is there.
    #[error("task {task} ended without an error: report it to the maintainers with the log before this line")]
    Returned {
        /// The task.
        task: &'static str,
    },
    /// A task panicked (only where panics unwind: the release build aborts at once).
    #[error("a task panicked: {0}")]
    Panicked(String),
}

/// The running tasks. Waits are on `C`.
#[derive(Debug)]
pub struct Supervisor<C = SystemClock> {
    tasks: JoinSet<Exit>,
    clock: C,
}

impl Default for Supervisor {
    fn default() -> Self {
        Self::new(SystemClock)
    }
}

impl<C: Clock> Supervisor<C> {
    /// Without any task.
    pub fn new(clock: C) -> Self {
        Self { tasks: JoinSet::new(), clock }
    }

    /// Runs `task` for as long as the process lives; its end, with or without an error, ends the process.
    pub fn vital<E: Display>(
        &mut self,
        name: &'static str,
        task: impl Future<Output = Result<(), E>> + Send + 'static,
    ) {
        self.tasks.spawn(async move {
            match task.await {
                Ok(()) => Exit::Returned { task: name },
                Err(e) => Exit::Vital { task: name, reason: e.to_string() },
            }
        });
    }

    /// Runs the tasks that `start` adds on a thread and a runtime of their own, so that their long steps delay no other task.
    ///
    /// # Errors
    /// The thread cannot be started.
    pub fn spawn_thread(
        &mut self,
        name: &'static str,
        runtime: impl FnOnce() -> io::Result<Runtime> + Send + 'static,
        start: impl FnOnce(&mut Self) + Send + 'static,
    ) -> io::Result<()> {
        let (end, ended) = oneshot::channel();
        let clock = self.clock.clone();
        let thread = std::thread::Builder::new().name(name.to_owned()).stack_size(STACK);
        thread.spawn(move || {
            let exit = match runtime() {
                Ok(runtime) => runtime.block_on(async {
                    let mut tasks = Self::new(clock);
                    start(&mut tasks);
                    tasks.run(std::future::pending()).await
                }),
                Err(e) => Err(Exit::Vital { task: name, reason: e.to_string() }),
            };
            // Without a receiver the process is ending already.
            let _ = end.send(exit.err());
        })?;
        self.tasks.spawn(async move {
            let gone = |what| Exit::Panicked(format!("{what} of the thread {name}"));
            match ended.await {
                Ok(exit) => exit.unwrap_or_else(|| gone("all tasks")),
                Err(_) => gone("the runtime"),
            }
        });
        Ok(())
    }

    /// Runs the future that `start` returns, and again whenever it ends: with a backoff of 1 to 60 s, jittered by half.
    pub fn restarting<T, E, F, S>(&mut self, name: &'static str, random: fn() -> u64, mut start: S)
    where
        T: Send + 'static,
        E: Display,
        F: Future<Output = Result<T, E>> + Send + 'static,
        S: FnMut() -> F + Send + 'static,
    {
        let start = move || -> Attempt {
            let work = start();
            Box::pin(async move { work.await.map(drop).map_err(|e| e.to_string()) })
        };
        self.tasks.spawn(restart(self.clock.clone(), name, random, Box::new(start)));
    }

    /// Waits until `stop` resolves (`Ok`) or a vital task ends (`Err`). Drops every task on return; threads end with the
    /// process.
    ///
    /// A task returns when another one, which it waits for, is gone: the error of that one is the reason, even if it arrives
    /// later or together with `stop`.
    pub async fn run(mut self, stop: impl Future<Output = ()>) -> Result<(), Exit> {
        let first = tokio::select! {
            biased;
            ended = self.tasks.join_next() => ended.map(exit),
            () = stop => None,
        };
        let has_reason = |exit: &Exit| !matches!(exit, Exit::Returned { .. });
        if first.as_ref().is_some_and(has_reason) {
            return first.map_or(Ok(()), Err);
        }
        let wait = if first.is_some() { REASON_TIMEOUT } else { Duration::ZERO };
        let reason = async {
            while let Some(next) = self.tasks.join_next().await.map(exit) {
                if has_reason(&next) {
                    return Some(next);
                }
            }
            None
        };
        let reason = tokio::time::timeout(wait, reason).await.ok().flatten();
        reason.or(first).map_or(Ok(()), Err)
    }
}

fn exit(ended: Result<Exit, tokio::task::JoinError>) -> Exit {
    ended.unwrap_or_else(|e| Exit::Panicked(e.to_string()))
}

type Attempt = Pin<Box<dyn Future<Output = Result<(), String>> + Send>>;

/// Generic over the clock alone: compiled once per task it was 54 KB of the release binary.
async fn restart<C: Clock>(
    clock: C,
    name: &'static str,
    random: fn() -> u64,
    mut start: Box<dyn FnMut() -> Attempt + Send>,
) -> Exit {
    let mut wait = RESTART_MIN;
    loop {
        let started = clock.now();
        match start().await {
            Ok(()) => tracing::warn!(task = name, retry_in = %Span(wait), "task returned; restarting it"),
            Err(error) => tracing::error!(task = name, error, retry_in = %Span(wait), "task failed; restarting it"),
        }
        if clock.now().since(started) >= RESTART_RESET {
            wait = RESTART_MIN;
        }
        let half = u64::try_from(wait.as_millis() / 2).unwrap_or(u64::MAX).max(1);
        clock.sleep(wait / 2 + Duration::from_millis(random() % half)).await;
        wait = (wait * 2).min(RESTART_MAX);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use spoke_model::time::Wall;
    use spoke_sys::sim::clock::SimClock;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    #[tokio::test(start_paused = true)]
    async fn restarts_of_a_failing_task_back_off() {
        let starts = Arc::new(AtomicU32::new(0));
        let mut supervisor = Supervisor::new(SimClock::new(Wall(0)));
        let count = starts.clone();
        supervisor.restarting(
            "test",
            || 0,
            move || {
                count.fetch_add(1, Ordering::Relaxed);
                async { Err::<(), _>("failed") }
            },
        );
        let end = supervisor.run(tokio::time::sleep(Duration::from_secs(3600))).await;
        assert!(end.is_ok());
        let n = starts.load(Ordering::Relaxed);
        // 0.5 + 1 + 2 + … + 30 + 30 …: between one start a minute and two.
        assert!((100..150).contains(&n), "{n} starts in an hour");
    }

    #[tokio::test(start_paused = true)]
    async fn end_of_a_vital_task_ends_the_process() {
        let mut supervisor = Supervisor::default();
        supervisor.vital("net", async { Err::<(), _>("no kernel") });
        let end = supervisor.run(std::future::pending()).await;
        assert_eq!(end.unwrap_err().to_string(), "net ended: no kernel");
    }

    #[tokio::test(start_paused = true)]
    async fn reason_is_the_error_that_ended_the_others() {
        // `repairs` returns because the channel of `net` is closed, before the end of `net`'s thread is known.
        let mut supervisor = Supervisor::default();
        supervisor.vital("repairs", async { Ok::<(), String>(()) });
        supervisor.vital("net", async {
            tokio::time::sleep(Duration::from_millis(200)).await;
            Err::<(), _>("no kernel")
        });
        let end = supervisor.run(std::future::pending()).await;
        assert_eq!(end.unwrap_err().to_string(), "net ended: no kernel");

        // A signal at the same moment does not hide it.
        let mut supervisor = Supervisor::default();
        supervisor.vital("net", async { Err::<(), _>("no kernel") });
        tokio::task::yield_now().await;
        let end = supervisor.run(std::future::ready(())).await;
        assert_eq!(end.unwrap_err().to_string(), "net ended: no kernel");

        let mut supervisor = Supervisor::default();
        supervisor.vital("repairs", async { Ok::<(), String>(()) });
        let end = supervisor.run(std::future::pending()).await;
        assert_eq!(
            end.unwrap_err().to_string(),
            "task repairs ended without an error: report it to the maintainers with the log before this line"
        );

        let mut supervisor = Supervisor::default();
        supervisor.vital("net", std::future::pending::<Result<(), String>>());
        assert!(supervisor.run(std::future::ready(())).await.is_ok());
    }

    #[tokio::test]
    async fn thread_blocks_no_other_task_and_its_end_ends_the_process() {
        let runtime = || tokio::runtime::Builder::new_current_thread().build();
        let (answer, asked) = std::sync::mpsc::channel();
        let mut supervisor = Supervisor::default();
        // Blocks its thread until this one continues; on one runtime that would deadlock.
        let work = async move { Err::<(), _>(asked.recv().unwrap()) };
        supervisor.spawn_thread("reconciling", runtime, |tasks| tasks.vital("net", work)).unwrap();
        answer.send("no kernel").unwrap();
        let end = supervisor.run(std::future::pending()).await;
        assert_eq!(end.unwrap_err().to_string(), "net ended: no kernel");

        let mut supervisor = Supervisor::default();
        let work = async { if true { panic!("on purpose") } else { Ok::<(), String>(()) } };
        supervisor.spawn_thread("reconciling", runtime, |tasks| tasks.vital("net", work)).unwrap();
        let end = supervisor.run(std::future::pending()).await;
        assert!(matches!(end, Err(Exit::Panicked(_))), "{end:?}");

        let mut supervisor = Supervisor::default();
        supervisor.spawn_thread("reconciling", || Err(io::Error::other("no runtime")), |_| ()).unwrap();
        let end = supervisor.run(std::future::pending()).await;
        assert_eq!(end.unwrap_err().to_string(), "reconciling ended: no runtime");
    }
}
