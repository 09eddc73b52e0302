"""Files on the lead's page: questions or judgements come in, a Snapshot goes out in another tool's format."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import FileResponse, Response

from plaudit.domain import ComparisonKind, Person, SnapshotRecord, TrainingUse, utc_now
from plaudit.errors import BadInput, NotFound
from plaudit.formats import catalogue
from plaudit.formats import questions as rows
from plaudit.formats.files import Rejected
from plaudit.formats.records import LossReport
from plaudit.loop import imports, questions
from plaudit.loop.asking import Asking
from plaudit.loop.exports import snapshot_records
from plaudit.settings import Settings
from plaudit.store.database import Store
from plaudit.web.door import door_of
from plaudit.web.pages.forms import Upload, read_upload
from plaudit.web.pages.shell import HEADERS, Column, Table, answer
from plaudit.web.sign_in import signed_in

QUESTIONS = "questions"  # what is no judgement yet
READERS = (QUESTIONS, *catalogue.READERS)
_SUFFIXES = re.compile(r"(\.[A-Za-z0-9]{1,10}){1,2}$")
COUNTS = (Column("what", "What", "words"), Column("n", "Rows", "number"))
SHOWN_SNAPSHOTS = 50


async def take_in(request: Request) -> Response:
    """POST /annotation/import: a file of questions, or of judgements in one of the formats; what came of it."""
    door, me = door_of(request), signed_in(request)
    upload = await read_upload(request)
    sentence, counts, rejected = await door.run(_take_in, door.store, me, upload, door.settings, utc_now())
    return answer(
        request, "files.html", title=f"Import of {_batch(upload)}", sentence=sentence, counts=counts, rejected=rejected
    )


def _take_in(
    store: Store, me: Person, upload: Upload, settings: Settings, now: datetime
) -> tuple[str, list[dict[str, Any]], Sequence[Rejected]]:
    form, use = upload.fields, TrainingUse(settings.training_use_default)
    if form.get("consent"):
        use = TrainingUse.ALLOWED
    name = form.get("format", "")
    if name not in READERS:
        raise BadInput(f"Format {name!r} is not read; choose from: {', '.join(READERS)}.")
    suffixes = _SUFFIXES.search(upload.name)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / ("upload" + (suffixes[0].lower() if suffixes else ".jsonl"))
        file.write_bytes(upload.content)
        if name != QUESTIONS:
            taken = imports.take_in(
                store,
                me.project_id,
                catalogue.reader(name)(file, me.project_id),
                name=_batch(upload),
                training_use=use,
                now=now,
            )
            sentence = f"{taken.n_records} judgements were read, {taken.n_rejected} rows were left out."
            return sentence, _counted(taken.added), taken.rejected
        kind = form.get("kind", "")
        how = questions.Form(
            batch=_batch(upload),
            overlap=settings.overlap,
            kind=ComparisonKind(kind) if kind in ("pairwise", "rating") else None,
            criteria=tuple(one.strip() for one in form.get("criteria", "").split(",") if one.strip()),
            asking=Asking(settings.treatments, settings.never_learnt),
        )
        asked = questions.ask(store, me.project_id, rows.read(file), how, training_use=use, now=now)
    sentence = (
        f"{asked.n_questions} questions wait now, {asked.n_known} were there, {asked.n_rejected} rows were left out."
    )
    return (
        sentence,
        _counted({"questions": asked.n_questions, **{f"found: {kind}": n for kind, n in asked.found.items()}}),
        asked.rejected,
    )


def _batch(upload: Upload) -> str:
    return upload.fields.get("batch", "").strip() or upload.name[:200] or "upload"


def _counted(counts: Mapping[str, int]) -> list[dict[str, Any]]:
    return [{"what": name, "n": n} for name, n in counts.items() if n]


async def give_out(request: Request) -> Response:
    """GET /annotation/export: a Snapshot (`snapshot`, its id) in a `format` as a file; with `look`, what the format cannot hold."""
    door, me, asked = door_of(request), signed_in(request), request.query_params
    name = asked.get("format", "")
    write = catalogue.writer(name)
    id = asked.get("snapshot", "")
    record = await door.run(lambda: door.store.first(SnapshotRecord, id=id, project_id=me.project_id))
    if record is None or record.purged_at is not None:
        raise NotFound(f"There is no Snapshot {id!r} in this project that still has its rows.")
    folder = Path(tempfile.mkdtemp())
    file = folder / f"{name}-{record.sha256[:12]}.{'json' if name == 'label-studio' else 'jsonl'}"
    try:
        report: LossReport = await door.run(lambda: write(snapshot_records(Path(record.folder)), file))
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    if "look" not in asked:
        gone = BackgroundTask(shutil.rmtree, folder, ignore_errors=True)
        return FileResponse(
            file, headers={**HEADERS}, filename=file.name, media_type="application/json", background=gone
        )
    shutil.rmtree(folder, ignore_errors=True)
    lost = [{"what": f"not written: {why}", "n": n} for why, n in report.dropped.most_common()]
    lost += [{"what": f"without their {what}", "n": n} for what, n in report.lost.most_common()]
    table = Table("lost", "What the format cannot hold", COUNTS, lost, "Everything has a place in this format.")
    sentence = f"{report.n_written} rows of {report.n_records} records would be written as {name}."
    return answer(request, "files.html", [table], title="Export", sentence=sentence, counts=(), rejected=())


def snapshots_of(store: Store, project_id: str) -> list[SnapshotRecord]:
    """Those that can be exported, the newest first."""
    return store.find(SnapshotRecord, project_id=project_id, purged_at=None, descending=True, limit=SHOWN_SNAPSHOTS)
