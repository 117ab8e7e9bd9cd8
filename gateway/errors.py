"""What can go wrong, whose fault it is, when it happened, and whether to try again.

An error is a point in kind x source x phase x retry. `ErrorKind` fixes the first two and the answer
that a client gets (status, RFC 9209 section 2.3 error type); the place that raises it adds the phase
and the detail. `Termination` is HAProxy's pair of letters for the access log (configuration manual
8.5): who ended the exchange, and in which phase.
"""

from __future__ import annotations

import enum
from typing import Final, NamedTuple

__all__ = ["NORMAL_END", "ErrorKind", "GatewayError", "Phase", "Source", "Termination"]


class Source(enum.Enum):
    """Whose fault an error is; the value is HAProxy's first termination letter."""

    CLIENT = "C"
    CLIENT_TIMEOUT = "c"
    SERVER = "S"
    SERVER_TIMEOUT = "s"
    POLICY = "P"
    RESOURCE = "R"
    INTERNAL = "I"
    NONE = "-"


class Phase(enum.Enum):
    """How far the exchange had come; the value is HAProxy's second termination letter."""

    REQUEST = "R"
    QUEUE = "Q"
    CONNECT = "C"
    HEAD = "H"
    DATA = "D"
    LAST = "L"
    NONE = "-"


class Retry(enum.Enum):
    """Whether sending the same request again can help, and when it is safe."""

    NEVER = "never"  # the request itself is at fault
    LATER = "later"  # the answer says when
    SAFE = "safe"  # not a byte of it was acted upon
    UNSURE = "unsure"  # the upstream may have acted on it


class _Facts(NamedTuple):
    status: int
    proxy_error: str
    source: Source
    retry: Retry
    title: str


