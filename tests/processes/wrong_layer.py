"""An island whose second layer computes wrong, for the doctor to find; the reference is sound."""

from collections.abc import Sequence

from atoll.modeling.decoder import Decoder
from atoll.training.island import Island, run_island


class WrongLayer(Island):
    """Scales the feed-forward part of layer 1 by one per cent."""

    def _bare_decoder(self) -> Decoder:
        decoder = super()._bare_decoder()
        decoder.blocks[1].ffn.register_forward_hook(lambda _module, _args, output: output * 1.01)
        return decoder


def main(argv: Sequence[str]) -> int:
    """As `atoll island`; the one named "subject" is wrong."""
    return run_island(argv, WrongLayer if "subject" in argv else Island)
