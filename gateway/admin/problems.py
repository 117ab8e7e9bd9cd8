"""What the API answers where it does not do what was asked: RFC 9457 problem details."""

from __future__ import annotations

import json
from http import HTTPStatus
from typing import Any

from starlette.responses import Response

from gateway.admin.shapes import Shape, integer, listed, record, text

__all__ = ["PROBLEM", "Problem", "problem_answer"]

PROBLEM: Shape = record(
    {
        "type": text("about:blank: the status says it all."),
        "title": text("The status in words."),
        "status": integer("The status."),
        "detail": text("What is wrong, and what is allowed."),
        "faults": listed(text(), "All of it, where there is more than one."),
    },
    optional=("faults",),
)


class Problem(Exception):
    """A request that is not obeyed; `detail` is a sentence for whoever asked."""

    def __init__(self, status: int, detail: str, faults: list[str] | None = None) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.faults = faults


def problem_answer(problem: Problem) -> Response:
    """The answer that tells it."""
    document: dict[str, Any] = {
        "type": "about:blank",
        "title": HTTPStatus(problem.status).phrase,
        "status": problem.status,
        "detail": problem.detail,
    }
    if problem.faults:
        document["faults"] = problem.faults
    headers = {"cache-control": "no-store"}
    if problem.status == HTTPStatus.UNAUTHORIZED:
        headers["www-authenticate"] = 'Bearer realm="egressd admin"'
    body = json.dumps(document, separators=(",", ":")).encode() + b"\n"
    return Response(body, problem.status, headers, media_type="application/problem+json")