class ErrorKind(enum.Enum):
    """Every reason for which the gateway itself answers, with the answer."""

    # fmt: off
    BAD_REQUEST = _Facts(400, "http_request_error", Source.CLIENT, Retry.NEVER, "Malformed request")
    HEAD_TIMEOUT = _Facts(408, "http_request_error", Source.CLIENT_TIMEOUT, Retry.LATER, "Request head not received in time")
    BODY_TIMEOUT = _Facts(408, "http_request_error", Source.CLIENT_TIMEOUT, Retry.LATER, "Request body not received in time")
    BODY_TOO_LARGE = _Facts(413, "http_request_error", Source.CLIENT, Retry.NEVER, "Request body too large")
    TARGET_TOO_LONG = _Facts(414, "http_request_error", Source.CLIENT, Retry.NEVER, "Request target too long")
    EXPECTATION_FAILED = _Facts(417, "http_request_error", Source.CLIENT, Retry.NEVER, "Expectation cannot be met")
    HEAD_TOO_LARGE = _Facts(431, "http_request_error", Source.CLIENT, Retry.NEVER, "Request head too large")
    METHOD_NOT_ALLOWED = _Facts(405, "http_request_error", Source.CLIENT, Retry.NEVER, "Method not allowed")
    NOT_IMPLEMENTED = _Facts(501, "http_request_error", Source.CLIENT, Retry.NEVER, "Not implemented")
    VERSION_NOT_SUPPORTED = _Facts(505, "http_request_error", Source.CLIENT, Retry.NEVER, "HTTP version not supported")
    NO_ROUTE = _Facts(404, "destination_not_found", Source.POLICY, Retry.NEVER, "No route for this request")
    TARGET_DENIED = _Facts(403, "http_request_denied", Source.POLICY, Retry.NEVER, "Target not allowed")
    ADDRESS_DENIED = _Facts(403, "destination_ip_prohibited", Source.POLICY, Retry.NEVER, "Target address not allowed")
    CLIENT_DENIED = _Facts(403, "http_request_denied", Source.POLICY, Retry.NEVER, "Client not allowed")
    CLIENT_UNKNOWN = _Facts(407, "http_request_denied", Source.POLICY, Retry.NEVER, "Client not known")
    LIMITED = _Facts(429, "http_request_denied", Source.POLICY, Retry.LATER, "Rate limit reached")
    PAUSED = _Facts(429, "http_request_denied", Source.POLICY, Retry.LATER, "Upstream paused by its own throttle")
    QUEUE_FULL = _Facts(429, "http_request_denied", Source.POLICY, Retry.LATER, "Too many requests waiting")
    COST_OVER_BURST = _Facts(429, "http_request_denied", Source.POLICY, Retry.NEVER, "Request costs more than the limit can ever give")
    BREAKER_OPEN = _Facts(503, "destination_unavailable", Source.POLICY, Retry.LATER, "Upstream's circuit breaker is open")
    CONNECTIONS_USED_UP = _Facts(503, "connection_limit_reached", Source.RESOURCE, Retry.SAFE, "All connections to the upstream are in use")
    UPSTREAM_GONE = _Facts(503, "destination_not_found", Source.POLICY, Retry.SAFE, "Upstream removed by a reload")
    DRAINING = _Facts(503, "proxy_internal_response", Source.INTERNAL, Retry.SAFE, "Gateway is shutting down")
    DNS_ERROR = _Facts(502, "dns_error", Source.SERVER, Retry.SAFE, "Upstream's name does not resolve")
    DNS_TIMEOUT = _Facts(504, "dns_timeout", Source.SERVER_TIMEOUT, Retry.SAFE, "Upstream's name did not resolve in time")
    CONNECTION_REFUSED = _Facts(502, "connection_refused", Source.SERVER, Retry.SAFE, "Upstream refused the connection")
    UNREACHABLE = _Facts(502, "destination_ip_unroutable", Source.SERVER, Retry.SAFE, "Upstream cannot be reached")
    CONNECT_TIMEOUT = _Facts(504, "connection_timeout", Source.SERVER_TIMEOUT, Retry.SAFE, "Upstream did not accept the connection in time")
    TLS_ERROR = _Facts(502, "tls_protocol_error", Source.SERVER, Retry.SAFE, "TLS handshake with the upstream failed")
    TLS_TIMEOUT = _Facts(504, "connection_timeout", Source.SERVER_TIMEOUT, Retry.SAFE, "Upstream did not finish the TLS handshake in time")
    TLS_CERTIFICATE = _Facts(502, "tls_certificate_error", Source.SERVER, Retry.SAFE, "Upstream's certificate is not valid")
    UPSTREAM_CLOSED = _Facts(502, "connection_terminated", Source.SERVER, Retry.UNSURE, "Upstream closed the connection before answering")
    RESPONSE_INCOMPLETE = _Facts(502, "http_response_incomplete", Source.SERVER, Retry.UNSURE, "Upstream's response was cut off")
    RESPONSE_TIMEOUT = _Facts(504, "http_response_timeout", Source.SERVER_TIMEOUT, Retry.UNSURE, "Upstream did not answer in time")
    BAD_RESPONSE = _Facts(502, "http_protocol_error", Source.SERVER, Retry.UNSURE, "Upstream's response is malformed")
    RESPONSE_HEAD_TOO_LARGE = _Facts(502, "http_response_header_section_size", Source.SERVER, Retry.UNSURE, "Upstream's response head is too large")
    KEY_REUSED = _Facts(422, "http_request_error", Source.CLIENT, Retry.NEVER, "Idempotency-Key was used for another request")
    SPOOL_FULL = _Facts(507, "proxy_internal_error", Source.RESOURCE, Retry.LATER, "No room to keep the request")
    SPOOL_FAILED = _Facts(503, "proxy_internal_error", Source.RESOURCE, Retry.LATER, "The request could not be kept")
    NOT_STORED = _Facts(404, "http_request_denied", Source.POLICY, Retry.NEVER, "No such stored request")
    LOOP = _Facts(508, "proxy_loop_detected", Source.POLICY, Retry.NEVER, "The request came through this gateway before")
    INTERNAL = _Facts(500, "proxy_internal_error", Source.INTERNAL, Retry.UNSURE, "Internal error")
    # fmt: on

    def __init__(
        self, status: int, proxy_error: str, source: Source, retry: Retry, title: str
    ) -> None:
        self.status = status
        self.proxy_error = proxy_error
        self.source = source
        self.retry = retry
        self.title = title


class Termination(NamedTuple):
    """Who ended an exchange and when, as HAProxy writes it: `--` is a normal end."""

    source: Source
    phase: Phase

    def __str__(self) -> str:
        return self.source.value + self.phase.value


NORMAL_END: Final = Termination(Source.NONE, Phase.NONE)


class GatewayError(Exception):
    """An exchange's failure, said by the gateway.

    `kind` decides the answer, `detail` is for a human, `phase` for the log; `retry_after_ns` is a
    duration, given where waiting helps; `limit` is the name of the rule that refused.
    """

    def __init__(
        self,
        kind: ErrorKind,
        detail: str = "",
        *,
        phase: Phase = Phase.REQUEST,
        retry_after_ns: int | None = None,
        limit: str = "",
    ) -> None:
        super().__init__(detail or kind.title)
        self.kind = kind
        self.detail = detail
        self.phase = phase
        self.retry_after_ns = retry_after_ns
        self.limit = limit

    @property
    def termination(self) -> Termination:
        return Termination(self.kind.source, self.phase)
