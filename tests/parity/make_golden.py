# Copyright 2026 The jaxkv authors.
# SPDX-License-Identifier: Apache-2.0
"""Writes golden.npz with transformers on torch; the tests read it where there is no torch.

pip install torch==2.13.0 && python tests/parity/make_golden.py
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import family_models
import hugging_face
import numpy as np
import reference

from jaxkv.checkpoints.sources import load
from jaxkv.generate.prompts import prompt_ids


def main() -> None:
    golden: dict[str, np.ndarray] = {}
    with tempfile.TemporaryDirectory() as folder:
        for scaling in reference.SCALINGS:
            path = reference.write_tiny(Path(folder) / scaling, scaling)
            model = hugging_face.folder(path)
            golden[f"tiny-{scaling}"] = hugging_face.logits(model, reference.tiny_tokens())[:, ::9]
        for family in reference.FAMILIES:
            path = reference.write_tiny(Path(folder) / family, "plain", family=family)
            model = hugging_face.folder(path)
            golden[f"tiny-{family}"] = hugging_face.logits(model, reference.tiny_tokens())[:, ::9]
        for name in family_models.FAMILIES:
            model = hugging_face.folder(
                family_models.write_family(Path(folder) / "new" / name, name)
            )
            tokens = reference.tiny_tokens()
            golden[f"family-{name}"] = hugging_face.logits(model, tokens)[:, ::25]
            row = tokens[0, :40].tolist()
            golden[f"family-{name}-greedy"] = np.array(hugging_face.greedy(model, row, 32))
    ours = load("smollm2-135m-instruct")
    from jaxkv.checkpoints import download

    gguf = download.cached_smollm2()
    assert gguf is not None
    theirs = hugging_face.smollm2(gguf)
    rows = []
    for ids in reference.texts(ours.tokenizer.encode):
        whole = hugging_face.logits(theirs, [ids])[0]
        positions = reference.POSITIONS[reference.POSITIONS < len(ids)]
        rows.append(whole[np.ix_(positions, reference.COLUMNS)])
    for i, row in enumerate(rows):
        golden[f"smollm2-logits-{i}"] = row
    for i, prompt in enumerate(reference.PROMPTS):
        ids = prompt_ids(ours, prompt)
        golden[f"smollm2-greedy-{i}"] = np.array(hugging_face.greedy(theirs, ids, 64))
    np.savez_compressed(reference.GOLDEN, **golden)


if __name__ == "__main__":
    main()
