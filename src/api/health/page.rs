//! `GET /`: the page of a device, for people. Complete without scripts; with them it replaces what has changed every 5 s.
pub mod cards;
pub mod facts;
pub mod html;
pub mod peers;
pub mod rates;
pub mod verdict;
use super::fold::fold;
use facts::Facts;
use html::Html;

/// The look that the pages of a device and of the control plane share.
pub const LOOK: &str = include_str!("../look.css");
const STYLE: &str = include_str!("page/page.css");
const SCRIPT: &str = include_str!("page/page.js");

/// The page, or the part of it that changes.
pub fn page(facts: &Facts<'_>) -> String {
    let health = fold(facts.snapshot, facts.at);
    let (state, word) = verdict::verdict(&health);
    let name: &dyn std::fmt::Display = match &health.node_id {
        Some(id) => id,
        None => &"unnamed device",
    };
    let title = |h: &mut Html<'_>| {
        h.raw(state.symbol()).raw(" ").raw(word).raw(" · ").text(name);
    };
    let mut page = Html::new(facts.at);
    let h = &mut page;
    if !facts.query.part {
        h.raw("<!doctype html><html lang=en><head><meta charset=utf-8><meta name=viewport content=\"width=device-width,initial-scale=1\"><title>");
        title(h);
        h.raw("</title><link rel=icon id=icon href=\"data:,\"><noscript><meta http-equiv=refresh content=30></noscript><style>");
        h.raw(LOOK).raw(STYLE).raw("</style></head><body><a id=go href=#peers>Skip to the peers</a><header><b><bdi>");
        h.text(name).raw("</bdi></b><span class=soft>");
        if let Some(effective) = &facts.details.effective {
            h.raw(effective.own().node.role.as_str());
        }
        h.raw("</span><span id=live role=status>as of ").text(&health.timestamp);
        h.raw("</span><small id=age></small><button id=theme class=j>Light or dark</button></header>");
    }
    h.raw("<main data-s=")
        .raw(state.class())
        .raw(" data-w=")
        .text(&facts.at.wall.secs())
        .raw("000 data-n=\"")
        .text(name);
    h.raw("\" data-t=\"");
    title(h);
    h.raw("\">");
    verdict::write(h, facts, &health);
    verdict::picture(h, facts, &health);
    cards::write(h, facts, &health);
    peers::write(h, facts);
    h.raw("</main>");
    if !facts.query.part {
        h.raw("<footer class=soft><span>As JSON:</span><a href=health>health</a><a href=ready>ready</a><a href=stats>stats</a><a href=wireguard>wireguard</a><a href=config>config</a><a href=metrics>metrics</a></footer><script>");
        h.raw(SCRIPT).raw("</script></body></html>");
    }
    page.finish()
}

/// The `Content-Security-Policy`: its own script, style and this server only. `hash`: base64 of SHA-256.
pub fn policy(hash: impl Fn(&[u8]) -> String) -> String {
    let style = [LOOK, STYLE].concat();
    format!(
        "default-src 'none'; script-src 'sha256-{}'; style-src 'sha256-{}'; img-src data:; connect-src 'self'; \
         base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
        hash(SCRIPT.as_bytes()),
        hash(style.as_bytes()),
    )
}

#[cfg(test)]
mod tests;
