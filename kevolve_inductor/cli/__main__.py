"""``python -m kevolve_inductor.cli``, for where no script was installed."""

from . import main

raise SystemExit(main())
