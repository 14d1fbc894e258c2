//! The rescue console, shown when neither slot can be started.
use spoke_update::slot::Slot;
use std::io::{BufRead, Read as _, Write};

/// The command entered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice {
    /// Give a slot another three tries.
    Try(Slot),
    /// Reboot.
    Reboot,
    /// Power off.
    PowerOff,
}

/// Shown before the prompt.
pub const INSTRUCTIONS: &str = "\
\r
*** Spoke: neither system on this disk can be started. ***\r
Identity and settings are on other partitions; none of these commands changes them.\r
\r
  try a       start system a again           try b       start system b again\r
  reboot      restart                        poweroff    switch off\r
  why         show the errors\r
\r
If that does not help: write the image to the disk again (spoke-image flash --keep-state, see image/README.md).\r
";

/// Prompts until a command can be run; `None` when the console is closed.
pub fn ask(input: &mut impl BufRead, output: &mut impl Write, why: &str) -> Option<Choice> {
    let _ = output.write_all(INSTRUCTIONS.as_bytes());
    loop {
        let _ = write!(output, "\r\nspoke-rescue> ");
        let _ = output.flush();
        let mut line = String::new();
        match input.by_ref().take(256).read_line(&mut line) {
            Ok(0) | Err(_) => return None,
            Ok(_) => {}
        }
        match line.trim() {
            "try a" => return Some(Choice::Try(Slot::A)),
            "try b" => return Some(Choice::Try(Slot::B)),
            "reboot" => return Some(Choice::Reboot),
            "poweroff" => return Some(Choice::PowerOff),
            "why" => {
                let _ = write!(output, "{why}\r");
            }
            "" => {}
            other => {
                let _ = write!(output, "{other:?} is not one of: try a, try b, reboot, poweroff, why\r");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_command_lists_the_known_ones() {
        let mut output = Vec::new();
        let choice = ask(&mut &b"help\n\nwhy\ntry b\n"[..], &mut output, "both are damaged");
        assert_eq!(choice, Some(Choice::Try(Slot::B)));
        let output = String::from_utf8(output).unwrap();
        assert!(output.contains("\"help\" is not one of") && output.contains("both are damaged"), "{output}");
        assert_eq!(ask(&mut &b""[..], &mut Vec::new(), ""), None);
    }
}
