from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Order(_message.Message):
    __slots__ = ("number", "run", "site", "kind", "text", "payload_digest", "payload_size")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    RUN_FIELD_NUMBER: _ClassVar[int]
    SITE_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_DIGEST_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_SIZE_FIELD_NUMBER: _ClassVar[int]
    number: int
    run: str
    site: str
    kind: str
    text: bytes
    payload_digest: bytes
    payload_size: int
    def __init__(self, number: _Optional[int] = ..., run: _Optional[str] = ..., site: _Optional[str] = ..., kind: _Optional[str] = ..., text: _Optional[bytes] = ..., payload_digest: _Optional[bytes] = ..., payload_size: _Optional[int] = ...) -> None: ...

class SignedOrder(_message.Message):
    __slots__ = ("order", "signature")
    ORDER_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    order: bytes
    signature: bytes
    def __init__(self, order: _Optional[bytes] = ..., signature: _Optional[bytes] = ...) -> None: ...

class FromSite(_message.Message):
    __slots__ = ("hello", "reply", "renew", "goodbye")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    REPLY_FIELD_NUMBER: _ClassVar[int]
    RENEW_FIELD_NUMBER: _ClassVar[int]
    GOODBYE_FIELD_NUMBER: _ClassVar[int]
    hello: Hello
    reply: Reply
    renew: Renew
    goodbye: Goodbye
    def __init__(self, hello: _Optional[_Union[Hello, _Mapping]] = ..., reply: _Optional[_Union[Reply, _Mapping]] = ..., renew: _Optional[_Union[Renew, _Mapping]] = ..., goodbye: _Optional[_Union[Goodbye, _Mapping]] = ...) -> None: ...

class Hello(_message.Message):
    __slots__ = ("protocol", "consilium", "tasks", "probe")
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    CONSILIUM_FIELD_NUMBER: _ClassVar[int]
    TASKS_FIELD_NUMBER: _ClassVar[int]
    PROBE_FIELD_NUMBER: _ClassVar[int]
    protocol: int
    consilium: str
    tasks: _containers.RepeatedScalarFieldContainer[bytes]
    probe: bool
    def __init__(self, protocol: _Optional[int] = ..., consilium: _Optional[str] = ..., tasks: _Optional[_Iterable[bytes]] = ..., probe: _Optional[bool] = ...) -> None: ...

class Reply(_message.Message):
    __slots__ = ("task", "problem", "text", "payload", "payload_size")
    TASK_FIELD_NUMBER: _ClassVar[int]
    PROBLEM_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_SIZE_FIELD_NUMBER: _ClassVar[int]
    task: bytes
    problem: str
    text: bytes
    payload: bytes
    payload_size: int
    def __init__(self, task: _Optional[bytes] = ..., problem: _Optional[str] = ..., text: _Optional[bytes] = ..., payload: _Optional[bytes] = ..., payload_size: _Optional[int] = ...) -> None: ...

class Renew(_message.Message):
    __slots__ = ("request",)
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    request: bytes
    def __init__(self, request: _Optional[bytes] = ...) -> None: ...

