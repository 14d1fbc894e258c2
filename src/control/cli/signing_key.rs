//! `spoke-control signing-key`: the keys that sign state documents.
use super::prompt::confirm;
use super::table::{json, render};
use super::{Context, serve};
use crate::api::view::{SigningKeyView, all};
use crate::clock::now_ms;
use crate::registry::names;
use crate::signing::{MasterKey, SigningKeys};
use crate::store::Tx;
use crate::store::signing_key::{Retirement, Without};
use clap::Subcommand;
use spoke_command::{Failure, Outcome, print};
use spoke_model::signature::VerifyKey;

/// `spoke-control signing-key …`
#[derive(Debug, Subcommand)]
pub enum SigningKeyCommand {
    /// List active and retired keys, and how many nodes have kept a state with each
    List,
    /// Add an active key beside the others
    Add,
    /// Retire a key; refused while a node has not kept a state with the newest key
    Retire {
        /// The key that `signing-key list` shows
        key: VerifyKey,
        /// Retire it although nodes may know no other key: these have to enrol again
        #[arg(long)]
        lose_nodes: bool,
        /// Do not ask
        #[arg(long)]
        yes: bool,
    },
    /// Make a retired key active again, beside the others: nodes that know no other key accept documents again
    Unretire {
        /// The key that `signing-key list` shows
        key: VerifyKey,
    },
}

/// Refuses another active key beyond what a document takes.
async fn check_room(tx: &mut Tx) -> Outcome {
    let active = tx.active_signing_keys().await?.len();
    if active >= spoke_enroll::document::MAX_SIGNING_KEYS {
        return Err(Failure::BadInput(format!("{active} keys are active already: retire one first")));
    }
    Ok(())
}

/// `spoke-control signing-key …`
pub async fn signing_key(context: &Context, command: SigningKeyCommand) -> Outcome {
    let store = &context.store;
    match command {
        SigningKeyCommand::List => {
            let keys: Vec<SigningKeyView> = all(store.read().await?.kept_signing_keys().await?);
            if context.json {
                print(&json(&keys));
                return Ok(());
            }
            let kept = |k: &SigningKeyView| match k.kept_by {
                Some(n) if k.newest || n == k.nodes => format!("{n} of {}", k.nodes),
                Some(n) => format!("at least {n} of {}", k.nodes),
                None => "-".to_owned(),
            };
            let row = |k: &SigningKeyView| vec![k.key.to_string(), k.state.to_owned(), k.created_at.clone(), kept(k)];
            let rows: Vec<_> = keys.iter().map(row).collect();
            print(&render(&["KEY", "STATE", "CREATED", "KEPT BY"], &rows));
        }
        SigningKeyCommand::Add => {
            let master = MasterKey::load_or_create(&serve::master_path(&context.config), store, now_ms()).await?;
            let mut tx = store.write().await?;
            check_room(&mut tx).await?;
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
        SigningKeyCommand::Unretire { key } => {
            let master = MasterKey::load_or_create(&serve::master_path(&context.config), store, now_ms()).await?;
            let mut tx = store.write().await?;
            check_room(&mut tx).await?;
            if !tx.unretire_signing_key(key, now_ms()).await? {
                return Err(Failure::BadInput("this key is not retired: see `signing-key list`".into()));
            }
            // Sealed under another master key, it would end all signing.
            SigningKeys::read(&mut tx, &master).await?;
            let entity = key.to_string();
            tx.audit(now_ms(), &context.actor, "unretire", ("signing_key", &entity), serde_json::Value::Null).await?;
            tx.commit().await?;
            if context.json {
                print(&json(&serde_json::json!({"key": key, "state": "active"})));
            }
        }
        SigningKeyCommand::Retire { key, lose_nodes, yes } => {
            let question = if lose_nodes {
                "nodes that know no other key will refuse every document until they enrol again; retire it"
            } else {
                "nodes will accept no document signed by it alone; retire it"
            };
            confirm(question, yes)?;
            let mut tx = store.write().await?;
            let without = if lose_nodes { Without::AnyNode } else { Without::NoNode };
            match tx.retire_signing_key(key, without).await? {
                Retirement::Retired => {}
                Retirement::NotRetirable => {
                    return Err(Failure::BadInput("this key is not active, or it is the last one".into()));
                }
                Retirement::WouldLose(nodes) => {
                    return Err(Failure::BadInput(format!(
                        "not retired: {} not yet kept a state with the newest key, and would be locked out: wait until \
                         `node list` shows the wanted generation in force, remove them, or give --lose-nodes",
                        names(&nodes, "has", "have")
                    )));
                }
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
