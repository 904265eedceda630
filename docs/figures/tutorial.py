"""The pictures of docs/tutorial.md and docs/kl_pictures.md: `PYTHONPATH=. python docs/figures/tutorial.py FOLDER`.

Runs the tutorial's own code at full size in FOLDER, then the runs that show how pictures look when something is wrong.
"""

import os
import re
import shutil
import sys
from pathlib import Path

DOCS = Path(__file__).resolve().parents[1]
IMAGES = DOCS / "images"


def main(folder):
    Path(folder).mkdir(parents=True)
    os.chdir(folder)
    names = {}
    for block in re.findall(r"^```python\n(.*?)^```", (DOCS / "tutorial.md").read_text(), re.MULTILINE | re.DOTALL):
        exec(block, names)
    shutil.copy("runs/water/kl_share.png", IMAGES / "tutorial_kl_share.png")
    shutil.copy("comparisons/shares/learning_curves.png", IMAGES / "tutorial_curves.png")
    print(Path("comparisons/shares/comparison.md").read_text())
    train, env, settings = names["marl_kl"].train, names["env"], names["settings"]
    for name, algorithm, changes in (
        ("greedy", "hatrpo_g", {}),
        ("natural", "hatrpo_n", {}),
        ("too_large", "hatrpo_w", {"kl_budget": 4.0}),
    ):
        train(env, algorithm, out=f"runs/{name}", **{**settings, **changes})
        shutil.copy(f"runs/{name}/kl_share.png", IMAGES / f"kl_share_{name}.png")


if __name__ == "__main__":
    main(sys.argv[1])
