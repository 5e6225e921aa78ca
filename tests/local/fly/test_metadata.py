"""Metadata: labels that change without a new version."""

import pytest

from tests.local.fly.api_client import App, Json


async def test_a_label_is_set_read_and_deleted(app: App) -> None:
    """Fly conformance case 67."""
    machine = await app.started(metadata={"kept": "yes"})
    before = (await machine.get())["instance_id"]
    path = f"{machine.path}/metadata"
    await machine.post("metadata/colour", {"value": "red"}, status=204)
    assert await app.client.expect(200, "GET", path) == {"kept": "yes", "colour": "red"}
    assert await app.client.expect(200, "GET", f"{path}/colour") == {"value": "red"}
    shown = await machine.get()
    assert shown["config"]["metadata"] == {"kept": "yes", "colour": "red"}
    assert shown["instance_id"] == before
    for _ in range(2):
        await app.client.expect(204, "DELETE", f"{path}/colour")
    await app.client.expect(404, "GET", f"{path}/colour")
    assert await app.client.expect(200, "GET", path) == {"kept": "yes"}


@pytest.mark.parametrize("method", ["PATCH", "PUT"])
async def test_labels_are_merged_and_null_or_nothing_deletes(app: App, method: str) -> None:
    """Fly conformance case 68."""
    machine = await app.started(metadata={"a": "1", "b": "2", "c": "3"})
    path = f"{machine.path}/metadata"
    body: Json = {"metadata": {"a": None, "b": "", "d": "4"}}
    await app.client.expect(204, method, path, body)
    assert await app.client.expect(200, "GET", path) == {"c": "3", "d": "4"}


async def test_labels_for_another_version_are_rejected(app: App) -> None:
    """Fly conformance case 68."""
    machine = await app.started()
    path = f"{machine.path}/metadata"
    body = {"metadata": {"a": "1"}, "machine_version": "01ARZ3NDEKTSV4RRFFQ69G5FAV"}
    await app.client.expect(412, "PATCH", path, body)
    body["machine_version"] = (await machine.get())["instance_id"]
    await app.client.expect(204, "PATCH", path, body)


@pytest.mark.parametrize("body", [{}, {"value": 1}, []])
async def test_a_label_without_a_value_is_rejected(app: App, body: Json) -> None:
    machine = await app.started()
    await machine.post("metadata/colour", body, status=400)
    assert await app.client.expect(200, "GET", f"{machine.path}/metadata") == {}
