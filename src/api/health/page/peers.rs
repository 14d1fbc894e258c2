//! The peers, the busiest first.
use super::facts::{Facts, Order};
use super::html::{Html, Size, State};
use super::rates::{Rates, earlier, rates};
use spoke_model::interface_name::IfName;
use spoke_model::key::PublicKey;
use spoke_model::time::Boot;
use spoke_model::wireguard::REJECT_AFTER_TIME;
use spoke_net::state::ObservedPeer;
use std::cmp::Reverse;

/// Rows of one page.
pub const ROWS: usize = 100;

struct Row<'a> {
    link: &'a IfName,
    key: &'a PublicKey,
    peer: &'a ObservedPeer,
    name: Option<&'a str>,
    handshake: Option<Boot>,
    rates: Option<Rates>,
}

impl Row<'_> {
    const fn traffic(&self) -> u64 {
        self.peer.counters.rx.saturating_add(self.peer.counters.tx)
    }

    fn matches(&self, filter: &str) -> bool {
        let has = |text: &str| text.to_lowercase().contains(filter);
        self.name.is_some_and(has)
            || has(self.link.as_str())
            || has(&self.key.to_string())
            || self.peer.endpoint.is_some_and(|e| has(&e.to_string()))
            || self.peer.allowed_ips.iter().any(|n| has(&n.to_string()))
    }
}

fn rows<'a>(facts: &'a Facts<'_>) -> Vec<Row<'a>> {
    let details = facts.details;
    let earlier = earlier(details);
    let mut rows = Vec::new();
    for (link, have) in details.observed.links.iter().filter(|(_, l)| l.wireguard) {
        for (key, peer) in &have.peers {
            let was = earlier.and_then(|(o, time)| Some((o.links.get(link)?.peers.get(key)?.counters, time)));
            let rates = was.map(|(c, time)| rates((peer.counters.rx, peer.counters.tx), (c.rx, c.tx), time));
            let handshake = details.handshakes.at(link, key);
            let row = Row { link, key, peer, name: facts.names.get(key).copied(), handshake, rates };
            if facts.query.filter.is_empty() || row.matches(&facts.query.filter) {
                rows.push(row);
            }
        }
    }
    rows.sort_unstable_by(|a, b| {
        let by_name = || (a.name.is_none(), a.name, a.key).cmp(&(b.name.is_none(), b.name, b.key));
        let busy = |r: &Row<'_>| Reverse((r.rates.map_or(0, |r| r.rx.saturating_add(r.tx)), r.handshake));
        match facts.query.order {
            Order::Activity => busy(a).cmp(&busy(b)),
            Order::Name => std::cmp::Ordering::Equal,
            Order::Traffic => b.traffic().cmp(&a.traffic()),
        }
        .then_with(by_name)
    });
    rows
}

/// A link to another part of the list.
fn link(h: &mut Html<'_>, facts: &Facts<'_>, order: Order, from: usize, text: &'static str) {
    let filter = percent_encoding::utf8_percent_encode(&facts.query.filter, percent_encoding::NON_ALPHANUMERIC);
    h.raw("<a href=\"?q=").text(&filter).raw("&amp;sort=").raw(order.as_str());
    h.raw("&amp;from=").text(&from).raw("\">").raw(text).raw("</a>");
}

