//! The console of last resort: neither slot can be started, a person reads what to do.
use spoke_update::slot::Slot;
use std::io::{BufRead, Read as _, Write};

/// What the person asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice {
    /// Give a slot another three tries.
    Try(Slot),
    /// Start again.
    Reboot,
    /// Switch off.
    PowerOff,
}

/// Shown before the prompt.
pub const INSTRUCTIONS: &str = "\
\r
*** Spoke: neither system on this disk can be started. ***\r
Your identity and settings are on partitions of their own and are not touched by any of this.\r
\r
  try a       start system a once more       try b       start system b once more\r
  reboot      start again                    poweroff    switch off\r
  why         show what went wrong\r
\r
If that does not help: write the image to the disk again (spoke-image flash --keep-state, see image/README.md).\r
";

/// Asks until something can be done; `None` when nobody can answer any more (the console is gone).
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
    fn answers_and_says_what_it_does_not_know() {
        let mut said = Vec::new();
        let choice = ask(&mut &b"help\n\nwhy\ntry b\n"[..], &mut said, "both are damaged");
        assert_eq!(choice, Some(Choice::Try(Slot::B)));
        let said = String::from_utf8(said).unwrap();
        assert!(said.contains("\"help\" is not one of") && said.contains("both are damaged"), "{said}");
        assert_eq!(ask(&mut &b""[..], &mut Vec::new(), ""), None);
    }
}
