"""Networks in GGUF, as they are published: weights of linear layers quantised, the others in float32."""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor


def write_gguf(path: Path, tensors: Mapping[str, Tensor], kind: str = "Q8_0", block: int = 32) -> Path:
    """Write tensors, matrices whose rows are whole blocks in a GGUF type."""
    import gguf

    quantised = gguf.GGMLQuantizationType[kind]
    writer = gguf.GGUFWriter(str(path), "diffusion")
    for name, value in tensors.items():
        array = value.float().numpy()
        if array.ndim == 2 and array.shape[1] % block == 0:
            writer.add_tensor(name, gguf.quants.quantize(array, quantised), raw_dtype=quantised)
        else:
            writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