/// The section.
pub fn write(h: &mut Html<'_>, facts: &Facts<'_>) {
    let (details, query) = (facts.details, &facts.query);
    let all: usize = details.observed.links.values().map(|l| l.peers.len()).sum();
    h.raw("<section class=card id=peers><div class=bar><h2>Peers</h2><span class=soft>");
    if all == 0 {
        h.raw("none yet</span></div></section>");
        return;
    }
    let rows = rows(facts);
    let from = if query.from < rows.len() { query.from } else { 0 };
    let until = rows.len().min(from + ROWS);
    if rows.len() < all {
        h.text(&rows.len()).raw(" of ");
    }
    h.text(&all).raw(" · as of ").age(details.observed.at).raw(" ago</span>");
    if all > 3 {
        h.raw("<form role=search><input name=q type=search aria-label=\"Filter peers\" placeholder=\"Name, key or address\" value=\"");
        h.text(&query.filter).raw("\"><input type=hidden name=sort value=\"").raw(query.order.as_str());
        h.raw("\"><button>Filter</button></form>");
    }
    h.raw("</div>");
    if rows.is_empty() {
        h.raw("<p>No peer matches. <a href=\"?\">Show all</a></p></section>");
        return;
    }
    h.raw("<table><thead><tr>");
    let head = |h: &mut Html<'_>, class: &'static str, text: &'static str, order: Option<Order>| {
        h.raw("<th scope=col").raw(class);
        match order {
            Some(order) if order == query.order => h.raw(" aria-sort=descending>").raw(text).raw(" ↓</th>"),
            Some(order) => {
                h.raw(">");
                link(h, facts, order, 0, text);
                h.raw("</th>")
            }
            None => h.raw(">").raw(text).raw("</th>"),
        };
    };
    head(h, "", "Peer", Some(Order::Name));
    head(h, "", "Handshake", Some(Order::Activity));
    head(h, " class=n", "Received", Some(Order::Traffic));
    head(h, " class=n", "Sent", None);
    head(h, "", "Endpoint", None);
    head(h, "", "Networks", None);
    h.raw("</tr></thead><tbody>");
    let several = details.observed.links.len() > 1;
    for row in rows.get(from..until).unwrap_or_default() {
        write_row(h, row, several);
    }
    h.raw("</tbody></table><p class=\"held soft\">Not updated while it is selected.</p>");
    if rows.len() > ROWS {
        h.raw("<p class=next>").text(&(from + 1)).raw(" to ").text(&until).raw(" of ").text(&rows.len());
        if from > 0 {
            link(h.raw(" · "), facts, query.order, from.saturating_sub(ROWS), "previous");
        }
        if until < rows.len() {
            link(h.raw(" · "), facts, query.order, until, "next");
        }
        h.raw("</p>");
    }
    h.raw("</section>");
}

fn write_row(h: &mut Html<'_>, row: &Row<'_>, several: bool) {
    let fresh = row.handshake.is_some_and(|at| h.at.now.since(at) < REJECT_AFTER_TIME);
    h.raw("<tr><td>");
    if let Some(name) = row.name {
        h.raw("<b><bdi>").text(&name).raw("</bdi></b> ");
    }
    h.raw("<code class=k tabindex=0>").text(row.key).raw("</code>");
    if several {
        h.raw(" <small>").text(row.link).raw("</small>");
    }
    h.raw("</td><td><span class=\"s ").raw(if fresh { State::Ok } else { State::None }.class()).raw("\">");
    match row.handshake {
        Some(at) => h.age(at).raw(" ago"),
        None => h.raw("never"),
    };
    h.raw("</span></td>");
    let counters = row.peer.counters;
    for (label, total, rate) in
        [("Received", counters.rx, row.rates.map(|r| r.rx)), ("Sent", counters.tx, row.rates.map(|r| r.tx))]
    {
        h.raw("<td class=n data-l=").raw(label).raw(">").text(&Size(total, "B"));
        if let Some(rate) = rate.filter(|r| *r > 0) {
            h.raw(" <small>").text(&Size(rate, "bit/s")).raw("</small>");
        }
        h.raw("</td>");
    }
    h.raw("<td data-l=Endpoint>");
    match row.peer.endpoint {
        Some(endpoint) => h.raw("<code>").text(&endpoint).raw("</code>"),
        None => h.raw("–"),
    };
    h.raw("</td><td data-l=Networks>");
    let mut first = true;
    for net in row.peer.allowed_ips.iter().take(3) {
        h.dot(&mut first).raw("<code>").text(net).raw("</code>");
    }
    if row.peer.allowed_ips.len() > 3 {
        h.raw(" and ").text(&(row.peer.allowed_ips.len() - 3)).raw(" more");
    }
    h.raw("</td></tr>");
}
