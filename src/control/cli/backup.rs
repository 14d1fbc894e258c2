//! `spoke-control backup` and `restore`.
use super::Context;
use super::table::done;
use crate::clock::now_ms;
use crate::signing::MasterKey;
use clap::Args;
use spoke_command::{Failure, Outcome};
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
    /// Do not verify that the file is as it was made: whoever wrote it decides who is in the fleet
    #[arg(long)]
    pub unverified: bool,
}

/// Writes a backup to a file of mode 0600, replacing it atomically.
pub async fn backup(context: &Context, args: &BackupArgs) -> Outcome {
    let master = super::serve::master_path(&context.config);
    let key = MasterKey::load_or_create(&master, &context.store, now_ms()).await?.backup_key();
    let mut bytes = Vec::new();
    let rows = context.store.backup(&mut bytes, &key).await?;
    spoke_sys::disk::write_atomic(&args.file, &bytes, false)?;
    let (file, master, rows) = (args.file.display().to_string(), master.display().to_string(), rows.to_string());
    let text =
        format!("{rows} rows written to {file}; a restore also needs {master}: keep a copy of that file elsewhere\n");
    done(context.json, &[("file", &file), ("rows", &rows), ("master_key", &master)], &text);
    Ok(())
}

/// Restores a backup into an empty database.
pub async fn restore(context: &Context, args: &RestoreArgs) -> Outcome {
    let file = std::fs::File::open(&args.file)
        .map_err(|e| Failure::BadInput(format!("{}: cannot be read: {e}", args.file.display())))?;
    let master = super::serve::master_path(&context.config);
    let key = MasterKey::read(&master)?.map(|m| m.backup_key());
    if key.is_none() && !args.unverified {
        return Err(Failure::BadInput(format!(
            "the backup is verified with the fleet's master key: put it back to {} first, or give --unverified if you know where the file comes from",
            master.display()
        )));
    }
    let rows = context.store.restore(BufReader::new(file), key.as_ref().filter(|_| !args.unverified)).await?;
    let (master, missing, rows) = (master.display().to_string(), !master.exists(), rows.to_string());
    let note = if missing { format!("put the master key back to {master} before serving\n") } else { String::new() };
    done(context.json, &[("rows", &rows), ("note", note.trim_end())], &format!("{rows} rows restored\n{note}"));
    Ok(())
}
