"""A Snapshot's card: its figures, slices and known gaps for a person, as Markdown and as one HTML file that needs nothing else.

It holds counts only, never a text that somebody wrote.
"""

from __future__ import annotations

import html
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from plaudit.loop.snapshots.pool import Candidate

PAGES = ("card.md", "card.html")
BAR_WIDTH, ROW_HEIGHT, LABEL_WIDTH = 320, 22, 300  # pixels

STYLE = """body{font:16px/1.5 system-ui,sans-serif;max-width:46rem;margin:2rem auto;padding:0 1rem;color:#1b1f24;background:#fff}
h2{margin-top:2rem}svg{max-width:100%;height:auto}svg text{font:13px system-ui,sans-serif;fill:currentColor}svg rect{fill:#2f6fb0}
table{border-collapse:collapse}td{padding:.1rem 1rem .1rem 0}td+td{text-align:right}
@media(prefers-color-scheme:dark){body{color:#e6e6e6;background:#14171a}svg rect{fill:#6aa9e9}}"""


@dataclass(frozen=True)
class Section:
    """A heading, a sentence, and counts by name: in Markdown a table, in HTML bars."""

    title: str
    about: str
    rows: Sequence[tuple[str, int]]


def figures(kept: Iterable[Candidate]) -> dict[str, dict[str, int]]:
    """What the card shows beside the manifest: counts by name, of rows and of families."""
    sources: Counter[tuple[str, str]] = Counter()
    slices: Counter[str] = Counter()
    chars: Counter[int] = Counter()
    certain: Counter[int] = Counter()
    margins: Counter[int] = Counter()
    families: dict[str, set[str]] = defaultdict(set)
    users: Counter[str] = Counter()
    for one in kept:
        sources[one.table, one.method or one.source] += 1
        slices[one.slice] += 1
        families[one.split].add(one.family)
        if one.actor:
            users[one.actor] += 1
        if one.n_chars:
            chars[one.n_chars.bit_length()] += 1
        if one.table == "preferences":
            certain[min(9, int(one.probability * 20) - 10)] += 1
        if one.margin is not None:
            margins[min(3, int(one.margin * 4))] += 1
    bounds = {size: f"{2 ** (size - 1)} to {2**size - 1} characters" for size in chars}
    return {
        "sources": dict(sorted((f"{table}: {made or 'sent by users'}", n) for (table, made), n in sources.items())),
        "slices": {name or "(none named)": n for name, n in sorted(slices.items())},
        "chars": {bounds[size]: chars[size] for size in sorted(chars)},
        "probability": {f"{0.5 + at / 20:.2f} to {0.55 + at / 20:.2f}": certain[at] for at in sorted(certain)},
        "margins": {f"{at / 4:.2f} to {(at + 1) / 4:.2f}": margins[at] for at in sorted(margins)},
        "families": {split: len(names) for split, names in sorted(families.items())},
        "users": {"distinct users": len(users), "rows of the busiest": max(users.values(), default=0)},
    }


def pages(body: Mapping[str, Any], config: Mapping[str, Any], shown: Mapping[str, Mapping[str, int]]) -> dict[str, str]:
    """`card.md` and `card.html` of what a manifest says and `figures`."""
    made = _sections(body, shown)
    gaps = known_gaps(body, config, shown)
    about = (
        "Data that a model may be trained on, frozen. manifest.json beside this card holds the same figures for machines, the settings and "
        "the hashes; the folder's name begins its id."
    )
    return {
        "card.md": markdown("Snapshot", about, made, ("Known gaps", gaps)),
        "card.html": page("Snapshot", about, made, ("Known gaps", gaps)),
    }


def known_gaps(body: Mapping[str, Any], config: Mapping[str, Any], shown: Mapping[str, Mapping[str, int]]) -> list[str]:
    """What a reader should know that this Snapshot does not have."""
    curation, lineage = config["curation"], body["lineage"]
    splits = body["by_split"]["preferences"]
    said = {
        "Personal data was not looked for.": not curation["personal_data"] and not config.get("finders"),
        "Near duplicates were not looked for: only equal questions are sure to be in one split.": not curation[
            "near_duplicates"
        ],
        "No guideline was written, so nobody can say what annotators were asked to prefer.": not lineage[
            "guideline_versions"
        ],
        "No slices are named, so splits are even by chance only.": not curation["stratify_by"],
        "Nothing says which rows active selection chose: there is no split evaluation.": not curation[
            "evaluation_fraction"
        ],
        "Nobody said how much better: margins were asked for, and no Preference has one.": bool(
            curation.get("margins") and not shown["margins"]
        ),
        "There are no Preferences in valid or test to measure on.": not splits["valid"] + splits["test"],
        "Pairs of opposite Preferences about the same answers are in it.": bool(
            body["found"].get("contradictions") and curation["contradictions"] == "keep"
        ),
        _unlicensed(lineage): bool(_unlicensed(lineage)),
        "One user is behind more than a tenth of what users are behind.": _dominates(shown["users"]),
    }
    return [sentence for sentence, holds in said.items() if holds]


