// Pages work without this file and are better with it: times in the reader's zone, copy buttons, and parts that stay fresh.
"use strict";

function localTimes(root) {
  const shown = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "short" });
  for (const time of root.querySelectorAll("time[datetime]:not([title])")) {
    time.title = time.textContent;
    time.textContent = shown.format(new Date(time.dateTime));
  }
}

// <div id="live" data-refresh="1000">: fetch this page again and take over what is new inside; it ends when the attribute is gone.
// Open <details>, focus and scrolled tables stay as the reader has them; while they select text, nothing moves.
function refresh(part) {
  const wait = Number(part.dataset.refresh);
  if (!wait) return;
  setTimeout(async () => {
    if (document.hidden || (getSelection().toString() && part.contains(getSelection().anchorNode))) return refresh(part);
    let text;
    try {
      const answer = await fetch(location.href, { headers: { accept: "text/html" } });
      if (answer.redirected) return location.reload(); // signed out meanwhile
      if (!answer.ok) return refresh(part);
      text = await answer.text();
    } catch {
      return refresh(part); // the service is being started again
    }
    const fresh = new DOMParser().parseFromString(text, "text/html").getElementById(part.id);
    if (!fresh) return;
    for (const opened of part.querySelectorAll("details[open][id]")) fresh.querySelector("#" + CSS.escape(opened.id))?.setAttribute("open", "");
    localTimes(fresh);
    merge(part, fresh);
    refresh(part);
  }, wait);
}

// Make `old` like `fresh` with as few changes as that takes, so that what did not change keeps its focus and its scroll.
function merge(old, fresh) {
  for (const { name } of [...old.attributes]) if (!fresh.hasAttribute(name)) old.removeAttribute(name);
  for (const { name, value } of fresh.attributes) if (old.getAttribute(name) !== value) old.setAttribute(name, value);
  const [mine, theirs] = [[...old.childNodes], [...fresh.childNodes]];
  theirs.forEach((node, i) => {
    const known = mine[i];
    if (!known) old.append(node);
    else if (known.nodeName !== node.nodeName) known.replaceWith(node);
    else if (node.nodeType === Node.ELEMENT_NODE) merge(known, node);
    else if (known.nodeValue !== node.nodeValue) known.nodeValue = node.nodeValue;
  });
  for (const left of mine.slice(theirs.length)) left.remove();
}

document.addEventListener("click", async (event) => {
  const button = event.target.closest("[data-copy]");
  if (!button) return;
  const field = document.getElementById(button.dataset.copy);
  field.select();
  try {
    await navigator.clipboard.writeText(field.value);
    button.textContent = "Copied";
  } catch {
    button.textContent = "Selected: copy it"; // plain HTTP has no clipboard
  }
});

localTimes(document);
document.querySelectorAll("[data-refresh]").forEach(refresh);
