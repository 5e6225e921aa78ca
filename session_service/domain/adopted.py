"""Containers that Roost adopted rather than created: how they are told from its own.

They carry none of Roost's labels, since the provider's metadata is given at creation and nothing in
the contract changes it later. So no listing by labels has them: not the sweeper's, and not the one
that is part of the proof that a container is lost.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from session_service.domain.session import Container

#: How the names of adopted containers begin in their rows; Roost's own begin with "roost-".
PREFIX = "adopted-"


def adopted(container: Container) -> bool:
    """Whether the container was made by somebody else, and so carries no labels of ours."""
    return container.name.startswith(PREFIX)
