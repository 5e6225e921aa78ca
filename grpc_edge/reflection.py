"""Reflection for every client: versions v1 and v1alpha, methods by their names, whole descriptors.

grpcio-reflection 1.85.1 serves v1alpha only. It does not find the symbol of a method, because
protobuf's C core keeps none in its pool, and `grpcurl describe …Service.Method` and ghz ask for
one. Its descriptors have no `json_name`, so that grpcurl prints `session_id` for `sessionId`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool
from grpc_reflection.v1alpha import reflection_pb2
from grpc_reflection.v1alpha._async import ReflectionServicer
from grpc_reflection.v1alpha.reflection_pb2_grpc import add_ServerReflectionServicer_to_server

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

ALPHA = "grpc.reflection.v1alpha.ServerReflection"
V1 = "grpc.reflection.v1.ServerReflection"
_METHOD = "ServerReflectionInfo"


def add_reflection(server: grpc.aio.Server, services: Iterable[str]) -> None:
    """Serve reflection, in both versions, for these services and for itself."""
    servicer = _Servicer((*services, ALPHA, V1))
    # Any: the classes of grpcio-reflection have no types of their own.
    add: Any = add_ServerReflectionServicer_to_server
    add(servicer, server)
    messages: Any = reflection_pb2
    # The messages of the two versions are the same on the wire.
    handler = grpc.stream_stream_rpc_method_handler(
        servicer.ServerReflectionInfo,
        messages.ServerReflectionRequest.FromString,
        messages.ServerReflectionResponse.SerializeToString,
    )
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(V1, {_METHOD: handler})])


#: Any: its stubs leave out the methods that answer the single questions.
_Base: Any = ReflectionServicer


class _Servicer(_Base):  # type: ignore[misc]  # a class of type Any
    """Any: requests and responses of grpcio-reflection, which have no types."""

    def __init__(self, services: Iterable[str]) -> None:
        _add_v1(descriptor_pool.Default())
        super().__init__(services)

    def _file_containing_symbol(self, request: Any, fully_qualified_name: str) -> Any:
        answer = super()._file_containing_symbol(request, fully_qualified_name)
        if answer.HasField("error_response"):
            service, _, method = fully_qualified_name.rpartition(".")
            if self._has_method(service, method):
                answer = super()._file_containing_symbol(request, service)
        return _whole(answer)

    def _file_by_filename(self, request: Any, filename: str) -> Any:
        return _whole(super()._file_by_filename(request, filename))

    def _file_containing_extension(self, request: Any, containing_type: str, number: int) -> Any:
        return _whole(super()._file_containing_extension(request, containing_type, number))

    def _has_method(self, service: str, method: str) -> bool:
        try:
            return method in self._pool.FindServiceByName(service).methods_by_name
        except KeyError:
            return False


def _add_v1(pool: descriptor_pool.DescriptorPool) -> None:
    """Describe version v1, for clients that ask for it by name: v1alpha under the other package."""
    try:
        pool.FindServiceByName(V1)
    except KeyError:
        pass
    else:
        return
    file = descriptor_pb2.FileDescriptorProto()
    pool.FindServiceByName(ALPHA).file.CopyToProto(file)
    old, new = file.package, "grpc.reflection.v1"
    file.name, file.package = "grpc/reflection/v1/reflection.proto", new
    for field in _fields(file.message_type):
        # A scalar field must have none, not even an empty one.
        if field.type_name:
            field.type_name = field.type_name.replace(f".{old}.", f".{new}.")
    for service in file.service:
        for method in service.method:
            method.input_type = method.input_type.replace(f".{old}.", f".{new}.")
            method.output_type = method.output_type.replace(f".{old}.", f".{new}.")
    pool.AddSerializedFile(file.SerializeToString())


def _whole(answer: Any) -> Any:
    """The answer with the `json_name` of each field in its descriptors, as protoc gives them."""
    files = answer.file_descriptor_response.file_descriptor_proto
    for index, data in enumerate(files):
        file = descriptor_pb2.FileDescriptorProto.FromString(data)
        for field in _fields(file.message_type):
            if not field.json_name:
                field.json_name = _json_name(field.name)
        files[index] = file.SerializeToString()
    return answer


def _fields(
    messages: Iterable[descriptor_pb2.DescriptorProto],
) -> Iterator[descriptor_pb2.FieldDescriptorProto]:
    for message in messages:
        yield from message.field
        yield from _fields(message.nested_type)


def _json_name(name: str) -> str:
    """The name in JSON, by the rule of protobuf: without underscores, the letter after each one in
    upper case.
    """
    first, *rest = name.split("_")
    return first + "".join(part[:1].upper() + part[1:] for part in rest)
