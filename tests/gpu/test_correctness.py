"""The checks of benchmarks/gpu.py as tests."""

import os
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))  # the script finds the checks here too
import checks

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("check", checks.CHECKS, ids=lambda check: check.__name__)
def test_it_holds_on_this_device(check, tmp_path):
    if check in checks.NEEDS_CUDA and not torch.cuda.is_available():
        pytest.skip("needs a CUDA GPU: torch sees none here")
    if check is checks.compiled_is_eager:
        pytest.importorskip("triton", reason="needs triton, which torch's compiler uses on a GPU")
    shared = Path(os.environ.get("MUDI_SHARED", ROOT.parent / "shared"))
    context = checks.CheckContext(
        tmp_path,
        device="cuda" if torch.cuda.is_available() else "cpu",
        images=shared / "data" / "flowers102_64.tar",
        weights=shared / "weights",
    )
    findings = list(check(context))
    if not findings:
        pytest.skip(f"needs Inception's weights in {shared}/weights (set MUDI_SHARED)")
    assert [f"{f.name}: {f.figure:.3g}, limit {f.limit:g} {f.note}" for f in findings if not f.ok] == []
