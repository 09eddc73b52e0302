"""python -m plaudit.learn on ADDRESS WORKERS STORAGE PROGRAM RUN_DIR: the same programs on a Ray cluster, by Ray Train's TorchTrainer.

ADDRESS is ray://HOST:PORT (a Ray Client server), or `local-ray`, a cluster of this machine alone. STORAGE is a folder or an address that
every machine reaches (a path, s3://, gs://; whatever pyarrow.fs opens):

    inputs/<sha256>.tar    what the config names and this machine has: base, Snapshot, Checkpoints, files, the modules of own functions
    runs/<sha256>/         the run folder of the first worker as far as it has come, from which another attempt goes on

Each worker fetches the inputs, checks their hashes and runs the program in a folder of its own; distributed.py does the rest, as under
torchrun. Lines of metrics.jsonl and notes of progress.json come back through an actor into RUN_DIR while it works, the Checkpoint and
result.json at the end. The driver's copy of this package is sent along; the workers' Python must have its dependencies.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import io
import json
import os
import shutil
import sys
import tarfile
import tempfile
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyarrow import fs

from plaudit import artifacts
from plaudit.errors import ConfigError, Corrupt, PlauditError, TrainingStopped
from plaudit.learn.configs import PROGRAMS, function_names, to_dict
from plaudit.learn.run_folder import RunFolder, read_config

LOCAL = "local-ray"
POLL_S = 0.5
KEPT = ("state", "reference")  # folders of a run that another attempt needs, beside metrics.jsonl
OF_A_MACHINE = (
    "config.json",
    "config.resolved.json",
    "progress.json",
)  # files of a run that name paths there, or a moment
Json = dict[str, Any]


@dataclass(frozen=True)
class Task:
    """What a worker is told. Plain values, because Ray pickles it."""

    program: str
    config: Json  # with the hash of an input for its path
    inputs: Mapping[str, str]  # sha256 -> the name of the file or folder inside its tar
    modules: tuple[str, ...]  # those of the inputs that are imported
    storage: str
    run: str  # the hash of all that


class Store:
    """Files below one address; local paths and pyarrow's schemes alike."""

    def __init__(self, address: str) -> None:
        where = address if "://" in address else Path(address).absolute().as_uri()
        try:
            self._files, self._root = fs.FileSystem.from_uri(where)
        except (ValueError, OSError) as error:
            raise ConfigError(
                f"--storage {address} cannot be opened ({error}); give a folder or an s3:// or gs:// address."
            ) from error

    def has(self, name: str) -> bool:
        return bool(self._files.get_file_info(f"{self._root}/{name}").type == fs.FileType.File)

    def put(self, name: str, data: bytes) -> None:
        path = f"{self._root}/{name}"
        self._files.create_dir(path.rpartition("/")[0], recursive=True)
        with self._files.open_output_stream(f"{path}.part") as stream:
            stream.write(data)
        self._files.move(f"{path}.part", path)

    def get(self, name: str) -> bytes:
        with self._files.open_input_stream(f"{self._root}/{name}") as stream:
            return bytes(stream.read())

    def names(self, folder: str) -> list[str]:
        """Files below a folder, by their path in it."""
        chosen = fs.FileSelector(f"{self._root}/{folder}", recursive=True, allow_not_found=True)
        start = len(f"{self._root}/{folder}/")
        found = [info.path[start:] for info in self._files.get_file_info(chosen) if info.type == fs.FileType.File]
        return sorted(name for name in found if not name.endswith(".part"))

    def remove(self, name: str) -> None:
        self._files.delete_file(f"{self._root}/{name}")

    def remove_folder(self, name: str) -> None:
        self._files.delete_dir(f"{self._root}/{name}")


# --- here -------------------------------------------------------------------------------------------------------------------


def train(address: str, workers: int, storage: str, program: str, folder: Path) -> None:
    """Run a program on a cluster into RUN_DIR. Raises the program's own PlauditError, TrainingStopped where the cluster fails."""
    run = RunFolder(folder)
    if run.finished:
        print(f"{run.checkpoint} is already finished; nothing to do.")
        return
    ray = _import_ray()
    config = read_config(folder, PROGRAMS[program])
    run.announce("upload")
    store = Store(storage)
    task = send_inputs(store, storage, program, to_dict(config))
    run.announce("cluster")
    if address == LOCAL:
        ray.init(address="local", num_cpus=workers + 1, include_dashboard=False, log_to_driver=False)
    else:
        package = str(Path(__file__).parents[1])
        ray.init(address=address, runtime_env={"py_modules": [package]}, log_to_driver=False)
    try:
        _follow(ray, task, workers, run)
    finally:
        ray.shutdown()
    bring_back(store, task, folder)
    run.progress.unlink(missing_ok=True)
    print(f"{folder} is done.")


