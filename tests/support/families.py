"""The tiny checkpoint in all its forms, made once a test session: float, quantized, and a bundle of each."""

from pathlib import Path

import pytest


def tiny_family(factory: pytest.TempPathFactory, checkpoint: Path, data: Path) -> dict[str, Path]:
    """Folders by kind: checkpoint, quantized, bundle-fp32, bundle-w8. Do not change them."""
    from compress.quantize.options import QuantizeOptions
    from compress.quantize.stage import quantize
    from export.stage import export

    folder = factory.getbasetemp() / "family"
    family = {"checkpoint": checkpoint}
    family |= {name: folder / name for name in ("quantized", "bundle-fp32", "bundle-w8")}
    if not folder.exists():
        quantize(str(checkpoint), data, family["quantized"], QuantizeOptions(scheme="w8"))
        export(str(checkpoint), family["bundle-fp32"], data=data)
        export(str(family["quantized"]), family["bundle-w8"], data=data)
    return family
