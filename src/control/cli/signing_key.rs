//! `spoke-control signing-key`: the keys that sign state documents.
use super::prompt::confirm;
use super::table::{json, render};
use super::{Context, serve};
use crate::clock::now_ms;
use crate::signing::{MasterKey, SigningKeys};
use clap::Subcommand;
use spoke_command::{Failure, Outcome, print};
use spoke_model::signature::VerifyKey;

/// `spoke-control signing-key …`
#[derive(Debug, Subcommand)]
pub enum SigningKeyCommand {
    /// List active and retired keys
    List,
    /// Add an active key beside the others
    Add,
    /// Retire a key, once every node has reported a generation signed with a newer one
    Retire {
        /// The key that `signing-key list` shows
        key: VerifyKey,
        /// Do not ask
        #[arg(long)]
        yes: bool,
    },
}

/// `spoke-control signing-key …`
pub async fn signing_key(context: &Context, command: SigningKeyCommand) -> Outcome {
    let store = &context.store;
    match command {
        SigningKeyCommand::List => {
            let keys = store.read().await?.signing_keys().await?;
            let state = |active| if active { "active" } else { "retired" };
            if context.json {
                let list: Vec<_> =
                    keys.iter().map(|k| serde_json::json!({"key": k.public, "state": state(k.active)})).collect();
                print(&json(&list));
            } else {
                let rows: Vec<_> =
                    keys.iter().map(|k| vec![k.public.to_string(), state(k.active).to_owned()]).collect();
                print(&render(&["KEY", "STATE"], &rows));
            }
        }
        SigningKeyCommand::Add => {
            let master = MasterKey::load_or_create(&serve::master_path(&context.config), store).await?;
            let mut tx = store.write().await?;
            let active = tx.signing_keys().await?.iter().filter(|k| k.active).count();
            if active >= spoke_enroll::document::MAX_SIGNING_KEYS {
                return Err(Failure::BadInput(format!("{active} keys are active already: retire one first")));
            }
            let key = SigningKeys::add(&mut tx, &master, now_ms()).await?;
            let entity = key.to_string();
            tx.audit(now_ms(), &context.actor, "add", ("signing_key", &entity), serde_json::Value::Null).await?;
            tx.commit().await?;
            print(&if context.json {
                json(&serde_json::json!({"key": key, "state": "active"}))
            } else {
                format!("{key}\n")
            });
        }
        SigningKeyCommand::Retire { key, yes } => {
            confirm("nodes that know no other key yet will refuse every document; retire it", yes)?;
            let mut tx = store.write().await?;
            if !tx.retire_signing_key(key).await? {
                return Err(Failure::BadInput("this key is not active, or it is the last one".into()));
            }
            let entity = key.to_string();
            tx.audit(now_ms(), &context.actor, "retire", ("signing_key", &entity), serde_json::Value::Null).await?;
            tx.commit().await?;
            if context.json {
                print(&json(&serde_json::json!({"key": key, "state": "retired"})));
            }
        }
    }
    Ok(())
}
