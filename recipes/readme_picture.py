"""Makes docs/images/what-it-does.png with the bundled models: `python -m recipes.readme_picture`.

The pictures are scenes that no training drew, chosen by fixed seeds.
"""

from pathlib import Path

import numpy as np
from PIL import Image

from codi_hub.evaluate.depth import held_out_scenes
from codi_hub.evaluate.sheets import sheet
from codi_hub.hub import Hub
from codi_hub.tasks.degradation import degrade_once

OUT = Path("docs") / "images" / "what-it-does.png"
SIZE = 256
STEPS = 4


def main() -> None:
    rows = []
    with Hub.open() as hub:
        base, adapter, row = hub.use("superres")
        task = hub.load_task(row.task)
        generate = hub.generator(base, adapter)
        for k, example in enumerate(held_out_scenes(3, SIZE)):
            small = degrade_once(example["image"], 4, 1.2, 5.0, 75, np.random.default_rng(k))
            prepared = task.prepare(Image.fromarray(small))
            (output,) = generate([prepared.condition], [""], [k], STEPS)
            bicubic = np.asarray(Image.fromarray(small).resize((SIZE, SIZE), Image.Resampling.BICUBIC))
            rows.append([small, bicubic, task.finish(output, prepared), example["image"]])
        base, adapter, row = hub.use("depth")
        task = hub.load_task(row.task)
        generate = hub.generator(base, adapter)
        for k, example in enumerate(held_out_scenes(5, 128)[3:]):
            prepared = task.prepare(example["depth"])
            outputs = generate([prepared.condition] * 2, [example["caption"]] * 2, [k, k + 100], STEPS)
            rows.append([prepared.condition, *(task.finish(output, prepared) for output in outputs), example["image"]])
    columns = ("input", "bicubic | depth, seed 1", f"superres, {STEPS} steps | depth, seed 2", "original scene")
    OUT.parent.mkdir(parents=True, exist_ok=True)
    sheet(rows, columns=columns, width=192).save(OUT, optimize=True)
    print(OUT)


if __name__ == "__main__":
    main()
