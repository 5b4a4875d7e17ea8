"""Rerankers behind HTTP that the user has started: text-embeddings-inference, infinity, vLLM.

A request is one query with up to `batch_size` of its passages, as these servers are asked in production; several
requests are under way at once, and the server does its own batching. README.md has the commands that start them.
"""

from __future__ import annotations

import http.client
import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from worker import Pairs, Scored, serve, versions

_TIMEOUT_SECONDS = 600


@dataclass(frozen=True)
class Interface:
    """How one kind of server is asked for raw logits, and what it answers."""

    path: str
    body: Callable[[str, list[str], dict[str, Any]], dict[str, Any]]
    answers: Callable[[Any], list[tuple[int, float]]]
    information: str | None = None


def _tei_body(query: str, passages: list[str], _settings: dict[str, Any]) -> dict[str, Any]:
    return {"query": query, "texts": passages, "raw_scores": True, "truncate": True}


def _infinity_body(query: str, passages: list[str], settings: dict[str, Any]) -> dict[str, Any]:
    body = {"query": query, "documents": passages, "raw_scores": True, "return_documents": False}
    return body | _served_name(settings)


def _vllm_body(query: str, passages: list[str], settings: dict[str, Any]) -> dict[str, Any]:
    body = {"text_1": query, "text_2": passages, "use_activation": False}
    return body | {"truncate_prompt_tokens": settings["max_length"]} | _served_name(settings)


def _served_name(settings: dict[str, Any]) -> dict[str, Any]:
    return {"model": settings["served_name"]} if settings.get("served_name") else {}


INTERFACES = {
    "tei": Interface(
        "/rerank", _tei_body, lambda answer: [(row["index"], row["score"]) for row in answer], "/info"
    ),
    "infinity": Interface(
        "/rerank",
        _infinity_body,
        lambda answer: [(row["index"], row["relevance_score"]) for row in answer["results"]],
    ),
    "vllm": Interface(
        "/score",
        _vllm_body,
        lambda answer: [(row["index"], row["score"]) for row in answer["data"]],
        "/version",
    ),
}


class Server:
    """A reranking server at a URL."""

    def load(self, settings: dict[str, Any]) -> dict[str, Any]:
        """Ask for one pair, so that a server that is not there or not a reranker is known at once."""
        self.settings = settings
        self.interface = INTERFACES[settings["server"]]
        self.address = urlsplit(settings["url"])
        self.local, self.connections = threading.local(), []
        self.pool = ThreadPoolExecutor(settings["concurrency"])
        self._ask("a query", ["a passage"])
        return {"versions": {**versions(), **self._information()}, "precision": "the server's own"}

    def score(self, pairs: Pairs, batch_size: int | None) -> Scored:
        logits = np.full(len(pairs), np.nan, np.float32)

        def ask(rows: range) -> None:
            answers = self._ask(pairs[rows[0]][0], [pairs[row][1] for row in rows])
            for index, score in answers:
                logits[rows[index]] = score

        list(self.pool.map(ask, requests_of(pairs, batch_size or 32)))
        if np.isnan(logits).any():
            raise RuntimeError(
                f"the server left {int(np.isnan(logits).sum())} of {len(pairs)} pairs without a score"
            )
        return Scored(logits)

    def close(self) -> None:
        """Close the connections."""
        self.pool.shutdown()
        for connection in self.connections:
            connection.close()

    def _ask(self, query: str, passages: list[str]) -> list[tuple[int, float]]:
        body = self.interface.body(query, passages, self.settings)
        return self.interface.answers(self._send("POST", self.interface.path, body))

    def _send(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        """One exchange on this thread's own connection, which stays open."""
        if not hasattr(self.local, "connection"):
            made = (
                http.client.HTTPSConnection if self.address.scheme == "https" else http.client.HTTPConnection
            )
            self.local.connection = made(str(self.address.netloc), timeout=_TIMEOUT_SECONDS)
            self.connections.append(self.local.connection)
        connection = self.local.connection
        text = None if body is None else json.dumps(body)
        connection.request(
            method, self.address.path.rstrip("/") + path, text, {"Content-Type": "application/json"}
        )
        response = connection.getresponse()
        content = response.read()
        if response.status != 200:
            raise RuntimeError(f"{path} answered {response.status}: {content[:200].decode(errors='replace')}")
        return json.loads(content)

    def _information(self) -> dict[str, str]:
        if self.interface.information is None:
            return {}
        try:
            answer = self._send("GET", self.interface.information)
        except (RuntimeError, ValueError):
            return {}
        wanted = ("version", "model_dtype", "docker_label")
        return {f"server {name}": str(answer[name]) for name in wanted if answer.get(name)}


def requests_of(pairs: Pairs, most: int) -> list[range]:
    """Neighbouring rows of one query, at most `most` of them a request."""
    requests: list[range] = []
    start = 0
    for row in range(1, len(pairs) + 1):
        if row == len(pairs) or pairs[row][0] != pairs[start][0] or row - start == most:
            requests.append(range(start, row))
            start = row
    return requests


if __name__ == "__main__":
    serve(Server())
