//! `spoke-control token`: enrolment tokens.
use super::Context;
use super::invitation::{Created, HandOut, hand_out};
use super::prompt::{confirm, seconds};
use super::table::{json, render};
use crate::api::view::{TokenView, all};
use crate::clock::now_ms;
use crate::registry::{networks, tokens};
use crate::store::token::{NewToken, Token};
use clap::Subcommand;
use spoke_command::{Failure, Outcome, print};
use spoke_config::node::Role;
use spoke_model::node_id::NodeId;

/// `spoke-control token …`
#[derive(Debug, Subcommand)]
pub enum TokenCommand {
    /// Create a token, which is not stored, and the invitation for `spoke enrol`; piped, the token alone
    Create {
        /// The network its nodes join; not needed where there is only one, or where --node is in one
        #[arg(long)]
        network: Option<String>,
        /// How often it may be used
        #[arg(long, default_value_t = 1)]
        uses: u64,
        /// How long it is valid, such as 24h, or never
        #[arg(long, default_value = "7d")]
        expires_in: String,
        /// The only node it enrols
        #[arg(long)]
        node: Option<NodeId>,
        /// For people
        #[arg(long)]
        note: Option<String>,
        /// Enrol devices of a release that cannot prove that they hold their WireGuard key
        #[arg(long)]
        without_key_proof: bool,
        /// How it is handed out
        #[command(flatten)]
        how: HandOut,
    },
    /// List tokens without their text
    List,
    /// Revoke a token
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
        TokenCommand::Create { network, uses, expires_in, node, note, without_key_proof, how } => {
            how.check()?;
            let network = networks::meant(store, network, node.as_ref()).await?;
            let lifetime = if expires_in == "never" { 0 } else { seconds(&expires_in)? };
            let expires_ms = tokens::expiry(Some(lifetime), now_ms());
            let (role, named) = match &node {
                Some(id) => (store.read().await?.node(id).await?.map_or(Role::Node, |n| n.role), Some(id.clone())),
                None => (Role::Node, None),
            };
            let new = NewToken { network, node, note, max_uses: uses, expires_ms, key_proof: !without_key_proof };
            let (id, token) = tokens::create(store, &new, actor, now_ms()).await?;
            let shown = [("id".to_owned(), id.into())].into_iter().collect();
            hand_out(context, Created { token, node: named, role }, &how, shown)?;
            Ok(())
        }
        TokenCommand::List => {
            let all = store.read().await?.tokens().await?;
            list(context, all);
            Ok(())
        }
        TokenCommand::Revoke { id, yes } => {
            let known = store.read().await?.tokens().await?.into_iter().find(|t| t.id == id);
            let known = known.ok_or_else(|| Failure::BadInput(format!("there is no token {id}")))?;
            let left = known.max_uses.saturating_sub(known.uses);
            confirm(&format!("revoke token {id}, which is valid for {left} more enrolments"), yes)?;
            tokens::revoke(store, &id, actor, now_ms()).await?;
            let mut all = store.read().await?.tokens().await?;
            all.retain(|t| t.id == id);
            list(context, all);
            Ok(())
        }
    }
}

fn list(context: &Context, tokens: Vec<Token>) {
    let tokens: Vec<TokenView> = all(tokens);
    if context.json {
        return print(&json(&tokens));
    }
    let dash = || "-".to_owned();
    let row = |t: &TokenView| {
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
