"""What is read of a response to judge it: its fields by name, and the beginning of its body.

A body is looked at with patterns and not parsed: it may be cut off anywhere (a number counts only
with what follows it), it may be JSON, XML or a page, and no pattern can recurse or raise.
"""

from __future__ import annotations

import re
import zlib

from gateway.breaker.providers import Profile
from gateway.breaker.times import epoch_or_delta_ns, http_date_ns, whole

__all__ = ["BODY_BYTES_MAX", "Reply"]

# All the words looked for stand near the beginning; the largest error bodies of the providers in
# the table are a few KiB, and this much is in memory anyway while a body is passed on.
BODY_BYTES_MAX = 16 * 1024
_PLAIN_BYTES_MAX = 64 * 1024

_JSON_NUMBER = rb'"%s"\s{0,8}:\s{0,8}([0-9.]{1,40})(?=[,}\]\s])'
_JSON_STRING = rb'"%s"\s{0,8}:\s{0,8}"([^"\\]{1,256})"'

# Many APIs tell their limits in every response, so what is done for each of a response's other
# fields counts: only names with one of these parts are kept, and these few.
_NAMES = frozenset(
    (
        b"age",
        b"content-encoding",
        b"content-type",
        b"date",
        b"twilio-concurrent-requests",
        b"x-amzn-errortype",
    )
)

_SCOPE = re.compile(rb"[!-~]{1,64}")


class Reply:
    """A response head, and of the body what came with it. Names are lower-case, values trimmed.

    Fields of a stored response (Age above 0) describe another moment: those about rates are left
    out.
    """

    __slots__ = ("_body", "_date_ns", "now_wall_ns", "profile", "status", "values")

    def __init__(
        self,
        status: int,
        fields: list[tuple[bytes, bytes]],
        profile: Profile,
        now_wall_ns: int,
        body: bytes | None,
    ) -> None:
        self.status = status
        self.profile = profile
        self.now_wall_ns = now_wall_ns
        values: dict[bytes, list[bytes]] = {}
        for name, value in fields:
            lower = name.lower()
            if b"rate" in lower or b"retry" in lower or b"-limit" in lower or lower in _NAMES:
                values.setdefault(lower, []).append(value.strip(b" \t"))
        if b"age" in values and any(whole(age) for age in values[b"age"]):
            values = {name: told for name, told in values.items() if b"rate" not in name}
        self.values = values
        self._date_ns: int | None = None
        self._body = b"" if body is None else self._plain(body[:BODY_BYTES_MAX])

    @property
    def date_ns(self) -> int:
        """The response's own Date, or the local wall time where it has none."""
        known = self._date_ns
        if known is None:
            dates = [http_date_ns(date, self.now_wall_ns) for date in self.values.get(b"date", ())]
            known = next((date for date in dates if date is not None), self.now_wall_ns)
            self._date_ns = known
        return known

    def first(self, name: bytes) -> bytes | None:
        """The first value of a field."""
        values = self.values.get(name)
        return None if values is None else values[0]

    def numbers(self, name: bytes) -> list[bytes]:
        """A field's values, and where numbers were joined by commas (RFC 9110 5.3) each of them."""
        found: list[bytes] = []
        for value in self.values.get(name, ()):
            if b"," in value and not value.strip(b"0123456789., \t"):
                found.extend(part.strip(b" \t") for part in value.split(b",")[:32])
            else:
                found.append(value)
        return found

    def count(self, name: bytes) -> int | None:
        """The least whole number that a count field says; parameters behind it are left out.

        "100", "32.0" (Reddit), "10, 10;w=1, 50;w=60" (drafts -00 to -05: the first is meant).
        """
        values = self.values.get(name)
        if values is None:
            return None
        counts = []
        for value in values:
            found = whole(value.partition(b",")[0].partition(b";")[0].strip(b" \t"))
            if found is not None:
                counts.append(found)
        return min(counts, default=None)

    def wait_ns(self, value: bytes, unit_ns: int) -> int | None:
        """How long to wait for the moment that a value names (see `epoch_or_delta_ns`)."""
        if len(value) <= 9 and value.isdigit():
            return int(value) * unit_ns  # the common case needs no date
        return epoch_or_delta_ns(value, unit_ns, self.now_wall_ns, self.date_ns)

    def may_be_spent(self) -> bool:
        """Whether any figure could be a 0: without one no budget can be empty."""
        for values in self.values.values():
            for value in values:
                if value[:1] == b"0" or b"=0" in value:
                    return True
        return False

    def scope_of(self, name: bytes) -> str | None:
        """A field's value as a scope's name: printable and short, or None."""
        value = self.first(name)
        if value is None or _SCOPE.fullmatch(value) is None:
            return None
        return value.decode("ascii")

    @property
    def has_body(self) -> bool:
        return bool(self._body)

    def says(self, text: bytes) -> bool:
        """Whether the body has this text, in whatever case; `text` is lower-case."""
        return text in self._body.lower()

    def strings(self, *names: bytes) -> list[bytes]:
        """The values of JSON members of these names, at any depth."""
        pattern = _JSON_STRING % b"(?:%s)" % b"|".join(names)
        return re.findall(pattern, self._body)

    def number(self, name: bytes) -> bytes | None:
        """The first numeric value of a JSON member of this name, at any depth."""
        found = re.search(_JSON_NUMBER % name, self._body)
        return None if found is None else found[1]

    def search(self, pattern: re.Pattern[bytes]) -> re.Match[bytes] | None:
        """The first match in the body."""
        return pattern.search(self._body)

    @property
    def is_page(self) -> bool:
        """Whether a person was to read it: the answer of something in front of the API."""
        kind = self.first(b"content-type") or b""
        return kind.lower().startswith(b"text/html") or self._body.lstrip()[:1] == b"<"

    def _plain(self, body: bytes) -> bytes:
        """The body without gzip or deflate, as far as it goes; other codings say nothing."""
        coding = (self.first(b"content-encoding") or b"identity").lower()
        if coding == b"identity":
            return body
        if coding not in (b"gzip", b"x-gzip", b"deflate"):
            return b""
        try:
            # 32 + 15: a gzip or a zlib header, whichever is there.
            return zlib.decompressobj(32 + 15).decompress(body, _PLAIN_BYTES_MAX)
        except zlib.error:
            return b""