class Goodbye(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class FromServer(_message.Message):
    __slots__ = ("welcome", "task", "withdrawn", "turn", "taken", "renewed", "farewell")
    WELCOME_FIELD_NUMBER: _ClassVar[int]
    TASK_FIELD_NUMBER: _ClassVar[int]
    WITHDRAWN_FIELD_NUMBER: _ClassVar[int]
    TURN_FIELD_NUMBER: _ClassVar[int]
    TAKEN_FIELD_NUMBER: _ClassVar[int]
    RENEWED_FIELD_NUMBER: _ClassVar[int]
    FAREWELL_FIELD_NUMBER: _ClassVar[int]
    welcome: Welcome
    task: Task
    withdrawn: Withdrawn
    turn: Turn
    taken: Taken
    renewed: Renewed
    farewell: Farewell
    def __init__(self, welcome: _Optional[_Union[Welcome, _Mapping]] = ..., task: _Optional[_Union[Task, _Mapping]] = ..., withdrawn: _Optional[_Union[Withdrawn, _Mapping]] = ..., turn: _Optional[_Union[Turn, _Mapping]] = ..., taken: _Optional[_Union[Taken, _Mapping]] = ..., renewed: _Optional[_Union[Renewed, _Mapping]] = ..., farewell: _Optional[_Union[Farewell, _Mapping]] = ...) -> None: ...

class Welcome(_message.Message):
    __slots__ = ("site", "time", "consilium", "authorities")
    SITE_FIELD_NUMBER: _ClassVar[int]
    TIME_FIELD_NUMBER: _ClassVar[int]
    CONSILIUM_FIELD_NUMBER: _ClassVar[int]
    AUTHORITIES_FIELD_NUMBER: _ClassVar[int]
    site: str
    time: float
    consilium: str
    authorities: bytes
    def __init__(self, site: _Optional[str] = ..., time: _Optional[float] = ..., consilium: _Optional[str] = ..., authorities: _Optional[bytes] = ...) -> None: ...

class Task(_message.Message):
    __slots__ = ("id", "order", "payload", "payload_size", "seconds")
    ID_FIELD_NUMBER: _ClassVar[int]
    ORDER_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_SIZE_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    id: bytes
    order: bytes
    payload: bytes
    payload_size: int
    seconds: float
    def __init__(self, id: _Optional[bytes] = ..., order: _Optional[bytes] = ..., payload: _Optional[bytes] = ..., payload_size: _Optional[int] = ..., seconds: _Optional[float] = ...) -> None: ...

class Withdrawn(_message.Message):
    __slots__ = ("task",)
    TASK_FIELD_NUMBER: _ClassVar[int]
    task: bytes
    def __init__(self, task: _Optional[bytes] = ...) -> None: ...

class Turn(_message.Message):
    __slots__ = ("task", "offset")
    TASK_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    task: bytes
    offset: int
    def __init__(self, task: _Optional[bytes] = ..., offset: _Optional[int] = ...) -> None: ...

class Taken(_message.Message):
    __slots__ = ("task",)
    TASK_FIELD_NUMBER: _ClassVar[int]
    task: bytes
    def __init__(self, task: _Optional[bytes] = ...) -> None: ...

class Renewed(_message.Message):
    __slots__ = ("certificate", "authorities")
    CERTIFICATE_FIELD_NUMBER: _ClassVar[int]
    AUTHORITIES_FIELD_NUMBER: _ClassVar[int]
    certificate: bytes
    authorities: bytes
    def __init__(self, certificate: _Optional[bytes] = ..., authorities: _Optional[bytes] = ...) -> None: ...

class Farewell(_message.Message):
    __slots__ = ("reason", "text")
    REASON_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    reason: str
    text: str
    def __init__(self, reason: _Optional[str] = ..., text: _Optional[str] = ...) -> None: ...

class FetchRequest(_message.Message):
    __slots__ = ("task", "offset")
    TASK_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    task: bytes
    offset: int
    def __init__(self, task: _Optional[bytes] = ..., offset: _Optional[int] = ...) -> None: ...

class Piece(_message.Message):
    __slots__ = ("task", "offset", "data")
    TASK_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    task: bytes
    offset: int
    data: bytes
    def __init__(self, task: _Optional[bytes] = ..., offset: _Optional[int] = ..., data: _Optional[bytes] = ...) -> None: ...

class Delivered(_message.Message):
    __slots__ = ("size",)
    SIZE_FIELD_NUMBER: _ClassVar[int]
    size: int
    def __init__(self, size: _Optional[int] = ...) -> None: ...

class EnrolRequest(_message.Message):
    __slots__ = ("protocol", "consilium", "request")
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    CONSILIUM_FIELD_NUMBER: _ClassVar[int]
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    protocol: int
    consilium: str
    request: bytes
    def __init__(self, protocol: _Optional[int] = ..., consilium: _Optional[str] = ..., request: _Optional[bytes] = ...) -> None: ...

class EnrolReply(_message.Message):
    __slots__ = ("site", "certificate", "authorities", "problem")
    SITE_FIELD_NUMBER: _ClassVar[int]
    CERTIFICATE_FIELD_NUMBER: _ClassVar[int]
    AUTHORITIES_FIELD_NUMBER: _ClassVar[int]
    PROBLEM_FIELD_NUMBER: _ClassVar[int]
    site: str
    certificate: bytes
    authorities: bytes
    problem: str
    def __init__(self, site: _Optional[str] = ..., certificate: _Optional[bytes] = ..., authorities: _Optional[bytes] = ..., problem: _Optional[str] = ...) -> None: ...

class FromRun(_message.Message):
    __slots__ = ("ask", "forget")
    ASK_FIELD_NUMBER: _ClassVar[int]
    FORGET_FIELD_NUMBER: _ClassVar[int]
    ask: Ask
    forget: Forget
    def __init__(self, ask: _Optional[_Union[Ask, _Mapping]] = ..., forget: _Optional[_Union[Forget, _Mapping]] = ...) -> None: ...

class Ask(_message.Message):
    __slots__ = ("tasks",)
    TASKS_FIELD_NUMBER: _ClassVar[int]
    tasks: _containers.RepeatedCompositeFieldContainer[Outgoing]
    def __init__(self, tasks: _Optional[_Iterable[_Union[Outgoing, _Mapping]]] = ...) -> None: ...

class Outgoing(_message.Message):
    __slots__ = ("id", "site", "order", "payload", "file", "payload_size", "seconds", "most_bytes")
    ID_FIELD_NUMBER: _ClassVar[int]
    SITE_FIELD_NUMBER: _ClassVar[int]
    ORDER_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    FILE_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_SIZE_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    MOST_BYTES_FIELD_NUMBER: _ClassVar[int]
    id: bytes
    site: str
    order: bytes
    payload: bytes
    file: str
    payload_size: int
    seconds: float
    most_bytes: int
    def __init__(self, id: _Optional[bytes] = ..., site: _Optional[str] = ..., order: _Optional[bytes] = ..., payload: _Optional[bytes] = ..., file: _Optional[str] = ..., payload_size: _Optional[int] = ..., seconds: _Optional[float] = ..., most_bytes: _Optional[int] = ...) -> None: ...

class Forget(_message.Message):
    __slots__ = ("tasks",)
    TASKS_FIELD_NUMBER: _ClassVar[int]
    tasks: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, tasks: _Optional[_Iterable[bytes]] = ...) -> None: ...

