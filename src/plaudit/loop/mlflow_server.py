"""An MLflow tracking server over its REST API (https://mlflow.org/docs/latest/rest-api.html): the calls that `mirror.py` makes, no more.

MLflow's own client is not used: it is 70 MB, takes seconds to import and waits for minutes. These calls have short time limits, and there is
nothing to install.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from types import TracebackType
from urllib.parse import quote, urlsplit

from plaudit.domain import Json
from plaudit.errors import BadInput, ConfigError, NotFound, Unavailable
from plaudit.settings import shown

CONNECT_S, ANSWER_S = 2.0, 20.0
PAGE = 1000
MAX_METRICS, MAX_PARAMS = 900, 100  # of one request; the server takes 1000 of everything together
MAX_KEY, MAX_VALUE = 250, 5000  # characters of a name, and of a parameter or tag


class MlflowServer:
    """Raises Unavailable where nobody answers in time or the server failed, NotFound, BadInput with the server's own words otherwise."""

    def __init__(self, url: str, token: str = "") -> None:
        import httpx  # the service, which never mirrors, starts without it

        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError(f"mlflow_url is {shown(url)!r}; give one that begins with http:// or https://.")
        address = httpx.URL(url)
        user = (address.username, address.password) if address.username else None
        self.url = str(address.copy_with(userinfo=b"")).rstrip("/")  # what httpx logs
        self._http = httpx.Client(
            auth=user,
            headers={"authorization": f"Bearer {token}"} if token else None,
            timeout=httpx.Timeout(ANSWER_S, connect=CONNECT_S),
            verify=parts.scheme == "https",  # reading all certificates takes longer than a pass
        )

    def __enter__(self) -> MlflowServer:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._http.close()

    # --- runs ----------------------------------------------------------------------------------------------------------

    def experiment(self, name: str) -> str:
        """Its id; made where there is none, restored where somebody deleted it."""
        try:
            found = self._ask("GET", "experiments/get-by-name", {"experiment_name": name})["experiment"]
        except NotFound:
            return str(self._ask("POST", "experiments/create", {"name": name})["experiment_id"])
        if found["lifecycle_stage"] != "active":
            self._ask("POST", "experiments/restore", {"experiment_id": found["experiment_id"]})
        return str(found["experiment_id"])

    def runs(self, experiment: str) -> Iterator[Json]:
        """Those that are not deleted, with their tags as `tags` and `artifact_uri`."""
        asked = {"experiment_ids": [experiment], "run_view_type": "ACTIVE_ONLY", "max_results": PAGE}
        for run in self._pages("POST", "runs/search", asked, "runs"):
            yield _flat(run)

    def create_run(self, experiment: str, name: str, start_ms: int, tags: Json) -> Json:
        asked = {"experiment_id": experiment, "run_name": name, "start_time": start_ms, "tags": _pairs(tags)}
        return _flat(self._ask("POST", "runs/create", asked)["run"])

    def log(
        self, run_id: str, metrics: Sequence[Json] = (), params: Json | None = None, tags: Json | None = None
    ) -> None:
        """At once or not at all. What is there already with the same value, time and step is not doubled."""
        asked = {"run_id": run_id, "metrics": list(metrics), "params": _pairs(params or {}), "tags": _pairs(tags or {})}
        self._ask("POST", "runs/log-batch", asked)

    def update_run(self, run_id: str, status: str, end_ms: int | None) -> None:
        self._ask(
            "POST", "runs/update", {"run_id": run_id, "status": status, **({"end_time": end_ms} if end_ms else {})}
        )

    def delete_run(self, run_id: str) -> None:
        self._ask("POST", "runs/delete", {"run_id": run_id})

    def put_file(self, artifact_uri: str, name: str, content: bytes) -> None:
        """A file of a run. Raises BadInput where the server does not take files itself."""
        parts = urlsplit(artifact_uri)
        if parts.scheme != "mlflow-artifacts":
            raise BadInput(
                f"MLflow takes no files for {artifact_uri}; start it with --artifacts-destination instead of --default-artifact-root."
            )
        path = quote(f"{parts.path.strip('/')}/{name}")
        self._send("PUT", f"mlflow-artifacts/artifacts/{path}", content=content)

    # --- the model registry ---------------------------------------------------------------------------------------------

    def aliases(self, model: str) -> dict[str, str]:
        """alias -> version. Raises NotFound where there is no such registered model."""
        found = self._ask("GET", "registered-models/get", {"name": model})["registered_model"]
        return {one["alias"]: str(one["version"]) for one in found.get("aliases", ())}

    def create_model(self, model: str, about: str) -> None:
        self._ask("POST", "registered-models/create", {"name": model, "description": about})

    def versions(self, model: str) -> Iterator[Json]:
        """With their tags as `tags`."""
        asked = {"filter": f"name='{model}'", "max_results": PAGE}
        for found in self._pages("GET", "model-versions/search", asked, "model_versions"):
            yield {**found, "tags": _mapping(found.get("tags", ()))}

    def create_version(self, model: str, source: str, run_id: str | None, about: str, tags: Json) -> str:
        asked = {"name": model, "source": source, "description": about, "tags": _pairs(tags)}
        made = self._ask("POST", "model-versions/create", asked | ({"run_id": run_id} if run_id else {}))
        return str(made["model_version"]["version"])

    def tag_version(self, model: str, version: str, key: str, value: str) -> None:
        self._ask("POST", "model-versions/set-tag", {"name": model, "version": version, "key": key, "value": value})

    def set_alias(self, model: str, alias: str, version: str) -> None:
        self._ask("POST", "registered-models/alias", {"name": model, "alias": alias, "version": version})

    def remove_alias(self, model: str, alias: str) -> None:
        self._ask("DELETE", "registered-models/alias", {"name": model, "alias": alias})

    # --- inside ---------------------------------------------------------------------------------------------------------

    def _pages(self, method: str, path: str, asked: Json, name: str) -> Iterator[Json]:
        token = ""
        while True:
            found = self._ask(method, path, {**asked, **({"page_token": token} if token else {})})
            yield from found.get(name, ())
            token = found.get("next_page_token", "")
            if not token:
                return

    def _ask(self, method: str, path: str, asked: Json) -> Json:
        given = {"params": asked} if method == "GET" else {"json": asked}
        answer: Json = self._send(method, f"mlflow/{path}", **given)
        return answer

    def _send(self, method: str, path: str, **given: object) -> Json:
        import httpx

        try:
            answer = self._http.request(method, f"{self.url}/api/2.0/{path}", **given)  # type: ignore[arg-type]
        except httpx.HTTPError as error:
            raise Unavailable(f"MLflow at {self.url} does not answer ({type(error).__name__}).") from error
        if answer.is_success:
            return dict(answer.json()) if answer.content else {}
        said = f"MLflow at {self.url} answered {path} with {answer.status_code}: {_words(answer)}"
        if answer.status_code == 404 and "RESOURCE_DOES_NOT_EXIST" in answer.text:
            raise NotFound(said)
        if answer.status_code in (408, 429) or answer.status_code >= 500:
            raise Unavailable(said)
        raise BadInput(said)


def key(*parts: str) -> str:
    """A name that MLflow takes for a metric or a parameter: parts with slashes between."""
    clean = [re.sub(r"[^\w\-. ]", "_", part) for part in parts]
    return "/".join(part if part.strip(". ") else "_" for part in clean)[:MAX_KEY]


def _words(answer: object) -> str:
    try:
        said = answer.json()  # type: ignore[attr-defined]
        return str(said.get("message") or said)[:300]
    except (ValueError, AttributeError):
        return str(answer.text)[:300]  # type: ignore[attr-defined]


def _pairs(values: Json) -> list[Json]:
    return [{"key": name[:MAX_KEY], "value": str(value)[:MAX_VALUE]} for name, value in values.items()]


def _mapping(pairs: Sequence[Json]) -> Json:
    return {one["key"]: one.get("value", "") for one in pairs}


def _flat(run: Json) -> Json:
    return {**run["info"], "tags": _mapping(run.get("data", {}).get("tags", ()))}
