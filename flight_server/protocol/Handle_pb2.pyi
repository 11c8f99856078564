from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Optional as _Optional

DESCRIPTOR: _descriptor.FileDescriptor

class StatementHandle(_message.Message):
    __slots__ = ("query", "parameters", "schema_fingerprint")
    QUERY_FIELD_NUMBER: _ClassVar[int]
    PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    SCHEMA_FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    query: str
    parameters: bytes
    schema_fingerprint: bytes
    def __init__(self, query: _Optional[str] = ..., parameters: _Optional[bytes] = ..., schema_fingerprint: _Optional[bytes] = ...) -> None: ...
