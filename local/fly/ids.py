"""Random identifiers in Fly's formats."""

import random
import secrets
import time
import uuid

_CROCKFORD = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_WORD = "0123456789abcdefghijklmnopqrstuvwxyz"
_ADJECTIVES = ("aged", "bold", "calm", "damp", "dark", "fragrant", "green", "late", "quiet", "wild")
_NOUNS = ("bird", "brook", "cloud", "dew", "field", "fog", "leaf", "night", "thunder", "wave")

# Names need not be secret. Their own generator keeps them independent of a test's random seed.
_names = random.Random(secrets.randbits(64))


def machine_id() -> str:
    """14 lower-case hex digits."""
    return secrets.token_hex(7)


def machine_name() -> str:
    """Adjective, noun and four digits: `aged-thunder-7371`."""
    digits = _names.randrange(1000, 10000)
    return f"{_names.choice(_ADJECTIVES)}-{_names.choice(_NOUNS)}-{digits}"


def volume_id() -> str:
    """`vol_` and 16 letters and digits."""
    return f"vol_{_word(16)}"


def snapshot_id() -> str:
    """`vs_` and 20 letters and digits."""
    return f"vs_{_word(20)}"


def zone() -> str:
    """A host's zone: four hex digits, a new one each time, as if each volume had its own host."""
    return secrets.token_hex(2)


def nonce() -> str:
    """A lease nonce: 12 hex digits."""
    return secrets.token_hex(6)


def private_ip() -> str:
    """An address in the format of Fly's private network; nothing listens on it."""
    groups = ":".join(f"{secrets.randbelow(65536):x}" for _ in range(5))
    return f"fdaa:0:{groups}:2"


def owner(token: str) -> str:
    """The name of a lease's owner: a hash of the token, equal for equal tokens."""
    return f"{uuid.uuid5(uuid.NAMESPACE_OID, token)}@tokens.fly.io"


def _word(length: int) -> str:
    return "".join(secrets.choice(_WORD) for _ in range(length))


class Ulids:
    """A source of ULIDs that sort in order of creation, also within a millisecond."""

    def __init__(self) -> None:
        self._last = 0

    def next(self) -> str:
        """A ULID greater than all earlier ones of this source."""
        fresh = (time.time_ns() // 1_000_000) << 80 | secrets.randbits(80)
        self._last = max(fresh, self._last + 1)
        return "".join(_CROCKFORD[(self._last >> shift) & 31] for shift in range(125, -1, -5))


_ulids = Ulids()


def ulid() -> str:
    """A ULID of the process's own source."""
    return _ulids.next()


def request_id(region: str) -> str:
    """A `fly-request-id`: ULID and edge region."""
    return f"{ulid()}-{region}"