class ToRun(_message.Message):
    __slots__ = ("job", "came", "left", "answer")
    JOB_FIELD_NUMBER: _ClassVar[int]
    CAME_FIELD_NUMBER: _ClassVar[int]
    LEFT_FIELD_NUMBER: _ClassVar[int]
    ANSWER_FIELD_NUMBER: _ClassVar[int]
    job: str
    came: Sites
    left: Sites
    answer: Answer
    def __init__(self, job: _Optional[str] = ..., came: _Optional[_Union[Sites, _Mapping]] = ..., left: _Optional[_Union[Sites, _Mapping]] = ..., answer: _Optional[_Union[Answer, _Mapping]] = ...) -> None: ...

class Sites(_message.Message):
    __slots__ = ("names",)
    NAMES_FIELD_NUMBER: _ClassVar[int]
    names: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, names: _Optional[_Iterable[str]] = ...) -> None: ...

class Answer(_message.Message):
    __slots__ = ("task", "problem", "detail", "text", "payload", "payload_size", "seconds")
    TASK_FIELD_NUMBER: _ClassVar[int]
    PROBLEM_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_SIZE_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    task: bytes
    problem: str
    detail: str
    text: bytes
    payload: bytes
    payload_size: int
    seconds: float
    def __init__(self, task: _Optional[bytes] = ..., problem: _Optional[str] = ..., detail: _Optional[str] = ..., text: _Optional[bytes] = ..., payload: _Optional[bytes] = ..., payload_size: _Optional[int] = ..., seconds: _Optional[float] = ...) -> None: ...
