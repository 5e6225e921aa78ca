"""Every knob of the emulator, with unit, default and reason."""

import typing
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Literal


class SettingError(ValueError):
    """A setting that cannot be used; its text is one line fit for a terminal."""

    def __init__(self, name: str, problem: str) -> None:
        super().__init__(f"{name}: {problem}")
        self.name = name


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How one emulator behaves. Times are how long a transient state stays visible."""

    data: Path
    """Folder of everything that outlives the process; made when missing."""

    host: str = "127.0.0.1"
    """Address both ports listen on. Guests themselves always listen on loopback."""

    port: int = 4280
    """Port of the Machines API and of `/_emulator`; 0 takes a free one."""

    proxy_port: int = 4281
    """Port of the proxy that stands for fly-proxy; 0 takes a free one."""

    token: str = field(default="", repr=False)
    """The only token accepted; empty accepts any token but not its absence."""

    limits: bool = True
    """Fly's rate limits per action and identifier (1/s burst 3; get 5/s burst 10)."""

    region: str = "iad"
    """Region of machines that ask for none, for `any` or for an alias."""

    create_ms: int = 50
    """How long a new machine stays `created` while its image is prepared."""

    start_ms: int = 50
    """How long a cold boot stays `starting` before its process is made."""

    resume_ms: int = 20
    """How long a resume stays `starting` before its process goes on."""

    suspend_ms: int = 100
    """How long `suspending` lasts before the process is frozen."""

    replace_ms: int = 50
    """How long `replacing` lasts beside the end of the old process."""

    destroy_ms: int = 20
    """How long `destroying` lasts beside the end of the process."""

    still_active_ms: int = 0
    """After a stop: how long a start answers 412 `machine still active` (seen on Fly: 8 s)."""

    restart_delay_ms: int = 50
    """Pause before a machine that crashed is started again by its restart policy."""

    volume_fill_ms: int = 50
    """How long a restore or a fork lasts beside the copying itself."""

    volume_release_ms: int = 50
    """How long a volume stays claimed by a machine that is destroyed (seen on Fly: minutes)."""

    volume_before_name: bool = False
    """Whether a create looks at its volume before its name: which comes first is not documented."""

    volume_linger_ms: int = 0
    """How long a deleted volume stays in listings."""

    snapshot_ms: int = 50
    """How long a snapshot is `pending` and `running` beside the copying itself."""

    auto_backup_ms: int = 86_400_000
    """How far apart the automatic snapshots of a volume are; 0 is never."""

    zones: int = 0
    """How many hosts a region has for volumes, of which `require_unique_zone` puts those of one
    name on different ones; 0 is as many as are asked for."""

    extend_needs_restart: bool = False
    """Whether a machine must be restarted to see that its volume has grown."""

    lease_ttl_s: int = 60
    """Life of a lease asked for without a ttl; Fly does not document its default."""

    exec_timeout_s: int = 60
    """Longest an exec may take when it names no timeout."""

    exec_stdin: Literal["dropped", "delivered"] = "dropped"
    """Whether an exec's `stdin` reaches the command; users of Fly report that it does not."""

    stale_nonce: Literal["refuse", "accept"] = "refuse"
    """A mutation whose nonce belongs to no live lease. Fly's answer is not known: `refuse` is
    the fence Roost needs and answers 409, `accept` lets it pass when nobody holds a lease."""

    start_on_started: Literal["ok", "conflict"] = "ok"
    """Start of a started machine: 200 with `previous_state: started`, or 409. Unknown on Fly."""

    start_while_suspending: Literal["interrupt", "refuse"] = "interrupt"
    """Start of a suspending machine: go on running (200), or 412 `machine still active`."""

    wait_stopped_needs_version: bool = False
    """Refuse a wait for `stopped` that names no version, as Fly did until early 2026."""

    unknown_image: Literal["failed", "destroyed"] = "failed"
    """Where a machine ends whose image the emulator does not have."""

    autostart_default: bool = True
    """Whether the proxy starts a machine that says nothing about autostart or has no services."""

    autostop_ms: int = 0
    """How often the proxy looks for idle machines to stop; at Fly some minutes. 0 is never."""

    ready_ms: int = 10_000
    """How long the proxy waits for a started guest to accept a connection."""

    foreign_apps: str = ""
    """Comma-separated app names that belong to another organisation: get is 403, create 422."""

    scenario: str = ""
    """File of faults that are set from the start: a JSON list of what POST /_emulator/faults
    takes."""

    images: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Further images: repository name to the command that stands for it."""

    def __post_init__(self) -> None:
        for name in _NUMBERS:
            if getattr(self, name) < 0:
                raise SettingError(name, "must not be negative")
        for name in ("port", "proxy_port"):
            if getattr(self, name) > 65535:
                raise SettingError(name, "must be a port, 0 to 65535")
        if self.port and self.port == self.proxy_port:
            raise SettingError("proxy_port", "must differ from port")

    def at_fly_pace(self) -> "Settings":
        """The same with transitions about as slow as Fly's with a warm image cache."""
        return replace(
            self,
            create_ms=5_000,
            start_ms=2_000,
            resume_ms=300,
            suspend_ms=3_000,
            replace_ms=2_000,
            destroy_ms=1_000,
            still_active_ms=2_000,
            restart_delay_ms=1_000,
            volume_fill_ms=5_000,
            volume_release_ms=5_000,
            volume_linger_ms=2_000,
            snapshot_ms=5_000,
            autostop_ms=240_000,
        )

    def with_texts(self, texts: Mapping[str, str]) -> "Settings":
        """The same with fields read from text, as a command line gives them."""
        # Each value has the type of its field: `_parse` reads that type from the annotations.
        return replace(self, **{name: _parse(name, text) for name, text in texts.items()})  # type: ignore[arg-type]


_HINTS = typing.get_type_hints(Settings)
_NUMBERS = [f.name for f in fields(Settings) if _HINTS[f.name] is int]
_WORDS = {"true": True, "on": True, "1": True, "false": False, "off": False, "0": False}
TEXT_FIELDS = [f.name for f in fields(Settings) if f.name not in ("data", "images")]
"""The fields that `with_texts` reads."""


def _parse(name: str, text: str) -> str | int | bool:
    if name not in TEXT_FIELDS:
        raise SettingError(name, f"no such setting; there are {', '.join(TEXT_FIELDS)}")
    wanted = _HINTS[name]
    if wanted is int:
        return _parse_number(name, text)
    if wanted is bool:
        if text.lower() not in _WORDS:
            raise SettingError(name, f"must be true or false, not {text!r}")
        return _WORDS[text.lower()]
    choices = typing.get_args(wanted)
    if choices and text not in choices:
        raise SettingError(name, f"must be one of {', '.join(choices)}, not {text!r}")
    return text


def _parse_number(name: str, text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise SettingError(name, f"must be a whole number, not {text!r}") from None
