"""SQL expressions for repeatable chance: the same number and seed give the same value."""

from __future__ import annotations

#: The bits of a throw. With fewer, high ranks of a long list of words would never come.
_MASK = 2**30 - 1


def dice(number: str, salt: int) -> str:
    """A double in [0, 1) that depends on the SQL expression `number`, the salt and the seed, which
    is the bind `seed`.
    """
    hashed = f"hashint8extended(({number})::bigint, %(seed)s::bigint * 1000 + {salt})"
    return f"(({hashed} & {_MASK})::float8 / {_MASK + 1})"


def rank(most: int, number: str, salt: int) -> str:
    """A rank from 1 to `most` - 1 by Zipf's law: rank r comes about half as often as rank r / 2."""
    return f"floor(power({most}::float8, {dice(number, salt)}))::bigint"


def text(number: str, salt: int, *, words: int, vocabulary: int) -> str:
    """A text of so many words from a vocabulary by Zipf's law; the word of rank 1 is `w1`."""
    word = rank(vocabulary, f"({number}) * 64 + place", salt)
    return (
        f"(SELECT string_agg('w' || {word}, ' ' ORDER BY place)"
        f" FROM generate_series(1, {words}) AS place)"
    )
