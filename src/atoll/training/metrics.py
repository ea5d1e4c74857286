"""The scalars of a run as TensorBoard event files, written without torch or TensorFlow.

A convenience for people: the ledger is the record of a run. Nothing here may stop one, so where
the files cannot be written (a full disk) that is said once and the run goes on without them.
"""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self


class Metrics:
    """Appends scalars to one new event file in `folder`; several files there form one run.

    With `first_step`, the first step that will be recorded, TensorBoard drops the points of an
    earlier attempt from there on, so that a resumed run shows one line. `report` is told, once,
    when the files cannot be written. Each call hands its values
    to the kernel before it returns; there is no thread.
    """

    def __init__(
        self,
        folder: Path,
        *,
        first_step: int | None = None,
        report: Callable[[str], None] | None = None,
    ) -> None:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog, SourceMetadata
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._event: Any = Event
        self._summary: Any = Summary
        self._report = report
        self._records: Any = None
        # TensorBoard reads the files of a folder in the order of their names.
        name = f"events.out.tfevents.{time.time_ns():020d}.{os.getpid()}"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._records = RecordWriter((folder / name).open("xb"))
        except OSError as error:
            self._give_up(error)
        source = SourceMetadata(writer="atoll")
        self._add(file_version="brain.Event:2", source_metadata=source)
        if first_step is not None:
            self._add(step=first_step, session_log=SessionLog(status=SessionLog.START))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        _type: type[BaseException] | None,
        error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        self.close()

    def record(
        self,
        step: int,
        *,
        loss: float | None = None,
        val_loss: float | None = None,
        bits_per_byte: float | None = None,
        grad_norm: float | None = None,
        lr: float | None = None,
        tokens_per_second: float | None = None,
        shares: Mapping[str, float] | None = None,
        speeds: Mapping[str, float] | None = None,
    ) -> None:
        """Record what is known of `step`: losses in nats a token, `shares` in grains and `speeds`
        in grains a second by island. None and values that are not finite are left out."""
        single = {
            "loss": loss,
            "val_loss": val_loss,
            "bits_per_byte": bits_per_byte,
            "grad_norm": grad_norm,
            "lr": lr,
            "tokens_per_second": tokens_per_second,
        }
        values = {name: value for name, value in single.items() if value is not None}
        values |= {f"share/{island}": value for island, value in (shares or {}).items()}
        values |= {f"speed/{island}": value for island, value in (speeds or {}).items()}
        self._write(step, values)

    def close(self) -> None:
        """Close the file. Idempotent; nothing can be recorded afterwards."""
        records, self._records = self._records, None
        if records is not None:
            with contextlib.suppress(OSError):
                records.close()

    def _write(self, step: int, values: Mapping[str, float]) -> None:
        summary = self._summary()
        for name, value in values.items():
            if math.isfinite(value):
                summary.value.add(tag=name, simple_value=float(value))
        self._add(step=step, summary=summary)

    def _add(self, **fields: Any) -> None:
        if self._records is None:
            return
        event = self._event(wall_time=time.time(), **fields)
        try:
            self._records.write(event.SerializeToString())
            self._records.flush()
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        self.close()
        if self._report is not None:
            self._report(f"metrics for TensorBoard are no longer written: {error}")
