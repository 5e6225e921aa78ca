"""Fly's regions, and how a request for a region is resolved."""

from local.fly.go_json import JsonObject

REGIONS = {
    "ams": ("Amsterdam, Netherlands", 52.374, 4.8897),
    "fra": ("Frankfurt, Germany", 50.1167, 8.6833),
    "iad": ("Ashburn, Virginia (US)", 39.0224, -77.459),
    "lhr": ("London, United Kingdom", 51.5164, -0.1968),
    "ord": ("Chicago, Illinois (US)", 41.8915, -87.6264),
    "sin": ("Singapore, Singapore", 1.3, 103.8),
    "sjc": ("San Jose, California (US)", 37.3516, -121.8967),
    "syd": ("Sydney, Australia", -33.8666, 151.1942),
}
"""Some of Fly's regions. A request may name any other region, and gets it."""

ALIASES = frozenset({"", "any", "us", "eu", "apac", "sa", "na"})
"""Names that stand for several regions; they resolve to the emulator's own."""


def place(wanted: str, own: str) -> str:
    """Resolve a request, which may be a comma list: its first region, or `own` for an alias."""
    first = wanted.split(",")[0].strip()
    return own if first in ALIASES else first


def row(code: str) -> JsonObject:
    """Render a region for the list of regions."""
    name, latitude, longitude = REGIONS[code]
    return {
        "code": code,
        "name": name,
        "latitude": latitude,
        "longitude": longitude,
        "gateway_available": True,
        "requires_paid_plan": False,
    }
