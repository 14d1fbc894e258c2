//! `spoke-control backup` and `restore`.
use super::Context;
use clap::Args;
use spoke_command::{Failure, Outcome, print};
use std::io::BufReader;
use std::path::PathBuf;

/// Arguments of `backup`.
#[derive(Debug, Args)]
pub struct BackupArgs {
    /// The file to write
    pub file: PathBuf,
}

/// Arguments of `restore`.
#[derive(Debug, Args)]
pub struct RestoreArgs {
    /// The file to read
    pub file: PathBuf,
}

/// Writes a backup to a file of mode 0600, replacing it atomically.
pub async fn backup(context: &Context, args: &BackupArgs) -> Outcome {
    let mut bytes = Vec::new();
    let rows = context.store.backup(&mut bytes).await?;
    spoke_sys::disk::write_atomic(&args.file, &bytes, false)?;
    let master = super::serve::master_path(&context.config);
    print(&format!(
        "{rows} rows written to {}; a restore also needs {}: keep a copy of that file elsewhere\n",
        args.file.display(),
        master.display()
    ));
    Ok(())
}

/// Restores a backup into an empty database.
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
