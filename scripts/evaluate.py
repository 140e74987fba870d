"""The same as `xray evaluate`: python scripts/evaluate.py run_id=ID split=val."""

import sys

from xray_pneumonia.cli import main

sys.argv.insert(1, "evaluate")
sys.exit(main())
