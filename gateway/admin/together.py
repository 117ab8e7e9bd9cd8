"""`/api/v1/` of a node with several workers: what each shows, joined; what is told, told to each.

Lists are joined: an item names its worker (`node`). Rows of a limit come worker by worker, because
each worker has its own order: a page is of one of them, and its `next` begins with the worker's
number. A verb goes to every worker, one after the other: all do it, or the answer says who did not.
What outlasts a worker (a rate until the next reload, a breaker that is held, a drained node) is
told to its successor too.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, NamedTuple, Protocol
from urllib.parse import quote, urlencode

from gateway.admin.api import PREFIX, Ask, Body, Operation
from gateway.admin.asking import Answer, Asker, CrewMember, Question
from gateway.admin.events import HEAD_BOUNDS_MS, SHOWN
from gateway.admin.problems import Problem
from gateway.admin.verbs import cleared
from gateway.clock import monotonic_ns

__all__ = ["Directed", "Together"]


class Log(Protocol):
    """Where it is said that something went wrong."""

    def error(self, event: str, **facts: object) -> None: ...


class Directed(Asker, Protocol):
    """What is asked of a `gateway.supervisor.Supervisor`, besides its workers."""

    drained: bool  # by the operator
    on_restarted: Callable[[CrewMember], None]

    @property
    def serving(self) -> bool: ...
    @property
    def log(self) -> Log: ...
    @property
    def recent(self) -> list[dict[str, Any]]: ...
    @property
    def reloads(self) -> int: ...
    @property
    def reload_failures(self) -> int: ...
    @property
    def reload_success(self) -> bool: ...
    @property
    def reload_faults(self) -> list[str]: ...

    async def reload(self) -> bool: ...


class _Order(NamedTuple):
    """What a worker that starts anew has to be told; a rate only until the next reload."""

    question: Question
    reloads: int | None


def _whose(operation: Operation, ask: Ask) -> tuple[str, ...]:
    """What an order is about: a later one about the same replaces it."""
    return (operation.name, *ask.path.values(), ask.body.get("credential", ""))


def _lapsed(operation: Operation, ask: Ask) -> bool:
    """Whether the verb takes an order back."""
    return (
        (operation.name == "set_rate" and ask.body["rate"] is None)
        or (operation.name == "set_breaker" and ask.body["state"] == "auto")
        or (operation.name == "drain" and not ask.body["draining"])
    )


def _one_suffices(operation: Operation, ask: Ask) -> bool:
    """Whether the verb is about something that not every worker knows, or that the first one's
    word has done for all."""
    if operation.name == "clear_table":
        return "key" in ask.body
    if operation.name == "resume_upstream":
        return "credential" in ask.body
    return operation.name in ("forget_member", "requeue_spool_record", "drop_spool_record")


class Together:
    """All workers behind one interface; `node` gives `/api/v1/node`."""

    def __init__(self, crew: Directed, node: Callable[[], Awaitable[Body]]) -> None:
        self._crew = crew
        self._node = node
        self._telling = asyncio.Lock()
        self._orders: dict[tuple[str, ...], _Order] = {}
        self._repeating: set[asyncio.Task[None]] = set()
        crew.on_restarted = self._restarted

    async def call(self, operation: Operation, ask: Ask) -> Body:
        """Does one operation. Raises Problem."""
        if operation.name == "show_node":
            return await self._node()
        if operation.name == "show_table":
            return await self._page(operation, ask)
        if operation.name == "list_conf":
            return await self._conf(operation, ask)
        if operation.name in ("list_spool", "show_spool_record"):
            return await self._any(operation, ask)
        if operation.takes is None:
            return await self._list(operation, ask)
        if not self._crew.serving:
            raise Problem(409, "the node is starting or stopping")
        if operation.name == "reload":
            return await self._reload()
        async with self._telling:
            return await self._tell(operation, ask)

    async def snapshot(self) -> dict[str, Any]:
        """The workers' snapshots as one."""
        answers = await Question("GET", f"{PREFIX}/events?snapshots=1").all(self._crew)
        told = [_event(answer.body) for answer in answers if answer.done]
        snapshot: dict[str, Any] = {
            "now_ns": max((one["now_ns"] for one in told), default=monotonic_ns()),
            "truncated": any(one["truncated"] for one in told),
            "head_bounds_ms": HEAD_BOUNDS_MS,
        }
        for name in SHOWN:
            snapshot[name] = self._joined(name, told)
        return snapshot

    def close(self) -> None:
        """Nobody is told anything any more."""
        for task in self._repeating:
            task.cancel()

    # Reading.

    async def _list(self, operation: Operation, ask: Ask) -> Body:
        answers = await _question(operation, ask).all(self._crew)
        name = operation.name.removeprefix("list_")
        return {name: self._joined(name, _documents(answers))}

    def _joined(self, name: str, documents: Iterable[Body]) -> list[Body]:
        items: list[Body] = [item for document in documents for item in document[name]]
        crew = self._crew
        if name == "nodes":
            # A worker that was started anew has not seen the reloads; refused ones none has.
            own = {
                "reloads": crew.reloads,
                "reload_failures": crew.reload_failures,
                "reload_success": crew.reload_success,
                "generation": crew.reloads + 1,
            }
            items = [{**item, **own} for item in items]
        elif name == "recent":
            items += [{"node": crew.conf.node.name, **told} for told in crew.recent]
            items.sort(key=lambda item: int(item["wall_ms"]))
        return items

    async def _any(self, operation: Operation, ask: Ask) -> Body:
        """Whichever answers first: the workers share what is asked for."""
        refusal = Problem(503, "no worker answers")
        for member in self._crew.members:
            answer = await _question(operation, ask).one(self._crew, member)
            if answer is not None and answer.done:
                return answer.document()
            if answer is not None:
                refusal = answer.problem()
        raise refusal

    async def _conf(self, operation: Operation, ask: Ask) -> Body:
        """Once: all workers have the same."""
        for member in self._crew.members:
            answer = await _question(operation, ask).one(self._crew, member)
            if answer is not None and answer.done:
                (item,) = answer.document()["conf"]
                return {"conf": [{**item, "node": self._crew.conf.node.name}]}
        raise Problem(503, "no worker answers")

    async def _page(self, operation: Operation, ask: Ask) -> Body:
        members = self._crew.members
        cursor = bytes.fromhex(ask.query.get("after", ""))
        number, after = (cursor[0], cursor[1:]) if cursor else (0, b"")
        if number >= len(members):
            raise Problem(400, "after is no `next` of a page")
        counted = {key: value for key, value in ask.query.items() if key != "after"}
        look = _question(operation, ask._replace(query={**counted, "count": 1}))
        total = sum(document["total"] for document in _documents(await look.all(self._crew)))
        while number < len(members):
            place = {"after": after.hex()} if after else {}
            question = _question(operation, ask._replace(query={**counted, **place}))
            answer = await question.one(self._crew, members[number])
            found = answer.document() if answer is not None and answer.done else None
            if found is not None and found["next"] is not None:
                return {**found, "total": total, "next": f"{number:02x}{found['next']}"}
            number, after = number + 1, b""
            if found is not None and found["rows"]:
                following = f"{number:02x}" if number < len(members) else None
                return {**found, "total": total, "next": following}
        return {"rows": [], "total": total, "next": None}

    # Telling.

    async def _reload(self) -> Body:
        crew = self._crew
        if not await crew.reload():
            faults = crew.reload_faults
            raise Problem(422, f"nothing was changed: {faults[0]}", faults)
        return {
            "node": crew.conf.node.name,
            "done": f"reloaded: generation {crew.reloads + 1}",
            "reach": "node",
        }

    async def _tell(self, operation: Operation, ask: Ask) -> Body:
        crew = self._crew
        question = _question(operation, ask)
        done: list[Body] = []
        wrong: list[Problem] = []
        said = []
        for member in crew.members:
            if not member.ready:
                said.append({"node": member.name, "said": "not running"})
                continue
            answer = await question.one(crew, member)
            if answer is not None and answer.done:
                done.append(answer.document())
                said.append({"node": member.name, "said": done[-1]["done"]})
            else:
                wrong.append(
                    answer.problem() if answer is not None else Problem(503, "does not answer")
                )
                said.append({"node": member.name, "said": wrong[-1].detail})
        if not done and not wrong:
            raise Problem(503, "no worker is running")
        if wrong and not (done and _one_suffices(operation, ask)):
            if not done and len({problem.detail for problem in wrong}) == 1:
                raise wrong[0]
            faults = [f"{one['node']}: {one['said']}" for one in said]
            raise Problem(409, "not every worker did it", ["not every worker did it", *faults])
        self._note(operation, ask, question)
        told: Body = {
            "node": crew.conf.node.name,
            "done": done[0]["done"],
            "reach": "mesh" if any(one["reach"] == "mesh" for one in done) else "node",
            "workers": said,
        }
        if "count" in done[0]:
            count = told["count"] = sum(one["count"] for one in done)
            told["done"] = cleared(ask.path["upstream"], ask.path["limit"], count)
        return told

    def _note(self, operation: Operation, ask: Ask, question: Question) -> None:
        """For workers that start anew."""
        if operation.name not in ("set_rate", "set_breaker", "drain"):
            return
        if operation.name == "drain":
            self._crew.drained = ask.body["draining"]
        whose = _whose(operation, ask)
        if _lapsed(operation, ask):
            self._orders.pop(whose, None)
        else:
            until = self._crew.reloads if operation.name == "set_rate" else None
            self._orders[whose] = _Order(question, until)

    def _restarted(self, member: CrewMember) -> None:
        task = asyncio.ensure_future(self._repeat(member))
        self._repeating.add(task)
        task.add_done_callback(self._repeating.discard)

    async def _repeat(self, member: CrewMember) -> None:
        async with self._telling:
            for whose, order in list(self._orders.items()):
                if order.reloads not in (None, self._crew.reloads):
                    del self._orders[whose]
                    continue
                answer = await order.question.one(self._crew, member)
                if answer is None or not answer.done:
                    self._crew.log.error(
                        "worker was not told", worker=member.number, order="/".join(whose)
                    )


def _question(operation: Operation, ask: Ask) -> Question:
    path = PREFIX + operation.path.format(
        **{name: quote(value, safe="") for name, value in ask.path.items()}
    )
    if ask.query:
        path += "?" + urlencode(ask.query)
    return Question(operation.method, path, ask.body if operation.takes is not None else None)


def _documents(answers: list[Answer]) -> list[Body]:
    """What the workers show that show it. Raises the Problem that they have where none does."""
    found = [answer.document() for answer in answers if answer.done]
    if not found:
        raise answers[0].problem() if answers else Problem(503, "no worker answers")
    return found


def _event(body: bytes) -> dict[str, Any]:
    """The snapshot in a stream of one event."""
    (data,) = [line for line in body.splitlines() if line.startswith(b"data: ")]
    snapshot: dict[str, Any] = json.loads(data.removeprefix(b"data: "))
    return snapshot
