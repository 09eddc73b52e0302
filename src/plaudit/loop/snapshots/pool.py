"""The pool: every row that might enter a Snapshot, the filters, and which rows are left with their splits.

    pool = Pool(folder, curation)
    pool.take("preferences", rows)         row by row: sources, agreement, lengths, languages, personal data
    pool.decide(held_out, seed, fractions) over all: duplicates, contradictions, splits, leakage, caps
    pool.rows("preferences")               what is left, with its split

Rows wait in a file without a name until it is known which of them stay; in memory is only what the filters compare (some 600 bytes a row, and
256 more for near duplicates), so a million rows fit. The filters act in the order of docs/snapshots.md; each says how many rows it
removed and the ids of the first of them, never their texts: the manifest that says so outlives an erasure.
"""

from __future__ import annotations

import hashlib
import marshal
import tempfile
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from fnmatch import fnmatchcase
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np

from plaudit.artifacts import TABLES, THUMBS, Cells, ThumbRow, conversation, sha256_of
from plaudit.domain import Message
from plaudit.errors import BadInput
from plaudit.loop.prompts import question_sha256, text_of
from plaudit.loop.snapshots import near, personal_data
from plaudit.loop.snapshots.language import LANGUAGES, language
from plaudit.loop.snapshots.splits import EVALUATION, UNLEARNT, families_together, splits

BATCH = 5000  # rows that are screened at once
SIGNED = 250  # rows whose runs of words are held at once: few enough for the processor's caches
N_EXAMPLES = 5
ANSWERS = personal_data.TEXT_FIELDS
# table -> the fields of its rows, each with what it is where a row does not say
_HELD = {
    table: [(spec.name, "" if spec.name == "split" else spec.default) for spec in fields(kind)]
    for table, kind in {**TABLES, THUMBS: ThumbRow}.items()
}


@dataclass(frozen=True)
class Curation:
    """What is filtered, beyond consent and what evaluations hold out. The defaults remove exact duplicates and nothing else."""

    near_duplicates: float = field(
        default=0.0,
        metadata={"help": "Jaccard index from which two rows are near duplicates, .5 to 1; 0 looks for none."},
    )
    personal_data: Mapping[str, str] = field(
        default_factory=dict, metadata={"help": "KIND=TREATMENT: detect, redact or drop a kind of personal data."}
    )
    min_chars: int = field(default=0, metadata={"help": "Characters that each answer has at least."})
    max_chars: int = field(default=0, metadata={"help": "Characters that each answer has at most; 0 sets no bound."})
    languages: tuple[str, ...] = field(
        default=(), metadata={"help": "Languages of prompts and answers; what says none passes. None given: all."}
    )
    min_probability: float = field(
        default=0.5, metadata={"help": "Probability that a Preference has at least, .5 to 1: less is low agreement."}
    )
    contradictions: str = field(
        default="keep", metadata={"help": "Of A over B and B over A to one prompt: keep both, or drop both."}
    )
    without: tuple[str, ...] = field(
        default=(),
        metadata={"help": "Sources that are left out: annotation, edit, choice, or a batch such as an import."},
    )
    forbidden_models: tuple[str, ...] = field(
        default=(),
        metadata={"help": "Models, * stands for anything, whose terms forbid training on what they write."},
    )
    max_per_user: int = field(
        default=0, metadata={"help": "Rows of each table that one end user may be behind; 0 sets no cap."}
    )
    max_per_annotator: int = field(
        default=0, metadata={"help": "Rows of each table that one annotator may be behind; 0 sets no cap."}
    )
    stratify_by: str = field(
        default="", metadata={"help": "Attribute of interactions whose values are the slices that splits are even in."}
    )
    group_by: tuple[str, ...] = field(
        default=(),
        metadata={
            "help": "Attribute of interactions that says a group: a reward model's card reports each value apart."
        },
    )
    margins: bool = field(
        default=False,
        metadata={
            "help": "Keep how much better annotators said that chosen is: a reward model asks it to lead by so much."
        },
    )
    evaluation_fraction: float = field(
        default=0.0,
        metadata={"help": "Share of prompt families in a fourth split, evaluation, without active selection."},
    )

    def __post_init__(self) -> None:
        if self.near_duplicates and not 0.5 <= self.near_duplicates <= 1:
            raise BadInput(f"near_duplicates is {self.near_duplicates}; give 0, or a Jaccard index of .5 to 1.")
        if not 0.5 <= self.min_probability <= 1:
            raise BadInput(f"min_probability is {self.min_probability}; give a probability of .5 to 1.")
        if self.contradictions not in ("keep", "drop"):
            raise BadInput(f"contradictions is {self.contradictions!r}; give keep or drop.")
        if not 0 <= self.evaluation_fraction < 1:
            raise BadInput(f"evaluation_fraction is {self.evaluation_fraction}; give a share of 0 to 1.")
        for name in ("min_chars", "max_chars", "max_per_user", "max_per_annotator"):
            if getattr(self, name) < 0:
                raise BadInput(f"{name} is {getattr(self, name)}; give 0 or more.")
        for code in self.languages:
            if code not in LANGUAGES:
                raise BadInput(f"{code!r} is no language that is told apart; choose from {', '.join(LANGUAGES)}.")
        personal_data.rules(self.personal_data)

    def to_json(self) -> dict[str, Any]:
        """All options but `group_by` and `margins` that are not asked for: such a Snapshot keeps the id that it always had."""
        plain = asdict(self)
        for name in ("group_by", "margins"):
            if not plain[name]:
                del plain[name]
        return {name: list(value) if isinstance(value, tuple) else value for name, value in plain.items()}


