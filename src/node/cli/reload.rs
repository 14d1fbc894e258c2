//! `spoke reload`: takes the edited configuration into force.
use crate::config_file::socket;
use spoke_api::socket::SocketRequest;
use spoke_command::text::visible;
use spoke_command::{Outcome, print};
use spoke_model::tree::Tree;
use spoke_sys::socket::call;
use std::path::Path;

/// Prints what differs; exit code 1 with the faults if the configuration is not taken.
pub fn run(config: &Path, json: bool) -> Outcome {
    let socket = socket(config)?;
    let lines: Vec<String> = call(&socket, &SocketRequest::Reload)?;
    if json {
        print(&super::document(super::object(vec![("changes", Tree::of_lines(lines))]))?);
        return Ok(());
    }
    let lines: Vec<String> = lines.iter().map(|l| visible(l).into_owned()).collect();
    print(&format!("{}\nreloaded\n", lines.join("\n")));
    Ok(())
}
