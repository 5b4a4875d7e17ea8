"""What an examination found: plain values, picklable, ready for JSON; nothing here measures or prints."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class DeviceFacts:
    """The device that scores, and whether this torch build has code for it.

    `name`: the card's or processor's own; `capability`: "sm_90", or what a processor multiplies fast in; memory in
    bytes, None where the system does not tell; `driver` and `cuda`: of NVIDIA's driver and of the torch build.
    `remedy` is a sentence where something is amiss: always where not `supported`.
    """

    device: str
    name: str
    capability: str
    threads: int
    memory_total_bytes: int | None
    memory_free_bytes: int | None
    driver: str | None
    cuda: str | None
    supported: bool
    remedy: str | None


@dataclass(frozen=True)
class Exactness:
    """How far a backend's logits are from those of the float32 transformers forward on the same inputs.

    `longest`: tokens of the longest sequence; `largest` and `rms`: of |Δlogit| where both are finite;
    `worst_tokens`: length of the sequence with the largest. `expected_rms`: what transformers' own modules err in the
    same 16 bits, None in other precisions; `allowed`: what `largest` may be, None where it is not judged.
    `kendall_tau`: the mean over queries of real texts; `least_tau`: what it may be, None where it is not judged.
    `swaps`: pairs of candidates in the wrong order though their float32 logits differ by more than 6 × rms;
    `allowed_swaps`: how many there may be. `not_finite`: logits that are NaN or infinite; `expected_not_finite`: how
    many of them are so in transformers' 16 bits too. `failure`: a sentence, or None where the check is passed.
    """

    inputs: str
    precision: str
    sequences: int
    longest: int
    largest: float
    rms: float
    worst_tokens: int
    expected_rms: float | None
    allowed: float | None
    kendall_tau: float | None
    least_tau: float | None
    swaps: int
    allowed_swaps: int
    not_finite: int
    expected_not_finite: int
    failure: str | None

    @property
    def judged(self) -> bool:
        """Whether there is a limit that the errors could exceed."""
        return self.allowed is not None or self.least_tau is not None


@dataclass(frozen=True)
class Speed:
    """`tokens_per_second` through the model on `sequences` of realistic lengths, `mean_tokens` in the mean.

    `product_rate`: FLOP/s of the layers' matrix products alone, `rows` rows each; `share`: how much of it the
    necessary operations of the model reach.
    """

    tokens_per_second: float
    sequences: int
    mean_tokens: float
    product_rate: float
    rows: int
    share: float


@dataclass(frozen=True)
class Memory:
    """`predicted_bytes`: by the backend, None where it does not predict; `peak_bytes`: while it ran at full batches.

    `measured`: how the peak was read.
    """

    predicted_bytes: int | None
    peak_bytes: int | None
    measured: str


@dataclass(frozen=True)
class TokenizerSpeed:
    """`tokens_per_second_per_core` on the demo's texts, in a call with so many `threads` that was divided by them.

    `cores_needed`: pairs that share a passage → cores that tokenise as fast as the device scores, each distinct
    passage being tokenised once.
    """

    tokens_per_second_per_core: float
    texts: int
    threads: int
    cores_needed: dict[int, float]


@dataclass(frozen=True)
class DoctorReport:
    """What `examine` found on one device. Measurements are None, and `exactness` empty, where it cannot compute."""

    host: str
    versions: dict[str, str]
    device: DeviceFacts
    model: dict[str, Any]
    backend: dict[str, Any]
    exactness: tuple[Exactness, ...]
    speed: Speed | None
    memory: Memory | None
    tokenizer: TokenizerSpeed | None
    seconds: float

    @property
    def failures(self) -> tuple[str, ...]:
        """What is wrong, as sentences; empty where all is well."""
        unsupported = () if self.device.supported else (self.device.remedy or "the device is not supported",)
        return (*unsupported, *(check.failure for check in self.exactness if check.failure))

    @property
    def passed(self) -> bool:
        """Whether this device may be trusted with scores."""
        return not self.failures

    def to_dict(self) -> dict[str, Any]:
        """Plain values with `passed` and `failures` first."""
        return {"passed": self.passed, "failures": list(self.failures), **asdict(self)}


@dataclass(frozen=True)
class Answer:
    """What one task of a cluster's examination has to say.

    `executor`: host and process of the executor it ran in; `report`: of a device that this task examined, None where
    others had taken all of them, or where `error`, a sentence, came instead.
    """

    host: str
    executor: str
    device: str | None
    report: DoctorReport | None
    error: str | None


@dataclass(frozen=True)
class ClusterReport:
    """Every device of a session's executors; `executors_known`: how many it has."""

    answers: tuple[Answer, ...]
    executors_known: int

    @property
    def reports(self) -> tuple[DoctorReport, ...]:
        """One for each device, by host and device."""
        found = [answer.report for answer in self.answers if answer.report]
        return tuple(sorted(found, key=lambda report: (report.host, report.device.device)))

    @property
    def executors_by_host(self) -> dict[str, int]:
        """Host → how many of its executors answered."""
        found = {(answer.host, answer.executor) for answer in self.answers}
        hosts = sorted({host for host, _ in found})
        return {host: sum(1 for there, _ in found if there == host) for host in hosts}

    @property
    def coverage(self) -> str:
        """Who answered, as a sentence."""
        hosts = ", ".join(f"{host} ({count})" for host, count in self.executors_by_host.items()) or "nobody"
        answered = sum(self.executors_by_host.values())
        missing = self.executors_known - answered
        rest = f"; {missing} did not get a task and are not examined" if missing > 0 else ""
        return f"{answered} of {max(answered, self.executors_known)} executors answered: {hosts}{rest}"

    @property
    def failures(self) -> tuple[str, ...]:
        """What is wrong, as sentences that begin with host and device; empty where all is well."""
        found = [
            f"{report.host} {report.device.device}: {failure}"
            for report in self.reports
            for failure in report.failures
        ]
        broken = [
            f"{answer.host} {answer.device or answer.executor}: {answer.error}"
            for answer in self.answers
            if answer.error
        ]
        nothing = [] if found or broken or self.reports else ["no executor examined a device"]
        return (*found, *broken, *nothing)

    @property
    def passed(self) -> bool:
        """Whether every device that was examined may be trusted with scores."""
        return not self.failures

    def to_dict(self) -> dict[str, Any]:
        """Plain values with `passed` and `failures` first."""
        return {
            "passed": self.passed,
            "failures": list(self.failures),
            "executors_known": self.executors_known,
            "executors_by_host": self.executors_by_host,
            "reports": [report.to_dict() for report in self.reports],
        }
