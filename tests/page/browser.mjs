// The page of a device in a real browser: for each state and width no console message, no violation of the policy, no
// horizontal scroll, enough contrast, visible focus; then live updates, a lost device, and no scripts.
//   node tests/page/browser.mjs PAGES [SHOTS]
// PAGES: as written by the test `states_are_written_for_the_browser`. SHOTS: a directory for screenshots.
// Prints "ok - …" and "not ok - …" lines. The browser is driven by its debugging pipe: no package is needed.
import { spawn } from "node:child_process";
import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { createServer } from "node:http";
import { tmpdir } from "node:os";
import { join } from "node:path";

const [pages, shots] = process.argv.slice(2);
const AWAIT = 60_000;
const policy = readFileSync(join(pages, "policy"), "utf8");
const scenes = readdirSync(pages).filter(f => f.endsWith(".html")).map(f => f.slice(0, -5)).sort();

// --- a device: serves the state that its path names; `device.scene` replaces it, `device.hangs` answers nothing ---
const device = { scene: "", hangs: false, asked: 0, waiting: [] };
const server = createServer((request, response) => {
  const url = new URL(request.url, "http://localhost");
  const scene = device.scene || url.pathname.split("/")[1];
  if (url.searchParams.has("part")) device.asked++;
  if (device.hangs) { device.waiting.push(response); return; }
  if (!scenes.includes(scene)) { response.writeHead(404).end(); return; }
  const headers = { "content-type": "text/html; charset=utf-8", "content-security-policy": policy, "cache-control": "no-store" };
  response.writeHead(200, headers).end(readFileSync(join(pages, `${scene}.html`)));
});
await new Promise(done => server.listen(0, "127.0.0.1", done));
const origin = `http://127.0.0.1:${server.address().port}`;

// --- the browser ---
const profile = mkdtempSync(join(tmpdir(), "spoke-page-"));
const browser = spawn(process.env.CHROMIUM || "chromium", [
  "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars", "--no-first-run",
  "--force-color-profile=srgb", "--remote-debugging-pipe", `--user-data-dir=${profile}`, "about:blank",
], { stdio: ["ignore", "ignore", "ignore", "pipe", "pipe"] });
browser.on("exit", code => { if (!ended) { console.log(`not ok - the browser ended with ${code}`); process.exit(1); } });
let ended = false, last = 0, buffer = "";
const replies = new Map(), messages = [];
browser.stdio[4].setEncoding("utf8").on("data", data => {
  buffer += data;
  const parts = buffer.split("\0");
  buffer = parts.pop();
  for (const message of parts.map(p => JSON.parse(p))) {
    if (message.id) { replies.get(message.id)?.(message); replies.delete(message.id); continue; }
    const p = message.params;
    if (message.method === "Runtime.exceptionThrown") messages.push(p.exceptionDetails.exception?.description ?? p.exceptionDetails.text);
    if (message.method === "Runtime.consoleAPICalled") messages.push(`console.${p.type}: ${p.args.map(a => a.value).join(" ")}`);
    if (message.method === "Log.entryAdded") messages.push(`${p.entry.source}: ${p.entry.text}`);
  }
});
let session;
const send = (method, params = {}) => new Promise((done, failed) => {
  const id = ++last;
  replies.set(id, m => m.error ? failed(Error(`${method}: ${m.error.message}`)) : done(m.result));
  browser.stdio[3].write(JSON.stringify({ id, method, params, sessionId: session }) + "\0");
});
const { targetId } = await send("Target.createTarget", { url: "about:blank" });
({ sessionId: session } = await send("Target.attachToTarget", { targetId, flatten: true }));
for (const domain of ["Page", "Runtime", "Log"]) await send(`${domain}.enable`);
const page = async (expression) => {
  const { result, exceptionDetails } = await send("Runtime.evaluate", { expression, returnByValue: true, awaitPromise: true });
  if (exceptionDetails) throw Error(exceptionDetails.exception?.description ?? exceptionDetails.text);
  return result.value;
};
const until = async (what, expression) => {
  const end = Date.now() + AWAIT;
  while (!await page(expression).catch(() => false)) {
    if (Date.now() > end) throw Error(`${what}: not within ${AWAIT / 1000} s: ${await page("document.body.innerText.slice(0, 300)")}`);
    await new Promise(done => setTimeout(done, 100));
  }
};
const look = async (width, scheme = "light", height = width < 500 ? 740 : 900) => {
  await send("Emulation.setDeviceMetricsOverride", { width, height, deviceScaleFactor: 1, mobile: width < 500 });
  await send("Emulation.setEmulatedMedia", { features: [{ name: "prefers-color-scheme", value: scheme }, { name: "prefers-reduced-motion", value: "reduce" }] });
};
let visits = 0;
const visit = async (scene, width) => {
  await look(width);
  const path = `/${scene}/${++visits}/`;
  await send("Page.navigate", { url: origin + path });
  await until(scene, `location.pathname === "${path}" && document.readyState === "complete" && !!document.querySelector("main")`);
};
const press = async (key, code = key, keyCode = 9) => {
  for (const type of ["keyDown", "keyUp"]) await send("Input.dispatchKeyEvent", { type, key, code, windowsVirtualKeyCode: keyCode });
};
const shoot = async name => {
  if (!shots) return;
  const [width, height] = await page("[innerWidth, document.documentElement.scrollHeight]");
  const clip = { x: 0, y: 0, width, height: Math.min(height, width > 500 ? 1200 : 2400), scale: width > 500 ? 0.75 : 1 };
  const { data } = await send("Page.captureScreenshot", { format: "webp", quality: 60, captureBeyondViewport: true, clip });
  writeFileSync(join(shots, `${name}.webp`), Buffer.from(data, "base64"));
};

