"""What `train` answers with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainResult:
    """Where a run stands after `train`; `exit_code` is 130 after an interruption that saved."""

    run: Path
    step: int
    total_steps: int
    loss: float | None
    val_loss: float | None
    bits_per_byte: float | None
    tokens: int
    tokens_per_second: float
    fingerprint: str
    contract: str
    islands: dict[str, Any]
    exit_code: int = 0

    def json(self) -> dict[str, Any]:
        """The keys of the contract."""
        return {
            "run": str(self.run),
            "step": self.step,
            "loss": self.loss,
            "val_loss": self.val_loss,
            "bits_per_byte": self.bits_per_byte,
            "tokens": self.tokens,
            "tokens_per_second": self.tokens_per_second,
            "fingerprint": self.fingerprint,
            "contract": self.contract,
            "islands": self.islands,
        }
