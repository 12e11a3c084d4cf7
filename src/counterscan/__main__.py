"""``python -m counterscan``, for where scripts are not on the path."""

from counterscan.cli.main import main

raise SystemExit(main())
