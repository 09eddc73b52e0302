"""A chat application with feedback, on FastAPI. Every line that Plaudit needs is marked; the rest is what you have anyway.

PLAUDIT_URL=http://127.0.0.1:8484 PLAUDIT_KEY=plk_... uvicorn chat_app:app --app-dir examples
"""

import os

from fastapi import FastAPI
from fastapi.responses import HTMLResponse
from openai import AsyncOpenAI
from pydantic import BaseModel

from plaudit.client import Capture  # plaudit

capture = Capture(os.environ["PLAUDIT_URL"], os.environ["PLAUDIT_KEY"])  # plaudit
client = capture.wrap(AsyncOpenAI(api_key="your own"))  # plaudit
app = FastAPI()
app.mount("/plaudit", capture.routes())  # plaudit


class Question(BaseModel):
    text: str


@app.post("/ask")
async def ask(question: Question) -> dict[str, str | None]:
    answer = await client.chat.completions.create(
        model="plaudit",
        messages=[{"role": "user", "content": question.text}],
        user="u-17",  # the one who is signed in with you
    )
    text = answer.choices[0].message.content
    return {"text": text, "id": answer.id, "token": capture.token(answer.id)}  # plaudit


@app.get("/", response_class=HTMLResponse)
async def page() -> str:
    return PAGE


PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Ask</title>
<script src="/plaudit/widget.js" defer></script><!-- plaudit -->
<form><label>Your question <input name="text" required></label> <button>Ask</button></form>
<main aria-live="polite"></main>
<script>
document.querySelector("form").addEventListener("submit", async (event) => {
  event.preventDefault();
  const body = JSON.stringify({ text: event.target.text.value });
  const answer = await (await fetch("/ask", { method: "POST", headers: { "content-type": "application/json" }, body })).json();
  const shown = Object.assign(document.createElement("p"), { id: answer.id, textContent: answer.text });
  const widget = document.createElement("plaudit-feedback"); // plaudit
  const about = { interaction: answer.id, token: answer.token, for: answer.id };
  for (const name in about) widget.setAttribute(name, about[name]); // plaudit
  document.querySelector("main").replaceChildren(shown, widget);
});
</script>
</html>
"""
