"""OpenVINO over length-sorted, padded batches: what a careful user builds with the library alone.

The graph is transformers' own model, exported with dynamic shapes by optimum-intel and kept in the model folder.
int8 is NNCF's static post-training quantisation, calibrated on another sample of pairs.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
from worker import Pairs, Scored, serve, sorted_batches, threads, versions


class PaddedOpenVino:
    """Tokenise the pairs, sort by length, pad to the longest of a batch, infer."""

    def load(self, settings: dict[str, Any]) -> dict[str, Any]:
        import openvino
        from tokenizers import Tokenizer

        folder = Path(settings["model"])
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.tokenizer.no_padding()
        self.tokenizer.enable_truncation(settings["max_length"], strategy="only_second")
        self.pad = json.loads((folder / "config.json").read_text("utf-8")).get("pad_token_id", 1)
        int8 = settings["precision"] == "int8"
        graph = self._graph(folder, settings["calibration"] if int8 else None)
        hint = "f32" if settings["precision"] == "float32" else "bf16"
        self.streams = threads() if settings.get("streams") else 1
        options = {
            "INFERENCE_PRECISION_HINT": hint,
            "INFERENCE_NUM_THREADS": threads(),
            "NUM_STREAMS": self.streams,
        }
        compiled = openvino.Core().compile_model(str(graph), "CPU", options)
        self.queue = openvino.AsyncInferQueue(compiled, self.streams)
        return {
            "versions": versions("openvino", "nncf", "optimum-intel", "transformers", "tokenizers"),
            "precision": f"int8, {hint} between" if int8 else settings["precision"],
            "streams": self.streams,
        }

    def score(self, pairs: Pairs, batch_size: int | None) -> Scored:
        rows = [encoding.ids for encoding in self.tokenizer.encode_batch(pairs)]
        start = time.perf_counter()
        logits = np.full(len(rows), np.nan, np.float32)
        computed = 0

        def keep(request: Any, batch: list[int]) -> None:
            logits[batch] = request.get_output_tensor(0).data.reshape(-1)

        self.queue.set_callback(keep)
        for batch in sorted_batches([len(row) for row in rows], batch_size or 32):
            inputs = padded([rows[row] for row in batch], self.pad)
            computed += inputs["input_ids"].size
            self.queue.start_async(inputs, batch)
        self.queue.wait_all()
        return Scored(logits, time.perf_counter() - start, computed)

    def _graph(self, folder: Path, calibration: str | None) -> Path:
        import openvino

        place = folder / f"openvino-{openvino.__version__.split('-')[0]}"
        target = place / ("int8.xml" if calibration else "float.xml")
        if not target.is_file():
            place.mkdir(exist_ok=True)
            model = self._quantised(folder, calibration) if calibration else converted(folder)
            scratch = place / f"new-{target.name}"
            openvino.save_model(model, scratch, compress_to_fp16=True)
            scratch.with_suffix(".bin").rename(target.with_suffix(".bin"))
            scratch.rename(target)
        return target

    def _quantised(self, folder: Path, calibration: str) -> Any:
        import nncf
        import openvino

        pairs = [tuple(pair) for pair in json.loads(Path(calibration).read_text("utf-8"))]
        items = [padded([encoding.ids], self.pad) for encoding in self.tokenizer.encode_batch(pairs)]
        return nncf.quantize(
            openvino.Core().read_model(self._graph(folder, None)),
            nncf.Dataset(items),
            model_type=nncf.ModelType.TRANSFORMER,
            subset_size=len(items),
        )


def padded(rows: list[list[int]], pad: int) -> dict[str, Any]:
    """input_ids and attention_mask: int64 (rows, longest)."""
    ids = np.full((len(rows), max(map(len, rows))), pad, np.int64)
    mask = np.zeros_like(ids)
    for number, row in enumerate(rows):
        ids[number, : len(row)] = row
        mask[number, : len(row)] = 1
    return {"input_ids": ids, "attention_mask": mask}


def converted(folder: Path) -> Any:
    """transformers' sequence classifier as an OpenVINO model of (input_ids, attention_mask) → logits."""
    from optimum.intel import OVModelForSequenceClassification

    # 8-bit weights alone are its default for large models; here a model is either not quantised, or by NNCF
    model = OVModelForSequenceClassification.from_pretrained(
        folder, export=True, compile=False, load_in_8bit=False
    )
    return model.model


if __name__ == "__main__":
    serve(PaddedOpenVino())
