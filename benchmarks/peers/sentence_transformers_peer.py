"""sentence-transformers' CrossEncoder: its torch, OpenVINO and ONNX backends."""

from __future__ import annotations

from typing import Any

import numpy as np
from worker import Pairs, Scored, serve, threads, versions


class SentenceTransformers:
    """CrossEncoder.predict with raw logits."""

    def load(self, settings: dict[str, Any]) -> dict[str, Any]:
        import torch
        from sentence_transformers import CrossEncoder

        torch.set_num_threads(threads())
        self.computed = 0
        backend = settings["backend"]
        self.identity = torch.nn.Identity()
        self.cross = CrossEncoder(
            settings["model"],
            max_length=settings["max_length"],
            device=settings["device"],
            backend=backend,
            model_kwargs=self._model_arguments(backend, settings["precision"]),
        )
        self._count_tokens(self.cross.model)
        names = ("sentence-transformers", "transformers", "tokenizers", "torch", "optimum", "optimum-intel")
        return {
            "versions": versions(*names, "optimum-onnx", "openvino", "onnxruntime"),
            "precision": "its own" if backend == "openvino" else settings["precision"],
        }

    def _model_arguments(self, backend: str, precision: str) -> dict[str, Any]:
        if backend == "openvino":
            return {"ov_config": {"INFERENCE_NUM_THREADS": str(threads())}}
        if backend == "onnx":
            import onnxruntime

            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = threads()
            return {"provider": "CPUExecutionProvider", "session_options": options}
        import torch

        # its own default for a checkpoint stored in float16 may be float16, which is no default of a CPU
        return {"dtype": getattr(torch, precision)}

    def _count_tokens(self, model: Any) -> None:
        """Add up what the model is given, padding included."""
        forward = model.forward

        def counted(*arguments: Any, **named: Any) -> Any:
            ids = named.get("input_ids", arguments[0] if arguments else None)
            if ids is not None:
                self.computed += int(np.prod(ids.shape))
            return forward(*arguments, **named)

        model.forward = counted

    def score(self, pairs: Pairs, batch_size: int | None) -> Scored:
        self.computed = 0
        logits = self.cross.predict(
            pairs,
            batch_size=batch_size or 32,
            activation_fn=self.identity,
            show_progress_bar=False,
        )
        return Scored(np.asarray(logits, np.float32).reshape(-1), computed_tokens=self.computed or None)


if __name__ == "__main__":
    serve(SentenceTransformers())
