from types import SimpleNamespace

TOOLS = {
    "megatron": SimpleNamespace(backends=["nvidia"]),
    "mindspeed": SimpleNamespace(backends=["ascend"]),
}