def send_inputs(store: Store, storage: str, program: str, config: Json) -> Task:
    """Put every file and folder that the config names, and the modules of its own functions, into the store by hash, once."""
    inputs: dict[str, str] = {}

    def send(path: Path) -> str:
        data = packed(path)
        sha256 = hashlib.sha256(data).hexdigest()
        if not store.has(f"inputs/{sha256}.tar"):
            store.put(f"inputs/{sha256}.tar", data)
        inputs[sha256] = path.name
        return sha256

    modules = [send(_module_of(name)) for name in function_names(config.get("reward"))]
    changed = replaced(
        config, lambda text: f"sha256:{send(Path(text))}" if Path(text).is_absolute() and Path(text).exists() else text
    )
    told = artifacts.canonical({"program": program, "config": changed, "modules": modules})
    return Task(program, changed, inputs, tuple(modules), storage, hashlib.sha256(told).hexdigest())


def packed(path: Path) -> bytes:
    """A file or folder as a tar that depends on names and bytes alone, so that the same content has the same hash everywhere."""

    def plain(entry: tarfile.TarInfo) -> tarfile.TarInfo | None:
        entry.mtime, entry.uid, entry.gid, entry.uname, entry.gname, entry.mode = 0, 0, 0, "", "", 0o755
        return None if entry.name.endswith((".pyc", "__pycache__", ".lock")) else entry

    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", dereference=True) as tar:
        tar.add(path.resolve(), path.name, filter=plain)  # entries of a folder come sorted
    return buffer.getvalue()


def replaced(value: Any, change: Callable[[str], str]) -> Any:
    """The same JSON with every text changed."""
    match value:
        case str():
            return change(value) if value else value
        case dict():
            return {name: replaced(part, change) for name, part in value.items()}
        case list() | tuple():
            return [replaced(part, change) for part in value]
    return value


def bring_back(store: Store, task: Task, folder: Path) -> None:
    """The finished run folder out of the store, its Checkpoint verified and put in place last."""
    source = f"runs/{task.run}"
    names = store.names(source)
    building = folder / ".checkpoint"
    shutil.rmtree(building, ignore_errors=True)
    for name in names:
        place = building / name.removeprefix("checkpoint/") if name.startswith("checkpoint/") else folder / name
        if name.startswith(KEPT) or name in OF_A_MACHINE:
            continue
        data = store.get(f"{source}/{name}")
        # Not metrics.jsonl as it is already: who follows it would read a new file from its start.
        if not place.is_file() or place.read_bytes() != data:
            artifacts.write_atomic(place, data)
    if building.is_dir():
        artifacts.verify(building, "checkpoint")
        building.replace(folder / "checkpoint")
    store.remove_folder(source)


def _module_of(function: str) -> Path:
    """The file or package that a function is imported from here."""
    top = function.partition(":")[0].partition(".")[0]
    sys.path[:0] = [] if os.getcwd() in sys.path else [os.getcwd()]
    found = importlib.util.find_spec(top)
    if found is None or found.origin is None:
        raise ConfigError(
            f"The reward function {function} cannot be sent along: there is no module {top} in {os.getcwd()} or PYTHONPATH."
        )
    origin = Path(found.origin)
    return origin.parent if origin.name == "__init__.py" else origin


def _import_ray() -> Any:
    try:
        return importlib.import_module("ray")
    except ImportError as error:
        raise ConfigError("--on needs Ray, which is not installed; run `pip install 'plaudit[ray]'`.") from error


def _follow(ray: Any, task: Task, workers: int, run: RunFolder) -> None:
    """Start the workers and write what they say into the run folder until they end."""
    box = ray.remote(num_cpus=0)(Mailbox).remote()
    # Inside a task: a trainer cannot be driven through Ray Client.
    done = ray.remote(num_cpus=0)(fit).remote(task, workers, box)
    while True:
        ready, _ = ray.wait([done], timeout=POLL_S)
        for kind, value in ray.get(box.drain.remote()):
            if kind == "metrics":
                artifacts.write_atomic(run.metrics, value)
            elif kind == "lines":
                with run.metrics.open("a") as file:
                    file.write(value)
            else:
                run.announce(**value)
        if ready:
            break
    failure = ray.get(box.failure.remote())
    try:
        ray.get(done)
    except Exception as error:  # whatever a cluster may raise; the program's own error came by the mailbox
        if failure is not None:
            raise failure from error
        raise TrainingStopped(
            f"The cluster failed ({type(error).__name__}: {str(error).strip().splitlines()[-1][:300]}); run this again, which goes on "
            "from the last saved state."
        ) from error


# --- there ------------------------------------------------------------------------------------------------------------------


class Mailbox:
    """An actor: what the first worker says, until the driver fetches it."""

    def __init__(self) -> None:
        self.letters: list[tuple[str, Any]] = []
        self.error: PlauditError | None = None

    def put(self, kind: str, value: Any) -> None:
        self.letters.append((kind, value))

    def drain(self) -> list[tuple[str, Any]]:
        found, self.letters = self.letters, []
        return found

    def fail(self, error: PlauditError) -> None:
        self.error = self.error or error

    def failure(self) -> PlauditError | None:
        return self.error


