//! `spoke-control token`: what lets a device enrol.
use super::Context;
use super::fleet::{confirm, seconds};
use super::table::{json, render};
use crate::api::now_ms;
use crate::registry::operate;
use crate::store::token::{NewToken, Token};
use clap::Subcommand;
use spoke_command::{Failure, Outcome, print};
use spoke_model::node_id::NodeId;

/// `spoke-control token …`
#[derive(Debug, Subcommand)]
pub enum TokenCommand {
    /// Make a token; its text is shown this once
    Create {
        /// The network its nodes join
        #[arg(long)]
        network: String,
        /// How often it may be used
        #[arg(long, default_value_t = 1)]
        uses: u64,
        /// How long it is good for, such as 24h
        #[arg(long)]
        expires_in: Option<String>,
        /// The only node it enrols
        #[arg(long)]
        node: Option<NodeId>,
        /// For people
        #[arg(long)]
        note: Option<String>,
    },
    /// List tokens without their text
    List,
    /// Make a token worthless
    Revoke {
        /// The id that `token list` shows
        id: String,
        /// Do not ask
        #[arg(long)]
        yes: bool,
    },
}

/// `spoke-control token …`
pub async fn token(context: &Context, command: TokenCommand) -> Outcome {
    let (store, actor) = (&context.store, &context.actor);
    match command {
        TokenCommand::Create { network, uses, expires_in, node, note } => {
            let lives = expires_in.as_deref().map(seconds).transpose()?;
            let expires_ms =
                lives.map(|s| now_ms().saturating_add(i64::try_from(s.saturating_mul(1000)).unwrap_or(i64::MAX)));
            let new = NewToken { network, node, note, max_uses: uses, expires_ms };
            let (id, token) = operate::add_token(store, &new, actor, now_ms()).await?;
            print(&if context.json {
                json(&serde_json::json!({"id": id, "token": token.reveal()}))
            } else {
                format!("{}\n", token.reveal())
            });
            Ok(())
        }
        TokenCommand::List => {
            let tokens = store.read().await?.tokens().await?;
            list(context, &tokens);
            Ok(())
        }
        TokenCommand::Revoke { id, yes } => {
            let known = store.read().await?.tokens().await?.into_iter().find(|t| t.id == id);
            let known = known.ok_or_else(|| Failure::BadInput(format!("there is no token {id}")))?;
            let left = known.max_uses.saturating_sub(known.uses);
            confirm(&format!("make token {id} worthless, which is good for {left} more enrolments"), yes)?;
            operate::revoke_token(store, &id, actor, now_ms()).await?;
            let mut tokens = store.read().await?.tokens().await?;
            tokens.retain(|t| t.id == id);
            list(context, &tokens);
            Ok(())
        }
    }
}

fn list(context: &Context, tokens: &[Token]) {
    if context.json {
        return print(&json(&tokens));
    }
    let dash = || "-".to_owned();
    let row = |t: &Token| {
        vec![
            t.id.clone(),
            t.network.clone(),
            t.node.as_ref().map_or_else(dash, ToString::to_string),
            format!("{}/{}", t.uses, t.max_uses),
            t.expires_at.clone().unwrap_or_else(dash),
            t.revoked_at.clone().unwrap_or_else(dash),
            t.note.clone().unwrap_or_else(dash),
        ]
    };
    let rows: Vec<_> = tokens.iter().map(row).collect();
    print(&render(&["TOKEN", "NETWORK", "NODE", "USES", "EXPIRES", "REVOKED", "NOTE"], &rows));
}
