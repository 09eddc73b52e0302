"""A remote scorer, played by a real server of this process: it fails and comes back, stays away, is late, or talks nonsense."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from plaudit.errors import ConfigError, TrainingStopped
from plaudit.learn import http_scorer
from plaudit.learn.answers import Answers
from plaudit.learn.configs import HttpTerm

TEXTS = ["a", "bb", "ccc", "dddd", "eeeee"]
READ = Answers(
    [[{"role": "user", "content": t.upper()}] for t in TEXTS], TEXTS, [[1]] * 5, [{"prompt": i} for i in range(5)]
)
QUICK = {"name": "remote", "backoff_s": 0.001, "pause_s": 0.002}


class StandIn(ThreadingHTTPServer):
    """Answers with what `plan` says, in turn, then with the lengths of the responses."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.plan, self.bodies, self.headers_seen = [], [], []
        self.release = threading.Event()

    def handle_error(self, *_):
        """A client that has waited long enough hangs up: nothing to print."""

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_address[1]}/score"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.server.bodies.append(body)
        self.server.headers_seen.append(self.headers)
        status, answer, *headers = self.server.plan.pop(0) if self.server.plan else (200, None)
        if status == "hang up":
            self.close_connection = True
            return
        if status == "hang":
            self.server.release.wait(30)
            self.close_connection = True
            return
        content = (answer or json.dumps({"scores": [len(text) for text in body["responses"]]})).encode()
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        if status == 299:  # one byte at a time, for ever
            while not self.server.release.wait(0.01):
                self.wfile.write(b" ")
        else:
            self.wfile.write(content)

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    standing = StandIn()
    standing.daemon_threads = True
    thread = threading.Thread(target=standing.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield standing
    standing.release.set()
    standing.shutdown()
    thread.join()
    standing.server_close()


@pytest.fixture
def pauses(monkeypatch):
    """Seconds that the scorer wanted to sleep; it does not."""
    asked = []
    monkeypatch.setattr(http_scorer.time, "sleep", asked.append)
    return asked


def scorer(url, environ=None, **fields):
    return http_scorer.load(HttpTerm(url=url, **(QUICK | fields)), environ or {})


def test_batches_come_back_in_order(server):
    assert http_scorer.score(scorer(server.url, batch=2), READ).tolist() == [1, 2, 3, 4, 5]
    assert [body["responses"] for body in server.bodies] == [["a", "bb"], ["ccc", "dddd"], ["eeeee"]]
    assert server.bodies[1]["messages"][0] == [{"role": "user", "content": "CCC"}]
    assert server.bodies[1]["meta"] == [{"prompt": 2}, {"prompt": 3}]
    assert "authorization" not in server.headers_seen[0]


def test_the_token_of_the_named_variable_is_sent_and_shown_nowhere(server):
    made = scorer(server.url, {"SCORER_TOKEN": "s3cret"}, token_variable="SCORER_TOKEN")
    http_scorer.score(made, READ)
    assert server.headers_seen[0]["authorization"] == "Bearer s3cret"
    assert "s3cret" not in repr(made)
    with pytest.raises(ConfigError, match="SCORER_TOKEN is not set"):
        scorer(server.url, {}, token_variable="SCORER_TOKEN")


@pytest.mark.parametrize("failure", [(503, "warming up"), (429, "slow down"), (500, "oops"), ("hang up", "")], ids=str)
def test_it_fails_twice_and_then_answers(server, failure):
    server.plan = [failure, failure]
    assert http_scorer.score(scorer(server.url, attempts=3), READ).tolist() == [1, 2, 3, 4, 5]
    assert len(server.bodies) == 3


def test_pauses_double_keep_to_retry_after_and_end_in_the_breakers(server, pauses):
    server.plan = [(503, ""), (429, "", ("retry-after", "7")), (503, "", ("retry-after", "900")), (503, "")]
    made = scorer(server.url, attempts=4, backoff_s=1.0, pause_s=60.0)
    assert http_scorer.score(made, READ).tolist() == [1, 2, 3, 4, 5]  # half open: its success closes the breaker
    assert pauses == [1.0, 7.0, 60.0, 60.0]
    server.plan = [(503, "")]
    http_scorer.score(made, READ)
    assert pauses[4:] == [1.0]  # closed again: counting starts anew


def test_one_that_stays_down_stops_the_run_after_the_breakers_last_attempt(server, pauses):
    server.plan = [(503, "gone fishing")] * 20
    with pytest.raises(TrainingStopped, match=r"failed 4 times in a row, .*a pause of 60 s .*503.*gone fishing"):
        http_scorer.score(scorer(server.url, attempts=3, backoff_s=0.5, pause_s=60.0), READ)
    assert pauses == [0.5, 1.0, 60.0]
    assert len(server.bodies) == 4


def test_nobody_at_the_address_stops_the_run(pauses):
    with StandIn() as closed:
        url = closed.url
    with pytest.raises(TrainingStopped, match=r"failed 3 times in a row.*ConnectError"):
        http_scorer.score(scorer(url, attempts=2), READ)


@pytest.mark.parametrize("kind", [("hang", ""), (299, " " * 100_000)], ids=["silent", "trickling"])
def test_a_late_answer_is_a_failure(server, kind):
    server.plan = [kind]
    made = scorer(server.url, timeout_s=1.0)
    assert http_scorer.score(made, READ).tolist() == [1, 2, 3, 4, 5]
    assert len(server.bodies) >= 2


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ((401, "who are you"), ["401", "who are you", "token"]),
        ((404, ""), ["404"]),
        ((307, ""), ["307"]),
        ((200, "not json"), ["not json", "scores"]),
        ((200, "[1, 2]"), ["[1, 2]", "scores"]),
        ((200, '{"score": [1]}'), ["scores"]),
        ((200, '{"scores": [1, 2]}'), ["2 scores for 5 responses"]),
        ((200, '{"scores": [1, 2, NaN, 4, 5]}'), ["nan", "response 2", "'ccc'", "'CCC'"]),
        ((200, '{"scores": [1, 2, null, 4, 5]}'), ["None", "'ccc'"]),
        ((200, '{"scores": 3}'), ["int"]),
    ],
    ids=str,
)
def test_an_answer_that_no_retry_can_mend_stops_at_once(server, pauses, answer, words):
    server.plan = [answer]
    with pytest.raises(TrainingStopped) as stopped:
        http_scorer.score(scorer(server.url + "?key=s3cret"), READ)
    for word in [server.url, *words]:
        assert word in stopped.value.message
    assert "s3cret" not in stopped.value.message
    assert (len(server.bodies), pauses) == (1, [])