def fit(task: Task, workers: int, box: Any) -> None:
    """Ray Train's part: processes on the cluster that know each other."""
    train = importlib.import_module("ray.train")
    torch_train = importlib.import_module("ray.train.torch")
    trainer = torch_train.TorchTrainer(
        work,
        train_loop_config={"task": task, "box": box},
        torch_config=torch_train.TorchConfig(backend="gloo"),
        scaling_config=train.ScalingConfig(num_workers=workers, resources_per_worker={"CPU": 1}),
        run_config=train.RunConfig(name=task.run, storage_path=_ray_folder(task.storage)),
    )
    trainer.fit()


def _ray_folder(storage: str) -> str:
    """Where Ray Train keeps its own notes."""
    return f"{storage if '://' in storage else Path(storage).absolute()}/ray"


def work(told: Json) -> None:
    """One worker: fetch, run, and, as the first, send what comes of it."""
    from plaudit.learn import distributed
    from plaudit.learn.__main__ import run

    task, box = told["task"], told["box"]
    ray = importlib.import_module("ray")
    store = Store(task.storage)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "run"
        try:
            fetch(store, task, Path(place), folder)
            if not distributed.is_first():
                run(task.program, folder)
                return
            with Courier(store, task, folder, lambda kind, value: ray.get(box.put.remote(kind, value))):
                run(task.program, folder)
            for path in sorted(path for path in folder.rglob("*") if path.is_file()):
                store.put(f"runs/{task.run}/{path.relative_to(folder)}", path.read_bytes())
        except PlauditError as error:
            ray.get(box.fail.remote(error))
            raise


def fetch(store: Store, task: Task, place: Path, folder: Path) -> None:
    """The inputs, verified, and what an earlier attempt saved; writes config.json. Raises Corrupt where an input is not what was sent."""
    for sha256 in task.inputs:
        data = store.get(f"inputs/{sha256}.tar")
        if hashlib.sha256(data).hexdigest() != sha256:
            raise Corrupt(f"inputs/{sha256}.tar in {task.storage} was changed; delete it, and it is sent again.")
        with tarfile.open(fileobj=io.BytesIO(data)) as tar:
            tar.extractall(place / sha256, filter="data")
    sys.path[:0] = [str(place / sha256) for sha256 in task.modules]

    def local(text: str) -> str:
        sha256 = text.removeprefix("sha256:")
        return str(place / sha256 / task.inputs[sha256]) if text.startswith("sha256:") else text

    artifacts.write_atomic(folder / "config.json", json.dumps(replaced(task.config, local)))
    for name in store.names(f"runs/{task.run}"):
        if name.startswith(KEPT) or name == "metrics.jsonl":
            artifacts.write_atomic(folder / name, store.get(f"runs/{task.run}/{name}"))


class Courier:
    """A thread beside the program: sends its metrics and notes, and mirrors what another attempt would need into the store."""

    def __init__(self, store: Store, task: Task, folder: Path, send: Callable[[str, Any], Any]) -> None:
        self.store, self.task, self.folder, self.send = store, task, folder, send
        self.sent, self.note = "", b""
        self.mirrored: set[str] = set()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Courier:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()
        self.look()  # what came last

    def _run(self) -> None:
        while not self._end.wait(POLL_S):
            self.look()

    def look(self) -> None:
        """Send what is new."""
        self._mirror()
        metrics, note = self.folder / "metrics.jsonl", self.folder / "progress.json"
        text = metrics.read_text() if metrics.is_file() else ""
        text = text[: text.rfind("\n") + 1]
        if not text.startswith(self.sent):
            self.send("metrics", text)
        elif text != self.sent:
            self.send("lines", text[len(self.sent) :])
        self.sent = text
        said = note.read_bytes() if note.is_file() else b""
        if said and said != self.note:
            self.send("note", json.loads(said))
        self.note = said

    def _mirror(self) -> None:
        """Metrics first: they may be ahead of a state, which a run that goes on mends, but not behind it."""
        paths = [path for kept in KEPT for path in self.folder.glob(f"{kept}/*.pt")]
        here = {str(path.relative_to(self.folder)): path for path in paths}
        fresh = [name for name in here if name not in self.mirrored]
        if not fresh:
            return
        prefix = f"runs/{self.task.run}"
        metrics = self.folder / "metrics.jsonl"
        if metrics.is_file():
            self.store.put(f"{prefix}/metrics.jsonl", metrics.read_bytes())
        for name in fresh:
            try:
                data = here[name].read_bytes()
            except FileNotFoundError:  # a newer one has taken its place
                continue
            self.store.put(f"{prefix}/{name}", data)
            self.mirrored.add(name)
        for name in self.store.names(prefix):
            if name.startswith(KEPT) and name not in here:
                self.store.remove(f"{prefix}/{name}")