@dataclass(frozen=True)
class HeldOut:
    """What must not be learnt: families and prompts of evaluations, and prompts of canary sets."""

    families: frozenset[str] = frozenset()
    prompts: tuple[Sequence[Message], ...] = ()


@dataclass
class Tally:
    """How many rows each filter removed, by "table: reason", the ids of the first, and what was found and stayed."""

    removed: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    found: Counter[str] = field(default_factory=Counter)

    def remove(self, table: str, why: str, id: str) -> None:
        name = f"{table}: {why}"
        self.removed[name] += 1
        if len(self.examples[name]) < N_EXAMPLES:
            self.examples[name].append(id)


@dataclass(slots=True)
class Candidate:
    """What the filters compare of one row."""

    id: str
    family: str
    question: str = ""  # question_sha256 of the prompt as it was sent
    conversation: str | None = None
    actor: str | None = None
    annotators: tuple[str, ...] = ()
    source: str = ""
    method: str = ""  # of the conclusion, after its source
    batch: str | None = None
    models: tuple[str, ...] = ()  # that wrote its answers, or what a person edited
    imported: str = ""  # the import that it came with
    forbidden: bool = False  # the terms that were declared of its import or models forbid training
    active: bool = False  # active selection asked for it
    slice: str = ""
    groups: tuple[tuple[str, str], ...] = ()  # attribute and value of those in `group_by`
    probability: float = 1.0
    weight: float = 0.0
    margin: float | None = None  # how much better people said that chosen is, 0..1
    sides: tuple[str, str] | None = None  # response ids of chosen and rejected
    group: tuple[str, str] | None = None  # what annotators voted on: Comparison and criterion
    content: bytes = b""  # digest of what an exact duplicate shares
    mirror: bytes = b""  # the content of the opposite Preference
    n_chars: int = 0  # of the answers, on average
    table: str = ""
    split: str = ""  # "": removed


