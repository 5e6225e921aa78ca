"""Authentication: the forms of the Authorization header that Fly accepts."""

import hmac

from local.fly.errors import unauthenticated

_SCHEMES = ("bearer", "flyv1")


def authenticate(header: str, wanted: str) -> str:
    """Return the caller's token, or raise a 401. An empty `wanted` accepts any token.

    `Bearer x`, `FlyV1 x`, `Bearer FlyV1 x` and comma-separated macaroons are all in use (Fly docs:
    tokens; fly-go).
    """
    words = header.split()
    schemes = 0
    while schemes < len(words) and words[schemes].lower() in _SCHEMES:
        schemes += 1
    given = "".join(words[schemes:])
    tokens = [token for token in given.split(",") if token]
    if not schemes or not tokens:
        raise unauthenticated()
    if wanted and not any(hmac.compare_digest(t.encode(), wanted.encode()) for t in tokens):
        raise unauthenticated()
    return given
