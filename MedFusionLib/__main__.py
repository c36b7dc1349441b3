"""`python -m MedFusionLib`."""

import os

# OpenMP threads that spin between two loops slow down whatever else runs; this must be said before torch loads.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from .cli import main

if __name__ == "__main__":
    main()
