"""The same as `xray reproduce`: python scripts/reproduce.py run_id=ID."""

import sys

from xray_pneumonia.cli import main

sys.argv.insert(1, "reproduce")
sys.exit(main())
