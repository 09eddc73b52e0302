// The page /chat: streams an answer, or two at once, and puts the widget under it. The conversation is kept in this tab only.
"use strict";
(() => {
const at = (id) => document.getElementById(id);
const KEPT = "plaudit.chat";
const SHARE = 0.1; // of turns that show two answers
let chat = read(), running = null;

function read() {
  try { return JSON.parse(sessionStorage.getItem(KEPT)) ?? fresh(); } catch { return fresh(); }
}
function fresh() { return { conversation: "chat_" + crypto.getRandomValues(new Uint32Array(3)).join("_"), turns: [] }; }
function keep() {
  try { sessionStorage.setItem(KEPT, JSON.stringify(chat)); } catch { /* this page only */ }
}

// What the model is told: of two answers the chosen one, else the first.
function messages(turns) {
  return turns.flatMap(({ question, answers, interaction }) => [
    { role: "user", content: question },
    ...(answers.some(Boolean) ? [{ role: "assistant", content: answers[window.plaudit.chosen(interaction) ?? 0] || answers.find(Boolean) }] : []),
  ]);
}

function node(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) if (value !== null) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

// One turn: the question, a place for each answer, and, as soon as the answer has a name, the widget.
function draw(turn, place) {
  const two = turn.answers.length > 1;
  const texts = turn.answers.map((text, index) => node("p", { class: "said", id: `answer-${place}-${index}`, slot: two ? String(index) : null }, text));
  const shown = node("article", { class: two ? "exchange two" : "exchange", "aria-label": `Turn ${place + 1}` },
    node("h2", {}, "You"), node("p", { class: "said question" }, turn.question), node("h2", {}, "Answer"));
  if (two) shown.append(...texts);
  else shown.append(texts[0], node("div", { class: "below" }));
  at("turns").append(shown);
  const part = { shown, texts, widget: null };
  if (turn.interaction) name(part, turn);
  return part;
}
function name(part, turn) {
  const about = { interaction: turn.interaction, token: turn.token };
  if (part.texts.length > 1) {
    part.widget = node("plaudit-choice", about);
    part.shown.append(part.widget);
    part.widget.append(...part.texts);
  } else {
    part.widget = node("plaudit-feedback", { ...about, for: part.texts[0].id });
    part.shown.querySelector(".below").replaceWith(part.widget);
  }
  observe();
}
function observe() {
  for (const widget of document.querySelectorAll("plaudit-feedback")) widget.toggleAttribute("signals", at("observe").checked);
}
function last(signal) { [...document.querySelectorAll("plaudit-feedback")].at(-1)?.signal(signal); }

function buttons() {
  const idle = !running;
  at("send").disabled = !idle;
  at("stop").hidden = idle;
  for (const id of ["again", "rewrite", "new"]) at(id).hidden = !idle || chat.turns.length === 0;
}

async function ask(question) {
  const two = at("two").checked || window.plaudit.sideBySide(SHARE);
  const turn = { question, answers: two ? ["", ""] : [""], interaction: null, token: null };
  const history = messages(chat.turns);
  chat.turns.push(turn);
  running = new AbortController();
  const part = draw(turn, chat.turns.length - 1);
  buttons();
  at("note").textContent = "The answer is being written.";
  try {
    const body = JSON.stringify({ messages: [...history, { role: "user", content: question }], conversation_id: chat.conversation, two });
    const answer = await fetch("/chat/turn", { method: "POST", headers: { "content-type": "application/json" }, body, signal: running.signal });
    if (!answer.ok) throw new Error((await answer.json()).error.message);
    turn.interaction = answer.headers.get("x-plaudit-interaction");
    turn.token = answer.headers.get("x-plaudit-feedback-token");
    name(part, turn);
    part.widget.setAttribute("busy", "");
    await stream(answer.body, turn, part);
    at("note").textContent = two ? "Both answers are here." : "The answer is here.";
  } catch (error) {
    at("note").textContent = error.name === "AbortError" ? "Stopped." : `That did not work: ${error.message}`;
    if (!turn.interaction) { // nothing was answered, so nothing is there to rate
      chat.turns.pop();
      part.shown.remove();
      at("question").value ||= question;
    }
  }
  part.widget?.removeAttribute("busy");
  running = null;
  keep();
  buttons();
}

async function stream(body, turn, part) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "", failed = false;
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines) {
      if (line.startsWith("event: error")) failed = true;
      if (!line.startsWith("data: ") || line === "data: [DONE]") continue;
      const said = JSON.parse(line.slice(6));
      if (failed) throw new Error(said.error?.message ?? "the answer broke off");
      for (const { index, delta } of said.choices ?? []) {
        turn.answers[index] += delta?.content ?? "";
        part.texts[index].textContent = turn.answers[index];
      }
    }
  }
}

function drop() { // the last turn, which is asked anew
  at("turns").lastElementChild.remove();
  return chat.turns.pop().question;
}

at("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  const question = at("question").value.trim();
  if (!question || running) return;
  at("question").value = "";
  ask(question);
});
at("question").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    at("ask").requestSubmit();
  }
});
at("stop").addEventListener("click", () => { last("stop"); running?.abort(); at("question").focus(); });
at("again").addEventListener("click", () => { last("regenerate"); ask(drop()); });
at("rewrite").addEventListener("click", () => {
  last("edit_and_resend");
  at("question").value = drop();
  keep();
  buttons();
  at("question").focus();
});
at("new").addEventListener("click", () => {
  chat = fresh();
  keep();
  at("turns").replaceChildren();
  at("note").textContent = "";
  buttons();
  at("question").focus();
});
at("observe").addEventListener("change", observe);
chat.turns.forEach(draw);
buttons();
})();