// --- the checks ---
let failures = 0;
const check = async (name, body) => {
  messages.length = 0;
  try {
    await body();
    if (messages.length) throw Error(`the console has: ${messages.join("; ")}`);
    console.log(`ok - ${name}`);
  } catch (e) {
    failures++;
    console.log(`not ok - ${name}: ${e.message}`);
  }
};
const expect = (holds, what) => { if (!holds) throw Error(what); };

/** Text whose contrast with its ground is below 4.5 (WCAG 2.2, 1.4.3). */
const CONTRAST = `(() => {
  const rgb = c => { const m = c.match(/[\\d.]+/g).map(Number); return m.length > 3 && m[3] === 0 ? null : m; };
  const light = c => { const [r, g, b] = c.map(v => (v /= 255) <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4); return .2126 * r + .7152 * g + .0722 * b; };
  const bad = [];
  for (const e of document.querySelectorAll("body *")) {
    if (![...e.childNodes].some(n => n.nodeType === 3 && n.data.trim()) || !e.getClientRects().length || ["SCRIPT", "STYLE"].includes(e.nodeName)) continue;
    let g = e, ground = null;
    while (g && !ground) { ground = rgb(getComputedStyle(g).backgroundColor); g = g.parentElement; }
    const [a, b] = [light(rgb(getComputedStyle(e).color)), light(ground ?? [255, 255, 255])];
    const ratio = (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
    if (ratio < 4.5) bad.push(e.nodeName + "." + e.className + " " + ratio.toFixed(2) + " " + e.textContent.slice(0, 20));
  }
  return bad;
})()`;

for (const scene of scenes) {
  await check(`${scene}: fits 360, 768, 1280 and 1920 px, readable in light and dark`, async () => {
    await visit(scene, 360);
    for (const width of [360, 768, 1280, 1920]) {
      for (const scheme of ["light", "dark"]) {
        await look(width, scheme);
        const wide = await page("document.documentElement.scrollWidth - innerWidth");
        const widest = () => page("[...document.querySelectorAll('body *')].filter(e => e.getBoundingClientRect().right > innerWidth + 1).map(e => e.nodeName + '.' + e.className).slice(0, 3).join()");
        expect(wide <= 0, `${wide} px too wide at ${width}: ${await widest()}`);
        const cut = await page("[...document.querySelectorAll('main *:not(.k)')].filter(e => e.scrollWidth > e.clientWidth + 1 && getComputedStyle(e).overflowX !== 'visible' && e.clientWidth).length");
        expect(cut === 0, `${cut} elements are cut off at ${width} px`);
        const faint = await page(CONTRAST);
        expect(faint.length === 0, `contrast below 4.5, ${scheme}: ${faint.slice(0, 3).join("; ")}`);
        if (width === 360 || width === 1280) await shoot(`${scene}-${width}-${scheme}`);
      }
    }
  });
}

