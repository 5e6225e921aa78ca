"""Histograms of durations that can be added, with percentiles within 1 % of the exact ones.

The buckets are those of DDSketch (Masson, Rim and Lee, "DDSketch: a fast and fully-mergeable
quantile sketch with relative-error guarantees", VLDB 2019): bucket i has the durations from
GROWTH^(i - 1) to GROWTH^i microseconds, so that its middle is off by at most 1 % for all of them.
PostgreSQL sorts the durations into buckets (`storage.session.stats_sql`).
"""

from __future__ import annotations

import math
import struct
from bisect import bisect_left
from dataclasses import dataclass
from datetime import timedelta
from itertools import accumulate

#: The ratio between the bounds of a bucket. The relative error is (GROWTH - 1) / (GROWTH + 1).
GROWTH = 1.02
#: The bits of one bucket's count, and its hexadecimal digits. A count must stay below 2^32.
BITS = 32
DIGITS = BITS // 4


@dataclass(frozen=True, slots=True)
class Histogram:
    """The counts of all buckets, packed into one number: bucket i has the BITS bits that begin at
    bit BITS * i.

    One addition of two such numbers adds all buckets, a hundred times as fast as a loop over them.
    """

    counts: int = 0

    @classmethod
    def of(cls, lowest: int, digits: str) -> Histogram:
        """Read the counts in hexadecimal, DIGITS digits each, the highest bucket first. `lowest` is
        the number of the last bucket.
        """
        return cls(int(digits, 16) << BITS * lowest)

    def __add__(self, other: Histogram) -> Histogram:
        return Histogram(self.counts + other.counts)

    def percentiles(self, *parts: float) -> list[timedelta]:
        """The percentile of each part (0.5: the median), within 1 %. Empty if all counts are 0."""
        size = (self.counts.bit_length() + BITS - 1) // BITS
        counts = struct.unpack(f"<{size}I", self.counts.to_bytes(size * (BITS // 8), "little"))
        below = list(accumulate(counts))
        if not below:
            return []
        return [_middle(bisect_left(below, rank(below[-1], part))) for part in parts]


def rank(total: int, part: float) -> int:
    """The place of a percentile among `total` sorted values, from 1 on, as `percentile_disc` of
    PostgreSQL counts.
    """
    return max(1, math.ceil(part * total))


def _middle(bucket: int) -> timedelta:
    """The duration that is closest, relatively, to both ends of the bucket."""
    return timedelta(microseconds=2 * GROWTH**bucket / (GROWTH + 1))
