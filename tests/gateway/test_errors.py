"""Every kind of error has an answer: a status, and one of RFC 9209's error types."""

from __future__ import annotations

from http import HTTPStatus

import pytest

from gateway.errors import ErrorKind, GatewayError, Phase, Retry, Source, Termination

# RFC 9209 section 2.3: all that are registered.
ERROR_TYPES = frozenset(
    (
        "dns_timeout",
        "dns_error",
        "destination_not_found",
        "destination_unavailable",
        "destination_ip_prohibited",
        "destination_ip_unroutable",
        "connection_refused",
        "connection_terminated",
        "connection_timeout",
        "connection_read_timeout",
        "connection_write_timeout",
        "connection_limit_reached",
        "tls_protocol_error",
        "tls_certificate_error",
        "tls_alert_received",
        "http_request_error",
        "http_request_denied",
        "http_response_incomplete",
        "http_response_header_section_size",
        "http_response_header_size",
        "http_response_body_size",
        "http_response_trailer_section_size",
        "http_response_trailer_size",
        "http_response_transfer_coding",
        "http_response_content_coding",
        "http_response_timeout",
        "http_upgrade_failed",
        "http_protocol_error",
        "proxy_internal_response",
        "proxy_internal_error",
        "proxy_configuration_error",
        "proxy_loop_detected",
    )
)


def test_the_list_is_whole() -> None:
    assert len(ERROR_TYPES) == 32


@pytest.mark.parametrize("kind", ErrorKind, ids=lambda kind: kind.name)
def test_a_kind_has_an_answer(kind: ErrorKind) -> None:
    assert kind.status in {status.value for status in HTTPStatus}
    assert 400 <= kind.status < 600
    assert kind.proxy_error in ERROR_TYPES
    assert kind.title
    assert kind.source is not Source.NONE
    assert isinstance(kind.retry, Retry)


@pytest.mark.parametrize("kind", ErrorKind, ids=lambda kind: kind.name)
def test_blame_and_status_fit_together(kind: ErrorKind) -> None:
    """A fault of the client's is a 4xx, 501 or 505; one of the upstream's a 502 or a 504."""
    if kind.source in (Source.CLIENT, Source.CLIENT_TIMEOUT):
        assert kind.status < 500 or kind.status in (501, 505)
    elif kind.source is Source.SERVER:
        assert kind.status == 502
    elif kind.source is Source.SERVER_TIMEOUT:
        assert kind.status == 504
    if kind.status in (429, 503):
        assert kind.retry in (Retry.LATER, Retry.SAFE) or kind is ErrorKind.COST_OVER_BURST


def test_kinds_are_all_different() -> None:
    """An enum makes members with equal values one; a log must tell each apart."""
    assert len(ErrorKind.__members__) == len(list(ErrorKind))


def test_letters_are_one_and_tell_all_apart() -> None:
    for letters in (Source, Phase):
        values = [letter.value for letter in letters]
        assert all(len(value) == 1 for value in values)
        assert len(set(values)) == len(values)


def test_a_termination_is_two_letters() -> None:
    assert str(Termination(Source.NONE, Phase.NONE)) == "--"
    assert str(Termination(Source.SERVER_TIMEOUT, Phase.HEAD)) == "sH"
    error = GatewayError(ErrorKind.LIMITED, phase=Phase.QUEUE, limit="l", retry_after_ns=5)
    assert str(error.termination) == "PQ"


def test_an_error_says_its_title_or_its_detail() -> None:
    assert str(GatewayError(ErrorKind.NO_ROUTE)) == ErrorKind.NO_ROUTE.title
    assert str(GatewayError(ErrorKind.NO_ROUTE, "nothing at /x")) == "nothing at /x"
