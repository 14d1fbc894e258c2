//! `spoke-control backup` and `restore`.
use super::Context;
use clap::Args;
use spoke_command::{Failure, Outcome, print};
use std::io::BufReader;
use std::path::PathBuf;

/// Where to.
#[derive(Debug, Args)]
pub struct BackupArgs {
    /// The file to write; it must not be there yet
    pub file: PathBuf,
}

/// Where from.
#[derive(Debug, Args)]
pub struct RestoreArgs {
    /// The file to read
    pub file: PathBuf,
}

/// Writes the store to a new file of mode 0600; a file cut short by a failure is removed.
pub async fn backup(context: &Context, args: &BackupArgs) -> Outcome {
    let mut bytes = Vec::new();
    let rows = context.store.dump(&mut bytes).await?;
    spoke_sys::disk::write_atomic(&args.file, &bytes, false)?;
    let master = super::serve::master_path(&context.config);
    print(&format!(
        "{rows} rows written to {}; it is of use only together with {}: keep a copy of that file elsewhere\n",
        args.file.display(),
        master.display()
    ));
    Ok(())
}

/// Reads a backup into the store, which must be empty.
pub async fn restore(context: &Context, args: &RestoreArgs) -> Outcome {
    let file = std::fs::File::open(&args.file)
        .map_err(|e| Failure::BadInput(format!("{}: cannot be read: {e}", args.file.display())))?;
    let rows = context.store.restore(BufReader::new(file)).await?;
    let master = super::serve::master_path(&context.config);
    print(&format!("{rows} rows restored\n"));
    if !master.exists() {
        print(&format!("put the master key back to {} before serving\n", master.display()));
    }
    Ok(())
}
