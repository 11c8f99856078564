from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Optional as _Optional

DESCRIPTOR: _descriptor.FileDescriptor

class StatementHandle(_message.Message):
    __slots__ = ("query", "parameters", "schema_fingerprint", "id", "principal", "expires_us", "cut", "transaction_id", "result", "is_part")
    QUERY_FIELD_NUMBER: _ClassVar[int]
    PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    SCHEMA_FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    PRINCIPAL_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_US_FIELD_NUMBER: _ClassVar[int]
    CUT_FIELD_NUMBER: _ClassVar[int]
    TRANSACTION_ID_FIELD_NUMBER: _ClassVar[int]
    RESULT_FIELD_NUMBER: _ClassVar[int]
    IS_PART_FIELD_NUMBER: _ClassVar[int]
    query: str
    parameters: bytes
    schema_fingerprint: bytes
    id: bytes
    principal: str
    expires_us: int
    cut: str
    transaction_id: bytes
    result: bytes
    is_part: bool
    def __init__(self, query: _Optional[str] = ..., parameters: _Optional[bytes] = ..., schema_fingerprint: _Optional[bytes] = ..., id: _Optional[bytes] = ..., principal: _Optional[str] = ..., expires_us: _Optional[int] = ..., cut: _Optional[str] = ..., transaction_id: _Optional[bytes] = ..., result: _Optional[bytes] = ..., is_part: _Optional[bool] = ...) -> None: ...
