"""The settings of the emulator, each with unit, default and reason."""

import typing
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Literal


class SettingError(ValueError):
    """A setting that cannot be used; the text is one line for a terminal."""

    def __init__(self, name: str, problem: str) -> None:
        super().__init__(f"{name}: {problem}")
        self.name = name


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The behaviour of one emulator. `*_ms` are durations of transient states, unless noted."""

    data: Path
    """Folder for all data that outlives the process; created when missing."""

    host: str = "127.0.0.1"
    """Address of both ports. Guests always listen on loopback."""

    port: int = 4280
    """Port of the Machines API and of `/_emulator`; 0 chooses a free one."""

    proxy_port: int = 4281
    """Port of the proxy that stands for fly-proxy; 0 chooses a free one."""

    token: str = field(default="", repr=False)
    """The only token that is accepted. Empty: any token, but not a missing one."""

    limits: bool = True
    """Fly's rate limits per action and identifier (1/s burst 3; get 5/s burst 10)."""

    region: str = "iad"
    """Region of machines that request none, `any` or an alias."""

    create_ms: int = 50
    """How long a new machine stays `created` while its image is prepared."""

    start_ms: int = 50
    """How long a cold boot stays `starting` before its process is started."""

    resume_ms: int = 20
    """How long a resume stays `starting` before its process continues."""

    suspend_ms: int = 100
    """How long `suspending` lasts before the process is stopped."""

    replace_ms: int = 50
    """How long `replacing` lasts, in addition to the end of the old process."""

    destroy_ms: int = 20
    """How long `destroying` lasts, in addition to the end of the process."""

    still_active_ms: int = 0
    """How long after a stop a start answers 412 `machine still active` (observed on Fly: 8 s)."""

    restart_delay_ms: int = 50
    """Pause before a machine that crashed is started again by its restart policy."""

    volume_fill_ms: int = 50
    """How long a restore or a fork lasts, in addition to the copying."""

    volume_release_ms: int = 50
    """How long a destroyed machine keeps its claim on a volume (observed on Fly: minutes)."""

    volume_before_name: bool = False
    """Whether a create checks its volume before its name. Fly does not document the order."""

    volume_linger_ms: int = 0
    """How long a deleted volume stays in listings."""

    snapshot_ms: int = 50
    """How long a snapshot is `pending` and `running`, in addition to the copying."""

    auto_backup_ms: int = 86_400_000
    """Interval of the automatic snapshots of a volume; 0 switches them off."""

    zones: int = 0
    """How many hosts a region has for volumes; 0 is no limit. `require_unique_zone` places volumes
    of the same name on different hosts."""

    extend_needs_restart: bool = False
    """Whether a machine must be restarted before it sees that its volume was extended."""

    lease_ttl_s: int = 60
    """Duration of a lease requested without a ttl. Fly does not document its default."""

    exec_timeout_s: int = 60
    """Timeout of an exec that names none."""

    exec_stdin: Literal["dropped", "delivered"] = "dropped"
    """Whether an exec's `stdin` reaches the command. Users of Fly report that it does not."""

    stale_nonce: Literal["refuse", "accept"] = "refuse"
    """A mutation whose nonce belongs to no current lease. Fly's answer is unknown. `refuse` answers
    409, which is the fence that Roost needs; `accept` allows it while there is no lease."""

    start_on_started: Literal["ok", "conflict"] = "ok"
    """Start of a started machine: 200 with `previous_state: started`, or 409. Unknown on Fly."""

    start_while_suspending: Literal["interrupt", "refuse"] = "interrupt"
    """Start of a suspending machine: cancel the suspend (200), or 412 `machine still active`."""

    wait_stopped_needs_version: bool = False
    """Reject a wait for `stopped` that names no version, as Fly did until early 2026."""

    unknown_image: Literal["failed", "destroyed"] = "failed"
    """The final state of a machine whose image the emulator does not have."""

    autostart_default: bool = True
    """Whether the proxy starts a machine whose config has no services or no `autostart`."""

    autostop_ms: int = 0
    """Interval of the search for idle machines to stop (on Fly: minutes); 0 switches it off."""

    ready_ms: int = 10_000
    """How long the proxy waits for a started guest to accept a connection."""

    foreign_apps: str = ""
    """Comma-separated app names that belong to another organisation: get is 403, create 422."""

    scenario: str = ""
    """JSON file with a list of faults to set at start-up, as POST /_emulator/faults takes them."""

    images: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Additional images: repository name to the command that runs for it."""

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
        """A copy with transitions about as slow as Fly's with a warm image cache."""
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
        """A copy with fields parsed from text, as on a command line. Raises SettingError."""
        # Each value has the type of its field: `_parse` reads that type from the annotations.
        return replace(self, **{name: _parse(name, text) for name, text in texts.items()})  # type: ignore[arg-type]


_HINTS = typing.get_type_hints(Settings)
_NUMBERS = [f.name for f in fields(Settings) if _HINTS[f.name] is int]
_WORDS = {"true": True, "on": True, "1": True, "false": False, "off": False, "0": False}
TEXT_FIELDS = [f.name for f in fields(Settings) if f.name not in ("data", "images")]
"""The fields that `with_texts` reads."""


def _parse(name: str, text: str) -> str | int | bool:
    if name not in TEXT_FIELDS:
        raise SettingError(name, f"no such setting; the settings are {', '.join(TEXT_FIELDS)}")
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
