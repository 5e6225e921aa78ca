"""Reflection in both versions, for services, methods and whole descriptors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from google.protobuf import descriptor_pb2
from grpc_reflection.v1alpha import reflection_pb2

from grpc_edge.reflection import ALPHA, V1

if TYPE_CHECKING:
    from collections.abc import Iterator

    import grpc

    from tests.grpc_edge.conftest import Server


async def asked(channel: grpc.aio.Channel, version: str, **question: str) -> Any:
    """The answer to one question. Any: grpcio-reflection has no types."""
    messages: Any = reflection_pb2
    method: Any = channel.stream_stream(
        f"/{version}/ServerReflectionInfo",
        request_serializer=messages.ServerReflectionRequest.SerializeToString,
        response_deserializer=messages.ServerReflectionResponse.FromString,
    )
    async for answer in method(iter([messages.ServerReflectionRequest(**question)]), timeout=9):
        return answer
    raise AssertionError("no answer")


def files_of(answer: Any) -> dict[str, descriptor_pb2.FileDescriptorProto]:
    """The described files by name."""
    assert answer.HasField("file_descriptor_response"), answer.error_response
    files = [
        descriptor_pb2.FileDescriptorProto.FromString(data)
        for data in answer.file_descriptor_response.file_descriptor_proto
    ]
    return {file.name: file for file in files}


def fields_of(
    messages: Any,
) -> Iterator[descriptor_pb2.FieldDescriptorProto]:
    """All fields, also of nested messages. Any: a repeated field of descriptors."""
    for message in messages:
        yield from message.field
        yield from fields_of(message.nested_type)


@pytest.mark.parametrize("version", [ALPHA, V1])
async def test_services_methods_and_messages_are_found(
    servers: tuple[Server, Server], version: str
) -> None:
    """By the symbols that grpcurl, ghz and buf curl ask for."""
    for server in servers:
        listed = await asked(server.channel, version, list_services="")
        names = {each.name for each in listed.list_services_response.service}
        assert names == {
            *(service.full_name for service in server.services),
            "grpc.health.v1.Health",
            ALPHA,
            V1,
        }
        symbols = [*sorted(names), *(method.full_name for method in server.methods)]
        symbols += [method.input_type.full_name for method in server.methods]
        for symbol in symbols:
            answer = await asked(server.channel, version, file_containing_symbol=symbol)
            files = files_of(answer)
            package = symbol.rpartition(".")[0]
            assert any(package.startswith(file.package) for file in files.values()), symbol
        for symbol in ("no.such.Service", f"{server.services[0].full_name}.NoSuchMethod"):
            answer = await asked(server.channel, version, file_containing_symbol=symbol)
            assert answer.error_response.error_code == 5, symbol


async def test_descriptors_have_the_json_name_of_each_field(
    servers: tuple[Server, Server],
) -> None:
    """As protoc gives them: without it grpcurl prints `session_id` where it should `sessionId`."""
    for server in servers:
        symbol = server.services[0].full_name
        files = files_of(await asked(server.channel, V1, file_containing_symbol=symbol))
        fields = [field for file in files.values() for field in fields_of(file.message_type)]
        assert fields
        assert {field.name: field.json_name for field in fields if not field.json_name} == {}
        described = {
            message.name: {field.name: field.json_name for field in message.fields}
            for file in files.values()
            for message in _messages(server, file.name)
        }
        for file in files.values():
            for message in file.message_type:
                if message.name in described and file.name.startswith("roost/"):
                    for field in message.field:
                        assert field.json_name == described[message.name][field.name]
        by_name = await asked(server.channel, V1, file_by_filename=next(iter(files)))
        assert files_of(by_name)


def _messages(server: Server, name: str) -> list[Any]:
    """The messages of a file, from the descriptors of this process. Any: they have no types."""
    from google.protobuf import descriptor_pool

    file = descriptor_pool.Default().FindFileByName(name)
    return list(file.message_types_by_name.values())
