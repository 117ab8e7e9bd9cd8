"""Which ends are failures."""

from __future__ import annotations

import pytest

from gateway.breaker.outcome import FailureRule, Outcome
from gateway.errors import ErrorKind

DEFAULT = FailureRule([500, 502, 503, 504, "connect", "timeout", "reset"])


@pytest.mark.parametrize(
    ("status", "outcome"),
    [(200, Outcome.SUCCESS), (404, Outcome.SUCCESS), (501, Outcome.SUCCESS)]
    + [(status, Outcome.FAILURE) for status in (500, 502, 503, 504)],
)
def test_statuses(status: int, outcome: Outcome) -> None:
    assert DEFAULT.of_status(status) is outcome


@pytest.mark.parametrize(
    ("words", "kinds"),
    [
        (
            ["connect"],
            {ErrorKind.CONNECTION_REFUSED, ErrorKind.CONNECT_TIMEOUT, ErrorKind.DNS_ERROR},
        ),
        (
            ["timeout"],
            {ErrorKind.RESPONSE_TIMEOUT, ErrorKind.CONNECT_TIMEOUT, ErrorKind.TLS_TIMEOUT},
        ),
        (["reset"], {ErrorKind.UPSTREAM_CLOSED, ErrorKind.BAD_RESPONSE}),
        ([], set()),
    ],
)
def test_words(words: list[str], kinds: set[ErrorKind]) -> None:
    rule = FailureRule(words)
    for kind in kinds:
        assert rule.of_error(kind) is Outcome.FAILURE
    assert rule.of_error(ErrorKind.LIMITED) is None
    if "connect" not in words:
        assert rule.of_error(ErrorKind.CONNECTION_REFUSED) is None


def test_every_upstream_error_of_the_gateway_has_a_word() -> None:
    theirs = {kind for kind in ErrorKind if kind.source.value in "Ss"}
    assert theirs == DEFAULT.kinds


def test_what_the_gateway_or_the_client_did_is_nobodys_failure() -> None:
    for kind in set(ErrorKind) - DEFAULT.kinds:
        assert DEFAULT.of_error(kind) is None


def test_unknown_words_are_refused() -> None:
    with pytest.raises(ValueError, match="slow"):
        FailureRule([500, "slow"])
