"use strict";
(() => {
const EVERY = 5, TIMEOUT = 4000, d = document, root = d.documentElement, $ = s => d.querySelector(s);
const live = $("#live"), form = () => $("form");
let seen = performance.now(), lost = "", said = false, tries = 0, next = EVERY, busy = 0;
const dark = () => root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme:dark)").matches;
root.classList.add("js");
try { if (localStorage.theme) root.dataset.theme = localStorage.theme; } catch {}
const span = s => s < 120 ? s + " s" : s < 7200 ? Math.floor(s / 60) + " min" : s < 172800 ? Math.floor(s / 3600) + " h" : Math.floor(s / 86400) + " d";
const since = () => Math.floor((performance.now() - seen) / 1000);
const ICON = { ok: ["%23198754", "<circle cx='8' cy='8' r='7'/>"], warn: ["%23c98a00", "<path d='M8 1l8 14H0z'/>"], bad: ["%23d93025", "<path d='M1 1h14v14H1z'/>"], none: ["%23808a96", "<circle cx='8' cy='8' r='5' fill='none' stroke-width='4' stroke='%23808a96'/>"] };
function title() {
  const m = $("main").dataset, [fill, shape] = ICON[lost ? "none" : m.s] || ICON.none;
  d.title = lost ? "○ no answer · " + m.n : m.t;
  $("#icon").href = "data:image/svg+xml,<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 16 16' fill='" + fill + "'>" + shape + "</svg>";
}
function tick() {
  const s = since();
  if (!lost) for (const t of d.querySelectorAll("[data-a]")) t.textContent = span(+t.dataset.a + s);
  if (!lost) for (const t of d.querySelectorAll("[data-c]")) t.textContent = span(Math.max(0, t.dataset.c - s));
  $("#age").textContent = lost ? "last update " + span(s) + " ago, next try in " + next + " s" : s < 2 ? "" : span(s) + " ago";
  if (!busy && --next <= 0) look();
}
function say(error) {
  const same = said && !error === !lost;
  lost = error;
  said = true;
  if (same) return;
  root.classList.toggle("lost", !!lost);
  live.className = "s " + (lost ? "bad" : "ok");
  live.textContent = lost ? "No answer from this device" : "live";
  if (lost) {
    $(".v").className = "card v none";
    $(".v p").textContent = "What follows is of the last answer. It was: " + $("h1").textContent + ".";
    $("h1").textContent = "no answer";
  }
  title();
}
function skew() {
  const s = Math.round((Date.now() - $("main").dataset.w) / 1000), e = $("#skew");
  if (e) e.textContent = Math.abs(s) < 90 ? "" : "It is " + span(Math.abs(s)) + (s > 0 ? " behind" : " ahead of") + " the clock of this browser.";
}
function morph(a, b) {
  if (a.nodeName === "TBODY" && (a.contains(d.activeElement) || a.contains(getSelection().focusNode) && !getSelection().isCollapsed)) return;
  for (const { name, value } of [...b.attributes]) if (a.getAttribute(name) !== value) a.setAttribute(name, value);
  for (const { name } of [...a.attributes]) if (!b.hasAttribute(name) && name !== "open") a.removeAttribute(name);
  const x = [...a.childNodes], y = [...b.childNodes];
  y.forEach((n, i) => {
    const o = x[i];
    if (!o) a.append(n);
    else if (o.nodeName !== n.nodeName) o.replaceWith(n);
    else if (n.nodeType !== 1) { if (o.data !== n.data) o.data = n.data; }
    else morph(o, n);
  });
  x.slice(y.length).forEach(o => o.remove());
}
async function look() {
  const mine = busy = performance.now() + 1, url = location.search;
  try {
    const r = await fetch("./" + url + (url ? "&" : "?") + "part", { cache: "no-store", signal: AbortSignal.timeout(TIMEOUT) });
    if (!r.ok) throw Error(r.status);
    const m = new DOMParser().parseFromString(await r.text(), "text/html").querySelector("main");
    if (!m) throw Error("not this page");
    if (mine !== busy) return;
    morph($("main"), m);
    seen = performance.now(); tries = 0;
    say(""); title(); skew();
  } catch (e) {
    if (mine !== busy) return;
    tries++;
    say(String(e));
  }
  busy = 0;
  next = d.hidden ? 30 : Math.min(30, EVERY * 2 ** Math.max(0, tries - 3));
  tick();
}
function go(to) { history.replaceState(null, "", to); busy = 0; look(); }
let typing;
d.addEventListener("input", e => {
  if (e.target.form !== form()) return;
  clearTimeout(typing);
  typing = setTimeout(() => go("?" + new URLSearchParams(new FormData(form()))), 150);
});
d.addEventListener("submit", e => { e.preventDefault(); clearTimeout(typing); go("?" + new URLSearchParams(new FormData(form()))); });
d.addEventListener("click", e => {
  const link = e.target.closest("main a[href^='?']"), key = e.target.closest(".k");
  if (link && !e.ctrlKey && !e.metaKey && !e.shiftKey) { e.preventDefault(); go(link.getAttribute("href")); }
  if (key) navigator.clipboard?.writeText(key.textContent).then(() => { key.classList.add("c"); setTimeout(() => key.classList.remove("c"), 1500); }, () => {});
  if (e.target.id === "theme") {
    root.dataset.theme = dark() ? "light" : "dark";
    try { localStorage.theme = root.dataset.theme; } catch {}
  }
});
d.addEventListener("keydown", e => { if (e.key === "/" && e.target === d.body && form()) { e.preventDefault(); form().elements.q.focus(); } });
d.addEventListener("visibilitychange", () => { if (!d.hidden && since() > 1) look(); });
addEventListener("online", look);
say(""); title(); skew();
setInterval(tick, 1000);
})();