class Pool:
    """Use it as a context: its file goes with it."""

    def __init__(
        self, folder: Path, curation: Curation, finders: Mapping[str, personal_data.Finder] | None = None
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.curation = curation
        self.tally = Tally()
        self.candidates: list[Candidate] = []
        self._rules = personal_data.rules(curation.personal_data, finders)
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115  it closes with the pool
        self._parts: dict[str, tuple[int, int, int]] = {}  # table -> first byte, first candidate, end of candidates
        self._signed: list[tuple[near.Signatures, near.Signatures]] = []  # of questions and of contents, by batch

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    # --- row by row ----------------------------------------------------------------------------------------------------

    def take(self, table: str, rows: Iterable[tuple[Candidate, dict[str, Any]]]) -> None:
        """All rows of a table, each as its fields without `split`, in an order that does not depend on the machine."""
        start, first = self._file.tell(), len(self.candidates)
        rest = iter(rows)
        while batch := list(islice(rest, BATCH)):
            kept = []
            for one, row in batch:
                one.table = table
                why = self._against(one, row)
                if why is None:
                    kept.append((one, row))
                else:
                    self.tally.remove(table, why, one.id)
            self._keep(self._screened(kept))
        self._parts[table] = start, first, len(self.candidates)

    def _against(self, one: Candidate, row: Mapping[str, Any]) -> str | None:
        curation = self.curation
        if one.source in curation.without or (one.batch is not None and one.batch in curation.without):
            return f"source {one.source if one.source in curation.without else one.batch} left out"
        patterns = curation.forbidden_models
        if one.forbidden or (patterns and any(fnmatchcase(name, like) for name in one.models for like in patterns)):
            return "terms of the upstream forbid training"
        if one.probability < curation.min_probability:
            return "low agreement"
        answers = [row[name] for name in ANSWERS if name in row]
        one.n_chars = sum(map(len, answers)) // len(answers) if answers else 0
        if curation.min_chars and any(len(answer) < curation.min_chars for answer in answers):
            return f"shorter than {curation.min_chars} characters"
        if curation.max_chars and any(len(answer) > curation.max_chars for answer in answers):
            return f"longer than {curation.max_chars} characters"
        if curation.languages:
            for text in (*map(text_of, row["messages"]), *answers):
                spoken = language(text)
                if spoken and spoken not in curation.languages:
                    return f"language {spoken}"
        return None

    def _screened(self, batch: list[tuple[Candidate, dict[str, Any]]]) -> list[tuple[Candidate, dict[str, Any]]]:
        if not self._rules:
            return batch
        kept = []
        screened = personal_data.screen_rows(self._rules, [row for _, row in batch])
        for (one, _), (row, found, drop) in zip(batch, screened, strict=True):
            if not found:
                kept.append((one, row))
                continue
            self.tally.found.update({f"personal data: {kind}": n for kind, n in found.items()})
            if drop:
                kinds = "+".join(rule.kind for rule in self._rules if rule.kind in found and rule.treatment == "drop")
                self.tally.remove(one.table, f"personal data ({kinds})", one.id)
            else:
                kept.append((one, row))
        return kept

    def _keep(self, batch: Sequence[tuple[Candidate, dict[str, Any]]]) -> None:
        held = _HELD[batch[0][0].table] if batch else ()
        for one, row in batch:
            prompt = conversation(row["messages"])
            if "chosen" in row:
                one.content, one.mirror = _digests(prompt, row["criterion"], row["chosen"], row["rejected"])
            elif "response" in row:
                one.content = _digest(prompt, row["response"])
            data = marshal.dumps(tuple([prompt if n == "messages" else row.get(n, d) for n, d in held]))
            self._file.write(len(data).to_bytes(4))
            self._file.write(data)
        if self.curation.near_duplicates:
            for start in range(0, len(batch), SIGNED):
                self._sign([row for _, row in batch[start : start + SIGNED]])
        self.candidates += [one for one, _ in batch]

    def _sign(self, rows: Sequence[Mapping[str, Any]]) -> None:
        asked = [_asked(row["messages"]) for row in rows]
        answered = [  # by side, or a contradiction would be a duplicate
            list(chain.from_iterable(near.shingles(row[name], f"{name} ") for name in ANSWERS if name in row))
            for row in rows
        ]
        self._signed.append(near.signatures_with(asked, answered))

    # --- over all ------------------------------------------------------------------------------------------------------

    def decide(self, held_out: HeldOut, seed: int, fractions: Sequence[float]) -> None:
        """Give every candidate that stays its split."""
        alike, near_held, links = self._near(held_out)
        together = families_together(chain(links, self._links()))
        slices: dict[str, Counter[str]] = defaultdict(Counter)
        if self.curation.stratify_by:
            for one in self.candidates:
                slices[one.family][one.slice] += 1
        split = splits(together, slices, seed, fractions, self.curation.evaluation_fraction)
        for one in self.candidates:
            one.split = split[one.family]
        self._exact_duplicates()
        self._near_duplicates(alike)
        self._contradictions()
        self._held_out(held_out, near_held)
        self._prompts_seen_before()
        self._caps()

    def _links(self) -> Iterator[tuple[str, Hashable]]:
        """Each family with the questions and conversations that it shares with others."""
        for one in self.candidates:
            yield one.family, one.question  # a digest, so no conversation is called the same
            if one.conversation is not None:
                yield one.family, ("conversation", one.conversation)

    def _near(self, held_out: HeldOut) -> tuple[list[tuple[int, int]], set[int], list[tuple[str, Any]]]:
        """Candidates alike in all they say, candidates that ask nearly what is held out, and which families are linked by near questions."""
        if not self._signed:
            return [], set(), []
        threshold = self.curation.near_duplicates
        alike = [
            (i, j)
            for i, j in near.near_pairs(np.concatenate([said for _, said in self._signed]), threshold)
            if self.candidates[i].table == self.candidates[j].table
        ]
        held = near.signatures([_asked(messages) for messages in held_out.prompts])
        asked = np.concatenate(
            [held, *(asked for asked, _ in self._signed)]
        )  # held out first, so that they lead their buckets
        near_held: set[int] = set()
        links: list[tuple[str, Any]] = []
        for i, j in near.near_pairs(asked, threshold):
            links += [(self.candidates[at - len(held)].family, ("near", i)) for at in (i, j) if at >= len(held)]
            if i < len(held) <= j:
                near_held.add(j - len(held))
        return alike, near_held, links

    def _exact_duplicates(self) -> None:
        for table in ("preferences", "demonstrations"):  # a thumb is a vote: two are no duplicate of each other
            best: dict[bytes, Candidate] = {}
            _, first, end = self._parts.get(table, (0, 0, 0))
            for one in islice(self.candidates, first, end):
                known = best.setdefault(one.content, one)
                if known is not one:
                    worse = one if _rank(known) <= _rank(one) else known
                    best[one.content] = known if worse is one else one
                    self._remove(worse, "exact duplicate")

    def _near_duplicates(self, alike: Sequence[tuple[int, int]]) -> None:
        """One of each group stays: that of the most weight."""
        group = families_together((str(at), i) for i, j in alike for at in (i, j))
        best: dict[str, Candidate] = {}
        for at, root in sorted((int(at), root) for at, root in group.items()):
            one = self.candidates[at]
            if one.split and one.table != "thumbs":
                known = best.setdefault(root, one)
                if known is not one:
                    worse = one if _rank(known) <= _rank(one) else known
                    best[root] = known if worse is one else one
                    self._remove(worse, "near duplicate")

    def _contradictions(self) -> None:
        known = {one.content for one in self.candidates if one.split and one.table == "preferences"}
        for one in self.candidates:
            if one.split and one.mirror and one.mirror in known:
                self.tally.found["contradictions"] += 1
                if self.curation.contradictions == "drop":
                    self._remove(one, "contradicted")

    def _held_out(self, held_out: HeldOut, near_held: set[int]) -> None:
        """An evaluation may draw from the test split, so there its rows stay."""
        questions = {question_sha256(messages) for messages in held_out.prompts}
        for at, one in enumerate(self.candidates):
            if not one.split:
                continue
            if one.split == EVALUATION and one.active:
                self._remove(one, "chosen by active selection, in the split evaluation")
            elif one.split not in UNLEARNT:
                if one.family in held_out.families or one.question in questions:
                    self._remove(one, "held out by an evaluation")
                elif at in near_held:
                    self._remove(one, "nearly what an evaluation holds out")

    def _prompts_seen_before(self) -> None:
        """Of equal prompts that of the first family by name stays."""
        prompts = [one for one in self.candidates if one.split and one.table == "prompts"]
        seen: set[str] = set()
        for one in sorted(prompts, key=lambda one: one.family):
            if one.id in seen:
                self._remove(one, "seen before")
            seen.add(one.id)

    def _caps(self) -> None:
        """In the order of a hash of the id, so that neither the oldest nor the newest are favoured."""
        per_user, per_annotator = self.curation.max_per_user, self.curation.max_per_annotator
        if not per_user and not per_annotator:
            return
        of_user: Counter[tuple[str, str]] = Counter()
        of_annotator: Counter[tuple[str, str]] = Counter()
        for one in sorted((one for one in self.candidates if one.split), key=lambda one: sha256_of(one.id)):
            user = None if one.actor is None else (one.table, one.actor)
            annotators = [(one.table, who) for who in one.annotators]
            if per_user and user is not None and of_user[user] >= per_user:
                self._remove(one, "over the cap of its user")
            elif per_annotator and annotators and all(of_annotator[who] >= per_annotator for who in annotators):
                self._remove(one, "over the cap of its annotators")
            else:
                of_user.update([user] if user is not None else [])
                of_annotator.update(annotators)

    def _remove(self, one: Candidate, why: str) -> None:
        one.split = ""
        self.tally.remove(one.table, why, one.id)

    # --- what is left --------------------------------------------------------------------------------------------------

    def kept(self, table: str | None = None) -> Iterator[Candidate]:
        return (one for one in self.candidates if one.split and table in (None, one.table))

    def rows(self, table: str) -> Iterator[Cells]:
        """The cells of the table's rows (artifacts.Columns), read back one after another."""
        place = [name for name, _ in _HELD[table]].index("split")
        start, first, end = self._parts.get(table, (0, 0, 0))
        self._file.seek(start)
        for one in islice(self.candidates, first, end):
            data = self._file.read(int.from_bytes(self._file.read(4)))
            if one.split:
                cells = marshal.loads(data)
                yield (*cells[:place], one.split, *cells[place + 1 :])


def _rank(one: Candidate) -> tuple[float, str]:
    return -one.weight, one.id


def _digest(prompt: str, response: str) -> bytes:
    return hashlib.sha256(prompt.encode() + _after(response)).digest()[:16]


def _digests(prompt: str, criterion: str, chosen: str, rejected: str) -> tuple[bytes, bytes]:
    """Of a Preference, and of the opposite one."""
    start, better, worse = prompt.encode() + _after(criterion), _after(chosen), _after(rejected)
    there, back = hashlib.sha256(start + better + worse), hashlib.sha256(start + worse + better)
    return there.digest()[:16], back.digest()[:16]


def _after(text: str) -> bytes:
    return b"\x00" + text.encode(errors="surrogatepass")


def _asked(messages: Sequence[Message]) -> list[str]:
    """Shingles of what the user said; of a conversation without any, of all of it."""
    spoken = [message for message in messages if message["role"] == "user"] or messages
    return [run for message in spoken for run in near.shingles(text_of(message))]
