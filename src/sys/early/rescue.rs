//! The rescue console, shown when neither slot can be started.
use spoke_update::slot::Slot;
use std::time::Duration;

/// The command entered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice {
    /// Give a slot another three tries.
    Try(Slot),
    /// Reboot.
    Reboot,
    /// Power off.
    PowerOff,
    /// No input for [`INPUT_TIMEOUT`].
    Unattended,
}

/// The prompt ends after this time without a line.
pub const INPUT_TIMEOUT: Duration = Duration::from_secs(300);

/// Where the prompt is shown.
pub trait Console {
    /// Writes to every console.
    fn write(&mut self, text: &str);
    /// The next line entered on any of them, without its end; `None` after `timeout` without one.
    fn line(&mut self, timeout: Duration) -> Option<String>;
}

/// Shown before the prompt.
pub const INSTRUCTIONS: &str = "\
\r
*** Spoke: neither system on this disk can be started. ***\r
Identity and settings are on other partitions; none of these commands changes them.\r
\r
  try a       start system a again           try b       start system b again\r
  reboot      restart                        poweroff    switch off\r
  why         show the errors                help        show this text\r
\r
If that does not help: write the image to the disk again (spoke-image flash --keep-state, see image/README.md).\r
Without input the machine tries again every five minutes.\r
";

/// Prompts until a command can be run.
pub fn ask(console: &mut impl Console, why: &str) -> Choice {
    console.write(INSTRUCTIONS);
    loop {
        console.write("\r\nspoke-rescue> ");
        let Some(line) = console.line(INPUT_TIMEOUT) else { return Choice::Unattended };
        match line.trim() {
            "try a" => return Choice::Try(Slot::A),
            "try b" => return Choice::Try(Slot::B),
            "reboot" => return Choice::Reboot,
            "poweroff" => return Choice::PowerOff,
            "why" => console.write(&format!("{why}\r")),
            "help" | "?" => console.write(INSTRUCTIONS),
            "" => {}
            other => {
                console.write(&format!("{other:?} is not one of: try a, try b, reboot, poweroff, why, help\r"));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::VecDeque;

    #[derive(Default)]
    struct Typed {
        lines: VecDeque<&'static str>,
        output: String,
        waited: Duration,
    }

    impl Console for Typed {
        fn write(&mut self, text: &str) {
            self.output.push_str(text);
        }
        fn line(&mut self, timeout: Duration) -> Option<String> {
            let line = self.lines.pop_front();
            if line.is_none() {
                self.waited += timeout;
            }
            line.map(str::to_owned)
        }
    }

    fn typed(lines: &[&'static str]) -> Typed {
        Typed { lines: lines.iter().copied().collect(), ..Typed::default() }
    }

    #[test]
    fn unknown_command_lists_the_known_ones() {
        let mut console = typed(&["hello", "", "why", "try b"]);
        assert_eq!(ask(&mut console, "both are damaged"), Choice::Try(Slot::B));
        let output = console.output;
        assert!(output.contains("\"hello\" is not one of") && output.contains("both are damaged"), "{output}");
    }

    #[test]
    fn help_shows_every_command() {
        let mut console = typed(&["help", "reboot"]);
        assert_eq!(ask(&mut console, ""), Choice::Reboot);
        assert_eq!(console.output.matches(INSTRUCTIONS).count(), 2);
        for command in ["try a", "try b", "reboot", "poweroff", "why", "help"] {
            assert!(INSTRUCTIONS.contains(command), "{command}");
        }
    }

    #[test]
    fn prompt_without_input_ends_after_five_minutes() {
        let mut console = typed(&[]);
        assert_eq!(ask(&mut console, ""), Choice::Unattended);
        assert_eq!(console.waited, Duration::from_secs(300));
        // A line starts the time again.
        let mut console = typed(&["why"]);
        assert_eq!(ask(&mut console, ""), Choice::Unattended);
        assert_eq!(console.waited, Duration::from_secs(300));
    }
}
