"""What can be compared: our backends and the peers, each with its worker, environment and settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from side_by_side import environments
from side_by_side.environments import Environment

BEST = "best"  # the precision that the run is about


@dataclass(frozen=True)
class Engine:
    """An engine under test.

    `precision`: a name, or BEST; `default_batch`: its own default batch size, None where it has none;
    `environment`: None for the Python that runs the benchmark; `counterpart`: which of ours it is held against,
    where that one runs; `slow`: takes the smaller sample of pairs on a CPU.
    """

    name: str
    title: str
    worker: str
    precision: str = BEST
    environment: Environment | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    variables: Mapping[str, str] = field(default_factory=dict)
    default_batch: int | None = None
    plans_batches: bool = False
    devices: tuple[str, ...] = ("cpu", "cuda")
    slow: bool = False
    counterpart: str | None = None
    server: bool = False

    @property
    def ours(self) -> bool:
        """Whether it is rerank_udf."""
        return self.worker == "ours.py"


def _ours(name: str, title: str, backend: str = "", **changes: Any) -> Engine:
    # It divides its threads between tokenizer and model by itself
    variables = {"RERANK_UDF_CPU_BACKEND": backend, "RAYON_NUM_THREADS": ""}
    return Engine(name, f"rerank_udf{title}", "ours.py", plans_batches=True, variables=variables, **changes)


_CPU = ("cpu",)
_ST = "sentence_transformers_peer.py"
_FLAG = "flagembedding_peer.py"
_OV = "openvino_peer.py"
_FLAG_REFERENCE = environments.FLAG_REFERENCE
_ENGINES = (
    _ours("ours", ""),
    _ours("ours-openvino", " on OpenVINO", "openvino", devices=_CPU),
    _ours("ours-torch", " on torch", "torch", devices=_CPU),
    _ours("ours-int8", "", precision="int8", devices=_CPU),
    _ours("ours-float32", "", precision="float32", slow=True),
    Engine(
        "st",
        "sentence-transformers",
        _ST,
        "float32",
        environments.SENTENCE_TRANSFORMERS,
        {"backend": "torch"},
        default_batch=32,
        slow=True,
    ),
    Engine(
        "st-best",
        "sentence-transformers",
        _ST,
        BEST,
        environments.SENTENCE_TRANSFORMERS,
        {"backend": "torch"},
        default_batch=32,
    ),
    Engine(
        "st-openvino",
        "sentence-transformers, OpenVINO",
        _ST,
        BEST,
        environments.OPENVINO,
        {"backend": "openvino"},
        default_batch=32,
        devices=_CPU,
    ),
    Engine(
        "st-onnx",
        "sentence-transformers, ONNX",
        _ST,
        "float32",
        environments.ONNX,
        {"backend": "onnx"},
        default_batch=32,
        devices=_CPU,
        slow=True,
    ),
    Engine("flag", "FlagReranker 1.3", _FLAG, "float32", _FLAG_REFERENCE, default_batch=128, slow=True),
    Engine("flag-best", "FlagReranker 1.3", _FLAG, BEST, _FLAG_REFERENCE, default_batch=128),
    Engine(
        "flag-new",
        "FlagReranker 1.4",
        _FLAG,
        "float32",
        environments.FLAG_NEWEST,
        default_batch=128,
        slow=True,
    ),
    Engine("flag-new-best", "FlagReranker 1.4", _FLAG, BEST, environments.FLAG_NEWEST, default_batch=128),
    Engine("openvino", "OpenVINO, sorted batches", _OV, BEST, environments.OPENVINO, devices=_CPU),
    Engine(
        "openvino-streams",
        "OpenVINO, sorted batches, a stream a core",
        _OV,
        BEST,
        environments.OPENVINO,
        {"streams": True},
        devices=_CPU,
    ),
    Engine(
        "openvino-float32",
        "OpenVINO, sorted batches",
        _OV,
        "float32",
        environments.OPENVINO,
        devices=_CPU,
        slow=True,
        counterpart="ours-float32",
    ),
    Engine(
        "openvino-int8",
        "OpenVINO, sorted batches",
        _OV,
        "int8",
        environments.OPENVINO,
        devices=_CPU,
        counterpart="ours-int8",
    ),
    Engine("tei", "text-embeddings-inference", "http_peer.py", "server", default_batch=32, server=True),
    Engine("infinity", "infinity", "http_peer.py", "server", default_batch=32, server=True),
    Engine("vllm", "vLLM score", "http_peer.py", "server", default_batch=32, server=True),
)
ENGINES = {engine.name: engine for engine in _ENGINES}
DEFAULT = {
    "cpu": "ours,st,st-best,st-openvino,st-onnx,flag,flag-best,openvino,openvino-streams",
    "cuda": "ours,st,st-best,flag,flag-best,tei,infinity,vllm",
}


class UnknownEngineError(ValueError):
    """A name that is no engine's."""


def chosen(names: str, device: str) -> list[Engine]:
    """The engines of a comma-separated list; "default" and "all" are lists too. Raises UnknownEngineError."""
    listed = {"default": DEFAULT[device.partition(":")[0]], "all": ",".join(ENGINES)}.get(names, names)
    engines = []
    for name in dict.fromkeys(part.strip() for part in listed.split(",") if part.strip()):
        if name not in ENGINES:
            raise UnknownEngineError(f"there is no engine {name!r}; there are {', '.join(ENGINES)}")
        engines.append(ENGINES[name])
    return engines


def why_not(engine: Engine, device: str, precision: str, urls: Mapping[str, str]) -> str | None:
    """Why an engine cannot run here; None where it can."""
    kind = device.partition(":")[0]
    if kind not in engine.devices:
        return f"runs on {', '.join(engine.devices)} only"
    if engine.server and engine.name not in urls:
        return f"needs a server: --url {engine.name}=http://…"
    if engine.precision == BEST and precision == "float32" and f"{engine.name}" in ("st-best", "flag-best"):
        return "the best precision here is float32, which is the default's row"
    return None
