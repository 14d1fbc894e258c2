//! The page in each state, and text of others in it.
mod scenes;
use super::facts::{Order, Query};
use super::html::{Size, Span};
use super::peers::ROWS;
use super::*;
use scenes::{Scene, healthy, many};
use std::sync::{Arc, LazyLock};

static SCENES: LazyLock<Vec<(&str, Scene)>> = LazyLock::new(scenes::all);

fn all() -> impl Iterator<Item = (&'static str, Scene)> {
    SCENES.iter().cloned()
}

/// The text of a page as a person reads it, in the order of the page.
fn read(page: &str) -> String {
    let main = page.split("<main").nth(1).unwrap().split("</main>").next().unwrap();
    let mut out = String::new();
    for part in main.split('<') {
        out.push(' ');
        out.push_str(part.split_once('>').map_or("", |(_, text)| text));
    }
    out.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn scene(name: &str) -> Scene {
    all().find(|(n, _)| *n == name).unwrap().1
}

/// Asserts that the texts are there, in this order.
fn assert_order(name: &str, texts: &[&str]) {
    let text = read(&scene(name).page(""));
    let mut rest = text.as_str();
    for want in texts {
        let Some((_, after)) = rest.split_once(want) else {
            panic!("{name}: {want:?} is missing after the others in {text}")
        };
        rest = after;
    }
}

#[test]
fn verdict_comes_first_and_causes_before_figures() {
    for (name, texts) in [
        (
            "healthy",
            &[
                "healthy",
                "Connected to hub-a for 2 h",
                "192.168.1.1",
                "echo 24 ms",
                "Control plane",
                "connected",
                "Peers",
                "hub-a",
            ][..],
        ),
        (
            "down",
            &[
                "disconnected",
                "No tunnel to hub-a for 4 min",
                "does not complete a handshake",
                "→",
                "spoke doctor",
                "for 4 min",
                "no_tunnel",
                "this device",
                "Next attempt in 24 s",
                "8 failed in a row",
                "new local port",
            ],
        ),
        (
            "never-up",
            &[
                "disconnected",
                "has a carrier",
                "not enrolled yet",
                "WAN no carrier",
                "no handshake yet",
                "Next attempt",
            ],
        ),
        (
            "hub-silent",
            &["unhealthy", "hub-a has not answered through the tunnel for 95 s", "hub_silent", "Asking the hub again"],
        ),
        (
            "degraded",
            &[
                "degraded",
                "Connected to hub-a",
                "0 of 2 endpoints agree",
                "contract_away",
                "control plane unreachable",
                "control_away",
                "not responding for 4 min",
                "stale · 2 of 3 admitted",
                "0 of 2 answer",
                "client-3 NO_TOKEN",
                "repaired wg0: mtu",
            ],
        ),
        (
            "revoked",
            &[
                "disconnected",
                "No tunnel to hub-a for 60 min",
                "removed from the fleet by an operator",
                "enrol again",
                "removed",
                "does not complete a handshake",
                "no_tunnel",
                "Control plane removed from the fleet",
            ],
        ),
        ("on-trial", &["healthy", "state 19 in force", "on trial", "1.5.0 on trial in slot"]),
        (
            "update-pending",
            &["healthy", "update pending", "1.4.2 runs in slot", "was given up here", "last: 1.5.0 given up"],
        ),
        ("clock-distrusted", &["healthy", "Clock not trusted", "ages are right"]),
        ("no-control-plane", &["healthy", "Control plane not used"]),
        (
            "drift",
            &[
                "degraded",
                "Permission denied",
                "apply_failed",
                "Drift 2 differences",
                "mtu",
                "(left alone)",
                "40 refusals",
            ],
        ),
        ("unprovisioned", &["waiting for settings", "no spoke.toml on the boot partition", "not_provisioned"]),
        ("starting", &["starting", "has not been observed yet"]),
        ("fresh-hub", &["healthy", "No peers yet", "no handshake yet", "Peers none yet"]),
        ("hub-5000", &["healthy", "of 5000 peers active", "newest handshake", "Peers 5000", "1 to 100 of 5000"]),
        ("stale", &["healthy", "late", "kernel observed 6 min ago", "as of 6 min ago"]),
    ] {
        assert_order(name, texts);
    }
}

#[test]
fn causes_precede_what_follows_from_them() {
    for (name, scene) in all() {
        let text = read(&scene.page(""));
        let at = |what: &str| text.find(what).unwrap_or(usize::MAX);
        assert!(at("→") < at("this device") || !text.contains('→'), "{name}: remedies before figures");
    }
    assert!(!scene("healthy").page("").contains("class=why"));
}

#[test]
fn untrusted_clock_shows_ages_and_no_times() {
    let text = scene("clock-distrusted").page("part");
    assert!(text.contains("data-a=41>41 s") && !text.contains("title=20"), "{text}");
    assert!(healthy().page("part").contains("data-a=41 title=2026-"));
}

#[test]
fn text_of_others_is_escaped() {
    let hostile = "<img src=x onerror=alert(1)>\"'&\u{202e}\u{7}";
    let mut scene = healthy();
    scene.session().hub = Some(hostile.into());
    for t in &mut scene.session().history {
        t.hub = hostile.into();
    }
    let uplink = scene.snapshot.components.uplink.as_mut().unwrap();
    (uplink.hub, uplink.connected, uplink.last_error) = (Some(hostile.into()), false, Some(hostile.into()));
    let escaped = "&lt;img src=x onerror=alert(1)&gt;&quot;&#39;&amp;\u{fffd}\u{fffd}";
    let page = scene.page("q=%3Cscript%3Ealert%281%29%3C%2Fscript%3E%22%20x&sort=%22%3E&from=%3Cb%3E");
    assert!(page.matches(escaped).count() >= 4, "{page}");
    for raw in ["<img", "<script>alert", "\u{202e}", "\u{7}"] {
        assert!(!page.contains(raw), "{raw:?}");
    }
    let page = many(20).page("q=%22%3E%3Cscript%3Ealert%281%29");
    assert!(page.contains("value=\"&quot;&gt;&lt;script&gt;alert(1)\"") && page.contains("No peer matches"));
}

#[test]
fn peers_are_sorted_filtered_and_paged() {
    let scene = many(300);
    let names = |query: &str| -> Vec<String> {
        let page = scene.page(query);
        let body = page.split("<tbody>").nth(1).unwrap_or_default().to_owned();
        body.split("<tr>")
            .skip(1)
            .map(|r| r.split("<bdi>").nth(1).map_or_else(String::new, |n| n.split('<').next().unwrap().to_owned()))
            .collect()
    };
    let busiest = names("");
    assert_eq!((busiest.len(), busiest[0].as_str()), (ROWS, "edge-294-turin"));
    assert_eq!(names("from=200").len(), 300 - 2 * ROWS);
    assert_eq!(names("from=9999"), busiest, "a page that is gone is the first");
    assert_eq!(names("sort=name")[0], "edge-1-lyon");
    assert_eq!(names("q=EDGE-7-OSLO"), ["edge-7-oslo"]);
    assert_eq!(names("q=10.8.0.12%2F32"), ["edge-10-berlin"]);
    let page = scene.page("q=oslo&sort=traffic");
    assert!(page.contains("value=\"oslo\"") && page.contains("href=\"?q=oslo&amp;sort=name&amp;from=0\""), "{page}");
    assert!(read(&page).contains("56 of 300"), "{}", read(&page));
}

#[test]
fn query_is_read_leniently() {
    let want = Query { filter: "a b/ü".into(), order: Order::Traffic, from: 7, part: true };
    assert_eq!(Query::parse(Some("q=A+b%2F%C3%9C&sort=traffic&from=7&part&x=y&&=")), want);
    assert_eq!(
        Query::parse(Some("from=-1&sort=up&q=%ff%zz")),
        Query { filter: "\u{fffd}%zz".into(), ..Query::default() }
    );
}

#[test]
fn every_state_is_well_formed_markup() {
    let void = ["meta", "link", "input"];
    for (name, scene) in all() {
        let page = scene.page("");
        let script = page.find("<script>").unwrap();
        let style = (page.find("<style>").unwrap() + 7)..page.find("</style>").unwrap();
        let page = format!("{}{}", &page[..style.start], &page[style.end..script]) + "</body></html>";
        let mut open = Vec::new();
        for tag in page.split('<').skip(2).map(|t| t.split('>').next().unwrap()) {
            let tag_name = tag.split([' ', '/']).find(|t| !t.is_empty()).unwrap();
            match tag.strip_prefix('/') {
                Some(closed) => assert_eq!(open.pop(), Some(closed), "{name}: </{closed}>"),
                None if void.contains(&tag_name) => {}
                None => open.push(tag_name),
            }
        }
        assert!(open.is_empty(), "{name}: {open:?}");
        let part = scene.page("part");
        assert!(part.starts_with("<main ") && part.ends_with("</main>"), "{name}");
    }
}

#[test]
fn page_loads_nothing_from_elsewhere() {
    let page = healthy().page("");
    for outside in ["src=", "@import", "url(", "//cdn", "style=", "onclick", "innerHTML", "eval("] {
        assert!(!page.contains(outside), "{outside}");
    }
    let policy = policy(|bytes| bytes.len().to_string());
    let style = page.split("<style>").nth(1).unwrap().split("</style>").next().unwrap();
    let script = page.split("<script>").nth(1).unwrap().split("</script>").next().unwrap();
    assert!(policy.contains(&format!("style-src 'sha256-{}'", style.len())), "{policy}");
    assert!(policy.contains(&format!("script-src 'sha256-{}'", script.len())), "{policy}");
    assert!(!policy.contains("unsafe"));
}

/// What a poll costs, and what the assets weigh in the device.
#[test]
fn page_stays_small() {
    assert!(LOOK.len() + STYLE.len() + SCRIPT.len() < 11_000, "{} {} {}", LOOK.len(), STYLE.len(), SCRIPT.len());
    assert!(healthy().page("part").len() < 6_000);
    assert!(many(5000).page("part").len() < 64_000);
}

#[test]
fn figures_have_units() {
    let sizes: Vec<String> = [0, 999, 1000, 1550, 99_949, 100_000, 734_003_200, u64::MAX]
        .map(|n| Size(n, "B").to_string().replace('\u{a0}', " "))
        .into();
    assert_eq!(sizes, ["0 B", "999 B", "1.0 kB", "1.5 kB", "99.9 kB", "100 kB", "734 MB", "1844 PB"]);
    let spans: Vec<String> = [0, 119, 120, 7199, 7200, 172_799, 172_800].map(|n| Span(n).to_string()).into();
    assert_eq!(spans, ["0 s", "119 s", "2 min", "119 min", "2 h", "47 h", "2 d"]);
}

#[test]
fn control_planes_names_are_shown() {
    let mut scene = many(3);
    let named = read(&scene.page(""));
    assert!(named.contains("edge-1-lyon") && named.contains("edge-2-oslo"), "{named}");
    scene.details.effective = None;
    assert!(!Arc::strong_count(&scene.details.observed).eq(&0) && !read(&scene.page("")).contains("edge-1-lyon"));
}

/// Writes every state for `tests/page/browser.mjs`, which serves them to a browser.
#[test]
fn states_are_written_for_the_browser() {
    let Some(dir) = std::env::var_os("SPOKE_PAGES") else { return };
    let dir = std::path::Path::new(&dir);
    let hash = |b: &[u8]| {
        use base64::Engine as _;
        base64::engine::general_purpose::STANDARD.encode(ring::digest::digest(&ring::digest::SHA256, b))
    };
    std::fs::write(dir.join("policy"), policy(hash)).unwrap();
    for (name, scene) in all() {
        std::fs::write(dir.join(format!("{name}.html")), scene.page("")).unwrap();
    }
}
