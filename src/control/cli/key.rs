//! `spoke-control key`: keys of the operators' API.
use super::Context;
use super::prompt::{confirm, seconds};
use super::table::{json, render};
use crate::api::view::{OperatorKeyView, all};
use crate::clock::now_ms;
use crate::registry::operator_keys;
use crate::store::operator_key::OperatorRole;
use clap::Subcommand;
use spoke_command::{Outcome, print};

/// `spoke-control key …`
#[derive(Debug, Subcommand)]
pub enum KeyCommand {
    /// Create a key; its text is not stored
    Create {
        /// Whose it is, for the audit trail
        name: String,
        /// viewer reads, operator changes the fleet, admin also manages keys
        #[arg(long)]
        role: OperatorRole,
        /// How long it is valid, such as 90d, or never
        #[arg(long, default_value = "365d")]
        expires_in: String,
    },
    /// List keys without their text
    List,
    /// Revoke a key
    Revoke {
        /// The id that `key list` shows
        id: String,
        /// Do not ask
        #[arg(long)]
        yes: bool,
    },
}

/// `spoke-control key …`
pub async fn key(context: &Context, command: KeyCommand) -> Outcome {
    let (store, actor) = (&context.store, &context.actor);
    match command {
        KeyCommand::Create { name, role, expires_in } => {
            let lifetime = if expires_in == "never" { 0 } else { seconds(&expires_in)? };
            let expires_ms = operator_keys::expiry(Some(lifetime), now_ms());
            let (id, key) = operator_keys::create(store, (&name, role), expires_ms, actor, now_ms()).await?;
            print(&if context.json {
                json(&serde_json::json!({"id": id, "key": key.reveal()}))
            } else {
                format!("{}\n", key.reveal())
            });
        }
        KeyCommand::List => {
            let keys: Vec<OperatorKeyView> = all(store.read().await?.operator_keys().await?);
            if context.json {
                print(&json(&keys));
                return Ok(());
            }
            let dash = |t: &Option<String>| t.clone().unwrap_or_else(|| "-".to_owned());
            let row = |k: &OperatorKeyView| {
                let role = k.role.as_str().to_owned();
                let (expires, revoked) = (dash(&k.expires_at), dash(&k.revoked_at));
                vec![k.id.clone(), k.name.clone(), role, expires, revoked, dash(&k.last_used_at)]
            };
            let rows: Vec<_> = keys.iter().map(row).collect();
            print(&render(&["KEY", "NAME", "ROLE", "EXPIRES", "REVOKED", "LAST USED"], &rows));
        }
        KeyCommand::Revoke { id, yes } => {
            confirm(&format!("revoke key {id}"), yes)?;
            operator_keys::revoke(store, &id, actor, now_ms()).await?;
            if context.json {
                print(&json(&serde_json::json!({"id": id})));
            }
        }
    }
    Ok(())
}
