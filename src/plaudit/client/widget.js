/* Plaudit's feedback widget, version 1. One file, no dependency, nothing loaded from elsewhere, no inline style or script. docs/capture.md

   <script src="/plaudit/widget.js" defer></script>
   <plaudit-feedback interaction="int_..." token="pft_..." for="id-of-the-answer"></plaudit-feedback>
   <plaudit-choice interaction="int_..." token="pft_..."><div slot="0">one answer</div><div slot="1">the other</div></plaudit-choice>

   What is said is kept in localStorage until the server has it, and sent again with the same idempotency key. */
(() => {
"use strict";
if (window.plaudit) return;
const VERSION = "1";
const DAY_MS = 86_400_000;
const SCRIPT = document.currentScript;
const ENDPOINT = SCRIPT.dataset.endpoint || new URL("feedback", SCRIPT.src).pathname;
const TEXTS = {
  rate: "Rate this answer", up: "Good answer", down: "Bad answer", edit: "Suggest a better answer", comment: "Comment",
  why: "What was wrong?", note: "Anything else (optional)", better: "The answer as it should be", say: "Your comment",
  send: "Send", close: "Close", undo: "Take it back", saved: "Saved", removed: "Taken back", later: "Not sent yet; it will be tried again",
  failed: "Not saved", about: "What is this used for?", choose: "Which answer is better?", answer: "Answer", isBetter: "is better",
  neither: "Neither is better",
  purpose: "What you say here is stored with this answer. It is used to check and improve the answers of this assistant, as far as you allow that.",
  reasons: { incorrect: "Not correct", unhelpful: "Not helpful", ignored: "Ignored what I asked", too_long: "Too long", unsafe: "Unsafe" },
  ...window.plauditTexts,
};

// --- what is remembered: localStorage, or this page's memory where there is none -------------------------------------------

const memory = new Map();
const kept = {
  get(key) {
    try { return JSON.parse(localStorage.getItem(key) ?? memory.get(key) ?? "null"); } catch { return JSON.parse(memory.get(key) ?? "null"); }
  },
  set(key, value) {
    const text = JSON.stringify(value);
    try { localStorage.setItem(key, text); } catch { memory.set(key, text); }
  },
  drop(key) {
    memory.delete(key);
    try { localStorage.removeItem(key); } catch { /* there is none */ }
  },
  keys(prefix) {
    let found = [...memory.keys()];
    try { found = found.concat(Object.keys(localStorage)); } catch { /* there is none */ }
    return found.filter((key) => key.startsWith(prefix)).sort();
  },
};
const WAITING = "plaudit.waiting.", SAID = "plaudit.said.";
for (const key of [...kept.keys(WAITING), ...kept.keys(SAID)]) {
  if (!(Date.now() - (kept.get(key)?.at ?? 0) < 2 * DAY_MS)) kept.drop(key); // tokens hold for a day
}

// --- sending: one request at a time, in the order in which it was said -------------------------------------------------------

const outcomes = new Map(); // idempotency key -> what tells the element
let counter = 0, sending = false, failures = 0, timer = 0;

function newKey() {
  return [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

function give(about, kind, value, retract) {
  const item = { interaction_id: about.interaction, kind, idempotency_key: newKey() };
  if (retract) item.retract = true; else item.value = value;
  if (about.index && kind !== "choice") item.response_index = about.index;
  const place = `${WAITING}${Date.now().toString(36)}.${String(counter++).padStart(6, "0")}.${item.idempotency_key.slice(0, 8)}`;
  kept.set(place, { at: Date.now(), token: about.token, endpoint: about.endpoint, item });
  const told = new Promise((tell) => outcomes.set(item.idempotency_key, tell));
  flush();
  return told;
}

function tell(item, outcome) {
  outcomes.get(item.idempotency_key)?.(outcome);
  outcomes.delete(item.idempotency_key);
}

async function flush() {
  if (sending) return;
  sending = true;
  clearTimeout(timer);
  for (let places; (places = kept.keys(WAITING)).length > 0;) {
    const first = kept.get(places[0]);
    const batch = [];
    for (const place of places) { // what one token covers, up to the first of another
      const waiting = kept.get(place);
      if (waiting?.token !== first?.token || waiting?.endpoint !== first?.endpoint || batch.length === 100) break;
      batch.push({ place, item: waiting.item });
    }
    if (!first || !(await send(first, batch))) break;
  }
  sending = false;
}

// Whether it is settled; where it is not, another try is set.
async function send({ endpoint, token }, batch) {
  let status = 0, said = null;
  try {
    const body = JSON.stringify({ token, items: batch.map((one) => one.item) });
    const answer = await fetch(endpoint, { method: "POST", headers: { "content-type": "application/json" }, body, keepalive: body.length < 60_000 });
    status = answer.status;
    said = await answer.json();
  } catch { /* no answer, or none that can be read */ }
  if ([400, 401, 403, 404, 413, 422].includes(status)) {
    for (const { place, item } of batch) settle(place, item, { ok: false, message: said?.error?.message });
    return true;
  }
  if (status !== 207 || said?.results?.length !== batch.length) return wait(batch);
  for (const [i, { place, item }] of batch.entries()) {
    const { code, error } = said.results[i];
    if (code === 429 || code >= 500) return wait(batch.slice(i));
    const gone = item.retract && code === 404; // nothing there to take back is what was wanted
    settle(place, item, code < 300 || gone ? { ok: true } : { ok: false, message: error?.message });
  }
  failures = 0;
  return true;
}

function settle(place, item, outcome) {
  kept.drop(place);
  tell(item, outcome);
}

function wait(batch) {
  for (const { item } of batch) tell(item, { ok: true, later: true });
  timer = setTimeout(flush, Math.min(2000 * 2 ** failures++, 300_000));
  return false;
}

// Signals are weak and many: those of a page that is left go with sendBeacon, which sets no headers, so the token is in the body.
function beacon(about, values) {
  const items = values.map((value) => ({
    interaction_id: about.interaction, kind: "signal", value: { ...value, consent: true }, idempotency_key: newKey(),
    ...(about.index ? { response_index: about.index } : {}),
  }));
  const body = new Blob([JSON.stringify({ token: about.token, items })], { type: "application/json" });
  if (!navigator.sendBeacon?.(about.endpoint, body)) fetch(about.endpoint, { method: "POST", body, keepalive: true }).catch(() => {});
}

// --- drawing -------------------------------------------------------------------------------------------------------------------

function make(tag, attributes = {}, ...children) {
  const svg = tag === "svg" || tag === "path";
  const node = svg ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") node.addEventListener(name, value);
    else if (value !== false && value != null) node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children);
  return node;
}

const ICONS = {
  up: "M7 10v11H3V10zm2 11V10l4-8c1.6 0 2.6 1.2 2.3 2.7L14.6 9h5.2c1.3 0 2.2 1.2 1.9 2.4l-2 8c-.2.9-1 1.6-2 1.6z",
  down: "M7 14V3H3v11zM9 3v11l4 8c1.6 0 2.6-1.2 2.3-2.7L14.6 15h5.2c1.3 0 2.2-1.2 1.9-2.4l-2-8c-.2-.9-1-1.6-2-1.6z",
  edit: "M3 17.5V21h3.5L17 10.5 13.5 7zM20.7 6.8a1 1 0 0 0 0-1.4l-2.1-2.1a1 1 0 0 0-1.4 0L15 5.5 18.5 9z",
  comment: "M4 3h16a1 1 0 0 1 1 1v12a1 1 0 0 1-1 1h-9l-5 4v-4H4a1 1 0 0 1-1-1V4a1 1 0 0 1 1-1z",
  about: "M12 2a10 10 0 1 0 0 20 10 10 0 0 0 0-20zm1.2 15h-2.4v-6.5h2.4zm0-8.5h-2.4V6.2h2.4z",
};
const icon = (name) => make("svg", { viewBox: "0 0 24 24", "aria-hidden": "true" }, make("path", { d: ICONS[name] }));

const STYLE = new CSSStyleSheet();
STYLE.replaceSync(`
:host { display: block; min-height: 2.5rem; --_ink: var(--plaudit-ink, currentColor); --_accent: var(--plaudit-accent, #2563c9); --_on: var(--plaudit-on-accent, #fff);
  --_line: var(--plaudit-line, #80828c); --_surface: var(--plaudit-surface, transparent); --_round: var(--plaudit-radius, .5rem);
  font: var(--plaudit-font, inherit); color: var(--_ink); }
@supports (color: light-dark(red, red)) { :host { --_accent: var(--plaudit-accent, light-dark(#2563c9, #86b2ff)); --_on: var(--plaudit-on-accent, light-dark(#fff, #10131a)); } }
:host([hidden]) { display: none; }
* { box-sizing: border-box; }
.bar { display: flex; flex-wrap: wrap; align-items: center; gap: .25rem; min-height: 2.5rem; }
button { font: inherit; font-size: .9em; color: inherit; background: var(--_surface); border: 1px solid transparent; border-radius: var(--_round); min-width: 2.25rem; min-height: 2.25rem; padding: .3rem .6rem; cursor: pointer; }
button:hover { border-color: var(--_line); }
button.icon { padding: .45rem; line-height: 0; }
button[aria-pressed="true"] { background: var(--_accent); color: var(--_on); }
button.text { border-color: var(--_line); }
button:disabled { cursor: default; opacity: .6; }
:focus-visible { outline: 3px solid var(--_accent); outline-offset: 2px; }
svg { width: 1.2rem; height: 1.2rem; fill: currentColor; }
.status { font-size: .85em; margin-left: .4rem; }
.panel { border: 1px solid var(--_line); border-radius: var(--_round); padding: .7rem .9rem; margin: .3rem 0; max-width: 40rem; }
.panel p { margin: 0 0 .5rem; }
.chips, .acts { display: flex; flex-wrap: wrap; gap: .4rem; margin-bottom: .5rem; }
.acts { margin: .5rem 0 0; }
label { display: block; font-size: .9em; }
textarea { display: block; width: 100%; min-height: 5rem; font: inherit; color: inherit; background: transparent; border: 1px solid var(--_line); border-radius: var(--_round); padding: .4rem .6rem; margin-top: .2rem; }
.question { margin: 0 0 .5rem; font-weight: 600; }
.sides { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(17rem, 100%), 1fr)); gap: .8rem; }
.side { display: flex; flex-direction: column; gap: .6rem; min-width: 0; border: 1px solid var(--_line); border-radius: var(--_round); padding: .7rem .9rem; overflow-wrap: anywhere; }
.side.chosen { border-color: var(--_accent); box-shadow: 0 0 0 1px var(--_accent); }
.side h3 { margin: 0; font-size: .9em; font-weight: 600; }
.side .grow { flex: 1; }
.sides + .bar { margin-top: .4rem; }
`);

// What both elements share: which answer they are about, what was said about it before, and the line that says what became of it.
class About extends HTMLElement {
  get about() {
    return {
      interaction: this.getAttribute("interaction"), token: this.getAttribute("token"),
      endpoint: this.getAttribute("endpoint") || ENDPOINT, index: Number(this.getAttribute("index") || 0),
    };
  }
  get said() { return kept.get(SAID + this.about.interaction + "." + this.about.index) ?? {}; }
  remember(change) { kept.set(SAID + this.about.interaction + "." + this.about.index, { ...this.said, ...change, at: Date.now() }); }

  connectedCallback() {
    if (this.shadowRoot) return this.observe?.(); // moved
    this.attachShadow({ mode: "open" }).adoptedStyleSheets = [STYLE];
    this.status = make("span", { class: "status", role: "status" });
    this.draw();
  }
  // Say it, and say what became of it. `back` undoes what the page already shows.
  async tell(kind, value, { retract = false, back = () => {} } = {}) {
    this.status.textContent = "";
    const outcome = await give(this.about, kind, value, retract);
    if (!outcome.ok) back();
    this.status.textContent = !outcome.ok ? [TEXTS.failed, outcome.message].filter(Boolean).join(": ") : outcome.later ? TEXTS.later : retract ? TEXTS.removed : TEXTS.saved;
    this.dispatchEvent(new CustomEvent("plaudit-said", { bubbles: true, detail: { kind, value, retract, ...outcome } }));
    return outcome.ok;
  }
  press(button, on) { button.setAttribute("aria-pressed", String(on)); }
}

class PlauditFeedback extends About {
  draw() {
    const thumb = (name, up) => make("button", { class: "icon", type: "button", "aria-label": TEXTS[name], title: TEXTS[name], "aria-pressed": "false", click: () => this.thumb(up) }, icon(name));
    const opens = (name, draw) => make("button", { class: "icon", type: "button", "aria-label": TEXTS[name], title: TEXTS[name], "aria-expanded": "false", click: (event) => this.toggle(event.currentTarget, draw) }, icon(name));
    this.up = thumb("up", true);
    this.down = thumb("down", false);
    const others = [opens("edit", () => this.editPanel()), opens("comment", () => this.commentPanel()), opens("about", () => [make("p", {}, this.getAttribute("purpose") || TEXTS.purpose)])];
    this.panel = make("div", { class: "panel", hidden: true, keydown: (event) => { if (event.key === "Escape") { event.stopPropagation(); this.shut(true); } } });
    this.shadowRoot.append(make("div", { class: "bar", role: "group", "aria-label": TEXTS.rate }, this.up, this.down, ...others, this.status), this.panel);
    this.show();
    this.observe();
  }
  show() {
    const { thumb } = this.said;
    this.press(this.up, thumb === true);
    this.press(this.down, thumb === false);
  }
  async thumb(up) {
    const before = this.said.thumb ?? null;
    const retract = before === up;
    this.remember({ thumb: retract ? null : up });
    this.show();
    if (!retract && !up) this.open(this.down, () => this.reasonPanel());
    else this.shut(false);
    await this.tell("thumb", { up }, { retract, back: () => { this.remember({ thumb: before }); this.show(); } });
  }

  // --- one panel at a time ---
  toggle(opener, draw) {
    if (this.opener === opener) this.shut(true);
    else { this.open(opener, draw); this.panel.querySelector("textarea")?.focus(); }
  }
  open(opener, draw) {
    this.shut(false);
    this.opener = opener;
    if (opener.hasAttribute("aria-expanded")) opener.setAttribute("aria-expanded", "true");
    this.panel.replaceChildren(...draw());
    this.panel.hidden = false;
  }
  shut(focus) {
    const opener = this.opener;
    this.opener = null;
    this.panel.hidden = true;
    if (opener?.hasAttribute("aria-expanded")) opener.setAttribute("aria-expanded", "false");
    if (focus) opener?.focus();
  }
  acts(send, ...more) {
    const button = make("button", { class: "text", type: "button", click: send }, TEXTS.send);
    return make("div", { class: "acts" }, button, ...more, make("button", { class: "text", type: "button", click: () => this.shut(true) }, TEXTS.close));
  }
  field(text, value = "") {
    const area = make("textarea", { rows: 3, maxlength: 20000 });
    area.value = value;
    return [area, make("label", {}, text, area)];
  }
  reasonPanel() {
    const picked = new Set();
    const chips = Object.entries(this.reasons()).map(([code, text]) => make("button", { class: "text", type: "button", "aria-pressed": "false", click: (event) => {
      picked.has(code) ? picked.delete(code) : picked.add(code);
      this.press(event.currentTarget, picked.has(code));
    } }, text));
    const [area, label] = this.field(TEXTS.note);
    return [make("p", {}, TEXTS.why), make("div", { class: "chips", role: "group", "aria-label": TEXTS.why }, ...chips), label, this.acts(() => this.comment(area.value, [...picked]))];
  }
  // reasons="slow:Too slow,rude:Rude"
  reasons() {
    const given = this.getAttribute("reasons");
    return given ? Object.fromEntries(given.split(",").map((one) => { const [code, text] = one.split(":"); return [code.trim(), (text ?? code).trim()]; })) : TEXTS.reasons;
  }
  commentPanel() {
    const [area, label] = this.field(TEXTS.say);
    return [label, this.acts(() => this.comment(area.value, []))];
  }
  comment(text, reasons) {
    if (!text.trim() && reasons.length === 0) return;
    this.shut(true);
    this.tell("comment", { text: text.trim() || null, reasons });
  }
  editPanel() {
    const [area, label] = this.field(TEXTS.better, this.said.edit ?? this.answer?.innerText.trim() ?? "");
    const undo = make("button", { class: "text", type: "button", click: () => {
      const before = this.said.edit;
      this.remember({ edit: null });
      this.shut(true);
      this.tell("edit", null, { retract: true, back: () => this.remember({ edit: before }) });
    } }, TEXTS.undo);
    const send = () => {
      const before = this.said.edit ?? null, text = area.value.trim();
      if (!text) return;
      this.remember({ edit: text });
      this.shut(true);
      this.tell("edit", { text }, { back: () => this.remember({ edit: before }) });
    };
    return [label, this.said.edit ? this.acts(send, undo) : this.acts(send)];
  }

  // --- signals: only with the attribute `signals`, which says that the user agreed to be observed ---
  get answer() { return document.getElementById(this.getAttribute("for")); }
  signal(name, seconds) {
    if (this.hasAttribute("signals") && this.about.token) beacon(this.about, [seconds === undefined ? { name } : { name, seconds }]);
  }
  observe() {
    let since = 0, seen = false, total = 0;
    const count = () => {
      const now = performance.now();
      if (since) total += (now - since) / 1000;
      since = seen && !document.hidden ? now : 0;
    };
    this.leaving = () => {
      count();
      if (!document.hidden || total < 1) return;
      this.signal("dwell", Math.round(total * 10) / 10);
      total = 0;
    };
    this.left = () => { if (this.hasAttribute("busy")) this.signal("abandon"); };
    this.copied = () => {
      const selected = getSelection();
      if (this.answer && selected?.rangeCount && selected.getRangeAt(0).intersectsNode(this.answer)) this.signal("copy");
    };
    if (window.IntersectionObserver) {
      this.watcher = new IntersectionObserver((entries) => { count(); seen = entries.at(-1).isIntersecting; count(); });
      this.watcher.observe(this.answer ?? this);
    }
    document.addEventListener("visibilitychange", this.leaving);
    window.addEventListener("pagehide", this.left);
    document.addEventListener("copy", this.copied);
  }
  disconnectedCallback() {
    this.watcher?.disconnect();
    document.removeEventListener("visibilitychange", this.leaving);
    window.removeEventListener("pagehide", this.left);
    document.removeEventListener("copy", this.copied);
  }
}

// Two answers side by side. Which one is shown first is random, and kept; the answer names the response, never the side.
class PlauditChoice extends About {
  static observedAttributes = ["busy"];
  draw() {
    let { order } = this.said;
    if (!order) {
      order = crypto.getRandomValues(new Uint8Array(1))[0] & 1 ? [1, 0] : [0, 1];
      this.remember({ order });
    }
    this.choices = new Map();
    const sides = order.map((index, place) => {
      const name = `${TEXTS.answer} ${"AB"[place]}`;
      const button = this.choice(index, `${name} ${TEXTS.isBetter}`);
      return make("section", { class: "side", "aria-label": name }, make("h3", {}, name), make("div", { class: "grow" }, make("slot", { name: String(index) })), button);
    });
    const neither = this.choice(null, TEXTS.neither);
    this.shadowRoot.append(make("p", { class: "question" }, TEXTS.choose), make("div", { class: "sides" }, ...sides), make("div", { class: "bar", role: "group", "aria-label": TEXTS.choose }, neither, this.status));
    this.show();
  }
  choice(index, text) {
    const button = make("button", { class: "text", type: "button", "aria-pressed": "false", click: () => this.choose(index) }, text);
    this.choices.set(index, button);
    return button;
  }
  show() {
    const { choice } = this.said;
    for (const [index, button] of this.choices ?? []) {
      button.disabled = this.hasAttribute("busy"); // the answers are still being written
      this.press(button, choice === index);
      button.closest(".side")?.classList.toggle("chosen", choice === index);
    }
  }
  attributeChangedCallback() { this.show(); }
  async choose(index) {
    const before = this.said.choice;
    const retract = before === index;
    this.remember({ choice: retract ? undefined : index });
    this.show();
    this.dispatchEvent(new CustomEvent("plaudit-choice", { bubbles: true, detail: { chosen: retract ? undefined : index } }));
    await this.tell("choice", { chosen: index }, { retract, back: () => { this.remember({ choice: before }); this.show(); } });
  }
}

window.plaudit = {
  version: VERSION,
  // Whether this turn should show two answers (ask for n: 2); a small share, by chance.
  sideBySide: (share = 0.05) => crypto.getRandomValues(new Uint32Array(1))[0] / 2 ** 32 < share,
  // What the user chose before, of an interaction: an index, null for neither, undefined for not yet.
  chosen: (interaction) => kept.get(SAID + interaction + ".0")?.choice,
  waiting: () => kept.keys(WAITING).length,
  flush,
};
customElements.define("plaudit-feedback", PlauditFeedback);
customElements.define("plaudit-choice", PlauditChoice);
window.addEventListener("online", flush);
flush();
})();
