"""A catalog of Iceberg tables that speaks Iceberg's REST protocol: pyiceberg's own, in SQLite, behind HTTP.

What a commit requires is checked against the table as it is, and the new metadata is swapped in for what was read, or
not at all: of two writers with one base, one gets 409.
"""

from __future__ import annotations

import json
import re
import threading
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from pydantic import Field
from pyiceberg.catalog.rest import (
    CreateTableRequest,
    ListNamespaceResponse,
    ListTableResponseEntry,
    ListTablesResponse,
    NamespaceResponse,
    TableResponse,
)
from pyiceberg.catalog.sql import SqlCatalog
from pyiceberg.exceptions import (
    CommitFailedException,
    NamespaceAlreadyExistsError,
    NamespaceNotEmptyError,
    NoSuchNamespaceError,
    NoSuchTableError,
    TableAlreadyExistsError,
)
from pyiceberg.partitioning import UNPARTITIONED_PARTITION_SPEC
from pyiceberg.table import CommitTableRequest, Table
from pyiceberg.table.sorting import UNSORTED_SORT_ORDER
from pyiceberg.table.update import AssertCreate
from pyiceberg.typedef import IcebergBaseModel

_LEVELS = "\x1f"  # between the levels of a namespace in a URL
_MEETING_SECONDS = 120.0
_NOT_SAID = dict.fromkeys(("location", "partition-spec", "write-order"))  # which clients may leave out
# Status and the name that clients know it by.
_ERRORS: dict[type[Exception], tuple[int, str]] = {
    NoSuchNamespaceError: (404, "NoSuchNamespaceException"),
    NoSuchTableError: (404, "NoSuchTableException"),
    NamespaceAlreadyExistsError: (409, "AlreadyExistsException"),
    NamespaceNotEmptyError: (409, "NamespaceNotEmptyException"),
    TableAlreadyExistsError: (409, "AlreadyExistsException"),
    CommitFailedException: (409, "CommitFailedException"),
    NotImplementedError: (501, "UnsupportedOperationException"),
    ValueError: (400, "BadRequestException"),  # pydantic's among them
}


@dataclass(frozen=True)
class Call:
    """One request: what stands in its path and its query, and its body."""

    namespace: tuple[str, ...] = ()
    table: str = ""
    query: dict[str, str] = field(default_factory=dict)
    body: dict[str, Any] = field(default_factory=dict)

    @property
    def identifier(self) -> tuple[str, ...]:
        return (*self.namespace, self.table)


class _Config(IcebergBaseModel):
    """The answer to a client's first request; pyiceberg's own model reads endpoints and does not write them."""

    defaults: dict[str, str] = Field(default_factory=dict)
    overrides: dict[str, str] = Field(default_factory=dict)
    endpoints: list[str]


