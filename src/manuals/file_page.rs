//! The man page of a configuration file, from the commented file that the package installs.
use crate::sections::{bold, escape, see_also};
use std::fmt;

/// A configuration file: its name, the program that reads it, and the shipped text with every key.
pub(crate) struct FilePage {
    pub(crate) name: &'static str,
    pub(crate) program: &'static str,
    pub(crate) text: &'static str,
}

/// What a line of the file is, with or without the `#` that comments it out.
enum Line<'a> {
    Section(&'a str),
    Key(&'a str, &'a str),
    Prose(&'a str),
    Blank,
}

impl<'a> Line<'a> {
    fn of(line: &'a str) -> Self {
        let line = line.trim_start_matches('#').trim();
        if line.starts_with('[') && line.ends_with(']') {
            return Self::Section(line);
        }
        match line.split_once(" = ") {
            Some((key, value)) if key.bytes().all(|b| b.is_ascii_lowercase() || b == b'_') => Self::Key(key, value),
            _ if line.is_empty() || line.starts_with("---") => Self::Blank,
            _ => Self::Prose(line),
        }
    }
}

impl fmt::Display for FilePage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, program, text } = self;
        writeln!(f, ".TH {name} 5\n.SH NAME\n{} \\- configuration of {}", escape(name), escape(program))?;
        writeln!(f, ".SH DESCRIPTION")?;
        // The text before a section or key is about it, that after the last blank line at the head is about the file.
        let mut prose: Vec<&str> = Vec::new();
        let mut was_key = false;
        for line in text.lines().map(Line::of) {
            match line {
                Line::Prose(words) => prose.push(words),
                Line::Blank => {
                    flush(f, &mut prose, ".PP")?;
                }
                Line::Section(section) => {
                    let about = std::mem::take(&mut prose);
                    writeln!(f, ".SH \"{}\"", escape(section))?;
                    flush(f, &mut { about }, "")?;
                    was_key = false;
                }
                Line::Key(key, value) => {
                    if was_key && prose.is_empty() {
                        // Explained with the key before it.
                        writeln!(f, ".br\n{} = {}", bold(key), escape(value))?;
                    } else {
                        writeln!(f, ".TP\n{} = {}", bold(key), escape(value))?;
                    }
                    flush(f, &mut prose, "")?;
                    was_key = true;
                }
            }
        }
        writeln!(f, ".SH FILES\n.TP\n{}", bold(&format!("/etc/{program}/{name}")))?;
        writeln!(f, "The default of {}.", bold("--config"))?;
        f.write_str(&see_also(&[(program, 1)]))
    }
}

/// Writes the collected text as a paragraph after the request `before`.
fn flush(f: &mut fmt::Formatter<'_>, prose: &mut Vec<&str>, before: &str) -> fmt::Result {
    if prose.is_empty() {
        return Ok(());
    }
    if !before.is_empty() {
        writeln!(f, "{before}")?;
    }
    prose.drain(..).try_for_each(|line| writeln!(f, "{}", escape(line)))
}
