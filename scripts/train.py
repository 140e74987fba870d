"""The same as `xray train`: python scripts/train.py experiment=notebook_final seed=1."""

import sys

from xray_pneumonia.cli import main

sys.argv.insert(1, "train")
sys.exit(main())
