"""One document of several workers': counts add up, states are the gravest."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from gateway.admin.merge import merged_document
from gateway.admin.views import node_document

MakeServed = Callable[..., Any]


def documents(make_served: MakeServed) -> list[dict[str, Any]]:
    one = node_document(make_served())
    return [one, copy.deepcopy(one)]


def test_one_worker_is_itself(make_served: MakeServed) -> None:
    one, _ = documents(make_served)
    assert merged_document([one]) == one


def test_counts_add_up_and_views_do_not(make_served: MakeServed) -> None:
    one, two = documents(make_served)
    for document, count, level in ((one, 3, 2.5), (two, 4, 1.5)):
        api = document["upstreams"]["api"]
        api["requests"] = count
        api["limits"][0].update(level=level, admitted_own=count, admitted_mesh=count + 10)
        api["limits"][1].update(rate_in_force=count)
    merged = merged_document([one, two])
    api = merged["upstreams"]["api"]
    assert api["requests"] == 7
    assert api["responses"].keys() == one["upstreams"]["api"]["responses"].keys()
    first = api["limits"][0]
    assert (first["level"], first["admitted_own"], first["admitted_mesh"]) == (2.5, 7, 14)
    assert (first["rate"], first["burst"]) == ("45/s", 5)
    assert api["limits"][1]["rate_in_force"] == 3
    assert merged["node"]["connections"] == 18
    assert merged["counts"]["bad_requests_bad_request"] == 4
    assert merged.keys() == one.keys()


def test_flags_and_breakers_are_the_gravest(make_served: MakeServed) -> None:
    one, two = documents(make_served)
    two["node"].update(ready=False, draining=True)
    two["upstreams"]["api"]["breaker"].update(state="open", epoch=0, remaining_ms=900)
    two["upstreams"]["api"]["credential_breakers"] = [
        {"credential": "aa", "state": "open", "epoch": 2, "remaining_ms": 5}
    ]
    one["upstreams"]["api"]["credential_breakers"] = [
        {"credential": "aa", "state": "closed", "epoch": 3, "remaining_ms": 0}
    ]
    merged = merged_document([one, two])
    assert (merged["node"]["ready"], merged["node"]["draining"]) == (False, True)
    assert merged["upstreams"]["api"]["breaker"]["state"] == "open"
    # The later epoch is what came after.
    assert [b["state"] for b in merged["upstreams"]["api"]["credential_breakers"]] == ["closed"]


def test_members_are_seen_by_whoever_knows_them_best(make_served: MakeServed) -> None:
    def member(name: str, state: str, *, own: bool = False) -> dict[str, Any]:
        return {"name": name, "self": own, "state": state, "rtt_ms": None, "heard_ms": None}

    one, two = documents(make_served)
    one["members"] = [member("gw/0", "alive", own=True), member("gw/1", "suspect")]
    two["members"] = [member("gw/1", "alive", own=True), member("other", "suspect")]
    one["members"].append(member("other", "alive"))
    found = merged_document([one, two])["members"]
    assert [(m["name"], m["state"], m["self"]) for m in found] == [
        ("gw/0", "alive", True),
        ("gw/1", "alive", True),
        ("other", "alive", False),
    ]


def test_what_only_one_worker_has_is_kept(make_served: MakeServed) -> None:
    one, two = documents(make_served)
    two["upstreams"]["new"] = two["upstreams"]["api"]
    two["counts"]["rare"] = 1
    merged = merged_document([one, two])
    assert set(merged["upstreams"]) == {"api", "new"}
    assert merged["counts"]["rare"] == 1


def test_what_the_api_said_last_stands(make_served: MakeServed) -> None:
    one, two = documents(make_served)
    for document, remaining, age_s in ((one, 40, 2.0), (two, 30, 0.5)):
        told = {"limit": 100, "remaining": remaining, "age_s": age_s, "told": 3, "adopted": 1}
        document["upstreams"]["api"]["limits"][0]["advertised"] = told
    found = merged_document([one, two])["upstreams"]["api"]["limits"][0]["advertised"]
    assert found == {"limit": 100, "remaining": 30, "age_s": 0.5, "told": 6, "adopted": 2}
