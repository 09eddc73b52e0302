// Annotate with the keyboard: drafts that outlive a reload and a lost connection, the lease's timer, and the next question without a full load.
"use strict";

const DRAFT = "plaudit draft ";
const KEPT_DRAFTS = 20;
const BREAK_AFTER_MS = 50 * 60_000;
let form, left, endsAt, beatAt, activeAt, seen, seenSince, sending, unsent;

function setup() {
  form = document.getElementById("answer");
  left = document.getElementById("left");
  sending = false;
  for (const part of document.querySelectorAll("[data-script]")) part.hidden = false;
  if (!form) return;
  form.elements.note.closest("details").querySelector("[data-fill]").hidden = false;
  const leaseMs = Number(left.dataset.leaseS) * 1000;
  endsAt = performance.now() + Number(left.dataset.left) * 1000;
  beatAt = performance.now() + leaseMs / 3;
  activeAt = performance.now();
  seen = 0;
  seenSince = document.hidden ? null : performance.now();
  const quick = document.getElementById("quick");
  quick.checked = localStorage.getItem("plaudit quick") === "yes";
  quick.addEventListener("change", () => localStorage.setItem("plaudit quick", quick.checked ? "yes" : "no"));
  restore();
}

function say(text) {
  document.getElementById("said").textContent = text;
}

// --- drafts ---

function fields() {
  return [...form.elements].filter((one) => one.name && !["hidden", "submit"].includes(one.type));
}

function save() {
  const kept = {};
  for (const one of fields()) {
    if (one.type === "radio" || one.type === "checkbox") {
      if (one.checked) kept[one.name] = one.value;
    } else if (one.value) kept[one.name] = one.value;
  }
  try {
    localStorage.setItem(DRAFT + form.dataset.draft, JSON.stringify({ at: Date.now(), kept }));
  } catch {
    // No room: the page still works, only without a draft.
  }
}

function restore() {
  const names = Object.keys(localStorage).filter((name) => name.startsWith(DRAFT));
  const draft = localStorage.getItem(DRAFT + form.dataset.draft);
  if (names.length > KEPT_DRAFTS) {
    const age = (name) => JSON.parse(localStorage.getItem(name)).at;
    names.sort((a, b) => age(a) - age(b)).slice(0, names.length - KEPT_DRAFTS).forEach((name) => localStorage.removeItem(name));
  }
  if (!draft) return;
  const { kept } = JSON.parse(draft);
  for (const one of fields()) {
    if (!(one.name in kept)) continue;
    if (one.type === "radio" || one.type === "checkbox") one.checked = one.value === kept[one.name];
    else {
      one.value = kept[one.name];
      one.closest("details").open = true;
    }
  }
}

// --- sending ---

async function send(sent, submitter) {
  if (sending) return;
  sending = true;
  const body = new URLSearchParams(new FormData(sent));
  if (submitter?.name) body.set(submitter.name, submitter.value);
  if (sent === form) body.set("seconds", String((seen + (seenSince === null ? 0 : performance.now() - seenSince)) / 1000));
  const draft = sent === form ? DRAFT + form.dataset.draft : null;
  let answer, text;
  try {
    answer = await fetch(sent.action, { method: "POST", body, headers: { accept: "text/html" } });
    text = await answer.text();
  } catch {
    sending = false;
    unsent = { sent, submitter };
    say("Not sent: there is no connection. Your answer is kept here and sent when it is back.");
    return;
  }
  unsent = null;
  if (answer.redirected && !answer.url.endsWith("/annotate")) return location.assign(answer.url); // signed out meanwhile
  if (answer.ok && draft) localStorage.removeItem(draft);
  const fresh = new DOMParser().parseFromString(text, "text/html").getElementById("main");
  if (!fresh) return location.reload();
  const main = document.getElementById("main");
  main.replaceChildren(...fresh.childNodes);
  scrollTo(0, 0);
  main.focus({ preventScroll: true });
  setup();
  remindOfABreak();
}

function remindOfABreak() {
  const now = Date.now();
  const { since = now, last = now } = JSON.parse(sessionStorage.getItem("plaudit work") ?? "{}");
  const begun = now - last > 5 * 60_000 ? now : since;
  sessionStorage.setItem("plaudit work", JSON.stringify({ since: begun, last: now }));
  if (now - begun > BREAK_AFTER_MS && !document.getElementById("said").textContent) say("You have worked for 50 minutes; a break of five helps.");
}