class IcebergRest:
    """The server, on a free port of the loopback for as long as the `with` lasts; the tables' files are below `folder`.

    `answers`: method, path and status of every request so far, in the order of their answers; `trouble`: what of them
    was neither done nor refused with 404 or 409.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        self._catalog = SqlCatalog(
            "tables", uri=f"sqlite:///{folder}/catalog.db", warehouse=f"file://{folder}/warehouse"
        )
        self._meetings: dict[str, threading.Barrier] = {}
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._http.daemon_threads = True
        self._thread = threading.Thread(target=self._http.serve_forever, daemon=True)
        self.uri = f"http://127.0.0.1:{self._http.server_port}"
        self.answers: list[tuple[str, str, int]] = []
        self.trouble: list[str] = []

    def __enter__(self) -> IcebergRest:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()
        self._catalog.engine.dispose()

    def meet(self, table: str, writers: int = 2) -> None:
        """The next commit to a table (schema.table) waits until so many are there: all have the same base."""
        self._meetings[table] = threading.Barrier(writers, timeout=_MEETING_SECONDS)

    def statuses(self, method: str, path: str) -> list[int]:
        """Of every answer so far to such requests; `path` is a regular expression."""
        return [status for m, p, status in list(self.answers) if m == method and re.fullmatch(path, p)]

    def answer(self, method: str, url: str, body: bytes) -> tuple[int, bytes]:
        """Status and JSON; no JSON with 204."""
        path = urlsplit(url).path
        status, said = self._answered(method, url, body)
        self.answers.append((method, path, status))
        return status, said

    def _answered(self, method: str, url: str, body: bytes) -> tuple[int, bytes]:
        try:
            call, do = self._routed(method, url, body)
            found = do(self, call)
        except Exception as error:
            kinds = (known for kind, known in _ERRORS.items() if isinstance(error, kind))
            status, kind = next(kinds, (500, type(error).__name__))
            if status not in (404, 409):
                self.trouble.append(f"{method} {url}: {traceback.format_exc()}")
            return status, json.dumps(
                {"error": {"message": str(error), "type": kind, "code": status}}
            ).encode()
        return (204, b"") if found is None else (200, found.model_dump_json().encode())

    def _routed(self, method: str, url: str, body: bytes) -> tuple[Call, _Endpoint]:
        parts = urlsplit(url)
        for endpoint, do in _ENDPOINTS.items():
            verb, path = endpoint.replace("/{prefix}", "").split()
            found = re.fullmatch(re.sub(r"{(\w+)}", r"(?P<\1>[^/]+)", path), parts.path)
            if verb == method and found:
                named = {name: unquote(text) for name, text in found.groupdict().items()}
                namespace = tuple(named["namespace"].split(_LEVELS)) if "namespace" in named else ()
                query = {name: values[0] for name, values in parse_qs(parts.query).items()}
                return Call(namespace, named.get("table", ""), query, json.loads(body or b"{}")), do
        raise NotImplementedError(f"{method} {parts.path}")

    # --- the endpoints ---

    def config(self, _: Call) -> IcebergBaseModel:
        return _Config(endpoints=sorted(_ENDPOINTS.keys() - {_CONFIG}))

    def list_namespaces(self, call: Call) -> IcebergBaseModel:
        parent = call.query.get("parent", "")
        return ListNamespaceResponse(
            namespaces=self._catalog.list_namespaces(tuple(parent.split(_LEVELS)) if parent else ())
        )

    def create_namespace(self, call: Call) -> IcebergBaseModel:
        namespace = tuple(call.body["namespace"])
        self._catalog.create_namespace(namespace, call.body.get("properties") or {})
        return self.load_namespace(Call(namespace))

    def load_namespace(self, call: Call) -> IcebergBaseModel:
        properties = self._catalog.load_namespace_properties(call.namespace)
        return NamespaceResponse(namespace=call.namespace, properties=properties)

    def namespace_exists(self, call: Call) -> None:
        self._catalog.load_namespace_properties(call.namespace)

    def drop_namespace(self, call: Call) -> None:
        self._catalog.drop_namespace(call.namespace)

    def list_tables(self, call: Call) -> IcebergBaseModel:
        found = self._catalog.list_tables(call.namespace)
        entries = [ListTableResponseEntry(name=name, namespace=tuple(levels)) for *levels, name in found]
        return ListTablesResponse(identifiers=entries)

    def create_table(self, call: Call) -> IcebergBaseModel:
        """A staged table is known to nobody but its maker until that commits it."""
        asked = CreateTableRequest.model_validate({**_NOT_SAID, **call.body})
        identifier = (*call.namespace, asked.name)
        self._catalog.load_namespace_properties(call.namespace)
        if self._catalog.table_exists(identifier):
            raise TableAlreadyExistsError(f"Table already exists: {'.'.join(identifier)}")
        make = self._catalog._create_staged_table if asked.stage_create else self._catalog.create_table
        made = make(
            identifier,
            asked.table_schema,
            location=asked.location,
            partition_spec=asked.partition_spec or UNPARTITIONED_PARTITION_SPEC,
            sort_order=asked.write_order or UNSORTED_SORT_ORDER,
            properties=asked.properties,
        )
        return TableResponse(metadata=made.metadata) if asked.stage_create else _response(made)

    def load_table(self, call: Call) -> IcebergBaseModel:
        return _response(self._catalog.load_table(call.identifier))

    def table_exists(self, call: Call) -> None:
        self._catalog.load_table(call.identifier)

    def drop_table(self, call: Call) -> None:
        drop = self._catalog.purge_table if call.query.get("purgeRequested") == "true" else None
        (drop or self._catalog.drop_table)(call.identifier)

    def commit_table(self, call: Call) -> IcebergBaseModel:
        named = {"identifier": {"namespace": call.namespace, "name": call.table}}
        asked = CommitTableRequest.model_validate({**call.body, **named})
        self._wait_for_others(".".join(call.identifier))
        if not any(isinstance(one, AssertCreate) for one in asked.requirements):
            self._catalog.load_table(call.identifier)
        # only its name is looked at: the catalog loads what stands there now
        table = Table(call.identifier, None, "", None, self._catalog)
        return self._catalog.commit_table(table, asked.requirements, asked.updates)

    def _wait_for_others(self, table: str) -> None:
        if table in self._meetings:
            with suppress(threading.BrokenBarrierError):
                self._meetings[table].wait()
            self._meetings.pop(table, None)


_Endpoint = Callable[[IcebergRest, Call], IcebergBaseModel | None]
_CONFIG = "GET /v1/config"
_NAMESPACES = "/v1/{prefix}/namespaces"
_TABLES = f"{_NAMESPACES}/{{namespace}}/tables"
# As the protocol writes them: so the server tells its clients what it has.
_ENDPOINTS: dict[str, _Endpoint] = {
    _CONFIG: IcebergRest.config,
    f"GET {_NAMESPACES}": IcebergRest.list_namespaces,
    f"POST {_NAMESPACES}": IcebergRest.create_namespace,
    f"GET {_NAMESPACES}/{{namespace}}": IcebergRest.load_namespace,
    f"HEAD {_NAMESPACES}/{{namespace}}": IcebergRest.namespace_exists,
    f"DELETE {_NAMESPACES}/{{namespace}}": IcebergRest.drop_namespace,
    f"GET {_TABLES}": IcebergRest.list_tables,
    f"POST {_TABLES}": IcebergRest.create_table,
    f"GET {_TABLES}/{{table}}": IcebergRest.load_table,
    f"HEAD {_TABLES}/{{table}}": IcebergRest.table_exists,
    f"POST {_TABLES}/{{table}}": IcebergRest.commit_table,
    f"DELETE {_TABLES}/{{table}}": IcebergRest.drop_table,
}


def _response(table: Table) -> TableResponse:
    return TableResponse(metadata_location=table.metadata_location, metadata=table.metadata)


def _handler(rest: IcebergRest) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"  # connections stay open
        wbufsize = (
            -1
        )  # an answer goes out at once: in two pieces the second waits for the first one's acknowledgement

        def do(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            status, said = rest.answer(self.command, self.path, body)
            self.send_response(status)
            if said:
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(said)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(said)

        do_GET = do_HEAD = do_POST = do_DELETE = do  # noqa: N815 - http.server's names

        def log_message(self, *_: Any) -> None:
            """Nothing: `answers` has them."""

    return Handler