await check("every link, field and key is reached by Tab, in reading order, with visible focus", async () => {
  await visit("down", 1280);
  const wanted = await page("[...document.querySelectorAll('a,button,input:not([type=hidden]),[tabindex]')].filter(e => e.getClientRects().length).length");
  let seen = 0, order = -1;
  for (; seen < wanted; seen++) {
    await press("Tab");
    const at = await page(`(() => {
      const e = document.activeElement, s = getComputedStyle(e), r = e.getBoundingClientRect();
      const all = [...document.querySelectorAll("*")];
      return { name: e.nodeName + " " + e.textContent.slice(0, 20), order: all.indexOf(e), outline: s.outlineStyle !== "none" && parseFloat(s.outlineWidth) >= 2, shown: r.width > 0 && r.right > 0 && r.bottom > 0 && r.top < innerHeight };
    })()`);
    expect(at.order > order, `${at.name} is out of order`);
    expect(at.outline && at.shown, `focus on ${at.name} is not visible`);
    order = at.order;
  }
  expect(seen > 8, "there is something to reach");
});

await check("what changes is replaced, the focus and the text of the filter stay", async () => {
  await visit("hub-5000", 1280);
  await press("/", "Slash", 191);
  await until("the filter has the focus", "document.activeElement.name === 'q'");
  await send("Input.insertText", { text: "oslo" });
  await until("the filter is in the address", "location.search.includes('q=oslo')");
  const before = device.asked;
  device.scene = "fresh-hub";
  await until("the next state is shown", "document.querySelector('main').innerText.includes('none yet')");
  device.scene = "";
  await until("and the one after it", "document.querySelector('main').innerText.includes('of 5000 peers')");
  expect(device.asked > before, "the device was asked");
  await page("document.querySelector('#peers .k').focus()");
  const key = await page("document.activeElement.textContent");
  const asked = device.asked;
  while (device.asked < asked + 2) await new Promise(done => setTimeout(done, 100));
  expect(await page("document.activeElement.textContent") === key, "the selected key stays");
  expect(await page("getComputedStyle(document.querySelector('.held')).display") !== "none", "and the page says so");
});

await check("ages count on, and a device that does not answer is named within 10 s", async () => {
  await visit("healthy", 1280);
  await until("it is live", "document.querySelector('#live').innerText.includes('live')");
  const age = () => page("+document.querySelector('.hop time').innerText.split(' ')[0]");
  const first = await age();
  await until("the age has grown", `+document.querySelector('.hop time').innerText.split(' ')[0] > ${first}`);
  expect((await page("document.title")).startsWith("● healthy"), "the title has the state");
  device.hangs = true;
  const since = Date.now();
  await until("the loss is named", "document.querySelector('#live').innerText.includes('No answer from this device')");
  expect(Date.now() - since < 30_000, "within seconds");
  await until("its age is counted", "/last update \\d+ s ago/.test(document.querySelector('#age').innerText)");
  expect((await page("document.title")).startsWith("○ no answer"), "the title has it");
  expect(await page("document.documentElement.classList.contains('lost')"), "the figures are dimmed");
  expect(await page("document.querySelector('h1').innerText === 'no answer' && document.querySelector('.v p').innerText.includes('It was: healthy')"), "the verdict is no longer shown as one");
  await shoot("lost-1280-light");
  device.hangs = false;
  device.waiting.splice(0).forEach(r => r.destroy());
  await until("it recovers", "document.querySelector('#live').innerText.includes('live') && !document.documentElement.classList.contains('lost') && document.querySelector('h1').innerText === 'healthy'");
  messages.length = 0; // the browser's own notes on failed requests
});

await check("light and dark are switched by hand and remembered", async () => {
  await visit("healthy", 1280);
  const ground = () => page("getComputedStyle(document.body).backgroundColor");
  const light = await ground();
  await page("document.querySelector('#theme').click()");
  const dark = await ground();
  expect(light !== dark, "the ground changes");
  await visit("healthy", 1280);
  expect(await ground() === dark, "it is remembered");
  await page("document.querySelector('#theme').click()");
  expect(await ground() === light, "and changes back");
  await page("localStorage.clear()");
});

await check("without scripts the page is complete and reloads itself", async () => {
  await send("Emulation.setScriptExecutionDisabled", { value: true });
  await visit("hub-5000", 1280);
  const text = await page("document.body.innerText");
  for (const want of ["healthy", "as of 20", "of 5000 peers active", "Handshake", "Filter"]) expect(text.includes(want), `${want}: ${text.slice(0, 200)}`);
  expect(!text.includes("Light or dark"), "no button that does nothing");
  expect(await page("document.querySelector('form').method") === "get", "the filter is a form");
  await shoot("no-script-1280-light");
  await send("Emulation.setScriptExecutionDisabled", { value: false });
});

ended = true;
browser.kill();
server.closeAllConnections();
server.close();
await new Promise(done => browser.once("exit", done));
rmSync(profile, { recursive: true, force: true, maxRetries: 20, retryDelay: 100 });
process.exit(failures ? 1 : 0);