document.addEventListener("submit", (event) => {
  if (event.target.id !== "answer" && event.target.id !== "undo") return;
  event.preventDefault();
  send(event.target, event.submitter);
});
addEventListener("online", () => unsent && send(unsent.sent, unsent.submitter));

// --- keys ---

const TYPING = "textarea, select, [contenteditable], input:not([type=radio], [type=checkbox])";

function openCriterion() {
  return [...form.querySelectorAll("[data-criterion]")].find((one) => !one.querySelector("[type=radio]:checked, [type=number]")?.value);
}

// In a criterion that has the focus a key is about it, elsewhere about the whole.
function choose(point, criterion) {
  point.checked = true;
  save();
  const next = openCriterion();
  if (criterion) (next?.querySelector("input") ?? form.querySelector("button.main")).focus();
  const whole = form.querySelector("[name=verdict]:checked");
  if (document.getElementById("quick").checked && whole && !next) return form.requestSubmit(form.querySelector("button.main"));
  const about = criterion ? `${criterion.querySelector("legend").textContent}: ` : "";
  say(`${about}${point.parentElement.textContent.trim()}. ${next ? "C goes to the next criterion, " : ""}Ctrl+Enter sends it.`);
}

function open(id) {
  const part = document.getElementById(id);
  part.open = true;
  part.querySelector("input").focus();
}

document.addEventListener("keydown", (event) => {
  if (event.defaultPrevented || event.isComposing || event.repeat || document.querySelector("dialog[open]")) return;
  if (event.target.closest?.(TYPING) || event.altKey || event.getModifierState("AltGraph")) return;
  if (event.key === "Enter" && event.ctrlKey && form) {
    event.preventDefault();
    return form.requestSubmit(form.querySelector("button.main"));
  }
  if (event.ctrlKey || event.metaKey) return;
  const key = event.key.toLowerCase();
  const criterion = event.target.closest?.("[data-criterion]");
  const points = /^[0-9a-z]$/.test(key) ? [...(criterion ?? form)?.querySelectorAll(criterion ? "[data-key]" : "[name=verdict]") ?? []] : [];
  const point = points.find((one) => one.dataset.key === key || one.dataset.letter === key);
  if (point) choose(point, criterion);
  else if (key === "c" && form && openCriterion()) openCriterion().querySelector("input").focus();
  else if (key === "z") document.getElementById("undo")?.requestSubmit();
  else if (key === "?" && form) document.getElementById("keys").showModal();
  else if (key === "s" && form) open("skip");
  else if (key === "f" && form) open("flag");
  else return;
  event.preventDefault();
});

document.addEventListener("click", (event) => {
  if (event.target.closest("[data-sheet]")) document.getElementById("keys").showModal();
  if (event.target.closest("[data-fill]")) {
    const all = document.querySelectorAll("[data-raw]");
    const chosen = form.querySelector("[name=verdict]:checked")?.value.split(":")[0];
    const raw = all.length === 1 ? all[0] : chosen && document.querySelector(`[data-raw="${CSS.escape(chosen)}"]`);
    if (!raw) return say("Choose the better answer first.");
    form.elements.edit.value = raw.value;
    form.elements.edit.focus();
    save();
  }
});
document.addEventListener("input", (event) => form?.contains(event.target) && save());

// --- time ---

for (const name of ["keydown", "pointerdown", "wheel", "touchstart"]) addEventListener(name, () => (activeAt = performance.now()), { passive: true });
document.addEventListener("visibilitychange", () => {
  if (document.hidden && seenSince !== null) {
    seen += performance.now() - seenSince;
    seenSince = null;
  } else if (!document.hidden) seenSince = performance.now();
});

setInterval(async () => {
  if (!form) return;
  const now = performance.now();
  const rest = Math.round((endsAt - now) / 1000);
  left.textContent = rest > 0 ? `lent for ${Math.floor(rest / 60)}:${String(rest % 60).padStart(2, "0")}` : "time is over: it may go to somebody else";
  const leaseMs = Number(left.dataset.leaseS) * 1000;
  if (now < beatAt || now - activeAt > leaseMs || document.hidden) return;
  beatAt = now + leaseMs / 3;
  try {
    const answer = await fetch("/annotate/heartbeat", { method: "POST", body: new URLSearchParams({ lease_id: form.elements.lease_id.value }) });
    if (answer.ok) endsAt = now + (await answer.json()).left_s * 1000;
  } catch {
    // The next beat tries again.
  }
}, 1000);

setup();
