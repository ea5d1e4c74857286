"""A real NVIDIA card: the proof, the facts of its kind, and the same grain twice.

Run by itself (`pytest tests/nvidia`), as it settles flags of the whole process. Skipped with a
reason where there is no card.
"""

import hashlib
import os
from collections.abc import Iterator
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="needs torch")

from atoll import backends, facts  # noqa: E402
from atoll.backends import proof  # noqa: E402
from atoll.backends.nvidia import Nvidia  # noqa: E402
from atoll.model import Model  # noqa: E402

pytestmark = [
    pytest.mark.nvidia,
    pytest.mark.skipif(not Nvidia().available(), reason="torch sees no NVIDIA card here"),
]


@pytest.fixture(scope="module")
def card() -> Iterator[Nvidia]:
    """The backend, prepared as a process of chip "nvidia" is: environment first."""
    wanted = facts.chip("nvidia").environment
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    backend = Nvidia()
    backend.prepare(threads=1)
    yield backend
    for name, value in before.items():
        if value is None:
            del os.environ[name]
        else:
            os.environ[name] = value


def test_it_is_picked(card: Nvidia) -> None:
    assert isinstance(backends.here(), Nvidia)
    assert isinstance(backends.of_chip("h20"), Nvidia)
    assert card.num_devices() >= 1 and card.device(0) == torch.device("cuda", 0)
    assert card.collective in ("nccl", "gloo")
    memory = card.memory(0)
    assert memory.total and memory.free and 0 < memory.free <= memory.total


def test_the_card_computes_the_update_exactly(card: Nvidia) -> None:
    assert proof.report(card, card.device(0)) == {}
    assert card.host_update is False


def test_a_division_by_a_scalar_is_what_the_update_must_not_use(card: Nvidia) -> None:
    # Why the rule exists: torch turns it into a product with the rounded inverse on this device.
    x = torch.arange(1, 100_001, dtype=torch.float32)
    exact = x / torch.full_like(x, 3.0)
    on_card = card.host(x.to(card.device(0)) / torch.full_like(x, 3.0).to(card.device(0)))
    assert torch.equal(on_card, exact)


def test_the_facts_of_its_kind(card: Nvidia) -> None:
    found = card.kind_facts()
    assert found["backend"] == "nvidia" and found["device"] == torch.cuda.get_device_name(0)
    assert found["tf32"] is False and found["deterministic"] is True
    assert found["cublas_workspace"] == ":4096:8"
    assert str(found["driver"])[0].isdigit() and str(found["cuda"])[0].isdigit()
    assert found == card.kind_facts()


def _grain(card: Nvidia, model: Model, *, where: Any) -> tuple[float, str]:
    """Loss and a hash of every gradient of one fixed grain."""
    from atoll.modeling import initial
    from atoll.modeling.decoder import Decoder

    decoder = Decoder(model)
    initial.fill(decoder, 1)
    decoder = decoder.to(where)
    assert model.vocab is not None
    tokens = torch.arange(4 * (model.context + 1)).mul(7919).remainder(model.vocab)
    loss = decoder.loss(tokens.view(4, -1).to(where))
    loss.backward()
    whole = hashlib.sha256()
    for name, parameter in decoder.named_parameters():
        assert parameter.grad is not None, name
        whole.update(card.host(parameter.grad).contiguous().numpy().tobytes())
    return float(card.host(loss)), whole.hexdigest()


MODEL = Model(layers=4, width=256, heads=8, kv_heads=4, ffn=512, context=256).with_vocab(4099)


def test_one_grain_has_the_same_bits_each_time(card: Nvidia) -> None:
    first = _grain(card, MODEL, where=card.device(0))
    for _ in range(3):
        # Other work in between: what is in the caches and queues must not matter.
        torch.randn(2048, 2048, device=card.device(0)).square().sum().item()
        assert _grain(card, MODEL, where=card.device(0)) == first


def test_its_loss_is_that_of_the_cpu_up_to_rounding(card: Nvidia) -> None:
    on_card, _ = _grain(card, MODEL, where=card.device(0))
    on_cpu, _ = _grain(card, MODEL, where="cpu")
    assert abs(on_card / on_cpu - 1) < 1e-5
