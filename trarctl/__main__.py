"""``python -m trarctl`` is ``trarctl``."""

from __future__ import annotations

from trarctl.cli import main

if __name__ == "__main__":
    main()
