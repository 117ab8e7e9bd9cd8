"""Several workers as one: what is said where some do it and some do not, and who is told again."""

from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace
from typing import Any

import pytest

from gateway.admin.api import OPERATIONS, Ask
from gateway.admin.asking import Answer, Question
from gateway.admin.problems import Problem
from gateway.admin.together import Together

OPERATION = {operation.name: operation for operation in OPERATIONS}
RATE = Ask({"upstream": "api", "limit": "l"}, {}, {"rate": "5/s"})
CLEAR = Ask({"upstream": "api", "limit": "l"}, {}, {"key": {"path": "/"}})


class Crew:
    """Two workers that answer what they are given, and note what they are asked."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *answers: tuple[int, Any] | None) -> None:
        self.conf = SimpleNamespace(node=SimpleNamespace(name="gw"), admin=None)
        self.members = [
            SimpleNamespace(number=n, name=f"gw/{n}", pid=100 + n, ready=True) for n in range(2)
        ]
        self.answers = list(answers)
        self.asked: list[tuple[int, Question]] = []
        self.errors: list[str] = []
        self.log = SimpleNamespace(error=lambda event, **facts: self.errors.append(event))
        self.serving, self.drained = True, False
        self.reloads, self.reload_success, self.reload_faults = 0, True, ["line 1: no"]
        self.reload_failures = 0
        self.recent: list[dict[str, Any]] = []
        self.on_restarted: Any = None

        async def one(question: Question, asker: Any, member: Any) -> Answer | None:
            self.asked.append((member.number, question))
            told = self.answers[member.number]
            if told is None:
                return None
            return Answer(member, member.pid, told[0], json.dumps(told[1]).encode())

        monkeypatch.setattr(Question, "one", one)

    async def reload(self) -> bool:
        self.reloads += 1
        return self.reload_success


def together(crew: Any) -> Together:
    async def node() -> dict[str, Any]:
        return {}

    return Together(crew, node)


def done(node: str, **more: Any) -> tuple[int, dict[str, Any]]:
    return 200, {"node": node, "done": "it is done", "reach": "node", **more}


def refused(status: int, detail: str) -> tuple[int, dict[str, Any]]:
    return status, {"status": status, "detail": detail}


def call(crew: Any, name: str, ask: Ask) -> dict[str, Any]:
    return asyncio.run(together(crew).call(OPERATION[name], ask))


def test_all_do_it(monkeypatch: pytest.MonkeyPatch) -> None:
    crew = Crew(monkeypatch, done("gw/0"), done("gw/1"))
    told = call(crew, "set_rate", RATE)
    assert (told["node"], told["done"], told["reach"]) == ("gw", "it is done", "node")
    assert [one["node"] for one in told["workers"]] == ["gw/0", "gw/1"]
    (_, question), _ = crew.asked
    assert question == ("PUT", "/api/v1/limits/api/l/rate", {"rate": "5/s"})


def test_who_did_not_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    crew = Crew(monkeypatch, done("gw/0"), None)
    with pytest.raises(Problem) as caught:
        call(crew, "set_rate", RATE)
    assert caught.value.status == 409
    assert caught.value.faults == [
        "not every worker did it",
        "gw/0: it is done",
        "gw/1: does not answer",
    ]


def test_what_all_refuse_alike_is_refused_so(monkeypatch: pytest.MonkeyPatch) -> None:
    crew = Crew(monkeypatch, refused(404, "no upstream api"), refused(404, "no upstream api"))
    with pytest.raises(Problem, match="no upstream api") as caught:
        call(crew, "set_rate", RATE)
    assert caught.value.status == 404


def test_a_row_is_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    crew = Crew(monkeypatch, refused(404, "no row"), done("gw/1", count=1))
    told = call(crew, "clear_table", CLEAR)
    assert (told["done"], told["count"]) == ("cleared 1 row of api/l", 1)
    assert told["workers"][0] == {"node": "gw/0", "said": "no row"}


def test_who_does_not_run_is_told_when_it_is_back(monkeypatch: pytest.MonkeyPatch) -> None:
    crew = Crew(monkeypatch, done("gw/0"), done("gw/1"))

    async def run() -> None:
        both = together(crew)
        crew.members[1].ready = False
        await both.call(OPERATION["set_rate"], RATE)
        await both.call(OPERATION["drain"], Ask({}, {}, {"draining": True}))
        held = Ask({"upstream": "api"}, {}, {"state": "open"})
        await both.call(OPERATION["set_breaker"], held)
        assert crew.drained
        assert {number for number, _ in crew.asked} == {0}
        crew.asked.clear()
        crew.on_restarted(crew.members[1])
        await asyncio.gather(*both._repeating)
        assert [question.path.split("/")[3] for _, question in crew.asked] == [
            *("limits", "drain", "breakers"),
        ]
        # A reload takes the rate back, the operator the rest.
        await both.call(OPERATION["reload"], Ask({}, {}, {}))
        crew.members[1].ready = True
        await both.call(OPERATION["drain"], Ask({}, {}, {"draining": False}))
        await both.call(OPERATION["set_breaker"], held._replace(body={"state": "auto"}))
        crew.asked.clear()
        crew.on_restarted(crew.members[1])
        await asyncio.gather(*both._repeating)
        assert (crew.asked, crew.drained, crew.errors) == ([], False, [])
        await both.call(OPERATION["set_rate"], RATE)
        crew.answers[1] = None
        crew.on_restarted(crew.members[1])
        await asyncio.gather(*both._repeating)
        assert crew.errors == ["worker was not told"]
        both.close()

    asyncio.run(run())


def test_nobody_is_told_while_it_starts_or_stops(monkeypatch: pytest.MonkeyPatch) -> None:
    crew = Crew(monkeypatch, done("gw/0"), done("gw/1"))
    crew.serving = False
    for name in ("set_rate", "reload"):
        with pytest.raises(Problem, match="starting or stopping"):
            call(crew, name, RATE)
    crew.serving = True
    for member in crew.members:
        member.ready = False
    with pytest.raises(Problem, match="no worker is running"):
        call(crew, "set_rate", RATE)
    assert crew.asked == []


def test_a_refused_reload_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    crew = Crew(monkeypatch)
    crew.reload_success = False
    with pytest.raises(Problem, match="nothing was changed: line 1: no") as caught:
        call(crew, "reload", Ask({}, {}, {}))
    assert caught.value.status == 422


def test_nobody_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    crew = Crew(monkeypatch, None, None)
    table = Ask({"upstream": "api", "limit": "l"}, {}, {})
    for name, ask in (("list_nodes", Ask({}, {}, {})), ("list_conf", table), ("show_table", table)):
        with pytest.raises(Problem, match="no worker answers") as caught:
            call(crew, name, ask)
        assert caught.value.status == 503
    snapshot = asyncio.run(together(crew).snapshot())
    assert (snapshot["nodes"], snapshot["truncated"]) == ([], False)


def test_pages_go_from_worker_to_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    page: dict[str, Any] = {"rows": [{"node": "gw/0"}], "total": 3, "next": None}
    crew = Crew(monkeypatch, (200, {**page, "next": "3d61"}), (200, page))
    table = Ask({"upstream": "api", "limit": "l"}, {"count": 1}, {})

    def next_of(after: str) -> Any:
        query = {**table.query, "after": after} if after else table.query
        crew.asked.clear()
        return call(crew, "show_table", table._replace(query=query))["next"]

    assert next_of("") == "003d61"
    assert next_of("003d61") == "003d61"  # this crew always has one more
    assert crew.asked[-1][1].path.endswith("?count=1&after=3d61")
    assert next_of("01") is None
    assert crew.asked[-1][1].path.endswith("?count=1")
    crew.answers[0] = (200, page)
    assert next_of("003d61") == "01"
    crew.answers[0] = (200, {**page, "rows": []})
    assert next_of("") is None
    for garbage in ("02", "ff"):
        with pytest.raises(Problem, match="after"):
            next_of(garbage)