def _unlicensed(lineage: Mapping[str, Any]) -> str:
    rights = lineage.get("rights", {})
    n = rights.get("data", {}).get("unknown", 0) + rights.get("models", {}).get("unknown", 0)
    names = [f"{subject} {name}" for subject, named in rights.get("declared", {}).items() for name in named]
    return (
        f"Nobody has said the licence of everything in it; look at {', '.join(names) or 'the base model'}." if n else ""
    )


def _dominates(users: Mapping[str, int]) -> bool:
    return users["distinct users"] > 0 and users["rows of the busiest"] * 10 > sum(users.values())


def _sections(body: Mapping[str, Any], shown: Mapping[str, Mapping[str, int]]) -> list[Section]:
    by_split = [(f"{table}, {split}", n) for table, counts in body["by_split"].items() for split, n in counts.items()]
    lineage = body["lineage"]
    facts = [(f"interactions, consent {use}", n) for use, n in lineage["interactions"].items()]
    facts += [("guideline versions", len(lineage["guideline_versions"]))]
    facts += [("families that evaluations hold out", lineage["n_held_out_families"])]
    sections = [
        Section("Rows", "By table and split.", by_split),
        Section("Families", "Prompt families in each split; none is in two.", list(shown["families"].items())),
        Section("Sources", "Where rows come from.", list(shown["sources"].items())),
        Section("Slices", "Rows by slice.", list(shown["slices"].items())),
        Section(
            "Certainty",
            "Preferences by the probability that chosen beats rejected.",
            list(shown["probability"].items()),
        ),
        Section(
            "Margins",
            "Preferences by how much better people said that chosen is, 1 at most.",
            list(shown["margins"].items()),
        ),
        Section("Length", "Rows by the mean length of their answers.", list(shown["chars"].items())),
        Section("Rights", "Rows by licence and terms; provenance.parquet says it of each row.", _rights(lineage)),
        Section("Users", "Whose words and judgements these are.", list(shown["users"].items())),
        Section(
            "Removed", "What each filter took out; manifest.json names some of each.", list(body["filters"].items())
        ),
        Section("Found", "What filters saw and left, or redacted.", list(body["found"].items())),
        Section("Origin", f"Made by Plaudit {lineage['code_version']} from:", facts),
    ]
    return [section for section in sections if section.rows]


def _rights(lineage: Mapping[str, Any]) -> list[tuple[str, int]]:
    rights, titles = lineage.get("rights", {}), {"data": "data", "models": "written by a model", "terms": "terms"}
    return [(f"{titles[kind]}: {name}", n) for kind in titles for name, n in rights.get(kind, {}).items()]


# --- two forms of the same sections ------------------------------------------------------------------------------------


def markdown(title: str, about: str, sections: Sequence[Section], last: tuple[str, Sequence[str]] | None = None) -> str:
    lines = [f"# {title}", "", about, ""]
    for one in sections:
        lines += [f"## {one.title}", "", one.about, "", "| | rows |", "|---|---|"]
        lines += [f"| {_cell(name)} | {n} |" for name, n in one.rows]
        lines.append("")
    if last is not None:
        lines += [f"## {last[0]}", "", *([f"- {sentence}" for sentence in last[1]] or ["None that is known."]), ""]
    return "\n".join(lines)


def page(title: str, about: str, sections: Sequence[Section], last: tuple[str, Sequence[str]] | None = None) -> str:
    parts = [f"<h1>{html.escape(title)}</h1><p>{html.escape(about)}</p>"]
    parts += [
        f"<h2>{html.escape(one.title)}</h2><p>{html.escape(one.about)}</p>{bars(one.title, one.rows)}"
        for one in sections
    ]
    if last is not None:
        items = "".join(f"<li>{html.escape(sentence)}</li>" for sentence in last[1]) or "<li>None that is known.</li>"
        parts.append(f"<h2>{html.escape(last[0])}</h2><ul>{items}</ul>")
    head = f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title><style>{STYLE}</style></head>'
    return f"{head}<body>{''.join(parts)}</body></html>\n"


def bars(about: str, rows: Sequence[tuple[str, int]]) -> str:
    """Horizontal bars as one SVG, each with its number; the names are its text, so that it is read aloud."""
    most = max((abs(n) for _, n in rows), default=0) or 1
    height = ROW_HEIGHT * len(rows) + 4
    marks = []
    for place, (name, n) in enumerate(rows):
        y, width = place * ROW_HEIGHT, round(abs(n) / most * BAR_WIDTH, 1)
        marks.append(f'<text x="{LABEL_WIDTH - 8}" y="{y + 15}" text-anchor="end">{html.escape(_short(name))}</text>')
        marks.append(f'<rect x="{LABEL_WIDTH}" y="{y + 3}" width="{width}" height="{ROW_HEIGHT - 7}"/>')
        marks.append(f'<text x="{LABEL_WIDTH + width + 6}" y="{y + 15}">{n}</text>')
    size = f'viewBox="0 0 {LABEL_WIDTH + BAR_WIDTH + 80} {height}" width="{LABEL_WIDTH + BAR_WIDTH + 80}" height="{height}"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" role="img" aria-label="{html.escape(about)}" {size}>{"".join(marks)}</svg>'


def _short(name: str) -> str:
    return name if len(name) <= 44 else name[:43] + "…"


def _cell(name: str) -> str:
    return name.replace("|", "\\|").replace("\n", " ")
